"""What low-bit formats do to the tensors of a step: share saturated, underflowed, zero.

The training step is traced once more, and of its graph only what enters the quantizers is
computed: nothing is updated, no statistics move.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks
from tf_lns.energy import rules, trace
from tf_lns.energy.events import TensorNumerics
from tf_lns.formats import LNSFormat
from tf_lns.layers.tree import children
from tf_lns.variable import LNSCell, LNSVariable

_BIAS = 127
_INFINITE = 255


def weight_numerics(model: Any) -> list[TensorNumerics]:
    """Numerics of the integer weights of a model, in their storage format."""
    return [_of_codes(path, variable) for path, variable in _integer_weights(model)]


def _integer_weights(model: Any) -> list[tuple[str, Any]]:
    """The integer weights of a model with the paths of their layers, each once.

    They are `LNSVariable`s in a Keras model, bare `LNSCell`s in one of tf_keras.
    """
    is_keras = isinstance(model, keras.layers.Layer)
    found: dict[int, tuple[str, Any]] = {}

    def visit(layer: Any, path: str) -> None:
        for variable in keras_hooks.own_variables(layer):
            if isinstance(keras_hooks.local_part(variable), LNSVariable | LNSCell):
                found.setdefault(id(variable), (path, variable))
        below = (
            [child for _, child in children(layer)]
            if is_keras
            else keras_hooks.tf_keras_sublayers(layer)
        )
        for child in below:
            # A wrapper that runs a layer's `call` is, in the graph, the layer itself.
            inside = path if getattr(layer, "runs_layer", False) else f"{path}/{child.name}"
            visit(child, inside.lstrip("/"))

    visit(model, "")
    return list(found.values())


def _cell(variable: Any) -> LNSCell:
    """The cell of an integer weight on this device."""
    return variable.cell if isinstance(variable, LNSVariable) else keras_hooks.local_part(variable)


def _of_codes(layer: str, variable: Any) -> TensorNumerics:
    cell = _cell(variable)
    codes, format, scale = cell.codes.numpy(), cell.storage, float(cell.scale.numpy())
    exponents = _exponents(np.asarray(cell.numpy(), np.float32))
    first, counts = _trimmed(np.bincount(exponents, minlength=_INFINITE + 1))
    magnitudes = np.abs(codes.astype(np.int32))
    return TensorNumerics(
        tensor=getattr(variable, "path", None) or f"{layer}/{_last_name(variable)}".lstrip("/"),
        layer=layer,
        role="weights",
        format=str(format),
        elements=codes.size,
        saturated=float(np.mean(magnitudes == format.max_code)),
        underflowed=float(np.mean(magnitudes == 1)),
        zero=float(np.mean(magnitudes == 0)),
        first=first,
        counts=counts,
        smallest=float(np.log2(scale)),
        largest=float(np.log2(scale) + format.octaves),
    )


def _last_name(variable: Any) -> str:
    """What tf_keras calls a variable, without what it was built within."""
    return variable.name.split(":")[0].split("/")[-1]


def _exponents(x: np.ndarray) -> np.ndarray:
    """Biased binary exponents; 0 for zeros and denormals."""
    return (np.ascontiguousarray(x).view(np.uint32).ravel() >> 23 & 0xFF).astype(np.int64)


def _trimmed(counts: np.ndarray) -> tuple[int, tuple[int, ...]]:
    """First exponent and counts of a histogram of biased exponents, without empty ends."""
    counts = counts[1:_INFINITE]
    (used,) = np.nonzero(counts)
    if not len(used):
        return 0, ()
    first, last = int(used[0]), int(used[-1])
    return first + 1 - _BIAS, tuple(map(int, counts[first : last + 1]))


class StepNumerics:
    """Numerics of what enters the quantizers of a training step.

    Args:
        model: A compiled model of Keras or tf_keras.
        batch: Data of one step, as `tf_lns.energy.tally` takes it.
    """

    def __init__(self, model: Any, batch: Any):
        step = trace.prunable_step(model, batch)
        self._data = trace.tensors_of(batch)
        layers = {id(_cell(v).handle): path for path, v in _integer_weights(model)}
        weights = {
            internal.name: layers[id(external)]
            for external, internal in step.trace.graph.captures
            if id(external) in layers
        }
        self._found: list[tuple[str, str, str, str]] = []
        fetches: list[tf.Tensor] = []
        with step.trace.graph.as_default():
            for op in step.trace.graph.get_operations():
                tap = _tap(op)
                if tap is None:
                    continue
                values, scale, format, role = tap
                layer = weights.get(op.inputs[0].name) or step.trace.layer_of(op.name) or ""
                self._found.append((op.name, layer, role, format))
                fetches += _statistics(values, scale, LNSFormat.parse(format))
        self._compute = step.function.prune(step.inputs, fetches) if fetches else None

    def __call__(self) -> list[TensorNumerics]:
        """Computes them for the model as it is now."""
        if self._compute is None:
            return []
        results = [x.numpy() for x in self._compute(*self._data)]
        found = []
        for i, (name, layer, role, format) in enumerate(self._found):
            size, saturated, underflowed, zero, least, largest, histogram = results[7 * i :][:7]
            first, counts = _trimmed(histogram)
            n = max(1, int(size))
            found.append(
                TensorNumerics(
                    tensor=f"{layer or name}/{role}",
                    layer=layer,
                    role=role,
                    format=format,
                    elements=int(size),
                    saturated=float(saturated / n),
                    underflowed=float(underflowed / n),
                    zero=float(zero / n),
                    first=first,
                    counts=counts,
                    smallest=float(np.log2(least)),
                    largest=float(np.log2(largest) + LNSFormat.parse(format).octaves),
                )
            )
        return _unique(found)


def _unique(found: list[TensorNumerics]) -> list[TensorNumerics]:
    """Numbers tensors of one layer and role."""
    seen: dict[str, int] = {}
    named = []
    for entry in found:
        seen[entry.tensor] = seen.get(entry.tensor, 0) + 1
        n = seen[entry.tensor]
        named.append(entry if n == 1 else dataclasses.replace(entry, tensor=f"{entry.tensor} {n}"))
    return named


def _tap(op: Any) -> tuple[Any, Any, str, str] | None:
    """What a quantizer is given: values, their scales as they broadcast, format and role."""
    if op.type in ("LnsQuantizeDynamic", "LnsQuantize"):
        values = op.inputs[0]
        scale = op.outputs[1] if op.type == "LnsQuantizeDynamic" else op.inputs[1]
        role = "errors" if trace.is_backward(op.name) else "activations"
        scale = _spread(scale, values, op.get_attr("axis"), op.get_attr("vector_size"))
        return values, scale, str(rules.result_format(op)), role
    if op.type == "LnsApplyMadam" and op.get_attr("grad_bits"):
        scale = _spread(op.inputs[5], op.inputs[4], op.get_attr("grad_axis"), 0)
        return op.inputs[4], scale, str(rules.consumed_format(op)), "gradients"
    return None


def _spread(scale: Any, values: Any, axis: list[int], vector_size: int) -> Any:
    """Scales in a shape that broadcasts against the values."""
    if vector_size:
        return tf.repeat(scale, vector_size, axis[0])[
            tuple(slice(0, n) for n in values.shape)  # the last vector may be short
        ]
    if not axis:
        return scale
    shape = tf.shape(values)
    return tf.reshape(scale, [shape[i] if i in axis else 1 for i in range(values.shape.rank)])


def _statistics(values: Any, scale: Any, format: LNSFormat) -> list[Any]:
    """Number of elements, saturated, underflowed, zero ones, range of scales, histogram."""
    magnitude = tf.abs(tf.cast(values, tf.float32))
    largest = scale * tf.constant(2.0**format.octaves, tf.float32)
    half_step = tf.constant(2.0 ** (0.5 / format.base_factor), tf.float32)
    bits = tf.bitwise.right_shift(tf.bitcast(magnitude, tf.int32), 23)
    zero = bits == 0  # denormals count as zero
    return [
        tf.size(values, tf.int64),
        tf.math.count_nonzero(magnitude >= largest * half_step),
        tf.math.count_nonzero((magnitude < scale / half_step) & ~zero),
        tf.math.count_nonzero(zero),
        # Not stacked: TensorFlow's optimizer would take another output of the quantizer.
        tf.reduce_min(scale),
        tf.reduce_max(scale),
        tf.math.bincount(tf.reshape(bits, (-1,)), minlength=_INFINITE + 1, dtype=tf.int64),
    ]
