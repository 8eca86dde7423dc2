"""The wrapper that trains one tf_keras layer in LNS under tfmot."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from tf_lns.layers.mixin import ActivationMixin
from tf_lns.tfmot import hooks, weights
from tf_lns.tfmot.gradients import quantize_weight_gradient
from tf_lns.tfmot.inside import Running
from tf_lns.tfmot.quantize_config import LNSQuantizeConfig
from tf_lns.tfmot.quantizer import Recorded
from tf_lns.tfmot.registry import CUSTOM, Weight, row_of
from tf_lns.variable import LNSCell


@tf_keras.utils.register_keras_serializable(package="tf_lns")
class LNSQuantizeWrapper(ActivationMixin, tfmot.quantization.keras.QuantizeWrapper):
    """A tf_keras layer whose weights are integers; `LNSScheme` puts it around layers.

    ::

        x -> Q_A (where nothing before it has) -> the layer's own call, reading Q_W -> Q_A -> y
        dy -> Q_E, inside the activation function -> the two backward products

    The integer weights are the layer's own variables; here are their scales and the recorded
    ranges of the activations.

    Args:
        layer: The layer.
        quantize_config: Its `LNSQuantizeConfig`.
        name_prefix: Put before the layer's name.
        quantize_inputs: Whether inputs go through Q_A.
        quantize_outputs: Whether outputs do.
        integer_weights: Which of the layer's weights are integers, in a file that is read.
        **kwargs: As in `tf_keras.layers.Layer`.
    """

    runs_layer = True
    """In the energy account, what is inside has the wrapper's name."""

    _cells: list[tuple[Weight, Any]]
    _ranges: list[Any]

    def __init__(
        self,
        layer: Any,
        quantize_config: LNSQuantizeConfig,
        name_prefix: str = "quant_",
        quantize_inputs: bool = False,
        quantize_outputs: bool = False,
        integer_weights: list[bool] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(quantize_config, LNSQuantizeConfig):
            raise TypeError(
                "`quantize_config` must be an LNSQuantizeConfig. "
                f"Received: quantize_config={quantize_config!r}"
            )
        super().__init__(layer, quantize_config, name_prefix=name_prefix, **kwargs)
        self.lns_config = quantize_config.lns_config
        self.quantize_inputs = quantize_inputs
        self.quantize_outputs = quantize_outputs
        self.supports_masking = hooks.computes_mask(layer)
        self._row = row_of(layer) or CUSTOM
        self._integer_weights = None if integer_weights is None else tuple(integer_weights)
        hooks.set_untracked(self, "_cells", [])
        hooks.set_untracked(self, "_ranges", [])
        self._is_provisional = False
        hooks.share_activity_regularizer(self, layer)

    # --- Building -----------------------------------------------------------------------

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, makes its weights integers and its ranges."""
        if self.built:
            return
        if not self.layer.built:
            with tf.name_scope(self.layer.name):
                self.layer.build(input_shape)
            self.layer.built = True
        self._row.prepare(self.layer, input_shape)
        self._make_integers()
        operands = self._row.operands
        if operands is None:
            operands = len(tf.nest.flatten(_as_leaves(input_shape)))
        self._operands = operands if self.quantize_inputs else 0
        inside = self._row.ranges_inside(self.layer)
        for i in range(self._operands + inside + int(self.quantize_outputs)):
            self._add_range(f"range_{i}")
        hooks.mark_built(self, input_shape)

    def _make_integers(self) -> None:
        found = list(self._row.weights_of(self.layer))
        kinds = self._integer_weights
        if kinds is None:
            kinds = tuple(weights.becomes_integer(weight.variable) for weight in found)
            self._integer_weights = kinds
        holders = {}
        for weight, is_integer in zip(found, kinds, strict=True):
            if not is_integer:
                continue
            variable, scale, saved = weights.make_integer(
                weight.holder, weight.variable, self.lns_config, weight.axis
            )
            hooks.add_variable(self, scale, f"scale_{len(self._cells)}", saved)
            self._cells.append((weight, variable))
            holders[id(weight.holder)] = weight.holder
        for holder in holders.values():
            holder.save_own_variables = functools.partial(weights.save_variables, holder)
            holder.load_own_variables = functools.partial(weights.load_variables, holder)

    def _add_range(self, name: str) -> None:
        config = self.lns_config
        if config.activations is None or config.activation_scale != "moving":
            return
        self._ranges.append(
            self.add_weight(
                name=name,
                shape=(),
                dtype=tf.float32,
                initializer="zeros",
                trainable=False,
                experimental_autocast=False,
                # On several devices the same for all: the mean of what each saw.
                aggregation=tf.VariableAggregation.MEAN,
            )
        )

    @property
    def input_ranges(self) -> list[Any]:
        """Recorded abs-max of each quantized activation, the output's last."""
        return list(self._ranges)

    @property
    def operands(self) -> int:
        """How many of the ranges are of inputs; they come first, and the output's last."""
        return min(self._operands, len(self._ranges))

    @property
    def lns_variables(self) -> list[Any]:
        """The layer's integer weights."""
        return [variable for _, variable in self._cells]

    # --- Running ------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As in tf_keras; see `forget_earlier_calls`."""
        if self._is_provisional:
            self._is_provisional = False
            hooks.forget_calls(self)
        return super().__call__(*args, **kwargs)

    def forget_earlier_calls(self) -> None:
        """Lets the next call count as the first: `layer.output` is then what it returns."""
        self._is_provisional = True

    def call(self, inputs: Any, *args: Any, training: Any = None, mask: Any = None, **kwargs: Any):
        """The layer's own call, with quantizers around it and quantized weights inside."""
        if training is None:
            training = tf_keras.backend.learning_phase()
        inputs, args, kwargs = self._quantized_inputs(inputs, args, kwargs, training)
        kwargs = {**kwargs, **self._context(training, mask)}
        running = self._begin(training)
        with running.swapped:  # AutoGraph converts the layer's call, and nothing of tf_lns
            outputs = self.layer.call(inputs, *args, **kwargs)
        return self._end(outputs, running)

    def _context(self, training: Any, mask: Any) -> dict[str, Any]:
        given = {"training": training, "mask": mask}
        takes = hooks.call_arguments(self.layer)
        return {name: value for name, value in given.items() if name in takes}

    @tf.autograph.experimental.do_not_convert
    def _quantized_inputs(
        self, inputs: Any, args: tuple, kwargs: dict[str, Any], training: Any
    ) -> tuple[Any, tuple, dict[str, Any]]:
        if not self.quantize_inputs:
            return inputs, args, kwargs
        done: dict[int, Any] = {}  # self-attention gets one tensor three times

        def quantized(x: Any) -> Any:
            is_operand = id(x) in done or len(done) < self._operands
            if not isinstance(x, tf.Tensor) or not x.dtype.is_floating or not is_operand:
                return x
            if id(x) not in done:
                done[id(x)] = x, self.quantize_activation(x, len(done), training)
            return done[id(x)][1]

        inputs = tf.nest.map_structure(quantized, inputs)
        args = tuple(tf.nest.map_structure(quantized, arg) for arg in args)
        names = [name for name in ("value", "key") if name in kwargs]
        return inputs, args, {**kwargs, **{name: quantized(kwargs[name]) for name in names}}

    @tf.autograph.experimental.do_not_convert
    def _begin(self, training: Any) -> Running:
        """Puts Q_W of the weights in their places, and Q_E before activation functions."""
        row, layer = self._row, self.layer
        values = [(weight, self._read(weight.holder, variable)) for weight, variable in self._cells]
        inside = self._ranges[self._operands : len(self._ranges) - int(self.quantize_outputs)]
        tensors = {(id(weight.holder), weight.name): value for weight, value in values}
        running = Running(self.lns_config, training, hooks.Swapped(), tensors, inside)
        with running.swapped.unless_it_fails() as swapped:
            for weight, value in values:
                swapped.set(weight.holder, weight.name, value)
            row.install(layer, running)
            for holder in row.activated(layer) if row.kind == "product" else ():
                function = functools.partial(self._after_error, holder.activation)
                swapped.set(holder, "activation", function)
        return running

    @tf.autograph.experimental.do_not_convert
    def _end(self, outputs: Any, running: Running) -> Any:
        """Q_E of a product without an activation function, the ranges, and Q_A."""
        if self._row.kind == "product" and not self._row.quantizes_errors(self.layer):
            outputs = tf.nest.map_structure(self.quantize_error, outputs)
        for recorded, largest in running.seen:
            Recorded(self.lns_config, recorded).record_range(largest)
        if not self.quantize_outputs:
            return outputs
        flat = tf.nest.flatten(outputs)  # of several, the others are states of a loop
        flat[0] = self.quantize_activation(flat[0], len(self._ranges) - 1, running.training)
        return tf.nest.pack_sequence_as(outputs, flat)

    @tf.autograph.experimental.do_not_convert
    def _after_error(self, function: Any, z: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self.quantize_error(z), *args, **kwargs)

    def _read(self, holder: Any, variable: Any) -> tf.Tensor:
        """Q_W of a weight, in the dtype of its layer's products; its gradient through Q_G."""
        cell = weights.cell_of(variable)
        assert isinstance(cell, LNSCell)
        value = quantize_weight_gradient(cell.read(cell.seen), cell)
        return tf.cast(value, holder.compute_dtype)

    def reset_states(self, *args: Any, **kwargs: Any) -> None:
        """As the layer does, if it keeps states from batch to batch: `Model.reset_states`."""
        if hasattr(self.layer, "reset_states"):
            self.layer.reset_states(*args, **kwargs)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """As the layer does."""
        return self.layer.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the layer does."""
        return self.layer.compute_output_shape(input_shape)

    # --- Saving -------------------------------------------------------------------------

    def get_build_config(self) -> None:
        """None: the layer is built when it is called, with all that its class asks for."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        config["quantize_config"] = self.quantize_config.get_config()
        config["quantize_inputs"] = self.quantize_inputs
        config["quantize_outputs"] = self.quantize_outputs
        config["integer_weights"] = self._integer_weights and list(self._integer_weights)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Rebuilds a wrapper from `get_config`."""
        config = dict(config)
        quantize_config = LNSQuantizeConfig.from_config(config.pop("quantize_config"))
        layer = tf_keras.layers.deserialize(
            config.pop("layer"), custom_objects=custom_objects, use_legacy_format=False
        )
        return cls(layer, quantize_config, **config)


def _as_leaves(shape: Any) -> Any:
    """A structure of shapes as one of leaves."""
    if isinstance(shape, tf.TensorShape) or shape is None:
        return 0
    if isinstance(shape, dict):
        return [_as_leaves(item) for item in shape.values()]
    if isinstance(shape, list | tuple):
        if all(item is None or isinstance(item, int) for item in shape):
            return 0
        return [_as_leaves(item) for item in shape]
    return 0
