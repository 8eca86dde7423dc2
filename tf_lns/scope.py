"""LNS layers where the code says Keras layers."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

from tf_lns import keras_hooks
from tf_lns.config import LNSConfig
from tf_lns.layers.container import convert_alone
from tf_lns.layers.mixin import default_config
from tf_lns.layers.registry import lns_layer_of


@contextlib.contextmanager
def scope(config: LNSConfig | dict | None = None) -> Iterator[None]:
    """Inside, Keras layers are made as LNS layers.

    ``keras.layers.Dense(10)`` gives a `tf_lns.layers.LNSDense`, and so on for every layer that
    `tf_lns` has an LNS layer for. Your own subclasses of such layers, and layers and
    models of yours that make layers, become at the end of the scope what `quantize_model` would
    make of them. Nothing changes for other threads.

    Args:
        config: Formats; None for the defaults.

    Raises:
        TypeError: `config` is no config.

    Example:
        >>> with tf_lns.scope(tf_lns.LNSConfig(gradients="lns5:2")):
        ...     model = keras.Sequential([keras.layers.Dense(10)])
    """
    formats = LNSConfig.get(config)
    made: list[weakref.ref] = []
    with (
        keras_hooks.redirect_new(
            lambda cls: lns_layer_of(cls) or cls, lambda layer: made.append(weakref.ref(layer))
        ),
        default_config(formats),
    ):
        yield
    for reference in made:
        layer = reference()
        if layer is not None:
            convert_alone(layer, formats)
