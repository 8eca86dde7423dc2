"""From a plain Keras model to an LNS model and back, and the calibration between."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks
from tf_lns.config import LNSConfig
from tf_lns.layers.mixin import LNSMixin, calibration, float_build
from tf_lns.layers.registry import keras_layer_for, lns_layer_for
from tf_lns.ops.call import choice, integer
from tf_lns.roles import multiplies_activations
from tf_lns.variable import LNSVariable

Overrides = Mapping[str, LNSConfig | dict | None] | Callable[[keras.layers.Layer], Any] | None


_SHORT_RANGE = 8
"""Octaves; a storage format of fewer holds a large share of usual weights at its bottom."""


def quantize_model(
    model: keras.Model,
    config: LNSConfig | dict | None = None,
    overrides: Overrides = None,
) -> keras.Model:
    """An LNS copy of a Sequential or functional model.

    Layers keep their names, their weights (each integer weight's scale is chosen from its
    values, so none is clipped), their topology and sharing; nested models and the layers in
    `TimeDistributed` are converted too. A compiled model is compiled alike, with a fresh
    optimizer and fresh metrics. Normalisation, softmax and biases stay float32, as does what
    `tf_lns` has no LNS layer for, which a warning lists. Weights keep their order and names:
    ``lns.set_weights(model.get_weights())`` works. An LNS layer changes to `config`; where the
    storage format stays, so do its codes.

    Args:
        model: The model; it stays as it is.
        config: Formats; None for the defaults, or in an LNS layer for those it has.
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
    _check_cloneable(model)
    default = LNSConfig.get(config)
    if default.storage.octaves < _SHORT_RANGE:
        warnings.warn(
            f"`storage` {default.storage} spans {default.storage.octaves:g} octaves below 10 RMS "
            "of a tensor's weights: smaller weights are raised to the bottom of that range.",
            stacklevel=2,
        )
    choose = _chooser(default, overrides, model)
    float_layers: list[str] = []

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.TimeDistributed):
            return _with_inner(layer, convert)
        present = layer.lns_config if isinstance(layer, LNSMixin) and config is None else default
        wanted = choose(layer, present)
        if wanted is None:
            return _plain(layer)
        target = type(layer) if isinstance(layer, LNSMixin) else lns_layer_for(layer)
        if target is None:
            if _has_kernel(layer):
                float_layers.append(f"{layer.name} ({type(layer).__name__})")
            return _same(layer)
        return target.from_config({**layer.get_config(), "lns_config": wanted})

    with float_build():
        clone = _clone(model, convert)
    pairs = list(_pairs(model, clone))
    _copy_state(pairs)
    for old, new in pairs:
        if isinstance(new, LNSMixin) and new.built:
            new.convert_variables()
            _keep_codes(old, new)
    for old, new in pairs:
        if isinstance(old, keras.Model):
            _compile_alike(old, new)
    if float_layers:
        warnings.warn(
            "These layers have weights but no LNS layer stands for them; they stay float32: "
            f"{', '.join(float_layers)}. See `tf_lns.layers.register_layer`, or name them in "
            "`overrides` with None to say that this is meant.",
            stacklevel=2,
        )
    return clone


