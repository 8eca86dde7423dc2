"""Weights whose only storage is integers: codes plus one scale.

`LNSCell` is what TensorFlow sees, a `tf.Variable` of dtype float32 whose memory holds int8 or
int16 codes. `LNSVariable` is what Keras sees. Reading decodes, assigning encodes; gradients,
control flow and compiled functions treat both as float variables.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks, ops, reference
from tf_lns.formats import LNSFormat
from tf_lns.ops.variable import assign_variable, read_variable
from tf_lns.roles import keeps_grid

keras_hooks.register_read_only("LnsReadVariable")
keras_hooks.register_unvectorized("LnsReadVariable")

DEFAULT_STORAGE = LNSFormat(16, 2048)

_forward = threading.local()


@contextlib.contextmanager
def forward_reads() -> Iterator[None]:
    """Inside, `LNSVariable.value` is the weight as the forward pass sees it: Q_W of it."""
    previous = getattr(_forward, "on", False)
    _forward.on = True
    try:
        yield
    finally:
        _forward.on = previous


def reads_forward() -> bool:
    """Whether this is inside `forward_reads`."""
    return getattr(_forward, "on", False)


@contextlib.contextmanager
def stored_reads() -> Iterator[None]:
    """Inside, `LNSVariable.value` is the stored weight, also within `forward_reads`."""
    previous = getattr(_forward, "on", False)
    _forward.on = False
    try:
        yield
    finally:
        _forward.on = previous


def weight_scale(values: np.ndarray, storage: LNSFormat) -> np.float32:
    """`reference.weight_scale` in pieces, so that no float64 copy of the weight is made.

    Raises:
        ValueError: `values` are not all finite.
    """
    flat = np.asarray(values, np.float32).reshape(-1)
    largest, squares = 0.0, 0.0
    piece = 1 << 20
    for start in range(0, flat.size, piece):
        part = flat[start : start + piece].astype(np.float64)
        largest = max(largest, float(np.max(np.abs(part))))
        squares += float(np.dot(part, part))
    if not np.isfinite(squares):
        raise ValueError("Weights must be finite to be stored in LNS. Received: NaN or Inf.")
    return reference.weight_scale_from(
        float(np.sqrt(squares / max(flat.size, 1))), largest, storage
    )


def _view(tensor: tf.Tensor) -> np.ndarray:
    """An eager tensor as an array that shares its memory."""
    return np.asarray(memoryview(tensor))


def fitting_scale(value: tf.Tensor, present: np.float32, storage: LNSFormat) -> np.float32 | None:
    """The scale that an eager `value` needs, None where the present one does not clip it."""
    values = _view(value)
    if not values.size:
        return None
    wanted = weight_scale(values, storage)
    largest = max(float(values.max()), -float(values.min()))
    if largest < reference.MIN_NORMAL:
        return None
    top = float(present) * 2.0 ** ((storage.max_exponent + 0.5) / storage.base_factor)
    if largest >= top:
        return wanted
    if wanted < present:
        smallest = np.min(np.abs(values), initial=np.inf, where=values != 0)
        if smallest < present * 2.0 ** (-0.5 / storage.base_factor):
            return wanted
    return None


@dataclasses.dataclass
class WeightRole:
    """How layers and optimizers treat a weight; one for all its copies on several devices."""

    seen: LNSFormat | None = None  # format in the forward pass (Q_W)
    gradient_format: LNSFormat | None = None  # Q_G
    gradient_options: dict[str, Any] = dataclasses.field(default_factory=dict)


class LNSCell(keras_hooks.BaseResourceVariable):
    """A float32 `tf.Variable` whose memory holds LNS codes.

    Args:
        codes: `tf.Variable` of int8 or int16 codes.
        scale: `tf.Variable`, float32 scalar.
        storage: Format of the codes.
        name: Name of the variable.
        trainable: Whether gradient tapes watch it.
    """

    def __init__(
        self,
        codes: tf.Variable,
        scale: tf.Variable,
        storage: LNSFormat,
        name: str,
        trainable: bool = True,
        aggregation: Any = None,
        synchronization: Any = None,
        role: WeightRole | None = None,
    ):
        with tf.init_scope():
            handle = keras_hooks.float_alias(codes.handle, codes.shape)
        super().__init__(
            trainable=trainable,
            shape=codes.shape,
            dtype=tf.float32,
            handle=handle,
            name=name,
            handle_name=name,
            unique_id=codes._unique_id + "_lns",
            aggregation=aggregation,
            synchronization=synchronization,
        )
        self.codes = codes
        self.scale = scale
        self.storage = storage
        self.role = role or WeightRole()
        self.copies: list[LNSCell] = []  # on other devices, to be restored with this one

    @property
    def seen(self) -> LNSFormat | None:
        """Format in which the forward pass sees the weight, None for as it is stored."""
        return self.role.seen

    @seen.setter
    def seen(self, value: LNSFormat | None) -> None:
        self.role.seen = value

    @property
    def gradient_format(self) -> LNSFormat | None:
        """Format that optimizers quantize the weight's gradient to, None for none."""
        return self.role.gradient_format

    @gradient_format.setter
    def gradient_format(self, value: LNSFormat | None) -> None:
        self.role.gradient_format = value

    @property
    def gradient_options(self) -> dict[str, Any]:
        """Arguments of `ops.quantize` for the gradient."""
        return self.role.gradient_options

    @gradient_options.setter
    def gradient_options(self, value: dict[str, Any]) -> None:
        self.role.gradient_options = value

    def read(self, seen: LNSFormat | None = None) -> tf.Tensor:
        """The weight as float32, in its storage format or as format `seen` shows it."""
        keras_hooks.variable_accessed(self)
        value = read_variable(self.handle, self.scale.read_value(), self.storage, seen)
        value.set_shape(self.shape)
        if not tf.executing_eagerly():
            keras_hooks.record_read(value, self.handle)
        return value

    def _read_variable_op(self, no_copy: bool = False) -> tf.Tensor:
        return self.read()

    def assign(self, value, use_locking=None, name=None, read_value=True):
        """Encodes `value` under the present scale."""
        return self.assign_rounded(value)

    def assign_rounded(self, value: Any, rounding: str = "nearest", seed: Any = None) -> LNSCell:
        """`assign` with a choice of rounding."""
        value = tf.cast(tf.convert_to_tensor(value), tf.float32)
        assign_variable(self.handle, self.scale.read_value(), value, self.storage, rounding, seed)
        return self

    def assign_add(self, delta, use_locking=None, name=None, read_value=True):
        """Reads, adds in float32 and encodes."""
        return self.assign(self.read() + tf.cast(tf.convert_to_tensor(delta), tf.float32))

    def assign_sub(self, delta, use_locking=None, name=None, read_value=True):
        """Reads, subtracts in float32 and encodes."""
        return self.assign(self.read() - tf.cast(tf.convert_to_tensor(delta), tf.float32))

    def sparse_read(self, indices, name=None):
        """Rows of the decoded weight."""
        return tf.gather(self.read(), indices)

    def gather_nd(self, indices, name=None):
        """Elements of the decoded weight."""
        return tf.gather_nd(self.read(), indices)

    def scatter_add(self, sparse_delta, use_locking=False, name=None):
        """Adds rows in float32 and encodes."""
        return self.assign_add(tf.convert_to_tensor(sparse_delta))

    def scatter_sub(self, sparse_delta, use_locking=False, name=None):
        """Subtracts rows in float32 and encodes."""
        return self.assign_sub(tf.convert_to_tensor(sparse_delta))

    def scatter_update(self, sparse_delta, use_locking=False, name=None):
        """Replaces rows and encodes."""
        rows = tf.expand_dims(sparse_delta.indices, -1)
        return self.assign(tf.tensor_scatter_nd_update(self.read(), rows, sparse_delta.values))

    @property
    def _shared_name(self) -> str:
        return self.codes._shared_name

    def is_initialized(self, name=None):
        """Whether the variable of codes has been initialized."""
        return self.codes.is_initialized(name)

    def __deepcopy__(self, memo: dict) -> LNSCell:
        copy = type(self)(
            codes=tf.Variable(self.codes.read_value(), trainable=False),
            scale=tf.Variable(self.scale.read_value(), trainable=False),
            storage=self.storage,
            name=self._handle_name.removesuffix(":0"),
            trainable=self.trainable,
        )
        copy.role = dataclasses.replace(self.role, gradient_options=dict(self.gradient_options))
        memo[id(self)] = copy
        return copy

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return self.codes._serialize_to_tensors()

    def _restore_from_tensors(self, restored_tensors: dict) -> Any:
        for cell in self.copies:
            cell.codes._restore_from_tensors(restored_tensors)
        return self.codes._restore_from_tensors(restored_tensors)

    def _export_to_saved_model_graph(
        self, object_map=None, tensor_map=None, options=None, **kwargs
    ):
        handles = self.codes._export_to_saved_model_graph(object_map, tensor_map, options, **kwargs)
        object_map[self] = object_map[self.codes]
        tensor_map[self.handle] = tensor_map[self.codes.handle]
        return [*handles, self.handle]

    def _write_object_proto(self, proto, options) -> None:
        self.codes._write_object_proto(proto, options)

    def _copy_trackable_to_cpu(self, object_map) -> None:
        self.codes._copy_trackable_to_cpu(object_map)
        object_map[self] = object_map[self.codes]

    def __repr__(self) -> str:
        return f"<LNSCell name={self._handle_name!r} shape={self.shape} storage={self.storage}>"


