"""All that an LNS layer does beyond its Keras layer: one mixin.

    x -> Q_A -> Keras' own call, reading Q_W of the integer weights -> y
    dy -> Q_E, inside the activation function -> the two backward products

Q_G acts in the optimizer, once per step on the summed gradient; the layer only leaves its
format on the weight.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks, ops, reference
from tf_lns.config import LNSConfig
from tf_lns.formats import LNSFormat
from tf_lns.layers import products
from tf_lns.layers.contraction import Einsum
from tf_lns.layers.operands import encoded, on_grid
from tf_lns.layers.registry import KINDS_KEY
from tf_lns.roles import multiplies_activations, role_of
from tf_lns.variable import LNSVariable, WeightRole, forward_reads

RANGE_MOMENTUM = 0.9
"""Share of the old value in the moving abs-max of a layer's inputs."""

FILE_VERSION = 1
"""Of what layers save; files of a higher one are refused."""

_mode = threading.local()


@contextlib.contextmanager
def default_config(config: LNSConfig) -> Iterator[None]:
    """Inside, LNS layers made without an `lns_config` get this one."""
    previous = getattr(_mode, "default_config", None)
    _mode.default_config = config
    try:
        yield
    finally:
        _mode.default_config = previous


@contextlib.contextmanager
def calibration() -> Iterator[None]:
    """Inside, eager calls record the abs-max of what they see, training or not."""
    previous = getattr(_mode, "calibration", False)
    _mode.calibration = True
    try:
        yield
    finally:
        _mode.calibration = previous


def is_calibrating() -> bool:
    """Whether this call is an eager one within `calibration`."""
    return getattr(_mode, "calibration", False) and tf.executing_eagerly()


@dataclasses.dataclass
class _Call:
    """A running `call` of a layer; a stack of them per thread."""

    layer: Any
    error_quantized: bool = False
    on_datapath: bool = False  # the gradients of the products have Q_E


_MISSING = object()


