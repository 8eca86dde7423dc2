"""All that an LNS layer does beyond its Keras layer: one mixin.

    x -> Q_A -> Keras' own call, reading Q_W of the integer weights -> y
    dy -> Q_E, inside the activation function -> the two backward products

Q_G acts in the optimizer, once per step on the summed gradient; the layer only leaves its
format on the weight.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks, ops
from tf_lns.config import LNSConfig
from tf_lns.roles import multiplies_activations, role_of
from tf_lns.variable import LNSVariable, forward_reads

RANGE_MOMENTUM = 0.9
"""Share of the old value in the moving abs-max of a layer's inputs."""

_mode = threading.local()


@contextlib.contextmanager
def float_build() -> Iterator[None]:
    """Inside, LNS layers build float weights, for values to be copied into before conversion."""
    previous = getattr(_mode, "float_build", False)
    _mode.float_build = True
    try:
        yield
    finally:
        _mode.float_build = previous


@contextlib.contextmanager
def calibration() -> Iterator[None]:
    """Inside, eager calls record the abs-max of what they see, training or not."""
    previous = getattr(_mode, "calibration", False)
    _mode.calibration = True
    try:
        yield
    finally:
        _mode.calibration = previous


class LNSMixin(keras_hooks.AfterBuild):
    """Turns a Keras layer class into one that trains in LNS; stands before it among the bases.

    The constructor takes `lns_config` (an `LNSConfig`, its dict or None for the defaults) in
    addition to the Keras layer's arguments.

    Attributes:
        lns_config: The layer's `LNSConfig`.
        quantized_inputs: Class attribute: how many of the first arguments of `call` are
            activations.
        recorded_ranges: Class attribute: how many activations have a recorded range; more
            than the inputs where one call chains two products.
    """

    quantized_inputs = 1
    recorded_ranges = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Puts the quantizers around `call`, whose signature gains `training`."""
        super().__init_subclass__(**kwargs)
        is_layer = issubclass(cls, keras.layers.Layer)  # a mixin on the mixin is none yet
        if is_layer and not getattr(cls.call, "quantizes", False):
            cls.call = _with_quantizers(cls.call)

    def __init__(self, *args: Any, lns_config: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lns_config = LNSConfig.get(lns_config)

    # --- Weights -----------------------------------------------------------------------

    def gradient_axis(self, variable: Any) -> tuple[int, ...]:
        """Axes of a weight that count output channels: Q_G has one scale for each."""
        return (len(variable.shape) - 1,)

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """As in Keras; what multiplies activations becomes an `LNSVariable`.

        A tensor that starts at zero stays float: no multiplicative update could move it.
        """
        shape = kwargs.get("shape", args[0] if args else None) or ()
        dtype = keras.backend.standardize_dtype(kwargs.get("dtype") or self.variable_dtype)
        if (
            getattr(_mode, "float_build", False)
            or len(args) > 1
            or kwargs.get("trainable", True) is False
            or dtype != "float32"
            or not role_of(kwargs.get("name"), shape)
        ):
            return super().add_weight(*args, **kwargs)
        initializer = keras.initializers.get(kwargs.get("initializer") or "glorot_uniform")
        with tf.init_scope():
            values = np.asarray(initializer(tuple(shape), dtype="float32"))
        if not _any_normal(values):
            return super().add_weight(*args, **kwargs)
        with keras.name_scope(self.name, caller=self):
            variable = LNSVariable(
                lambda shape, dtype: tf.convert_to_tensor(values),
                shape=shape,
                autocast=kwargs.get("autocast", True),
                aggregation=kwargs.get("aggregation", "none"),
                name=kwargs.get("name"),
                format=self.lns_config.storage,
            )
        variable.regularizer = keras.regularizers.get(kwargs.get("regularizer"))
        variable.constraint = keras.constraints.get(kwargs.get("constraint"))
        self._mark(variable)
        keras_hooks.track_variable(self, variable)
        return variable

    def _mark(self, variable: LNSVariable) -> None:
        """Leaves on the weight how it is read (Q_W) and how its gradient is quantized (Q_G)."""
        config = self.lns_config
        per_channel = config.gradient_scale == "channel"
        variable.cell.seen = config.weights
        variable.cell.gradient_format = config.gradients
        variable.cell.gradient_options = {
            "axis": self.gradient_axis(variable) if per_channel else (),
            "underflow": config.gradient_underflow,
            "power_of_two": config.power_of_two_scales,
        }

    def convert_variables(self) -> None:
        """Turns the layer's float weights into integers, each scale chosen from its values."""
        for variable in keras_hooks.own_variables(self):
            if (
                isinstance(variable, LNSVariable)
                or not multiplies_activations(variable)
                or keras.backend.standardize_dtype(variable.dtype) != "float32"
                or not _any_normal(variable.numpy())
            ):
                continue
            new = LNSVariable.from_variable(variable, self.lns_config.storage)
            self._mark(new)
            keras_hooks.replace_variable(self, variable, new)

    @property
    def lns_variables(self) -> list[LNSVariable]:
        """The layer's own integer weights."""
        return [v for v in keras_hooks.own_variables(self) if isinstance(v, LNSVariable)]

    # --- Activations -------------------------------------------------------------------

    def after_build(self) -> None:
        """Makes the recorded range of each quantized activation."""
        config = self.lns_config
        if config.activations is None or config.activation_scale != "moving":
            return
        for i in range(self.recorded_ranges):
            if not hasattr(self, f"input_range_{i}"):
                with tf.init_scope():
                    variable = tf.Variable(0.0, trainable=False, name=f"input_range_{i}")
                setattr(self, f"input_range_{i}", variable)

    @property
    def input_ranges(self) -> list[tf.Variable]:
        """Recorded abs-max of each activation; 0 where nothing is recorded yet."""
        names = [f"input_range_{i}" for i in range(self.recorded_ranges)]
        return [getattr(self, name) for name in names if hasattr(self, name)]

    def quantize_activation(self, x: Any, index: int = 0, training: Any = False) -> Any:
        """Q_A of an input; see `LNSConfig.activation_scale`.

        Args:
            x: Float tensor; anything else passes as it is.
            index: Which of the layer's recorded ranges it belongs to.
            training: Whether the batch's own scale is used, and recorded.

        Returns:
            Tensor like x.
        """
        config = self.lns_config
        format = config.activations
        if format is None or not _is_float(x):
            return x
        options = {"power_of_two": config.power_of_two_scales}
        if config.activation_scale == "batch":
            return ops.quantize(x, format, **options)
        factor = np.float32(2.0**-format.octaves)
        if config.activation_scale != "moving":
            return ops.quantize(x, format, scale=np.float32(config.activation_scale) * factor)
        recorded = self.input_ranges[index]
        if getattr(_mode, "calibration", False) and tf.executing_eagerly():
            y, scale = ops.quantize_with_scale(x, format, **options)
            recorded.assign(tf.maximum(recorded, _abs_max_of(scale, factor)))
            return y

        def train() -> tf.Tensor:
            y, scale = ops.quantize_with_scale(x, format, **options)
            seen = _abs_max_of(scale, factor)
            moved = RANGE_MOMENTUM * recorded + (1 - RANGE_MOMENTUM) * seen
            # A batch of zeros says nothing of the range.
            recorded.assign(tf.where(seen == 0.0, recorded, tf.where(recorded == 0.0, seen, moved)))
            return y

        def infer() -> tf.Tensor:
            scale = tf.cond(
                recorded > 0.0,
                lambda: tf.maximum(recorded * factor, np.float32(2.0**-126)),
                lambda: ops.scale_of(x, format, **options),
            )
            return ops.quantize(x, format, scale=scale)

        if isinstance(training, tf.Tensor | tf.Variable | keras.Variable):
            return tf.cond(tf.cast(training, tf.bool), train, infer)
        return train() if training else infer()

    def quantize_error(self, y: Any) -> Any:
        """The identity, whose gradient goes through Q_E."""
        config = self.lns_config
        if config.errors is None or not _is_float(y):
            return y
        return ops.quantize_gradient(
            y,
            config.errors,
            underflow=config.error_underflow,
            power_of_two=config.power_of_two_scales,
        )

    @contextlib.contextmanager
    def _errors_inside_activation(self) -> Iterator[list]:
        """Puts Q_E between the product and the activation function, where dy is.

        Yields:
            A list that is not empty once the activation function has been called.
        """
        activation = self.__dict__.get("activation")
        used: list[bool] = []
        if not callable(activation) or isinstance(activation, keras.layers.Layer):
            yield used
            return

        def quantized(y: Any, *args: Any, **kwargs: Any) -> Any:
            used.append(True)
            return activation(self.quantize_error(y), *args, **kwargs)

        self.__dict__["activation"] = quantized
        try:
            yield used
        finally:
            self.__dict__["activation"] = activation

    # --- Saving --------------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        """Saves codes and scale of integer weights, values of the others, input ranges."""
        for i, variable in enumerate(keras_hooks.own_variables(self)):
            if isinstance(variable, LNSVariable):
                store[f"{i}"] = variable.codes
                store[f"{i}_scale"] = variable.scale
            else:
                store[f"{i}"] = variable
        for i, recorded in enumerate(self.input_ranges):
            store[f"input_range_{i}"] = recorded.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` wrote, or the file of the plain Keras layer."""
        variables = keras_hooks.own_variables(self)
        values = {key: store[key] for key in store.keys() if key.isdigit()}
        keras_hooks.check_saved_count(self, values)
        for i, variable in enumerate(variables):
            value = np.asarray(store[f"{i}"])
            if f"{i}_scale" in store.keys():
                codes = variable
                if not isinstance(variable, LNSVariable):  # its initial values were zero
                    codes = LNSVariable.from_variable(variable, self.lns_config.storage)
                    self._mark(codes)
                codes.assign_codes(value, np.asarray(store[f"{i}_scale"]))
                if codes is not variable:
                    keras_hooks.replace_variable(self, variable, codes)
            else:
                variable.assign(value)
        for i, recorded in enumerate(self.input_ranges):
            if f"input_range_{i}" in store.keys():
                recorded.assign(np.asarray(store[f"input_range_{i}"], np.float32))

    def get_config(self) -> dict[str, Any]:
        """The Keras layer's config and `lns_config`."""
        return {**super().get_config(), "lns_config": self.lns_config.get_config()}


def _with_quantizers(call: Callable) -> Callable:
    """A layer's `call` with Q_A on its inputs, Q_W in its reads and Q_E on its errors."""
    signature = inspect.signature(call)
    takes_training = "training" in signature.parameters
    parameters = list(signature.parameters.values())
    if not takes_training:
        own = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None)
        at = len(parameters)
        if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
            at -= 1
        parameters.insert(at, own)

    def lns_call(self: Any, *args: Any, training: Any = None, **kwargs: Any) -> Any:
        args = tuple(
            self.quantize_activation(arg, i, training) if i < self.quantized_inputs else arg
            for i, arg in enumerate(args)
        )
        if takes_training:
            kwargs["training"] = training
        with forward_reads(), self._errors_inside_activation() as used:
            outputs = call(self, *args, **kwargs)
        return outputs if used else keras.tree.map_structure(self.quantize_error, outputs)

    lns_call.__signature__ = signature.replace(parameters=parameters)
    lns_call.__doc__ = call.__doc__
    lns_call.__name__ = "call"
    lns_call.quantizes = True
    return lns_call


def _is_float(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and "float" in keras.backend.standardize_dtype(dtype)


def _any_normal(values: np.ndarray) -> bool:
    """Whether any element counts as non-zero."""
    return bool(np.any(np.abs(values) >= np.float32(2.0**-126)))


def _abs_max_of(scale: tf.Tensor, factor: np.float32) -> tf.Tensor:
    """The abs-max behind a scale; 0 for the scale 1 that an all-zero batch gets."""
    return tf.where(scale == 1.0, 0.0, scale / factor)