class LNSVariable(keras.Variable):
    """A Keras variable whose only storage is int8 or int16 codes and one scale.

    It stands wherever a `keras.Variable` does: its dtype is float32, its value is decoded when
    read and encoded when assigned. The scale is a power of two, chosen once from the initial
    values (`reference.weight_scale`), so every weight lies on one lattice and a float32 value
    identifies its code: `get_weights`, `set_weights` and plain files round-trip exactly.

    Small non-zero values never become zero. An assignment outside of a traced function whose
    values do not fit the range chooses a new scale; inside, values saturate. NaN is refused (in
    a function compiled with jit, which cannot refuse, its element stays as it was).

    Keras reckons the memory of a variable by its dtype: `model.summary()` shows 4 bytes per
    element. `tf_lns.summary(model)` and `nbytes` tell the true bytes.

    Under `tf.distribute.MirroredStrategy` each device has a copy; other strategies of several
    devices are refused.

    Args:
        initializer: Initial values: array, tensor, or a callable of (shape, dtype).
        shape: Shape; required with a callable.
        dtype: Must be float32 (or None).
        format: Storage format, `LNSFormat` or its short form.
        **kwargs: As in `keras.Variable`.

    Attributes:
        codes: int8 or int16 array of the codes, a copy.
        scale: float32 NumPy scalar.
        format: The storage `LNSFormat`.

    Raises:
        ValueError: The initial values are not finite, or the dtype is not float32.
    """

    def __init__(
        self,
        initializer,
        shape=None,
        dtype=None,
        trainable=True,
        autocast=True,
        aggregation="none",
        synchronization="auto",
        name=None,
        format: LNSFormat | str = DEFAULT_STORAGE,
        **kwargs,
    ):
        if dtype is not None and keras.backend.standardize_dtype(dtype) != "float32":
            raise ValueError(
                f"An LNSVariable reads as float32; `dtype` must be that. Received: dtype={dtype}"
            )
        self._format = LNSFormat.get(format)
        # Before the cells: under a StatelessScope they are made later.
        self.role = WeightRole()
        if not callable(initializer) and not isinstance(initializer, str):
            initializer = tf.cast(tf.convert_to_tensor(initializer), tf.float32)
        super().__init__(
            initializer,
            shape=shape,
            dtype="float32",
            trainable=trainable,
            autocast=autocast,
            aggregation=aggregation,
            synchronization=synchronization,
            name=name,
            **kwargs,
        )

    @classmethod
    def from_variable(cls, variable: keras.Variable, format: LNSFormat) -> LNSVariable:
        """An LNS variable with the values, name, path and settings of a float variable."""
        values = keras_hooks.values_of(variable)
        new = cls(
            lambda shape, dtype: tf.convert_to_tensor(values),
            shape=variable.shape,
            autocast=variable._autocast,
            aggregation=variable.aggregation,
            synchronization=variable.synchronization,
            name=variable.name,
            format=format,
        )
        # Keras' own switch, which can be turned on again; a cell that is made untrainable stays so.
        new.trainable = variable.trainable
        new._path = variable.path
        new.regularizer = variable.regularizer
        new.constraint = variable.constraint
        new.overwrite_with_gradient = variable.overwrite_with_gradient
        return new

    # --- Storage ---------------------------------------------------------------------

    def _initialize(self, value: Any) -> None:
        # Few steps and no names kept: large weights are made without further float copies.
        with tf.init_scope():
            values = tf.convert_to_tensor(value() if callable(value) else value, tf.float32)
            first = weight_scale(_view(values), self._format)
            codes = ops.encode(values, first, self._format)
            del values
            scale = tf.Variable(first, trainable=False, name=f"{self.name}_scale")
            role = self.role

            def make(scale: tf.Variable) -> LNSCell:
                return LNSCell(
                    codes=tf.Variable(codes, trainable=False, name=self.name),
                    scale=scale,
                    storage=self._format,
                    name=self.name,
                    trainable=self.trainable,
                    aggregation=self._map_aggregation(self.aggregation),
                    synchronization=self._map_synchronization(self.synchronization),
                    role=role,
                )

            self._value = keras_hooks.on_each_device(make, scale)
            first_cell, *copies = self.cells
            first_cell.copies = copies
            self._track_trackable(first_cell, "codes")
            self._track_trackable(scale, "scale")
            self._scale = scale

    @property
    def cell(self) -> LNSCell:
        """The `tf.Variable` behind this variable (on this device, where there are several)."""
        return keras_hooks.local_part(self._value)

    @property
    def cells(self) -> list[LNSCell]:
        """One cell for each device that has a copy of the weight."""
        return keras_hooks.parts(self._value)

    @property
    def format(self) -> LNSFormat:
        """Storage format of the codes."""
        return self._format

    @property
    def codes(self) -> np.ndarray:
        """The stored codes, an int8 or int16 array (a copy)."""
        return self.cell.codes.numpy()

    @property
    def scale(self) -> np.float32:
        """The scale, the smallest non-zero magnitude."""
        return np.float32(self.cell.scale.numpy())

    @property
    def nbytes(self) -> int:
        """Bytes that the codes and the scale take."""
        return int(np.prod(self.shape)) * self._format.itemsize + 4

    # --- Keras -----------------------------------------------------------------------

    @property
    def value(self) -> Any:
        """The weight: the cell, or inside a layer's call the float32 tensor Q_W(w)."""
        in_layer = getattr(_forward, "on", False) and self._value is not None
        if in_layer and self.cell.seen is not None:
            return self._maybe_autocast(self.as_seen())
        return super().value

    def as_seen(self) -> tf.Tensor:
        """Q_W(w), float32 whatever the dtype of the products."""
        cell = self.cell
        outside = keras_hooks.stateless_value(self)
        if outside is None or cell.seen is None:
            return cell.read(cell.seen)
        return self._seen_of(outside, cell.seen)

    def seen_scale(self) -> tf.Tensor:
        """Scale of Q_W(w)."""
        cell = self.cell
        return ops.requantize_scale(cell.scale, self._format, cell.seen or self._format)

    def _seen_of(self, value: tf.Tensor, seen: LNSFormat) -> tf.Tensor:
        """Q_W of a value that `stateless_call` puts in the place of the stored one."""
        scale = self.cell.scale
        codes = ops.requantize(ops.encode(value, scale, self._format), self._format, seen)
        return ops.decode(codes, ops.requantize_scale(scale, self._format, seen), seen)

    @property
    def handle(self) -> tf.Tensor:
        """The handle that gradient tapes know."""
        return self._value.handle

    def numpy(self) -> np.ndarray:
        """The stored weight, decoded to float32."""
        return self.cell.numpy()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.numpy(), dtype=dtype)

    def _direct_assign(self, value: Any) -> None:
        value = tf.cast(tf.convert_to_tensor(value), tf.float32)  # a cast leaves a variable one
        if tf.executing_eagerly():
            self._fit_scale(value)
            for cell in self.cells:
                cell.assign(value)
        else:
            self._value.assign(value)

    def _fit_scale(self, value: tf.Tensor) -> None:
        """Chooses a new scale where `value` does not fit the range: some would be clipped."""
        scale = fitting_scale(value, self.scale, self._format)
        if scale is not None:
            self._assign_scale(scale)

    def _assign_scale(self, scale: np.float32) -> None:
        for cell in self.cells:
            cell.scale.assign(scale)

    def assign_codes(self, codes: np.ndarray, scale: Any) -> None:
        """Sets codes and scale as they are.

        Args:
            codes: Integer array of the variable's shape, in -L..L.
            scale: Finite normal float32.

        Raises:
            ValueError: The shape is wrong, a code is out of range or the scale is invalid.
        """
        codes, scale = np.asarray(codes), np.asarray(scale, np.float32)
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"`codes` must be integers. Received: dtype {codes.dtype}")
        if codes.shape != tuple(self.shape):
            raise ValueError(
                f"`codes` must have shape {tuple(self.shape)}. Received: {codes.shape}"
            )
        if codes.size and np.abs(codes.astype(np.int32)).max() > self._format.max_code:
            raise ValueError(
                f"`codes` must lie in -{self._format.max_code}..{self._format.max_code} for "
                f"{self._format}. Received: {codes.min()}..{codes.max()}"
            )
        if scale.shape != () or not np.isfinite(scale) or scale < reference.MIN_NORMAL:
            raise ValueError(f"`scale` must be finite and at least 2**-126. Received: {scale}")
        for cell in self.cells:
            cell.codes.assign(codes.astype(self._format.dtype))
        self._assign_scale(scale)

    @property
    def constraint(self) -> Any:
        """A constraint on the weight; only those that keep weights on the grid are possible."""
        return self._constraint

    @constraint.setter
    def constraint(self, value: Any) -> None:
        if not keeps_grid(value):
            raise ValueError(
                "A constraint moves weights off the grid of an integer weight and cannot hold "
                f"there. Received: constraint={value!r} for {self.path}. Leave the layer float "
                "(LNSConfig overrides), drop the constraint, or set `keeps_lns_grid = True` on "
                "a constraint whose result lies on the grid."
            )
        self._constraint = value

    def __repr__(self) -> str:
        text = f"<LNSVariable path={self.path}, shape={tuple(self.shape)}, format={self._format}"
        if self._value is not None and tf.executing_eagerly():
            text += f", scale=2**{int(np.log2(self.scale))}"
        return f"{text}>"

    # --- TensorFlow's checkpoints and SavedModels ----------------------------------------
    # To them the variable is an object with two variables, `codes` and `scale`. (A variable
    # cannot have children that a SavedModel restores.)

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return {}

    def _restore_from_tensors(self, restored_tensors: dict) -> Any:
        return self._value

    def _copy_trackable_to_cpu(self, object_map) -> None:
        object_map.setdefault(self, self)

    def _export_to_saved_model_graph(
        self, object_map=None, tensor_map=None, options=None, **kwargs
    ) -> list:
        return []

    def _write_object_proto(self, proto, options) -> None:
        keras_hooks.write_plain_object(proto)

    def __deepcopy__(self, memo: dict) -> LNSVariable:
        rebuild, arguments = self.__reduce__()
        memo[id(self)] = new = rebuild(*copy.deepcopy(arguments, memo))
        return new

    def __reduce__(self) -> tuple:
        settings = {
            name: getattr(self, name)
            for name in (
                "_path",
                "_trainable",
                "_regularizer",
                "_constraint",
                "_overwrite_with_gradient",
            )
        }
        arguments = {
            "trainable": self.cell.trainable,
            "autocast": self._autocast,
            "aggregation": self.aggregation,
            "synchronization": self.synchronization,
            "name": self.name,
            "format": self._format,
        }
        return _rebuild, (type(self), self.codes, self.scale, arguments, settings, self.cell.role)


def _rebuild(cls, codes, scale, arguments, settings, role) -> LNSVariable:
    """A variable from what `LNSVariable.__reduce__` says of it."""
    new = cls(lambda shape, dtype: tf.zeros(shape, dtype), shape=codes.shape, **arguments)
    new.assign_codes(codes, scale)
    vars(new).update(settings)
    vars(new.cell.role).update(vars(role))
    return new