class ActivationMixin:
    """Q_A and Q_E of an object that has an `lns_config` and the ranges it has recorded.

    Attributes:
        lns_config: Its `LNSConfig`.
        compute_dtype: The dtype of its products.
        input_ranges: Recorded abs-max of each activation; 0 where nothing is recorded yet.
    """

    lns_config: LNSConfig
    compute_dtype: Any
    input_ranges: Any

    def quantize_activation(self, x: Any, index: int = 0, training: Any = False) -> Any:
        """Q_A of an input; see `LNSConfig.activation_scale`.

        Args:
            x: Float or integer tensor; anything else passes as it is.
            index: Which of the layer's recorded ranges it belongs to.
            training: Whether the batch's own scale is used, and recorded.

        Returns:
            Tensor like x.
        """
        y, seen = self.quantize_and_look(x, index, training)
        if seen is not None:
            self.record_range(seen, index)
        return y

    @tf.autograph.experimental.do_not_convert  # it has functions inside, which confuse AutoGraph
    def quantize_and_look(
        self, x: Any, index: int = 0, training: Any = False
    ) -> tuple[Any, tf.Tensor | None]:
        """`quantize_activation` that leaves the recording to the caller.

        Returns:
            Q_A of x, and the abs-max of x for `record_range`; None where nothing is recorded.
        """
        config = self.lns_config
        if config.activations is None:
            return x, None
        if _is_integer(x):
            x = keras.ops.cast(x, self.compute_dtype)  # as the product itself would
        if not _is_float(x):
            return x, None
        if config.datapath is None:
            y, _, seen = self._quantized(x, index, training)
            return y, seen
        y, scale, seen = self._quantized(tf.cast(x, tf.float32), index, training)
        return on_grid(y, scale, config.activations), seen

    def _quantized(self, x: Any, index: int, training: Any) -> tuple[Any, Any, Any]:
        """Q_A of x, its scale, and the abs-max of x where it is to be recorded."""
        config = self.lns_config
        format: Any = config.activations
        options: dict[str, Any] = {"power_of_two": config.power_of_two_scales}

        def of_batch() -> tuple[tf.Tensor, tf.Tensor]:
            return ops.quantize_with_scale(x, format, **options)

        def at_most(largest: Any) -> tuple[tf.Tensor, tf.Tensor]:
            """Q_A under the scale that puts `largest` at the top of the range."""
            scale = ops.scale_of(tf.cast(largest, tf.float32), format, **options)
            return ops.quantize(x, format, scale=scale), scale

        if config.activation_scale == "batch":
            return *of_batch(), None
        if config.activation_scale != "moving":
            return *at_most(config.activation_scale), None

        def own() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            y, scale = of_batch()
            return y, scale, _abs_max_of(x, scale, config)

        def infer() -> tuple[tf.Tensor, tf.Tensor]:
            present = tf.convert_to_tensor(self.input_ranges[index])
            return tf.cond(present > 0.0, lambda: at_most(present), of_batch)

        if is_calibrating():
            return own()
        if is_tensor(training):
            wanted = tf.cast(training, tf.bool)
            return tf.cond(wanted, own, lambda: (*infer(), tf.constant(0.0)))
        return own() if training else (*infer(), None)

    def record_range(self, seen: tf.Tensor, index: int = 0) -> None:
        """Takes the abs-max of a batch into a recorded range; 0 says nothing of the range."""
        recorded = self.input_ranges[index]
        present = tf.convert_to_tensor(recorded)
        if is_calibrating():
            recorded.assign(tf.maximum(present, seen))
            return
        moved = RANGE_MOMENTUM * present + (1 - RANGE_MOMENTUM) * seen
        recorded.assign(tf.where(seen == 0.0, present, tf.where(present == 0.0, seen, moved)))

    # --- Products ----------------------------------------------------------------------

    def einsum(self, equation: str, a: Any, b: Any, bias: Any = None) -> Any:
        """The product of two operands and the bias, on the datapath where there is one.

        Args:
            equation: As of `keras.ops.einsum`.
            a: Left operand: from `quantize_activation`, or a weight.
            b: Right operand.
            bias: What is added, broadcast, or None.
        """
        if self.lns_config.datapath is None:
            y = keras.ops.einsum(equation, a, b)
            return y if bias is None else keras.ops.add(y, bias)
        return self.multiply(Einsum(equation), a, b, bias)

    def multiply(
        self, form: products.Form, a: Any, b: Any, bias: Any = None, sequence: bool = False
    ) -> Any:
        """A product on the datapath, in whose gradient is Q_E.

        Args:
            form: What is summed over what.
            a: Left operand.
            b: Right operand.
            bias: What is added, broadcast, or None.
            sequence: Whether the first axis of `a` is time; see `products.multiply_sequence`.
        """
        arithmetic = products.Arithmetic.of(self.lns_config, self.compute_dtype)
        multiply = products.multiply_sequence if sequence else products.multiply
        if bias is not None:
            bias = tf.cast(tf.convert_to_tensor(bias), tf.float32)
        y = multiply(form, self.as_operand(a), self.as_operand(b), arithmetic, bias)
        return tf.cast(y, self.compute_dtype)

    def as_operand(self, weight: Any) -> Any:
        """A weight as the products on the datapath take it; a tensor as it is.

        What starts at zero and is no integer weight is quantized like an activation.
        """
        if not isinstance(weight, keras.Variable):
            return weight
        format: Any = self.lns_config.weights
        if isinstance(weight, LNSVariable):
            value, scale = weight.as_seen(), weight.seen_scale()
            return encoded(on_grid(value, scale, format, may_be_nan=False))
        value = tf.cast(tf.convert_to_tensor(weight.value), tf.float32)
        return encoded(on_grid(*ops.quantize_with_scale(value, format), format))

    def quantize_result_error(self, y: Any, axis: int | None = None) -> Any:
        """`quantize_error` of what a product gave, unless its gradient does that itself."""
        return y if self.lns_config.datapath is not None else self.quantize_error(y, axis)

    def quantize_error(self, y: Any, axis: int | None = None) -> Any:
        """The identity, whose gradient goes through Q_E; one scale, or one per index of `axis`."""
        config = self.lns_config
        if config.errors is None or not _is_float(y):
            return y
        return ops.quantize_gradient(
            y,
            config.errors,
            axis=axis,
            underflow=config.error_underflow,
            power_of_two=config.power_of_two_scales,
        )


