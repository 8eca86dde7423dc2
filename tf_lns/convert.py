"""From a plain Keras model to an LNS model and back."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tf_lns import keras_hooks
from tf_lns.config import LNSConfig
from tf_lns.copying import check_model, plain_copy
from tf_lns.layers.container import convert, is_lns_kind, is_wrapped, lns_layers
from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.registry import plain_class
from tf_lns.layers.tree import all_layers, children, pairs
from tf_lns.models import as_lns_model
from tf_lns.ops.call import choice, flag
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

    With a `datapath` in its config a layer computes all its products on it. A layer whose `call`
    tf_lns does not know is then refused, and a warning lists products between activations
    outside of LNS layers, which stay float32.

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
            expression, or matches no layer; `model` has LNS layers and `in_place` is set; or a
            layer cannot compute its products on the datapath that its config has.

    Example:
        >>> lns = quantize_model(model, LNSConfig(gradients="lns5:2"), {"head": None})
    """
    check_model(model)
    default = LNSConfig.get(config)
    if default.storage.octaves < _SHORT_RANGE:
        warnings.warn(
            f"`storage` {default.storage} spans {default.storage.octaves:g} octaves below 10 RMS "
            "of a tensor's weights: smaller weights are raised to the bottom of that range.",
            stacklevel=2,
        )
    rule = _chooser(overrides, model)
    if flag(in_place, "in_place"):
        if lns_layers(model):
            raise ValueError(
                "`in_place` converts plain Keras models only. Received: "
                f"in_place=True and {model.name!r}, which has LNS layers"
            )
        copy, partners = model, pairs(model, model)
        for old, _ in partners:
            if isinstance(old, keras.Model):
                keras_hooks.forget_functions(old)  # they hold the float weights
    else:
        copy, partners = plain_copy(model)
    present = {id(new): old for old, new in partners}

    def choose(place: str, layer: keras.layers.Layer, around: Any) -> LNSConfig | None:
        """Formats of a layer of the copy, given those of what it is in."""
        old = present.get(id(layer), layer)
        inherited = default if layer is copy else around
        if inherited is not None and config is None and isinstance(old, LNSMixin):
            inherited = old.lns_config
        return rule(old, inherited)

    wrapped = {id(new) for old, new in partners if is_wrapped(old)}
    left = convert(copy, choose, wrapped=wrapped)
    as_lns_model(copy)
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
    if any(layer.lns_config.datapath is not None for layer in lns_layers(copy)):
        _warn_of_float_products(copy)
    return copy


_OTHER_PRODUCTS = (keras.layers.Dot, keras.layers.Attention, keras.layers.AdditiveAttention)
"""Layers with products that no LNS layer stands for: there is nothing to train in them."""

_PRODUCT_OPERATIONS = frozenset(
    """
    Matmul Einsum Dot Tensordot Vdot Inner Outer Conv DepthwiseConv SeparableConv ConvTranspose
    DotProductAttention
    """.split()  # noqa: SIM905
)
"""Classes of the operations of `keras.ops` that are products."""


def _warn_of_float_products(model: keras.Model) -> None:
    """Names the products that a model computes in float32 beside those on a datapath."""
    layers = [model, *all_layers(model)]
    found = [layer for layer in layers if isinstance(layer, _OTHER_PRODUCTS)]
    for layer in layers:
        if keras_hooks.is_graph(layer):
            operations = getattr(layer, "operations", ())
            found += [x for x in operations if type(x).__name__ in _PRODUCT_OPERATIONS]
    names = dict.fromkeys(f"{x.name} ({type(x).__name__})" for x in found)
    if names:
        warnings.warn(
            "These products between activations are not computed on the datapath, but in "
            f"float32: {', '.join(names)}. LNS layers such as LNSMultiHeadAttention have them "
            "inside.",
            stacklevel=3,
        )


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
    check_model(model)
    choice(weights, "weights", ("stored", "seen"))
    clone, _ = plain_copy(model, seen=weights == "seen")
    left = [layer.name for layer in lns_layers(clone)]
    if left:
        raise ValueError(
            f"`model` makes LNS layers in its own constructor: {left}. Keras rebuilds it with "
            "them; give it plain layers and use quantize_model."
        )
    return clone


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

    try:
        copied = {k: keras.tree.map_structure(fresh, v) for k, v in arguments.items()}
    except Exception as error:
        warnings.warn(
            f"An optimizer or metric of {source.name!r} cannot be copied ({error}): compile the "
            "converted model again.",
            stacklevel=3,
        )
        return
    target.compile(**copied)


def _chooser(overrides: Overrides, model: keras.Model) -> Callable:
    """A function (layer, config of what it is in) -> config or None."""
    if overrides is None:
        return lambda layer, inherited: inherited
    if callable(overrides):

        def by_function(layer: keras.layers.Layer, inherited: LNSConfig | None) -> LNSConfig | None:
            if inherited is None or (children(layer) and not is_lns_kind(layer)):
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


def _keep_codes(old: LNSMixin, new: LNSMixin) -> None:
    """Where the storage format stays the same, so do codes and scale; recorded ranges stay."""
    for recorded, copied in zip(old.input_ranges, new.input_ranges, strict=False):
        copied.assign(recorded.read_value())
    mine, theirs = keras_hooks.own_variables(old), keras_hooks.own_variables(new)
    for a, b in zip(mine, theirs, strict=True):
        same = isinstance(a, LNSVariable) and isinstance(b, LNSVariable) and a.format == b.format
        if same:
            b.assign_codes(a.codes, a.scale)