def strip(model: keras.Model, weights: str = "stored") -> keras.Model:
    """The plain Keras model behind an LNS model, not compiled.

    The weights are equal to the last bit. With ``weights="seen"`` the predictions are what the
    LNS model predicts where its activations are float (``activations=None``), bit for bit; with
    quantized activations they differ by the effect of Q_A.

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
    _check_cloneable(model)
    choice(weights, "weights", ("stored", "seen"))
    clone = _clone(model, _plain)
    _copy_state(_pairs(model, clone), seen=weights == "seen")
    left = [layer.name for layer in all_layers(clone) if isinstance(layer, LNSMixin)]
    if left:
        raise ValueError(
            f"`model` has LNS layers inside layers that strip cannot open: {left}. Give these "
            "layers a `get_config` of plain layers."
        )
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
        TypeError: `model` is no Keras model, or a number is no integer.
        ValueError: `model` has no LNS layer with a recorded range, a number is out of range,
            or `data` is empty. Recorded ranges then stay as they were.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    for name, value in (("batch_size", batch_size), ("steps", steps)):
        if value is not None and integer(value, name) < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value!r}")

    def recording() -> list[tf.Variable]:
        layers = [layer for layer in all_layers(model) if isinstance(layer, LNSMixin)]
        return [r for layer in layers for r in layer.input_ranges]

    if model.built and not recording():
        raise ValueError(
            f"`model` has no layer that records ranges. Received: model {model.name!r}; convert "
            'it with tf_lns.quantize_model and activation_scale="moving".'
        )
    before = [(r, r.numpy()) for r in recording()]
    batches, total = _batches(data, batch_size, steps)
    bar = keras.utils.Progbar(total) if verbose else None
    count = 0
    for recorded, _ in before:
        recorded.assign(0.0)
    try:
        with calibration():
            for batch in batches:
                model(batch, training=False)
                count += 1
                if bar is not None:
                    bar.update(count)
                if count == steps:
                    break
        if not count:
            raise ValueError("`data` holds no batch to calibrate on.")
        if recording() and not any(float(r.numpy()) > 0 for r in recording()):
            raise ValueError(
                "No layer recorded a range: `data` holds zeros or NaN alone, or the layers run "
                "inside a tf.function of the model's own, where ranges cannot be recorded."
            )
    except BaseException:
        for recorded, value in before:
            recorded.assign(value)
        raise
    if bar is not None:
        bar.update(count, finalize=True)
    return model


def all_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All layers inside a model at any depth, each once, in order."""
    seen: dict[int, keras.layers.Layer] = {}

    def walk(layer: keras.layers.Layer) -> None:
        for child in keras_hooks.sublayers(layer):
            if id(child) not in seen:
                seen[id(child)] = child
                walk(child)

    walk(model)
    return list(seen.values())


# --- Helpers ---------------------------------------------------------------------------------


def _is_graph(model: Any) -> bool:
    """Whether a model is Sequential or functional: its layers and their order are known."""
    return isinstance(model, keras.Sequential | keras_hooks.Functional)


def _check_cloneable(model: keras.Model) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    if not _is_graph(model):
        raise ValueError(
            "`model` must be a Sequential or functional model. Received: "
            f"{type(model).__name__}, a subclassed model. Build it of the layers in "
            "tf_lns.layers."
        )


def _clone(model: keras.Model, function: Callable) -> keras.Model:
    models = [m for m in [model, *all_layers(model)] if isinstance(m, keras.Model)]
    with keras_hooks.not_compiled(models):
        return keras.models.clone_model(model, clone_function=function, recursive=True)