class LNSMixin(ActivationMixin, keras_hooks.AfterBuild):
    """Turns a Keras layer class into one that trains in LNS; stands before it among the bases.

    The constructor takes `lns_config` (an `LNSConfig`, its dict or None for the defaults) in
    addition to the Keras layer's arguments.

    Attributes:
        lns_config: The layer's `LNSConfig`.
        quantized_inputs: Class attribute: how many of the first arguments of `call` are
            activations.
        quantized_outputs: Class attribute: whether errors go through Q_E where they enter, if
            the activation function has not seen to it.
        recorded_ranges: Class attribute: how many activations have a recorded range; more
            than the inputs where one call chains two products.
        datapath_call: Class attribute: what a call does where there is a datapath; None for
            the layer's own `call`. It takes the arguments of `call` and adds the bias, too.
        takes_datapath: Class attribute: whether all products of a call can be computed on a
            datapath. A class with a `call` of its own says so itself.
        products_in_methods: Class attribute: whether the products are in methods that a `call`
            of a subclass still uses. Then such a `call` may be on a datapath, too, and is
            watched: a float product of its own is an error.
    """

    quantized_inputs = 1
    quantized_outputs = True
    recorded_ranges = 1
    datapath_call: Any = None
    takes_datapath = False
    products_in_methods = False
    _integer_weights: frozenset[int] | None = None  # positions of those in the file being read

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Puts the quantizers around `call`, whose signature gains `training`."""
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "call" in own and "takes_datapath" not in own:
            cls.takes_datapath = False
        if "datapath_call" in own:
            cls.takes_datapath = True
        is_layer = issubclass(cls, keras.layers.Layer)  # a mixin on the mixin is none yet
        if is_layer and not getattr(cls.call, "quantizes", False):
            cls.call = _with_quantizers(cls.call)

    def __init__(self, *args: Any, lns_config: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if lns_config is None:
            lns_config = getattr(_mode, "default_config", None)
        self.lns_config = LNSConfig.get(lns_config)
        self.check_datapath(self.lns_config, self.name)
        if getattr(self.dtype_policy, "quantization_mode", None) is not None:
            raise ValueError(
                f"{type(self).__name__} has its own quantization; `dtype` must be a float policy. "
                f"Received: dtype={self.dtype_policy.name!r}"
            )

    @classmethod
    def check_datapath(cls, config: LNSConfig, name: str) -> None:
        """Refuses a datapath on which the layer's products cannot be computed.

        Raises:
            ValueError: The layer has a `call` that tf_lns does not know.
        """
        taken = cls.takes_datapath or cls.products_in_methods
        if config.datapath is not None and not taken:
            raise ValueError(
                f"Layer {name!r} ({cls.__name__}) has a `call` of its own, whose products cannot "
                f"be moved to a datapath. Received: datapath={config.datapath!r}. Use a config "
                "with datapath=None for it, in `overrides`, or write an LNS layer for it whose "
                "products are those of `LNSMixin.einsum` and `takes_datapath = True`."
            )

    @classmethod
    def adopt(cls, layer: keras.layers.Layer, config: LNSConfig) -> None:
        """Turns a Keras layer into this LNS layer, in place; the layers inside stay.

        Args:
            layer: Layer of the Keras class that this class stands for, built or not.
            config: Its formats.
        """
        cls.check_datapath(config, layer.name)
        keras_hooks.change_class(layer, cls)
        adopted: Any = layer
        adopted.lns_config = config
        if adopted.built:
            with keras_hooks.unlocked(adopted):
                adopted.make_ranges()
            adopted.convert_variables()

    # --- Weights -----------------------------------------------------------------------

    def gradient_axis(self, variable: Any) -> tuple[int, ...]:
        """Axes of a weight that count output channels: Q_G has one scale for each."""
        return (len(variable.shape) - 1,)

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """As in Keras; what multiplies activations becomes an `LNSVariable`.

        A tensor that starts at zero stays float: no multiplicative update could move it.
        """
        for arg in args:  # Keras' older forms: add_weight(shape), add_weight(name, shape)
            kwargs.setdefault("name" if isinstance(arg, str) else "shape", arg)
        shape = kwargs.get("shape") or ()
        if not role_of(kwargs.get("name"), shape) or kwargs.get("trainable", True) is False:
            return super().add_weight(**kwargs)
        dtype = keras.backend.standardize_dtype(kwargs.get("dtype") or self.variable_dtype)
        if dtype != "float32":
            raise ValueError(
                f"Weights of {type(self).__name__} are integers that read as float32. Received: "
                f"variables of dtype {dtype} in layer {self.name!r}. For half-precision products "
                'use the dtype policy "mixed_float16" or "mixed_bfloat16".'
            )
        initializer = keras.initializers.get(kwargs.get("initializer") or "glorot_uniform")
        with tf.init_scope():
            values = np.asarray(initializer(tuple(shape), dtype="float32"))
        is_integer = _any_normal(values)
        if self._integer_weights is not None:  # the kinds are known, the values come later
            is_integer = len(keras_hooks.own_variables(self)) in self._integer_weights
            values = values if _any_normal(values) else np.ones_like(values)
        if not is_integer:
            return super().add_weight(**kwargs)
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
        give_role(variable.role, self.lns_config, self.gradient_axis(variable))

    def convert_variables(self) -> None:
        """Turns the layer's float weights into integers, each scale chosen from its values."""
        for variable in keras_hooks.own_variables(self):
            if not becomes_integer(variable):
                continue
            new = LNSVariable.from_variable(variable, self.lns_config.storage)
            self._mark(new)
            keras_hooks.replace_variable(self, variable, new)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: a low-rank float product added to an integer kernel is on no grid."""
        raise NotImplementedError(
            f"{type(self).__name__} trains its integer kernel itself and has no LoRA. "
            "Use tf_lns.strip and `enable_lora` on the Keras layer."
        )

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """Refuses Keras' own quantization: the layer is quantized already."""
        raise NotImplementedError(
            f"{type(self).__name__} is quantized already. Received: mode={mode!r}. "
            "Use tf_lns.strip to go back to the Keras layer first."
        )

    @property
    def lns_variables(self) -> list[LNSVariable]:
        """The layer's own integer weights."""
        return [v for v in keras_hooks.own_variables(self) if isinstance(v, LNSVariable)]

    # --- Activations -------------------------------------------------------------------

    def after_build(self) -> None:
        """Makes what belongs to a layer beside its weights."""
        super().after_build()
        self.make_ranges()

    def make_ranges(self) -> None:
        """Makes the recorded range of each quantized activation."""
        config = self.lns_config
        if config.activations is None or config.activation_scale != "moving":
            return
        for i in range(self.recorded_ranges):
            if not hasattr(self, f"input_range_{i}"):
                with tf.init_scope():
                    variable = tf.Variable(
                        0.0,
                        trainable=False,
                        name=f"input_range_{i}",
                        # On several devices the same for all: the mean of what each saw.
                        aggregation=tf.VariableAggregation.MEAN,
                    )
                setattr(self, f"input_range_{i}", variable)

    @property
    def input_ranges(self) -> list[tf.Variable]:
        """Recorded abs-max of each activation; 0 where nothing is recorded yet."""
        names = [f"input_range_{i}" for i in range(self.recorded_ranges)]
        return [getattr(self, name) for name in names if hasattr(self, name)]

    @property
    def activation(self) -> Any:
        """The activation function; inside `call` with Q_E before it, where dy is."""
        function = vars(self).get("activation", _MISSING)
        if function is _MISSING:  # a layer without one, or one that keeps it elsewhere
            return super().activation
        frames = getattr(_mode, "calls", ())
        if not callable(function) or not frames or frames[-1].layer is not self:
            return function
        frame = frames[-1]
        if frame.on_datapath:
            return function

        def quantized(y: Any, *args: Any, **kwargs: Any) -> Any:
            frame.error_quantized = True
            return function(self.quantize_error(y), *args, **kwargs)

        return quantized

    @activation.setter
    def activation(self, function: Any) -> None:
        self.__dict__["activation"] = function

    # --- Saving --------------------------------------------------------------------------

    def get_build_config(self) -> dict[str, Any] | None:
        """Keras' build config, and which weights are integers whatever their initializer."""
        config = super().get_build_config()
        if config is None:
            return None
        integer = [
            i
            for i, variable in enumerate(keras_hooks.own_variables(self))
            if isinstance(variable, LNSVariable)
        ]
        return {**config, KINDS_KEY: integer}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the layer with the kinds of weights that `get_build_config` named."""
        config = dict(config)
        if KINDS_KEY in config:
            self._integer_weights = frozenset(config.pop(KINDS_KEY))
        super().build_from_config(config)

    def save_own_variables(self, store: Any) -> None:
        """Saves codes, scale and format of integer weights, values of the others, ranges."""
        for i, variable in enumerate(keras_hooks.own_variables(self)):
            if isinstance(variable, LNSVariable):
                store[f"{i}"] = variable.codes
                store[f"{i}_scale"] = variable.scale
                store[f"{i}_format"] = np.array(dataclasses.astuple(variable.format), np.int32)
            else:
                store[f"{i}"] = variable
        for i, recorded in enumerate(self.input_ranges):
            store[f"input_range_{i}"] = recorded.numpy()
        store["version"] = np.array(FILE_VERSION, np.int32)
        store["checksum"] = np.array(_checksum(store), np.int64)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` wrote, here or in the plain Keras layer.

        A weight becomes what the file has, integers or (where it is all zero) float32. Codes
        of another storage format are decoded and encoded. A file without recorded ranges
        leaves none.
        """
        keys = set(store.keys())
        if not keys and keras_hooks.own_variables(self):
            raise ValueError(
                f"The file has nothing for layer {self.name!r} under the name of its class, "
                f"{type(self).__name__}. tf_lns.load_weights loads the file of a plain Keras model."
            )
        self._check_file(store)
        keras_hooks.check_saved_count(self, {k: store[k] for k in keys if k.isdigit()})
        for i, variable in enumerate(keras_hooks.own_variables(self)):
            value = np.asarray(store[f"{i}"])
            integers = f"{i}_scale" in keys
            if integers != isinstance(variable, LNSVariable) and self._called:
                warnings.warn(
                    f"The file makes {variable.path} another kind of variable. Functions that "
                    "were traced and optimizers that were built before still hold the old one: "
                    "compile the model again.",
                    stacklevel=2,
                )
            if integers:
                scale = np.asarray(store[f"{i}_scale"])
                format = self.lns_config.storage
                if f"{i}_format" in keys:
                    format = LNSFormat(*np.asarray(store[f"{i}_format"]).tolist())
                self._load_codes(variable, value, scale, format)
            elif isinstance(variable, LNSVariable) and not _any_normal(value):
                new = keras.Variable(value, name=variable.name, trainable=variable.trainable)
                new.regularizer = variable.regularizer
                keras_hooks.replace_variable(self, variable, new)
            else:
                variable.assign(value)
        for i, recorded in enumerate(self.input_ranges):
            key = f"input_range_{i}"
            recorded.assign(np.asarray(store[key], np.float32) if key in keys else 0.0)

    def _check_file(self, store: Any) -> None:
        """Refuses what a newer version wrote, and what has changed since it was written."""
        keys = set(store.keys())
        if all(key.isdigit() for key in keys):
            return  # a plain Keras layer's
        whole = {"version", "checksum"} <= keys
        version = int(np.asarray(store["version"])) if whole else 0
        if version > FILE_VERSION:
            raise ValueError(
                f"The file was written by a newer version of tf_lns: layer {self.name!r} has "
                f"format version {version}, and this one reads up to {FILE_VERSION}. Upgrade."
            )
        if not whole or int(np.asarray(store["checksum"])) != _checksum(store):
            raise ValueError(
                f"The file is damaged: the data of layer {self.name!r} does not match the "
                "checksum that it was saved with."
            )

    def _load_codes(
        self, variable: keras.Variable, codes: np.ndarray, scale: np.ndarray, format: LNSFormat
    ) -> None:
        if not isinstance(variable, LNSVariable):  # its initial values were zero
            new = LNSVariable.from_variable(variable, self.lns_config.storage)
            self._mark(new)
            keras_hooks.replace_variable(self, variable, new)
            variable = new
        if format == variable.format:
            variable.assign_codes(codes, scale)
        else:
            variable.assign(reference.decode(codes, scale, format))

    def get_config(self) -> dict[str, Any]:
        """The Keras layer's config and `lns_config`."""
        return {**super().get_config(), "lns_config": self.lns_config.get_config()}


