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
from tf_lns.layers.container import convert, is_exact_graph, lns_class_for, plain_class
from tf_lns.layers.mixin import LNSMixin, calibration
from tf_lns.layers.registry import (
    accepted,
    keras_class_of,
    plain_build_config,
    plain_config,
)
from tf_lns.layers.tree import all_layers, children, pairs
from tf_lns.ops.call import choice, flag, integer
from tf_lns.variable import LNSVariable

Overrides = Mapping[str, LNSConfig | dict | None] | Callable[[keras.layers.Layer], Any] | None


_SHORT_RANGE = 8
"""Octaves; a storage format of fewer holds a large share of usual weights at its bottom."""


def quantize_model(
    model: keras.Model,
    config: LNSConfig | dict | None = None,
    overrides: Overrides = None,
    in_place: bool = False,
) -> keras.Model:
    """An LNS copy of a Keras model: Sequential, functional, subclassed, nested or published.

    Layers keep their names, their weights (each integer weight's scale is chosen from its
    values, so none is clipped), their topology, masks and sharing, at any depth. A compiled
    model is compiled alike, with a fresh optimizer and fresh metrics. Normalisation, softmax
    and biases stay float32, as does what `tf_lns` has no LNS layer for, which a warning lists.
    Weights keep their order and names: ``lns.set_weights(model.get_weights())`` works. An LNS
    layer changes to `config`; where the storage format stays, so do its codes.

    A subclassed model is copied as Keras loads one, through `get_config` and `from_config`.

    Args:
        model: The model; it stays as it is, unless `in_place`.
        config: Formats; None for the defaults, or in an LNS layer for those it has.
        overrides: Per layer: a dict from name patterns (regular expressions, matched against
            the whole layer name) to configs, or a function of the layer. None in place of a
            config leaves the layer float. A function may return `config` itself.
        in_place: Convert the model itself, for models that cannot be copied.

    Returns:
        The LNS model.

    Raises:
        TypeError: `model` is no Keras model, or an override is no config.
        ValueError: `model` cannot be copied; a pattern of `overrides` is no regular
            expression, or matches no layer; or `model` has LNS layers and `in_place` is set.

    Example:
        >>> lns = quantize_model(model, LNSConfig(gradients="lns5:2"), {"head": None})
    """
    _check_model(model)
    default = LNSConfig.get(config)
    if default.storage.octaves < _SHORT_RANGE:
        warnings.warn(
            f"`storage` {default.storage} spans {default.storage.octaves:g} octaves below 10 RMS "
            "of a tensor's weights: smaller weights are raised to the bottom of that range.",
            stacklevel=2,
        )
    rule = _chooser(overrides, model)
    if flag(in_place, "in_place"):
        if any(isinstance(layer, LNSMixin) for layer in all_layers(model)):
            raise ValueError(
                "`in_place` converts plain Keras models only. Received: "
                f"in_place=True and {model.name!r}, which has LNS layers"
            )
        copy, partners = model, pairs(model, model)
    else:
        copy, partners = _plain_copy(model)
    present = {id(new): old for old, new in partners}

    def choose(place: str, layer: keras.layers.Layer, around: Any) -> LNSConfig | None:
        """Formats of a layer of the copy, given those of what it is in."""
        old = present.get(id(layer), layer)
        inherited = default if layer is copy else around
        if inherited is not None and config is None and isinstance(old, LNSMixin):
            inherited = old.lns_config
        return rule(old, inherited)

    left = convert(copy, choose)
    for old, new in partners:
        if isinstance(old, LNSMixin) and isinstance(new, LNSMixin) and old is not new:
            _keep_codes(old, new)
    for old, new in partners:
        if isinstance(old, keras.Model):
            _compile_alike(old, new)
    if left:
        warnings.warn(
            "These layers have weights but no LNS layer stands for them; they stay float32: "
            f"{', '.join(left)}. See `tf_lns.register_layer` and `tf_lns.layers.LNSWrapper`, or "
            "name them in `overrides` with None to say that this is meant.",
            stacklevel=2,
        )
    return copy


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
        ValueError: `model` cannot be copied, or `weights` is neither word.
    """
    _check_model(model)
    choice(weights, "weights", ("stored", "seen"))
    clone, _ = _plain_copy(model, seen=weights == "seen")
    left = [layer.name for layer in all_layers(clone) if isinstance(layer, LNSMixin)]
    if left:
        raise ValueError(
            f"`model` makes LNS layers in its own constructor: {left}. Keras rebuilds it with "
            "them; give it plain layers and use quantize_model."
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


# --- Helpers ---------------------------------------------------------------------------------


def _check_model(model: keras.Model) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")


def _plain_copy(model: keras.Model, seen: bool = False) -> tuple[keras.Model, list[tuple]]:
    """A plain Keras model with the values of a model, plain or LNS, and the pairs of layers.

    Args:
        model: The model.
        seen: Copy the weights as the forward pass sees them.

    Raises:
        ValueError: `model` cannot be copied.
    """
    copies: dict[int, keras.layers.Layer] = {}

    def fresh(layer: keras.layers.Layer) -> keras.layers.Layer:
        """A new plain layer with the settings of another."""
        if id(layer) not in copies:
            copies[id(layer)] = _clone(layer, fresh) if is_exact_graph(layer) else _remade(layer)
        return copies[id(layer)]

    try:
        copy = fresh(model)
        _name_alike(model, copy)  # what constructors made: paths of variables have the names
        _build_alike(model, copy)
        _name_alike(model, copy)  # what was made in building
        partners = pairs(model, copy)
        _copy_state(partners, seen)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"`model` {model.name!r} ({plain_class(model).__name__}) cannot be copied: {error}\n"
            "Give it, or the layer named, a `get_config` that holds the arguments of its "
            "constructor; or convert the model itself: quantize_model(..., in_place=True)."
        ) from error
    return copy, partners


def _clone(model: keras.Model, function: Callable) -> keras.Model:
    """A Sequential or functional model of what `function` makes of each layer."""
    models = [m for m in [model, *all_layers(model)] if isinstance(m, keras.Model)]
    with keras_hooks.not_compiled(models):
        return keras.models.clone_model(model, clone_function=function)


def _remade(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A new plain layer or model of the same class and settings, not built."""
    if isinstance(layer, keras.layers.Lambda):
        return layer  # it has no state, and Keras does not rebuild functions without a name
    class_ = keras_class_of(type(layer)) or plain_class(layer)
    if issubclass(class_, LNSMixin):
        raise ValueError(
            f"no Keras layer is known for {class_.__name__} (layer {layer.name!r}); register "
            "the class with `tf_lns.register_layer`"
        )
    with keras_hooks.as_class(layer, class_):
        config = layer.get_config()
    return class_.from_config(accepted(class_, plain_config(config)))


