"""Recorded ranges of activations, where they are in the layers of either Keras.

Under tfmot an activation is quantized once, at the end of a group, and the wrapper there has its
range; the layers of Keras 3 quantize what they are given, and each has its own range for it. The
range of an operand is the same in both: the largest magnitude of what the group made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tf_keras

from tf_lns.layers.registry import plain_class
from tf_lns.tfmot import hooks
from tf_lns.tfmot.registry import row_of
from tf_lns.tfmot.strip import unwrapped
from tf_lns.tfmot.wrapper import LNSQuantizeWrapper


def of_keras_layer(layer: Any) -> tuple[list[list[Any]], list[Any]]:
    """The ranges of a Keras 3 LNS layer in the order in which a wrapper of tfmot has them.

    Returns:
        For each operand the ranges that it has (of both directions, of a bidirectional layer),
        and the ranges of what is quantized inside.
    """
    kind = plain_class(layer).__name__
    if kind == "TimeDistributed":
        return of_keras_layer(layer.layer)
    if kind == "Bidirectional":
        (ahead, inside), (back, others) = map(
            of_keras_layer, (layer.forward_layer, layer.backward_layer)
        )
        return [a + b for a, b in zip(ahead, back, strict=True)], inside + others
    if hasattr(layer, "cell"):
        cells = getattr(
            layer.cell, "cells", [layer.cell]
        )  # each quantizes what the one before made
        stacked = [r for cell in cells for r in getattr(cell, "input_ranges", [])]
        return [[r] for r in stacked[:1]], stacked[1:]
    if kind == "MultiHeadAttention":
        projections = (layer.query_dense, layer.value_dense, layer.key_dense)
        operands = [list(dense.input_ranges) for dense in projections]
        return operands, [*layer.input_ranges, *layer.output_dense.input_ranges]
    ranges = list(getattr(layer, "input_ranges", []))
    return [[r] for r in ranges[:1]], ranges[1:]


def of_wrapper(wrapper: Any) -> tuple[list[Any], list[Any]]:
    """The ranges of operands and of what is quantized inside, in an `LNSQuantizeWrapper`."""
    ranges = wrapper.input_ranges
    operands = wrapper.operands
    end = len(ranges) - int(wrapper.quantize_outputs)
    return ranges[:operands], ranges[operands:end]


def places_of(model: Any) -> dict[int, list[int]]:
    """Which of a wrapper's ranges belongs to each of its operands.

    Self-attention gets one tensor as query, key and value, which has one range.

    Args:
        model: tf_keras model of wrappers.

    Returns:
        Lists by the identity of wrappers, of their first calls.
    """
    found: dict[int, list[int]] = {}
    for layer, args, kwargs, _ in _calls(model):
        found.setdefault(id(layer), _places(list(_operands(args, kwargs))))
    return found


def operands_of(model: Any) -> dict[int, list[float]]:
    """The range of each operand of each wrapped layer of a model, 0 where it is not known.

    Args:
        model: tf_keras model of wrappers.

    Returns:
        Lists by the identity of wrappers; of several calls the largest.
    """
    makers: dict[int, tuple[Any, list[Any]]] = {}
    found: dict[int, list[float]] = {}

    def made_with(tensor: Any) -> float:
        """The range under which a tensor was quantized where it was made."""
        layer, inputs = makers.get(id(tensor), (None, []))
        if isinstance(layer, LNSQuantizeWrapper) and layer.quantize_outputs:
            return float(layer.input_ranges[-1]) if layer.input_ranges else 0.0
        row = None if layer is None else row_of(unwrapped(layer))
        moves = row is not None and row.kind == "passes" and len(inputs) == 1
        return made_with(inputs[0]) if moves else 0.0

    for layer, args, kwargs, outputs in _calls(model):
        operands = list(_operands(args, kwargs))
        makers |= {id(x): (layer, operands) for x in outputs}
        if not isinstance(layer, LNSQuantizeWrapper):
            continue
        if layer.quantize_inputs:
            own = of_wrapper(layer)[0]
            values = [float(own[i]) if i < len(own) else 0.0 for i in _places(operands)]
        else:
            values = [made_with(x) for x in operands]
        before = found.get(id(layer), [0.0] * len(values))
        found[id(layer)] = [max(pair) for pair in zip(before, values, strict=True)]
    return found


def _places(operands: list[Any]) -> list[int]:
    """For each operand, its number among the different ones."""
    order = list(dict.fromkeys(map(id, operands)))
    return [order.index(id(x)) for x in operands]


def _operands(args: tuple, kwargs: dict[str, Any]) -> Iterator[Any]:
    """The tensors of a call that may be operands, in the order in which wrappers take them."""
    for arg in args:
        states = isinstance(arg, list) and arg  # of a recurrent layer, behind its inputs
        yield from arg[:1] if states else [arg]
    yield from (kwargs[name] for name in ("value", "key") if name in kwargs)


def _calls(model: Any) -> Iterator[tuple[Any, tuple, dict[str, Any], list[Any]]]:
    """The calls within a model and the models in it."""
    yield from hooks.calls(model)
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from _calls(layer)