def give_role(role: WeightRole, config: LNSConfig, axis: tuple[int, ...]) -> None:
    """Says how a weight is read (Q_W) and how its gradient is quantized (Q_G).

    Args:
        role: The weight's role.
        config: The formats.
        axis: Axes of the weight that count output channels.
    """
    role.seen = config.weights
    role.gradient_format = config.gradients
    role.gradient_options = {
        "axis": axis if config.gradient_scale == "channel" else (),
        "underflow": config.gradient_underflow,
        "power_of_two": config.power_of_two_scales,
    }


def becomes_integer(variable: keras.Variable) -> bool:
    """Whether a variable of a layer that is converted becomes an `LNSVariable`."""
    return (
        not isinstance(variable, LNSVariable)
        and multiplies_activations(variable)
        and keras.backend.standardize_dtype(variable.dtype) == "float32"
        and _any_normal(keras_hooks.values_of(variable))
    )


def signature_with_training(call: Callable) -> inspect.Signature:
    """The signature of a `call` that takes `training` too, if it does not yet."""
    signature = inspect.signature(call)
    parameters = list(signature.parameters.values())
    if "training" in signature.parameters:
        return signature
    own = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None)
    at = len(parameters)
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        at -= 1
    parameters.insert(at, own)
    return signature.replace(parameters=parameters)


