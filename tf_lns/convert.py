"""From a plain Keras model to an LNS model and back, and the calibration between."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns.config import LNSConfig
from tf_lns.layers.mixin import LNSMixin, calibration, float_build
from tf_lns.layers.registry import keras_layer_for, lns_layer_for
from tf_lns.roles import multiplies_activations
from tf_lns.variable import LNSVariable, stored_reads

Overrides = Mapping[str, LNSConfig | dict | None] | Callable[[keras.layers.Layer], Any] | None


def quantize_model(
    model: keras.Model,
    config: LNSConfig | dict | None = None,
    overrides: Overrides = None,
) -> keras.Model:
    """An LNS copy of a Sequential or functional model.

    Layers keep their names, their weights (each integer weight's scale is chosen from its
    values, so none is clipped), their topology and sharing; nested models are converted too.
    Compiled models are compiled alike, with a fresh optimizer. Normalisation, softmax and
    biases stay float32, as does what `tf_lns` has no LNS layer for, which a warning lists.

    Args:
        model: The model; it stays as it is.
        config: Formats; None for the defaults.
        overrides: Per layer: a dict from name patterns (regular expressions, matched against
            the whole layer name) to configs, or a function of the layer. None in place of a
            config leaves the layer float. A function may return `config` itself.

    Returns:
        The LNS model.

    Raises:
        TypeError: `model` is no Keras model, or an override is no config.
        ValueError: `model` is neither Sequential nor functional; or a pattern of `overrides`
            is no regular expression, or matches no layer.

    Example:
        >>> lns = quantize_model(model, LNSConfig(gradients="lns5:2"), {"head": None})
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    _check_cloneable(model)
    config = LNSConfig.get(config)
    choose = _chooser(config, overrides, model)
    float_layers: list[str] = []

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, LNSMixin):
            wanted = choose(layer, layer.lns_config)
            target = type(layer)
        else:
            wanted, target = choose(layer, config), lns_layer_for(layer)
        if wanted is None:
            return _plain_clone(layer)
        if target is None:
            if _has_kernel(layer):
                float_layers.append(f"{layer.name} ({type(layer).__name__})")
            return _plain_clone(layer)
        settings = layer.get_config()
        settings["lns_config"] = wanted
        return target.from_config(settings)

    with float_build():
        clone = keras.models.clone_model(model, clone_function=convert, recursive=True)
    _copy_state(model, clone)
    for layer in _layers(clone):
        if isinstance(layer, LNSMixin) and layer.built:
            layer.convert_variables()
    if float_layers:
        warnings.warn(
            "These layers have weights but no LNS layer stands for them; they stay float32: "
            f"{', '.join(float_layers)}. See `tf_lns.layers.register_layer`, or name them in "
            "`overrides` with None to say that this is meant.",
            stacklevel=2,
        )
    return clone


