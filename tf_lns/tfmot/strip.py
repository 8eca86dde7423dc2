"""From a tf_keras model in LNS to the plain model."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from tf_lns import ops
from tf_lns.ops.call import choice
from tf_lns.tfmot import hooks
from tf_lns.tfmot import weights as integers
from tf_lns.tfmot.graphs import TF_KERAS, rebuilt
from tf_lns.tfmot.quantize_config import LNSQuantizeConfig
from tf_lns.tfmot.wrapper import LNSQuantizeWrapper
from tf_lns.variable import LNSCell, weight_scale


def strip(model: Any, weights: str = "stored") -> Any:
    """The plain tf_keras model behind a model that was trained with tfmot, not compiled.

    Layers have the names that they had before `quantize_apply`, and the weights that the
    integers stand for, to the last bit. With ``weights="seen"`` the predictions are what the LNS
    model predicts where its activations are float (``activations=None``), but for the order of
    float operations; with quantized activations they differ by the effect of Q_A.

    Layers in tfmot's own wrapper have float weights. Those of an `LNSQuantizeConfig` are put on
    the grid that is asked for; of a foreign config they are as they are ("stored"), or as its
    weight quantizers make them ("seen"). Quantizers of activations are dropped.

    Args:
        model: Sequential or functional tf_keras model; it stays as it is.
        weights: "stored" for the values of the stored integers, "seen" for Q_W of them, which
            the forward pass multiplied with.

    Returns:
        A tf_keras model of float32 weights and no trace of tf_lns and tfmot.

    Raises:
        TypeError: `model` is no tf_keras model.
        ValueError: `model` is subclassed, or `weights` is neither word.
    """
    if not isinstance(model, tf_keras.Model):
        raise TypeError(f"`model` must be a tf_keras.Model. Received: model={model!r}")
    seen = choice(weights, "weights", ("stored", "seen")) == "seen"
    partners: list[tuple[Any, Any]] = []

    def plain(layer: Any) -> Any:
        if hooks.is_input_quantizer(layer):
            return None
        partners.append((layer, plain_layer(layer)))
        return partners[-1][1]

    copy = rebuilt(model, plain, TF_KERAS)
    for old, new in partners:
        copy_layer(old, new, seen)
    return copy


def plain_layer(layer: Any) -> Any:
    """A new layer without LNS, with the settings of another, not built."""
    layer = unwrapped(layer)
    if type(layer) is tf_keras.layers.Lambda:  # tf_keras rebuilds no function without a name
        return tf_keras.layers.Lambda(
            layer.function, arguments=dict(layer.arguments), name=layer.name, dtype=layer.dtype
        )
    with hooks.plain_activations(layer):
        return type(layer).from_config(layer.get_config())


def unwrapped(layer: Any) -> Any:
    """What is in a wrapper for quantization; a layer that is in none, itself."""
    return layer.layer if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper) else layer


def copy_layer(old: Any, new: Any, seen: bool) -> None:
    """Copies weights and trainability of a layer, wrapped or not, to its plain partner."""
    wrapped, layer = old is not unwrapped(old), unwrapped(old)
    by_tfmot = wrapped and not isinstance(old, LNSQuantizeWrapper)
    left = _as_tfmot_sees(old, seen) if by_tfmot else []
    for inner, copy in zip(hooks.inner_layers(layer), hooks.inner_layers(new), strict=True):
        copy.trainable = inner.trainable  # of all within, and outer ones come first
        if by_tfmot:
            _copy_displaced(inner, copy, left)
        else:
            _copy_own(inner, copy, seen)


def _copy_own(layer: Any, copy: Any, seen: bool) -> None:
    """Copies what a file would hold: variables and assets such as vocabularies."""
    if hooks.own_variables(layer):
        store: dict[str, Any] = {}
        type(layer).save_own_variables(layer, store)
        for i, variable in enumerate(hooks.own_variables(layer)):
            cell = integers.cell_of(variable)
            if isinstance(cell, LNSCell):
                store[f"{i}"] = cell.read(cell.seen if seen else None).numpy()
        copy.load_own_variables(store)
    copy_assets(layer, copy)


def copy_assets(layer: Any, copy: Any) -> None:
    """Copies what a layer has beside variables, such as a vocabulary."""
    if hasattr(layer, "save_assets") and layer.built:
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)


# --- tfmot's own wrapper ----------------------------------------------------------------------


def _as_tfmot_sees(wrapper: Any, seen: bool) -> list[tuple[Any, np.ndarray]]:
    """The variables that tfmot's wrapper quantizes, and the values asked for."""
    config = wrapper.quantize_config
    found = []
    for variable, quantizer, variables in hooks.quantized_weights(wrapper):
        value = tf.convert_to_tensor(variable)
        if seen:
            value = quantizer(value, False, weights=variables)
        elif isinstance(config, LNSQuantizeConfig):
            storage = config.lns_config.storage
            scale = weight_scale(value.numpy(), storage)
            value = ops.decode(ops.encode(value, scale, storage), scale, storage)
        found.append((variable, value.numpy()))
    return found


def _copy_displaced(layer: Any, copy: Any, quantized: list[tuple[Any, np.ndarray]]) -> None:
    """Copies a layer in whose attributes tfmot has put tensors in the places of variables.

    Args:
        layer: The layer, or one inside it.
        copy: Its plain partner.
        quantized: The variables that are quantized, with the values to be; those found are
            taken out.
    """
    for variable in hooks.own_variables(copy):
        name = hooks.attribute_of(copy, variable)
        present = getattr(layer, name)
        for i, (candidate, value) in enumerate(quantized):
            displaced = not isinstance(present, tf.Variable) and (
                candidate.name.split(":")[0].rsplit("/", 1)[-1] == name
                and candidate.shape == variable.shape
            )
            if candidate is present or displaced:
                variable.assign(value)
                del quantized[i]
                break
        else:
            variable.assign(present)