def _with_quantizers(call: Callable) -> Callable:
    """A layer's `call` with Q_A on its inputs, Q_W in its reads and Q_E on its errors."""
    signature = signature_with_training(call)
    takes_training = "training" in inspect.signature(call).parameters
    inputs = list(signature.parameters)[1:]

    def lns_call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        self, values = args[0], given.arguments
        training = values.get("training") if takes_training else values.pop("training", None)
        for i, name in enumerate(inputs[: self.quantized_inputs]):
            if name in values:
                values[name] = keras.tree.map_structure(
                    functools.partial(self.quantize_activation, index=i, training=training),
                    values[name],
                )
        own, on_datapath = type(self).datapath_call, self.lns_config.datapath is not None
        watched = on_datapath and not self.takes_datapath
        guard = _no_float_products(self) if watched else contextlib.nullcontext()
        with forward_reads(), _running(self) as frame, guard:
            frame.on_datapath = on_datapath and own is not None
            outputs = (own if frame.on_datapath else call)(*given.args, **given.kwargs)
        if frame.on_datapath or frame.error_quantized or not self.quantized_outputs:
            return outputs
        return keras.tree.map_structure(self.quantize_error, outputs)

    wrapped: Any = lns_call
    wrapped.__signature__ = signature
    wrapped.__doc__ = call.__doc__
    wrapped.__name__ = "call"
    return quantizes_itself(wrapped)