def _same(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A new layer of the same class and settings."""
    if isinstance(layer, keras.layers.Lambda):
        return layer  # it has no state, and Keras does not rebuild functions without a name
    return type(layer).from_config(layer.get_config())


def _with_inner(wrapper: keras.layers.Wrapper, function: Callable) -> keras.layers.Layer:
    """A new wrapper around what `function` makes of the layer inside."""
    inner = keras.saving.serialize_keras_object(function(wrapper.layer))
    return type(wrapper).from_config({**wrapper.get_config(), "layer": inner})


def _plain(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A new layer without LNS."""
    if isinstance(layer, keras.layers.Wrapper) and _holds_lns(layer):
        return _with_inner(layer, _plain)
    if not isinstance(layer, LNSMixin):
        return _same(layer)
    target = keras_layer_for(layer)
    if target is None:
        raise ValueError(
            f"No Keras layer is known for {type(layer).__name__} (layer {layer.name!r}); "
            "register the class with `tf_lns.layers.register_layer`."
        )
    settings = layer.get_config()
    settings.pop("lns_config")
    return target.from_config(settings)


def _holds_lns(layer: keras.layers.Layer) -> bool:
    return any(isinstance(inner, LNSMixin) for inner in all_layers(layer))


def _compile_alike(source: keras.Model, target: keras.Model) -> None:
    """Compiles `target` with the arguments of `source`, but its own optimizer and metrics."""
    arguments = keras_hooks.compile_arguments(source)
    if arguments is None:
        return

    def fresh(x: Any) -> Any:
        stateful = isinstance(x, keras.optimizers.Optimizer | keras.metrics.Metric)
        return type(x).from_config(x.get_config()) if stateful else x

    target.compile(**{k: keras.tree.map_structure(fresh, v) for k, v in arguments.items()})


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
    names = [layer.name for layer in all_layers(model)]
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


def _has_kernel(layer: keras.layers.Layer) -> bool:
    # A functional model holds operators too, such as `+`, which have no variables.
    return any(multiplies_activations(v) for v in getattr(layer, "trainable_variables", []))


def _pairs(source: keras.layers.Layer, target: keras.layers.Layer) -> Iterable[tuple]:
    """Each layer of a model and what a clone has in its place, outer before inner ones."""
    seen: set[int] = set()

    def walk(old: Any, new: Any) -> Iterable[tuple]:
        if id(old) in seen:
            return
        seen.add(id(old))
        yield old, new
        if _is_graph(old):  # names are unique; the order need not be the same
            children = [(c, new.get_layer(c.name)) for c in old.layers if not _is_input(c)]
        else:
            children = list(
                zip(keras_hooks.sublayers(old), keras_hooks.sublayers(new), strict=True)
            )
        for a, b in children:
            yield from walk(a, b)

    return list(walk(source, target))


def _is_input(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.InputLayer)


def _copy_state(pairs: Iterable[tuple], seen: bool = False) -> None:
    """Copies weights, trainability and recorded ranges from each layer to its partner."""
    pairs = list(pairs)
    for old, new in pairs:
        new.trainable = old.trainable  # of all within, so the outer ones come first
    for old, new in pairs:
        if not (isinstance(old, LNSMixin) or isinstance(new, LNSMixin)):
            _copy_plain(old, new)
            continue
        mine, theirs = keras_hooks.own_variables(old), keras_hooks.own_variables(new)
        for a, b in zip(mine, theirs, strict=True):
            if isinstance(a, LNSVariable):
                b.assign(a.cell.read(a.cell.seen) if seen else a.cell.read())
            else:
                b.assign(a.value)
        if isinstance(old, LNSMixin) and isinstance(new, LNSMixin):
            for a, b in zip(old.input_ranges, new.input_ranges, strict=False):
                b.assign(a.read_value())


def _copy_plain(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Copies what a file would hold: variables and assets such as vocabularies."""
    if keras_hooks.own_variables(old):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables(store)
    if hasattr(old, "save_assets") and old.built:
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def _keep_codes(old: keras.layers.Layer, new: LNSMixin) -> None:
    """Where the storage format stays the same, so do codes and scale."""
    mine, theirs = keras_hooks.own_variables(old), keras_hooks.own_variables(new)
    for a, b in zip(mine, theirs, strict=True):
        same = isinstance(a, LNSVariable) and isinstance(b, LNSVariable) and a.format == b.format
        if same:
            b.assign_codes(a.codes, a.scale)


def _batches(data: Any, batch_size: int, steps: int | None) -> tuple[Iterable, int | None]:
    """Batches of model inputs, and how many there will be if that is known."""
    arrays = isinstance(data, np.ndarray | np.generic | tf.Tensor | dict) or (
        isinstance(data, list | tuple) and data and all(hasattr(a, "shape") for a in data)
    )
    if arrays:
        if any(len(a.shape) == 0 for a in keras.tree.flatten(data)):
            raise ValueError(f"`data` must have a batch axis. Received: data={data!r}")
        size = int(keras.tree.flatten(data)[0].shape[0])
        count = -(-size // batch_size)

        def cut() -> Iterable:
            for start in range(0, size, batch_size):
                rows = slice(start, start + batch_size)
                yield keras.tree.map_structure(lambda a, rows=rows: a[rows], data)

        return cut(), count if steps is None else min(count, steps)
    if isinstance(data, keras.utils.PyDataset):
        items: Iterable = (data[i] for i in range(len(data)))
        total = len(data)
    elif isinstance(data, Iterable) and not isinstance(data, str):
        items = iter(data)
        total = int(data.cardinality()) if isinstance(data, tf.data.Dataset) else -1
    else:
        raise TypeError(f"`data` must be arrays or an iterable of batches. Received: data={data!r}")
    inputs = (batch[0] if isinstance(batch, tuple) else batch for batch in items)
    if steps is not None:
        total = steps if total < 0 else min(total, steps)
    return inputs, total if total >= 0 else None
