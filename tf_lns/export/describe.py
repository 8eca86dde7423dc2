"""What a manifest says of a model: its layers, how they are connected, and its formats."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np

from tf_lns import keras_hooks, reference
from tf_lns.config import LNSConfig
from tf_lns.export.names import layer_paths
from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.tree import all_layers


def describe_model(model: keras.Model) -> dict[str, Any]:
    """Name, class, shapes of inputs and outputs, and Keras' own description."""
    return {
        "name": model.name,
        "class": type(model).__name__,
        "inputs": _tensors(model, "inputs"),
        "outputs": _tensors(model, "outputs"),
        "keras_version": keras.__version__,
        "keras": _keras_config(model),
    }


def describe_layers(model: keras.Model) -> list[dict[str, Any]]:
    """Each layer with its path, class, config, formats, and the layers its inputs come from."""
    paths = layer_paths(model)
    inbound: dict[int, list[str]] = {}
    for layer in [model, *all_layers(model)]:
        if keras_hooks.is_graph(layer):
            inbound.update(_inbound(layer, paths))
    described = []
    for layer in all_layers(model):
        entry: dict[str, Any] = {
            "path": paths[id(layer)],
            "name": layer.name,
            "class": type(layer).__name__,
            "config": plain_json(_config(layer)),
            "inputs": inbound.get(id(layer)),
        }
        if isinstance(layer, LNSMixin):
            entry["lns"] = layer.lns_config.get_config()
            entry["activations"] = _activations(layer)
        described.append(entry)
    return described


def plain_json(value: Any) -> Any:
    """A value as JSON can hold it; what it cannot hold, as text."""
    return json.loads(json.dumps(value, default=str))


def _activations(layer: Any) -> list[dict[str, Any]]:
    """Range and scale of each activation; None where every batch has its own."""
    config: LNSConfig = layer.lns_config
    if config.activations is None:
        return []
    if config.activation_scale == "moving":
        ranges = [float(recorded.numpy()) or None for recorded in layer.input_ranges]
    else:
        fixed = config.activation_scale
        ranges = [None if fixed == "batch" else float(fixed)] * layer.recorded_ranges
    return [{"range": r, "scale": _scale(r, config)} for r in ranges]


def _scale(largest: float | None, config: LNSConfig) -> float | None:
    if largest is None:
        return None
    return float(
        reference.scale_of(
            np.float32(largest), config.activations, power_of_two=config.power_of_two_scales
        )
    )


def _tensors(model: keras.Model, which: str) -> list[dict[str, Any]] | None:
    """Inputs or outputs of a Sequential or functional model."""
    if not keras_hooks.is_graph(model):
        return None
    return [
        {"name": x.name, "shape": list(x.shape), "dtype": keras.backend.standardize_dtype(x.dtype)}
        for x in getattr(model, which)
    ]


def _config(layer: keras.layers.Layer) -> Any:
    try:
        return layer.get_config()
    except NotImplementedError:  # a layer of the user's that cannot be saved
        return None


def _keras_config(model: keras.Model) -> Any:
    """What `keras.saving.deserialize_keras_object` makes the model of, None if it cannot."""
    try:
        return plain_json(keras.saving.serialize_keras_object(model))
    except NotImplementedError:
        return None


def _inbound(model: Any, paths: dict[int, str]) -> dict[int, list[str]]:
    """For each layer of a graph, the paths of those whose outputs it takes; inputs by name."""
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    if isinstance(model, keras.Sequential):
        before = [model.inputs[0].name, *(paths[id(layer)] for layer in layers)]
        return {id(layer): [source] for layer, source in zip(layers, before, strict=False)}
    by_name = {layer.name: layer for layer in model.layers}
    found: dict[int, list[str]] = {}
    for entry in model.get_config()["layers"]:
        layer = by_name.get(entry["name"])
        if layer is None or id(layer) not in paths:
            continue
        names = list(dict.fromkeys(_sources(entry.get("inbound_nodes", []))))
        found[id(layer)] = [paths.get(id(by_name.get(name)), name) for name in names]
    return found


def _sources(nodes: Any) -> list[str]:
    """Names of the layers in the description of a layer's calls."""
    if isinstance(nodes, dict):
        if nodes.get("class_name") == "__keras_tensor__":
            return [nodes["config"]["keras_history"][0]]
        nodes = list(nodes.values())
    if isinstance(nodes, list | tuple):
        return [name for node in nodes for name in _sources(node)]
    return []