_FLOAT_PRODUCTS = frozenset(
    """
    MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum Conv2D Conv3D DepthwiseConv2dNative
    Conv2DBackpropInput Conv3DBackpropInputV2
    """.split()  # noqa: SIM905
)
"""Types of TensorFlow's operations that are products."""


def _no_float_products(layer: Any) -> contextlib.AbstractContextManager:
    """Inside, a float product is an error, unless it is in an LNS layer inside of this one."""

    def watch(op_type: str) -> None:
        if op_type in _FLOAT_PRODUCTS and _mode.calls[-1].layer is layer:
            raise ValueError(
                f"The `call` of layer {layer.name!r} ({type(layer).__name__}) has a float product "
                f"({op_type}) beside those on the datapath. Use `LNSMixin.einsum` for it, or a "
                "config with datapath=None for the layer, in `overrides`."
            )

    return keras_hooks.watched_operations(watch)


def quantizes_itself(call: Any) -> Any:
    """Decorates a `call` that has its quantizers inside, so that none are put around it."""
    call.quantizes = True
    return call


@contextlib.contextmanager
def _running(layer: Any) -> Iterator[_Call]:
    """Puts a call of `layer` on this thread's stack."""
    if not hasattr(_mode, "calls"):
        _mode.calls = []
    _mode.calls.append(_Call(layer))
    try:
        yield _mode.calls[-1]
    finally:
        _mode.calls.pop()


