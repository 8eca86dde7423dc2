"""Which variables an optimizer treats as LNS weights, and how it finds its way into them.

Three kinds of variable:

    cell      an `LNSVariable`: the codes are its storage
    grid      a float32 variable of a plain Keras model that multiplies activations; it always
              lies on the grid of the storage format, so its value identifies its code
    additive  everything else: biases, norm scales, tensors that start at zero
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks, ops
from tf_lns.formats import LNSFormat
from tf_lns.roles import keeps_grid, multiplies_activations
from tf_lns.variable import LNSCell, LNSVariable, weight_scale

KINDS = ("additive", "grid", "cell")
"""The kinds, in the order in which files number them."""


def all_initialized(variables: list) -> bool:
    """Whether all variables have values, which those made inside a first trace have not yet."""
    with tf.init_scope():
        return all(bool(v.is_initialized()) for v in map(tensor_of, variables))


@dataclasses.dataclass
class WeightState:
    """What an optimizer knows of one trainable variable."""

    kind: str
    format: Any = None  # LNSFormat, for cell and grid
    scale: Any = None  # tf.Variable or keras.Variable, for cell and grid
    rms: float = 0.0  # of the values at the time

    @property
    def is_lns(self) -> bool:
        """Whether the multiplicative rule applies."""
        return self.kind != "additive"


def kind_of(variable: Any, predicate: Callable[[Any], bool] | None) -> str:
    """The kind of a variable with its present values.

    Args:
        variable: Trainable variable, as the optimizer's `build` gets it.
        predicate: The user's own test for float variables; None for
            `multiplies_activations`.
    """
    tensor = tensor_of(variable)
    if isinstance(keras_hooks.local_part(tensor), LNSCell):
        return "cell"
    is_weight = (predicate or multiplies_activations)(variable)
    if not is_weight or keras.backend.standardize_dtype(variable.dtype) != "float32":
        return "additive"
    with tf.init_scope():
        trains = np.any(np.abs(np.asarray(tf.convert_to_tensor(tensor))) >= np.float32(2.0**-126))
    return "grid" if trains else "additive"  # all zero: could never train


def tensor_of(variable: Any) -> tf.Variable:
    """The `tf.Variable` behind a variable of Keras, or of tf_keras, which is one itself."""
    if isinstance(variable, LNSVariable):
        return variable.cell
    return variable.value if isinstance(variable, keras.Variable) else variable


def classify(
    variable: Any,
    kind: str,
    storage: LNSFormat,
    add_scale: Callable[[Any, np.float32], Any],
    move: bool = True,
) -> WeightState:
    """What there is to know of a variable; a grid weight is put on the grid.

    Args:
        variable: As in `kind_of`.
        kind: Its kind.
        storage: Storage format of grid weights.
        add_scale: Makes the optimizer's variable for the scale of a grid weight.
        move: Whether a grid weight is put on the grid.

    Returns:
        Its state.

    Raises:
        ValueError: A weight for the grid has a constraint, or values that are not finite.
    """
    if kind == "additive":
        return WeightState(kind)
    tensor = tensor_of(variable)
    with tf.init_scope():
        values = np.asarray(tf.convert_to_tensor(tensor), np.float32)
        if kind == "cell":
            cell = keras_hooks.local_part(tensor)
            if values.size and not values.any():
                _warn_of_zeros(variable)
            return WeightState(kind, cell.storage, cell.scale, _rms(values))
        _check_constraint(variable)
        scale_variable = add_scale(variable, weight_scale(values, storage))
        # Another one where a checkpoint was waiting for it:
        scale = np.float32(tf.convert_to_tensor(tensor_of(scale_variable)))
        moved = to_grid(values, scale, storage).numpy()
        if move:
            for part in keras_hooks.parts(tensor):  # each: in a replica, replicas cannot meet
                part.assign(moved)
        return WeightState(kind, storage, scale_variable, _rms(moved))


def _warn_of_zeros(variable: Any) -> None:
    warnings.warn(
        f"{label_of(variable)} is an integer weight that is all zero: a multiplicative update "
        "never moves a zero. Keep tensors that start at zero in float32, or give it other values.",
        stacklevel=2,
    )


def _check_constraint(variable: Any) -> None:
    constraint = getattr(variable, "constraint", None)
    if not keeps_grid(constraint):
        raise ValueError(
            "A constraint moves weights off the grid of an LNS weight and cannot hold there. "
            f"Received: constraint={constraint!r} for {name_of(variable)}. Drop the constraint, "
            "set `keeps_lns_grid = True` on one whose result lies on the grid, or leave the "
            "variable float with the optimizer's `lns_weights`."
        )


def name_of(variable: Any) -> str:
    """What a user knows a variable by."""
    return getattr(variable, "path", None) or str(variable.name).split(":")[0]


def label_of(variable: Any) -> str:
    """Name for what an optimizer keeps for a variable."""
    return name_of(variable).replace("/", "_")


def bytes_per_parameter(model: Any) -> float:
    """Bytes of trainable weights and of the optimizer's state, per trainable parameter.

    Integer weights count with the bytes they are stored in, and everything counts that the
    optimizer keeps: 3.0 for integer weights with a one-byte second moment, 12 for float32
    weights with Adam.

    Args:
        model: A model of Keras or tf_keras that was trained at least one step, so that the
            state exists.

    Raises:
        ValueError: The model has no trainable parameter, or no built optimizer.
    """
    optimizer = getattr(model, "optimizer", None)
    parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    if optimizer is None or not keras_hooks.is_built(optimizer) or not parameters:
        raise ValueError(
            "`model` must have trainable parameters and an optimizer with its state: compile it "
            f"and train a step. Received: model={model.name!r}"
        )
    variables = [*model.trainable_variables, *optimizer.variables]
    return sum(_bytes_of(v) for v in variables) / parameters


def _bytes_of(variable: Any) -> int:
    if isinstance(variable, LNSVariable):
        return variable.nbytes
    cell = keras_hooks.local_part(variable) if isinstance(variable, tf.Variable) else None
    if isinstance(cell, LNSCell):
        return int(np.prod(cell.shape)) * cell.storage.itemsize + 4
    return int(np.prod(variable.shape)) * tf.as_dtype(variable.dtype).size


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
