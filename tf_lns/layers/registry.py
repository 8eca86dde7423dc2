"""Which LNS layer stands for which Keras layer. A new layer is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import keras

_LNS_LAYERS: dict[type, type[Any]] = {}

T = TypeVar("T", bound=type)


def register_layer(keras_class: type) -> Callable[[T], T]:
    """Class decorator: the decorated layer is what `quantize_model` makes of `keras_class`.

    It also registers the class for saving, under the package "tf_lns".

    Args:
        keras_class: A `keras.layers.Layer` subclass, matched exactly.

    Raises:
        TypeError: `keras_class` is no layer class, or the decorated class does not derive
            from it.
    """
    if not (isinstance(keras_class, type) and issubclass(keras_class, keras.layers.Layer)):
        raise TypeError(f"`keras_class` must be a Keras layer class. Received: {keras_class!r}")

    def register(lns_class: T) -> T:
        if not (isinstance(lns_class, type) and issubclass(lns_class, keras_class)):
            raise TypeError(
                f"The LNS layer must derive from {keras_class.__name__}. Received: {lns_class!r}"
            )
        _LNS_LAYERS[keras_class] = lns_class
        return keras.saving.register_keras_serializable(package="tf_lns")(lns_class)

    return register


def lns_layer_for(layer: keras.layers.Layer) -> type[Any] | None:
    """The LNS class that stands for a layer's class, or None."""
    return _LNS_LAYERS.get(type(layer))


def keras_layer_for(layer: keras.layers.Layer) -> type[Any] | None:
    """The Keras class that an LNS layer stands for, or None."""
    for keras_class, lns_class in _LNS_LAYERS.items():
        if type(layer) is lns_class:
            return keras_class
    return None