def is_tensor(training: Any) -> bool:
    """Whether `training` is known only when the graph runs."""
    return isinstance(training, tf.Tensor | tf.Variable | keras.Variable)


def _is_integer(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and keras.backend.is_int_dtype(keras.backend.standardize_dtype(dtype))


def _is_float(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and "float" in keras.backend.standardize_dtype(dtype)


def _checksum(store: Any) -> int:
    """CRC-32 of all that a layer has in a file."""
    crc = 0
    for key in sorted(store.keys()):
        if key != "checksum":
            crc = zlib.crc32(np.asarray(store[key]).tobytes(), zlib.crc32(key.encode(), crc))
    return crc


def _any_normal(values: np.ndarray) -> bool:
    """Whether any element counts as non-zero."""
    return bool(np.any(np.abs(values) >= np.float32(2.0**-126)))


def _abs_max_of(x: tf.Tensor, scale: tf.Tensor, config: LNSConfig) -> tf.Tensor:
    """The abs-max behind the scale that the op took from x; 0 where x is all zero."""
    octaves = config.activations.octaves

    def look() -> tf.Tensor:
        magnitude = tf.abs(tf.cast(x, tf.float32))
        finite = tf.where(tf.math.is_finite(magnitude), magnitude, 0.0)
        return tf.maximum(tf.reduce_max(finite), 0.0)  # of no element: -Inf

    if octaves > 64:  # the scale may be as small as a scale can be, whatever x is
        return look()
    # The scale 1 is that of an all-zero x. It can also be that of a largest element of
    # 2**octaves, which is a usual number where that is a whole power of two.
    usual = config.power_of_two_scales or octaves == int(octaves)
    seen = scale * np.float32(2.0**octaves)
    return tf.cond(scale == 1.0, look, lambda: seen) if usual else tf.where(scale == 1.0, 0.0, seen)
