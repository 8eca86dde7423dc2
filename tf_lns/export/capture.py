"""The products that a model computes for a batch, with the layers that asked for them."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import keras

from tf_lns import keras_hooks
from tf_lns.datapath import Datapath
from tf_lns.layers.container import lns_layers
from tf_lns.layers.mixin import LNSMixin
from tf_lns.ops.recording import ProductCall, listening


@dataclasses.dataclass(frozen=True)
class LayerProduct:
    """A product of a layer.

    Attributes:
        layer: The layer, an LNS layer as a rule; None outside of all layers.
        call: What the op was asked for.
    """

    layer: Any
    call: ProductCall


def products_of(model: keras.Model, batch: Any) -> list[LayerProduct]:
    """Calls a model eagerly on a batch; returns its products in their order."""
    found: list[LayerProduct] = []
    running: list[Any] = []
    thread = threading.get_ident()

    @contextlib.contextmanager
    def entered(layer: Any) -> Iterator[None]:
        if threading.get_ident() != thread or not isinstance(layer, LNSMixin):
            yield
            return
        running.append(layer)
        try:
            yield
        finally:
            running.pop()

    def listener(call: ProductCall) -> None:
        found.append(LayerProduct(running[-1] if running else None, call))

    calls = [(keras.layers.Layer, "__call__")]
    with keras_hooks.around_methods(calls, entered), listening(listener):
        model(batch, training=False)
    return found


@contextlib.contextmanager
def on_datapath(model: keras.Model, datapath: Datapath | None) -> Iterator[dict[int, str]]:
    """Inside, the layers of a model compute on a datapath; None is that of each layer's config.

    Yields:
        Why a layer does not, by its id.
    """
    layers = lns_layers(model)
    configs = [layer.lns_config for layer in layers]
    reasons: dict[int, str] = {}
    try:
        for layer, config in zip(layers, configs, strict=True):
            wanted = config.datapath if datapath is None else datapath
            if wanted is None:
                reasons[id(layer)] = "its config has no datapath"
                continue
            try:
                layer.lns_config = config.replace(datapath=wanted)
                layer.check_datapath(layer.lns_config, layer.name)
            except ValueError as error:
                layer.lns_config = config.replace(datapath=None)
                reasons[id(layer)] = str(error)
        yield reasons
    finally:
        for layer, config in zip(layers, configs, strict=True):
            layer.lns_config = config