def strip(model: keras.Model, weights: str = "stored") -> keras.Model:
    """The plain Keras model behind an LNS model.

    Args:
        model: Model from `quantize_model`, or built of LNS layers; it stays as it is.
        weights: "stored" for the values of the stored integers, "seen" for Q_W of them, which
            the forward pass multiplied with.

    Returns:
        A Keras model of float32 weights and no trace of tf_lns.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: `model` is neither Sequential nor functional, or `weights` is neither word.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    if weights not in ("stored", "seen"):
        raise ValueError(f'`weights` must be "stored" or "seen". Received: weights={weights!r}')
    _check_cloneable(model)

    def plain(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not isinstance(layer, LNSMixin):
            return _plain_clone(layer)
        settings = layer.get_config()
        settings.pop("lns_config")
        target = keras_layer_for(layer)
        if target is None:
            raise ValueError(
                f"No Keras layer is known for {type(layer).__name__} (layer {layer.name!r}); "
                "register the class with `tf_lns.layers.register_layer`."
            )
        return target.from_config(settings)

    clone = keras.models.clone_model(model, clone_function=plain, recursive=True)
    _copy_state(model, clone, seen=weights == "seen")
    return clone


def calibrate(
    model: keras.Model,
    data: Any,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int = 1,
) -> keras.Model:
    """Records the range of every layer's activations from data, without training.

    Afterwards, and after training, predictions do not depend on the batch they come in.

    Args:
        model: Model with LNS layers.
        data: Input array, or tuple or dict of arrays as the model takes them; or an iterable
            of batches (`tf.data.Dataset`, `keras.utils.PyDataset`, generator), where of a
            tuple batch the first element is the input.
        batch_size: For arrays.
        steps: Number of batches at most.
        verbose: 1 for a progress bar, 0 for none.

    Returns:
        `model`.

    Raises:
        ValueError: `model` has no LNS layer with a recorded range, or `data` is empty.
    """
    ranges = [
        r for layer in _layers(model) if isinstance(layer, LNSMixin) for r in layer.input_ranges
    ]
    unbuilt = any(isinstance(layer, LNSMixin) and not layer.built for layer in _layers(model))
    if not ranges and not unbuilt:
        raise ValueError(
            "`model` has no layer that records ranges. Received: a model of "
            f"{len(list(_layers(model)))} layers; convert it with tf_lns.quantize_model and "
            'activation_scale="moving".'
        )
    for recorded in ranges:
        recorded.assign(0.0)
    batches, total = _batches(data, batch_size, steps)
    bar = keras.utils.Progbar(total, verbose=verbose) if verbose else None
    count = 0
    with calibration():
        for batch in batches:
            model(batch, training=False)
            count += 1
            if bar is not None:
                bar.update(count)
            if steps is not None and count >= steps:
                break
    if not count:
        raise ValueError("`data` holds no batch to calibrate on.")
    if bar is not None:
        bar.update(count, finalize=True)
    return model


# --- Helpers ---------------------------------------------------------------------------------


def _check_cloneable(model: keras.Model) -> None:
    functional = (
        isinstance(model, keras.Sequential)
        or hasattr(model, "_functional")
        or (getattr(model, "_is_graph_network", False) or hasattr(model, "operations"))
    )
    if not functional:
        raise ValueError(
            "`model` must be a Sequential or functional model. Received: "
            f"{type(model).__name__}, a subclassed model. Build it of the layers in "
            "tf_lns.layers."
        )


def _chooser(config: LNSConfig, overrides: Overrides, model: keras.Model) -> Callable:
    """A function (layer, its default config) -> config or None."""
    if overrides is None:
        return lambda layer, default: default
    if callable(overrides):

        def by_function(layer: keras.layers.Layer, default: LNSConfig) -> LNSConfig | None:
            chosen = overrides(layer)
            return None if chosen is None else LNSConfig.get(chosen)

        return by_function
    if not isinstance(overrides, Mapping):
        raise TypeError(
            "`overrides` must be a dict from name patterns to configs, or a function of a "
            f"layer. Received: overrides={overrides!r}"
        )
    names = [layer.name for layer in _layers(model)]
    rules = []
    for pattern, value in overrides.items():
        try:
            rule = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`overrides` has a pattern that is no regular expression: {pattern!r} ({error})"
            ) from None
        if not any(rule.fullmatch(name) for name in names):
            raise ValueError(
                f"`overrides` has a pattern that matches no layer: {pattern!r}. Layers: {names}"
            )
        rules.append((rule, None if value is None else LNSConfig.get(value)))

    def by_pattern(layer: keras.layers.Layer, default: LNSConfig) -> LNSConfig | None:
        for rule, value in rules:
            if rule.fullmatch(layer.name):
                return value
        return default

    return by_pattern


def _plain_clone(layer: keras.layers.Layer) -> keras.layers.Layer:
    return type(layer).from_config(layer.get_config())


def _layers(model: keras.layers.Layer) -> Iterable[keras.layers.Layer]:
    """All layers inside a model, nested ones too, each once, in a fixed order."""
    seen: set[int] = set()

    def walk(layer: Any) -> Iterable[keras.layers.Layer]:
        for child in getattr(layer, "layers", []):
            if id(child) not in seen:
                seen.add(id(child))
                yield child
                yield from walk(child)

    return list(walk(model))


def _has_kernel(layer: keras.layers.Layer) -> bool:
    return any(multiplies_activations(v) for v in layer.trainable_variables)


def _copy_state(source: keras.Model, target: keras.Model, seen: bool = False) -> None:
    """Copies weights, trainability and recorded ranges, layer by layer."""
    for old, new in zip(_layers(source), _layers(target), strict=True):
        new.trainable = old.trainable
        if isinstance(old, keras.Model):
            continue
        for a, b in zip(old.weights, new.weights, strict=True):
            if isinstance(a, LNSVariable):
                value = a.cell.read(a.cell.seen) if seen else a.cell.read()
            else:
                value = a.value
            b.assign(value)
        if isinstance(old, LNSMixin) and isinstance(new, LNSMixin):
            for a, b in zip(old.input_ranges, new.input_ranges, strict=False):
                b.assign(a)


def _batches(data: Any, batch_size: int, steps: int | None) -> tuple[Iterable, int | None]:
    """Batches of model inputs, and how many there will be if that is known."""
    arrays = isinstance(data, np.ndarray | tf.Tensor | dict) or (
        isinstance(data, list | tuple) and all(hasattr(a, "shape") for a in data)
    )
    if arrays:
        size = int(keras.tree.flatten(data)[0].shape[0])
        count = -(-size // batch_size)

        def cut() -> Iterable:
            for start in range(0, size, batch_size):
                yield keras.tree.map_structure(lambda a: a[start : start + batch_size], data)

        return cut(), count if steps is None else min(count, steps)
    if isinstance(data, keras.utils.PyDataset):
        items: Iterable = (data[i] for i in range(len(data)))
        total = len(data)
    else:
        items = iter(data)
        total = int(data.cardinality()) if isinstance(data, tf.data.Dataset) else -1
    inputs = (batch[0] if isinstance(batch, tuple) else batch for batch in items)
    if steps is not None:
        total = steps if total < 0 else min(total, steps)
    return inputs, total if total >= 0 else None
