"""Integer weights of tf_keras layers: an LNS cell is the layer's own weight."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks, ops, reference
from tf_lns.config import LNSConfig
from tf_lns.formats import LNSFormat
from tf_lns.layers.mixin import give_role
from tf_lns.roles import keeps_grid
from tf_lns.tfmot import hooks
from tf_lns.variable import LNSCell, fitting_scale, weight_scale


class LNSWeight(LNSCell):
    """An `LNSCell` that stands for itself among a layer's weights.

    An assignment outside of a traced function whose values do not fit the range chooses a new
    scale, as that of an `LNSVariable` does; inside, values saturate.
    """

    def assign(self, value, use_locking=None, name=None, read_value=True):
        """Encodes `value`."""
        value = tf.cast(tf.convert_to_tensor(value), tf.float32)
        if tf.executing_eagerly():
            scale = fitting_scale(value, np.float32(self.scale.numpy()), self.storage)
            if scale is not None:
                self.scale.assign(scale)
        return self.assign_rounded(value)


class LNSScale(keras_hooks.BaseResourceVariable):
    """The scale of an `LNSWeight` as one more of a layer's weights.

    In a list of weights, as `get_weights` and H5 files have it, it stands behind the weight
    itself. Assigning it keeps the weight's values and changes their codes, so that such a list
    restores exact codes.

    Args:
        weight: The weight.
        name: Name of the variable.
    """

    def __init__(self, weight: LNSWeight, name: str):
        raw = weight.scale
        super().__init__(
            trainable=False,
            shape=raw.shape,
            dtype=raw.dtype,
            handle=raw.handle,
            name=name,
            handle_name=name,
            unique_id=raw._unique_id + "_lns",
        )
        self.weight = weight

    def assign(self, value, use_locking=None, name=None, read_value=True):
        """Encodes the weight anew under another scale."""
        value = tf.cast(tf.convert_to_tensor(value), tf.float32)
        if tf.executing_eagerly():
            number = value.numpy()
            if number.shape != () or not np.isfinite(number) or number < reference.MIN_NORMAL:
                raise ValueError(
                    "The scale of an integer weight must be finite and at least 2**-126. "
                    f"Received: {number} for {self.name}. Load weights that were saved from "
                    "such a model, with all its variables."
                )
        decoded = self.weight.read()
        with tf.control_dependencies([decoded]):
            self.weight.scale.assign(value)
        self.weight.assign_rounded(decoded)
        return self


def becomes_integer(variable: Any) -> bool:
    """Whether a float weight is one that integers can hold and train: float32, not all zero."""
    variable = hooks.uncast(variable)
    if isinstance(cell_of(variable), LNSCell) or variable.dtype != tf.float32:
        return False
    return bool(np.any(np.abs(_values_of(variable)) >= np.float32(2.0**-126)))


def cell_of(variable: Any) -> Any:
    """The part of a variable that belongs to this device."""
    return keras_hooks.local_part(variable)


def make_integer(
    layer: Any, variable: Any, config: LNSConfig, axis: tuple[int, ...]
) -> tuple[Any, Any, Any]:
    """Puts an integer weight in the place of a layer's float one, its scale from the values.

    Args:
        layer: The layer that owns the variable.
        variable: One of its weights.
        config: The formats.
        axis: Axes of the weight that count output channels.

    Returns:
        The weight, its scale for the lists of weights, and its scale for checkpoints. Under a
        strategy each has a part for each device.

    Raises:
        ValueError: The weight has a constraint, or values that are not finite.
    """
    constraint = getattr(variable, "constraint", None)
    name = variable.name.split(":")[0]
    if not keeps_grid(constraint):
        raise ValueError(
            "A constraint moves weights off the grid of an integer weight and cannot hold there. "
            f"Received: constraint={constraint!r} for {name} of {layer.name!r}. Leave the layer "
            "float (annotate only the others), drop the constraint, or set `keeps_lns_grid = "
            "True` on one whose result lies on the grid."
        )
    values, storage = _values_of(variable), config.storage
    if not np.any(np.abs(values) >= np.float32(2.0**-126)):
        values = np.ones_like(values)  # known to be an integer weight; its values are to come
    first = weight_scale(values, storage)
    codes = ops.encode(values, first, storage)
    scale = tf.Variable(first, trainable=False, name=f"{name}_scale")
    role = None

    def make(scale: tf.Variable) -> LNSWeight:
        nonlocal role
        cell = LNSWeight(
            codes=tf.Variable(codes, trainable=False, name=name),
            scale=scale,
            storage=storage,
            name=name,
            trainable=variable.trainable,
            aggregation=variable.aggregation,
            synchronization=variable.synchronization,
            role=role,
        )
        role = cell.role
        return cell

    weight = keras_hooks.on_each_device(make, scale)
    first_cell, *copies = keras_hooks.parts(weight)
    first_cell.copies = copies
    give_role(first_cell.role, config, axis)
    cells = iter([first_cell, *copies])
    shown = keras_hooks.on_each_device(
        lambda scale: LNSScale(weight=next(cells), name=f"{name}_scale"), scale
    )
    hooks.replace_variable(layer, variable, weight)
    return weight, shown, shown if len(copies) == 0 else scale


def _values_of(variable: Any) -> np.ndarray:
    with tf.init_scope():
        return np.asarray(hooks.uncast(variable).numpy(), np.float32)


# --- Files ------------------------------------------------------------------------------------


def save_variables(layer: Any, store: Any) -> None:
    """What a layer with integer weights puts into a `.keras` file in the place of floats."""
    for i, variable in enumerate(hooks.own_variables(layer)):
        cell = cell_of(variable)
        if isinstance(cell, LNSCell):
            store[f"{i}"] = cell.codes.numpy()
            store[f"{i}_scale"] = cell.scale.numpy()
            store[f"{i}_format"] = np.array([cell.storage.bits, cell.storage.base_factor], np.int32)
        else:
            store[f"{i}"] = variable.numpy()


def load_variables(layer: Any, store: Any) -> None:
    """Loads what `save_variables` or the plain layer wrote.

    Codes of another storage format are decoded and encoded.

    Raises:
        ValueError: The number of variables differs.
    """
    variables = hooks.own_variables(layer)
    found = sum(key.isdigit() for key in store.keys())  # noqa: SIM118, an H5 store
    if found != len(variables):
        raise ValueError(
            f"Layer {layer.name!r} has {len(variables)} variables, and the file has {found}. "
            f"Expected: {[v.name for v in variables]}"
        )
    for i, variable in enumerate(variables):
        value = np.asarray(store[f"{i}"])
        cell = cell_of(variable)
        if f"{i}_scale" not in store.keys():  # noqa: SIM118
            variable.assign(value)
            continue
        scale = np.asarray(store[f"{i}_scale"], np.float32)
        format = LNSFormat(*np.asarray(store[f"{i}_format"]).tolist())
        if not isinstance(cell, LNSCell) or cell.storage != format:
            if not isinstance(cell, LNSCell):
                warnings.warn(f"{variable.name} was saved as integers and is float.", stacklevel=2)
            variable.assign(reference.decode(value, scale, format))
            continue
        for part in keras_hooks.parts(variable):
            part.codes.assign(value)
            part.scale.assign(scale)


def refuse_integers(variables: list[Any]) -> None:
    """Raises TypeError if an old optimizer would update the memory of an integer weight."""
    for variable in variables:
        if isinstance(cell_of(hooks.uncast(variable)), LNSCell):
            raise TypeError(
                f"{variable.name} is an integer weight, which optimizers of "
                "tf_keras.optimizers.legacy and tf.compat.v1.train cannot update. Use one of "
                "tf_keras.optimizers, or tf_lns.tfmot.LNSMadam."
            )


hooks.check_before_old_optimizers(refuse_integers)
