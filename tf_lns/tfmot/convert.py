"""LNS models of tf_keras as LNS models of Keras 3, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tf_keras

from tf_lns import keras_hooks
from tf_lns.config import LNSConfig
from tf_lns.copying import plain_copy
from tf_lns.layers import container
from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.tree import all_layers
from tf_lns.models import as_lns_model
from tf_lns.tfmot import hooks, ranges
from tf_lns.tfmot import weights as integers
from tf_lns.tfmot.configs import layer_like
from tf_lns.tfmot.graphs import KERAS, TF_KERAS, rebuilt
from tf_lns.tfmot.quantize_config import LNSQuantizeConfig
from tf_lns.tfmot.registry import CUSTOM, row_of
from tf_lns.tfmot.strip import copy_assets, plain_layer, unwrapped
from tf_lns.tfmot.wrapper import LNSQuantizeWrapper
from tf_lns.variable import LNSCell, LNSVariable


def convert(model: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """An LNS model of tf_keras as one of Keras 3, or one of Keras 3 as one of tf_keras.

    Each layer is made anew from its config, and gets the same integers: codes, scale and storage
    format are equal, and so are the formats (`LNSConfig`) and all float weights. Which layers are
    in LNS stays. What is not carried over: compilation, the optimizer and its state (the cap of
    ``LNSMadam(p_scale=...)`` belongs to it: a new optimizer takes it from the weights as they
    are), and the states of random generators.

    tf_keras to Keras 3: the layers quantize their inputs, as those of `quantize_model` do, and
    take over the range of the group whose output they get. Predictions are equal, but for the
    order of float operations, where every quantized activation goes to such layers alone. Where
    one also goes elsewhere (a sum, an average), where the outputs of the model are quantized, and
    in `Dot`, which Keras 3 has no LNS layer for, the Keras 3 model has a float value instead.

    Keras 3 to tf_keras: the wrappers quantize at the same places, the inputs of each LNS layer,
    under the same ranges. Predictions are equal but for the order of float operations.

    Args:
        model: Sequential or functional model of `LNSQuantizeWrapper` layers (and plain ones), or
            of Keras 3 with LNS layers; it stays as it is.
        custom_objects: Classes and functions of the Keras that the model is to be of, by the
            names that the model knows them by.

    Returns:
        The other model, not compiled.

    Raises:
        TypeError: `model` is a model of neither Keras, or `custom_objects` is no dict.
        ValueError: The other Keras cannot have the model; the layer is named.
    """
    custom = {} if custom_objects is None else custom_objects
    if not isinstance(custom, Mapping):
        raise TypeError(
            f"`custom_objects` must be a dict or None. Received: custom_objects={custom!r}"
        )
    if isinstance(model, tf_keras.Model):
        return _to_keras(model, custom)
    if isinstance(model, keras.Model):
        return _to_tf_keras(model, custom)
    raise TypeError(f"`model` must be a tf_keras.Model or a keras.Model. Received: model={model!r}")


# --- tf_keras to Keras 3 ----------------------------------------------------------------------


def _to_keras(model: Any, custom: Mapping) -> Any:
    pairs: list[tuple[Any, Any]] = []

    def plain(layer: Any) -> Any:
        inner = unwrapped(layer)
        if hooks.is_input_quantizer(layer) or (
            inner is not layer and not isinstance(layer, LNSQuantizeWrapper)
        ):
            raise ValueError(
                f"Layer {layer.name!r} is in tfmot's own wrapper, which stores float weights. "
                "Train under LNSScheme to convert, or take the plain model of strip(model)."
            )
        pairs.append((layer, layer_like(inner, inner.get_config(), TF_KERAS, custom)))
        return pairs[-1][1]

    new = rebuilt(model, plain, KERAS, _arguments_for_keras)
    formats: dict[int, LNSConfig] = {}
    wrapped = set()
    for old, layer in pairs:
        _match_kinds(_tf_keras_variables(old), _keras_variables(layer), old.name)
        if _is_product(old):
            inside = [layer, *all_layers(layer)]
            formats |= {id(part): old.lns_config for part in inside}
            if old.lns_variables and not any(container.is_lns_kind(part) for part in inside):
                wrapped.add(id(layer))
    container.convert(new, lambda _, layer, __: formats.get(id(layer)), wrapped=wrapped)
    if formats:
        as_lns_model(new)
    operands = ranges.operands_of(model)
    for old, layer in pairs:
        _copy(_tf_keras_variables(old), _keras_variables(layer), old.name)
        copy_assets(unwrapped(old), layer)
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
        if _is_product(old) and _is_lns(layer):
            slots, inside = ranges.of_keras_layer(layer)
            given = operands[id(old)]
            given = given + given[-1:] * (len(slots) - len(given))  # a key that is the value
            for slot, value in zip(slots, given, strict=False):
                for recorded in slot:
                    recorded.assign(value)
            for recorded, value in zip(inside, ranges.of_wrapper(old)[1], strict=True):
                recorded.assign(value.numpy())
    return new


def _is_product(layer: Any) -> bool:
    """Whether a layer of tf_keras is one that Keras 3 may have an LNS layer for."""
    return (
        isinstance(layer, LNSQuantizeWrapper) and (row_of(layer.layer) or CUSTOM).kind == "product"
    )


def _arguments_for_keras(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A call's arguments as the Keras 3 layer takes them: by name, but for the first ones."""
    inner = unwrapped(layer)
    args, kwargs = _by_name(inner, args, kwargs)
    if _has_states(inner) and isinstance(args[0], list):
        (inputs, *states), *rest = args
        return (inputs, *rest), {**kwargs, "initial_state": states}
    return args, kwargs


