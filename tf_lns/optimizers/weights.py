"""Which variables an optimizer treats as LNS weights, and how it finds its way into them.

Three kinds of variable:

    cell      an `LNSVariable`: the codes are its storage
    grid      a float32 variable of a plain Keras model that multiplies activations; it always
              lies on the grid of the storage format, so its value identifies its code
    additive  everything else: biases, norm scales, tensors that start at zero
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import ops
from tf_lns.formats import LNSFormat
from tf_lns.roles import multiplies_activations
from tf_lns.variable import LNSCell, LNSVariable, weight_scale

def all_initialized(variables: list) -> bool:
    """Whether all variables have values, which those made inside a first trace have not yet."""
    with tf.init_scope():
        tensors = [v.value if isinstance(v, keras.Variable) else v for v in variables]
        return all(bool(v.is_initialized()) for v in tensors)


@dataclasses.dataclass
class WeightState:
    """What an optimizer knows of one trainable variable."""

    kind: str
    format: LNSFormat | None = None
    scale: Any = None  # tf.Variable or keras.Variable, for cell and grid
    rms: float = 0.0  # of the initial values

    @property
    def is_lns(self) -> bool:
        """Whether the multiplicative rule applies."""
        return self.kind != "additive"


def classify(
    variable: Any,
    storage: LNSFormat,
    predicate: Callable[[Any], bool] | None,
    add_scale: Callable[[Any, np.float32], Any],
) -> WeightState:
    """Finds the kind of a variable and, for a grid weight, puts it on the grid.

    Args:
        variable: Trainable variable, as the optimizer's `build` gets it.
        storage: Storage format of grid weights.
        predicate: The user's own test for float variables; None for
            `multiplies_activations`.
        add_scale: Makes the optimizer's variable for the scale of a grid weight.

    Returns:
        Its state.
    """
    cell = variable.value if isinstance(variable, keras.Variable) else variable
    if isinstance(variable, LNSVariable) or isinstance(cell, LNSCell):
        with tf.init_scope():
            values = cell.numpy()
        return WeightState("cell", cell.storage, cell.scale, _rms(values))
    is_weight = (predicate or multiplies_activations)(variable)
    if not is_weight or keras.backend.standardize_dtype(variable.dtype) != "float32":
        return WeightState("additive")
    with tf.init_scope():
        values = np.asarray(cell.numpy(), np.float32)
        if not np.any(np.abs(values) >= np.float32(2.0**-126)):
            return WeightState("additive")  # all zero: could never train
        scale = weight_scale(values, storage)
        scale_variable = add_scale(variable, scale)
        cell.assign(to_grid(cell, scale, storage))
    return WeightState("grid", storage, scale_variable, _rms(values))


def to_grid(values: Any, scale: Any, storage: LNSFormat, rounding="nearest", seed=None) -> Any:
    """float32 values moved to the nearest points of the grid."""
    return ops.quantize(values, storage, scale=scale, rounding=rounding, seed=seed)


def _rms(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    if not flat.size:
        return 0.0
    return float(np.sqrt(np.einsum("i,i->", flat, flat, dtype=np.float64) / flat.size))


def exponent_of(magnitude: Any, scale: Any, format: LNSFormat) -> tf.Tensor:
    """Exponent of a magnitude in a weight's range, an int32 scalar."""
    code = ops.encode(tf.convert_to_tensor(magnitude), scale, format)
    return tf.maximum(tf.cast(code, tf.int32) - 1, 0)
