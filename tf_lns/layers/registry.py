"""Which LNS layer stands for which Keras layer. A new layer is one entry here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import keras

from tf_lns import keras_hooks

CONTAINER = "tf_lns>LNSContainer"
"""Registered name under which layers with converted layers inside are saved."""

OWN_ARGUMENTS = ("lns_config", "lns_overrides")
"""What an LNS layer's constructor and config have beyond the Keras layer's."""

KINDS_KEY = "integer_weights"
"""What an LNS layer's build config has beyond the Keras layer's."""

_OF_CLASS = ("module", "class_name", "config", "registered_name")

_ADDED_BY_KERAS = ("name", "trainable", "dtype")

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


def lns_layer_of(keras_class: type) -> type[Any] | None:
    """The LNS class that stands for a Keras class, or None."""
    return _LNS_LAYERS.get(keras_class)


def keras_class_of(lns_class: type) -> type[Any] | None:
    """The Keras class that an LNS class stands for, or None."""
    for keras_class, registered in _LNS_LAYERS.items():
        if lns_class is registered:
            return keras_class
    return vars(lns_class).get("_plain_class")  # a class that is made when it is needed


def plain_class(layer: keras.layers.Layer) -> type[Any]:
    """A layer's class without LNS."""
    return keras_class_of(type(layer)) or type(layer)


def plain_config(config: Any) -> Any:
    """A config of Keras in which plain Keras layers stand where LNS layers stood.

    Args:
        config: What `get_config` or `serialize_keras_object` returned, or part of it.
    """
    if isinstance(config, list | tuple):
        return type(config)(plain_config(item) for item in config)
    if not isinstance(config, dict):
        return config
    name = config.get("registered_name")
    if name == CONTAINER:
        rest = {k: v for k, v in config.items() if k not in _OF_CLASS}
        return plain_config({**rest, **config["config"]["layer"]})
    lns_class = keras.saving.get_registered_object(name) if isinstance(name, str) else None
    keras_class = keras_class_of(lns_class) if lns_class is not None else None
    if keras_class is None:
        return {key: plain_config(value) for key, value in config.items()}
    inner = {k: v for k, v in config["config"].items() if k not in OWN_ARGUMENTS}
    rest = {k: plain_config(v) for k, v in config.items() if k not in _OF_CLASS}
    if "build_config" in rest:
        rest["build_config"] = plain_build_config(rest["build_config"])
    return {**rest, **keras_hooks.serialized_class(keras_class, plain_config(inner))}


def accepted(class_: type, config: dict[str, Any]) -> dict[str, Any]:
    """A layer's config without what Keras adds to it and the layer's constructor cannot take.

    A subclassed model whose constructor has no ``**kwargs`` takes no `trainable` and `dtype`.
    """
    parameters = inspect.signature(class_).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return config
    return {k: v for k, v in config.items() if k in parameters or k not in _ADDED_BY_KERAS}


def plain_build_config(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """A build config without what LNS layers add to it."""
    return None if config is None else {k: v for k, v in config.items() if k != KINDS_KEY}