# --- Keras 3 to tf_keras ----------------------------------------------------------------------


def _to_tf_keras(model: Any, custom: Mapping) -> Any:
    plain, partners = plain_copy(model)
    originals = {id(copy): old for old, copy in partners}
    pairs: list[tuple[Any, Any]] = []

    def like(layer: Any) -> Any:
        pairs.append((originals[id(layer)], layer_like(layer, layer.get_config(), KERAS, custom)))
        return pairs[-1][1]

    floats = rebuilt(plain, like, TF_KERAS, _arguments_for_tf_keras)
    for old, layer in pairs:
        _match_kinds(_keras_variables(old), _tf_keras_variables(layer), old.name)
    source_of = {id(layer): old for old, layer in pairs}
    found: list[tuple[Any, Any]] = []

    def in_lns(layer: Any) -> Any:
        old = source_of[id(layer)]
        new = _wrapped(old, layer) if _is_lns(old) else plain_layer(layer)
        found.append((old, new))
        return new

    new = rebuilt(floats, in_lns, TF_KERAS)
    places = ranges.places_of(new)
    for old, layer in found:
        _copy(_keras_variables(old), _tf_keras_variables(layer), old.name)
        copy_assets(old, unwrapped(layer))
        if hasattr(unwrapped(layer), "finalize_state"):
            unwrapped(layer).finalize_state()
        if isinstance(layer, LNSQuantizeWrapper):
            slots, inside = ranges.of_keras_layer(old)
            operands, others = ranges.of_wrapper(layer)
            for place, slot in zip(places[id(layer)], slots, strict=False):
                if slot and place < len(operands):
                    operands[place].assign(max(float(r.numpy()) for r in slot))
            for recorded, value in zip(others, inside, strict=True):
                recorded.assign(value.numpy())
    return new


def _wrapped(old: Any, layer: Any) -> LNSQuantizeWrapper:
    """The wrapper that does with a layer what an LNS layer of Keras 3 does."""
    formats = {part.lns_config for part in [old, *all_layers(old)] if isinstance(part, LNSMixin)}
    if len(formats) > 1:
        raise ValueError(
            f"Layer {old.name!r} has layers of different formats inside, and under tfmot a layer "
            f"has but one LNSConfig. Received: {sorted(map(repr, formats))}"
        )
    row = row_of(layer)
    if row is None and not container.is_wrapped(old):
        raise ValueError(
            f"Layer {old.name!r} ({type(old).__name__}) is in LNS, and tf_lns.tfmot has no row "
            "for it in its registry. Way out: leave it float in Keras 3 (`overrides` of "
            "quantize_model), or convert tf_lns.strip(model)."
        )
    wrapper = LNSQuantizeWrapper(
        layer,
        LNSQuantizeConfig(formats.pop(), quantize_output=False),
        quantize_inputs=row is None or row.operands != 0,
    )
    wrapper.forget_earlier_calls()
    return wrapper