def _name_alike(source: keras.Model, copy: keras.Model) -> None:
    """Gives the layers of a copy, which Keras may have named anew, the names of the original."""
    for old, new in pairs(source, copy, complete=False):
        if new.name != old.name:
            new.name = old.name


def _build_alike(source: keras.Model, copy: keras.Model) -> None:
    """Builds the layers of a copy that are built in the original."""
    if not source.built:
        return
    if not copy.built and source.get_build_config():
        with warnings.catch_warnings():  # what it leaves unbuilt is built below
            warnings.simplefilter("ignore")
            copy.build_from_config(plain_build_config(source.get_build_config()))
    for old, new in reversed(pairs(source, copy, complete=False)):
        if old.built and not new.built:
            new.build_from_config(plain_build_config(old.get_build_config()) or {})
            new.built = True


def _compile_alike(source: keras.Model, target: keras.Model) -> None:
    """Compiles `target` with the arguments of `source`, but its own optimizer and metrics."""
    arguments = keras_hooks.compile_arguments(source)
    if arguments is None:
        return
    if plain_class(source).compile is not keras.Model.compile:
        warnings.warn(
            f"{source.name!r} has a `compile` of its own, whose arguments Keras does not keep: "
            "compile the converted model again.",
            stacklevel=3,
        )
        return

    def fresh(x: Any) -> Any:
        stateful = isinstance(x, keras.optimizers.Optimizer | keras.metrics.Metric)
        return type(x).from_config(x.get_config()) if stateful else x

    target.compile(**{k: keras.tree.map_structure(fresh, v) for k, v in arguments.items()})


def _chooser(overrides: Overrides, model: keras.Model) -> Callable:
    """A function (layer, config of what it is in) -> config or None."""
    if overrides is None:
        return lambda layer, inherited: inherited
    if callable(overrides):

        def by_function(layer: keras.layers.Layer, inherited: LNSConfig | None) -> LNSConfig | None:
            is_lns = isinstance(layer, LNSMixin) or lns_class_for(layer) is not None
            if inherited is None or not (is_lns or not children(layer)):
                return inherited  # a model, or a wrapper: its layers are asked
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

    def by_pattern(layer: keras.layers.Layer, inherited: LNSConfig | None) -> LNSConfig | None:
        for rule, value in rules:
            if rule.fullmatch(layer.name):
                return value
        return inherited

    return by_pattern


def _copy_state(partners: list[tuple], seen: bool = False) -> None:
    """Copies weights and trainability from each layer to its plain partner."""
    for old, new in partners:
        new.trainable = old.trainable  # of all within, so the outer ones come first
    for old, new in partners:
        if not isinstance(old, LNSMixin):
            _copy_plain(old, new)
            continue
        mine, theirs = keras_hooks.own_variables(old), keras_hooks.own_variables(new)
        for a, b in zip(mine, theirs, strict=True):
            if isinstance(a, LNSVariable):
                b.assign(a.cell.read(a.cell.seen) if seen else a.cell.read())
            else:
                b.assign(a.value)


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


def _keep_codes(old: LNSMixin, new: LNSMixin) -> None:
    """Where the storage format stays the same, so do codes and scale; recorded ranges stay."""
    for recorded, copied in zip(old.input_ranges, new.input_ranges, strict=False):
        copied.assign(recorded.read_value())
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