def _is_lns(layer: Any) -> bool:
    return any(isinstance(part, LNSMixin) for part in [layer, *all_layers(layer)])


def _arguments_for_tf_keras(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A call's arguments as the tf_keras layer takes them.

    Without what Keras 3 adds to each call: the masks of its inputs, and `training`, which it
    overrides in a call of the model, whatever was given.
    """
    args, kwargs = _by_name(layer, args, kwargs)
    inputs = keras.tree.flatten([list(args), list(kwargs.values())])
    masked = any(keras_hooks.mask_of(x) is not None for x in inputs)

    def is_added(name: str, value: Any) -> bool:
        if not name.endswith("mask"):
            return name == "training"
        made = [x for x in keras.tree.flatten(value) if isinstance(x, keras.KerasTensor)]
        by_layers = [isinstance(keras_hooks.maker_of(x), keras.layers.Layer) for x in made]
        return value is None or (masked and bool(made) and not any(by_layers))

    kwargs = {name: value for name, value in kwargs.items() if not is_added(name, value)}
    states = kwargs.pop("initial_state", None) if _has_states(layer) else None
    if states is not None:
        args = ([args[0], *(states if isinstance(states, list | tuple) else [states])], *args[1:])
    return args, kwargs


# --- Both -------------------------------------------------------------------------------------


def _by_name(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments by name, but for the first of an attention layer and of any other one.

    Behind those the two Keras have arguments in different orders.
    """
    count = 2 if "query" in inspect.signature(layer.call).parameters else 1
    bound = inspect.signature(layer.call).bind_partial(*args)
    names = list(bound.arguments)[count:]
    if any(kind.kind is kind.VAR_POSITIONAL for kind in bound.signature.parameters.values()):
        return args, kwargs
    return args[:count], {**{name: bound.arguments[name] for name in names}, **kwargs}


def _has_states(layer: Any) -> bool:
    return "initial_state" in inspect.signature(layer.call).parameters


def _tf_keras_variables(layer: Any) -> list[Any]:
    """All variables of a layer, without what its wrapper adds."""
    inside = hooks.inner_layers(unwrapped(layer))
    return [v for part in inside for v in hooks.own_variables(part)]


def _keras_variables(layer: Any) -> list[Any]:
    """All variables of a layer, in the same order as in tf_keras."""
    inside = [layer, *all_layers(layer)]
    return [v for part in inside for v in keras_hooks.own_variables(part)]


def _integer(variable: Any) -> LNSCell | None:
    """The integers behind a variable of either Keras, if there are any."""
    cell = variable.cell if isinstance(variable, LNSVariable) else integers.cell_of(variable)
    return cell if isinstance(cell, LNSCell) else None


def _check_shapes(old: list[Any], new: list[Any], name: str) -> None:
    mine, theirs = ([tuple(v.shape) for v in variables] for variables in (old, new))
    if mine != theirs:
        raise ValueError(
            f"The counterpart of layer {name!r} has other variables. Expected shapes {mine}, "
            f"received {theirs}"
        )


def _match_kinds(old: list[Any], new: list[Any], name: str) -> None:
    """Gives new float variables values by which they become of the kinds of the old ones.

    A weight becomes integers unless it is all zero; the values themselves come later.
    """
    _check_shapes(old, new, name)
    for a, b in zip(old, new, strict=True):
        b.assign(np.full(tuple(b.shape), _integer(a) is not None, np.asarray(b).dtype))


def _copy(old: list[Any], new: list[Any], name: str) -> None:
    """Copies integers as integers, and floats as floats."""
    _check_shapes(old, new, name)
    for a, b in zip(old, new, strict=True):
        cell, other = _integer(a), _integer(b)
        if (cell is None) != (other is None):
            raise ValueError(
                f"A weight of layer {name!r} is an integer one in one Keras only: {a.name}"
            )
        if cell is None:
            b.assign(np.asarray(a.numpy()))
        elif isinstance(b, LNSVariable):
            b.assign_codes(cell.codes.numpy(), cell.scale.numpy())
        else:
            for part in keras_hooks.parts(b):
                part.codes.assign(cell.codes.numpy())
                part.scale.assign(cell.scale.numpy())
