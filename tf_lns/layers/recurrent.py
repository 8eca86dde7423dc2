"""Recurrent layers in LNS: the products with the inputs, and those with the state.

A cell splits its step in two. `project` is the product with the inputs, which a layer takes
once for the whole sequence; `step` is what depends on the state. For an LSTM::

    x = Q_A(inputs) Q_W(kernel) + bias                        all time steps at once
    z = x[t] + Q_A(h) Q_W(recurrent_kernel)                   dz through Q_E, once per step

A layer reads each weight once per call, before the loop over time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops as keras_ops

from tf_lns import keras_hooks
from tf_lns.layers.container import LNSComposite
from tf_lns.layers.contraction import Einsum
from tf_lns.layers.conv import convolution_of
from tf_lns.layers.mixin import LNSMixin, is_calibrating, is_tensor, quantizes_itself
from tf_lns.layers.operands import encoded, rearranged
from tf_lns.layers.products import Gates
from tf_lns.layers.registry import register_layer
from tf_lns.layers.tree import all_layers
from tf_lns.variable import forward_reads

_INPUTS, _STATE, _RESET_STATE = range(3)


@dataclasses.dataclass
class _Run:
    """What a cell keeps during one call of the layer around it, or of its own.

    Attributes:
        kernel: Q_W of the weight.
        recurrent_kernel: The same.
        bias: The bias, or None.
        projected: Whether the cell's inputs are projected already.
        records: Whether the cell may record ranges as it goes.
        tracked: Activations whose abs-max the cell hands on as one more state each, to be
            recorded when the loop is over.
        seen: Abs-max of these in this step.
        operand: Operand of the step's product with the state; after the loop, of all steps.
    """

    kernel: Any
    recurrent_kernel: Any
    bias: Any
    projected: bool = False
    records: bool = True
    tracked: tuple[int, ...] = ()
    seen: dict[int, Any] = dataclasses.field(default_factory=dict)
    operand: Any = None


_runs = threading.local()


@contextlib.contextmanager
def running_cell(cell: Any, records: bool) -> Iterator[_Run]:
    """The cell's present run, or a new one, for which its weights are read."""
    present = _runs.__dict__.setdefault("of", {})
    if id(cell) in present:
        yield present[id(cell)]
        return
    kernel, recurrent_kernel, bias = cell.read_weights()
    present[id(cell)] = run = _Run(kernel, recurrent_kernel, bias, records=records)
    try:
        yield run
    finally:
        del present[id(cell)]


# --- Cells ------------------------------------------------------------------------------------


class _Cell(LNSMixin):
    """Mixin of the recurrent cells.

    Alone, a cell does all its products in each call and records ranges in each. In an LNS layer
    it does what is left to do in a step.

    Attributes:
        state_count: Class attribute: how many states the Keras cell has.
        linked: Class attribute: whether the gradient of the projected inputs is the error of
            the product with the state, too.
    """

    recorded_ranges: Any = 2
    takes_datapath = True
    state_count = 1
    channel_axis: Any = -1
    linked = True

    @quantizes_itself
    def call(self, inputs: Any, states: Any, training: Any = False) -> tuple[Any, Any]:
        """As in Keras; behind the states may stand the abs-max of what the run tracks."""
        nested = keras.tree.is_nested(states)
        states = list(states) if nested else [states]
        states, largest = states[: self.state_count], states[self.state_count :]
        with running_cell(self, records=True) as run:
            x = inputs if run.projected else self.project(run, inputs, training)
            output, states = self.step(run, x, states, training)
            for i, index in enumerate(run.tracked if largest else ()):
                seen = tf.cast(run.seen.pop(index), largest[i].dtype)
                largest[i] = tf.stop_gradient(tf.maximum(largest[i], seen))
        return output, [*states, *largest] if nested else states[0]

    def project(self, run: _Run, inputs: Any, training: Any, sequence: bool = False) -> Any:
        """The product with the inputs and its bias, for one time step or for all of them.

        Args:
            run: The cell's run.
            inputs: Inputs, where there is a time axis before that of samples.
            training: Whether there is dropout, and which scale Q_A has.
            sequence: Whether there is a time axis.
        """
        masks = None
        if 0.0 < self.dropout < 1.0 and training:
            masks = self.get_dropout_mask(inputs[0] if sequence else inputs)
        operand = self.operand(run, inputs, masks, _INPUTS, training)
        bias = None if run.bias is None else self.input_bias(run.bias)
        if not sequence or self.lns_config.datapath is not None:
            return self.product(_INPUTS, operand, run.kernel, bias, sequence)
        length = operand.shape[0] or keras_ops.shape(operand)[0]
        operand = keras_ops.reshape(operand, (-1, *operand.shape[2:]))
        x = self.product(_INPUTS, operand, run.kernel, bias)
        return keras_ops.reshape(x, (length, -1, *x.shape[1:]))

    def step(self, run: _Run, x: Any, states: list, training: Any) -> tuple[Any, list]:
        """The output and the new states, from projected inputs and the states."""
        raise NotImplementedError

    def recur(self, run: _Run, state: Any, training: Any, bias: Any = None) -> Any:
        """The product of the state and the recurrent kernel."""
        masks = self.state_masks(state, training)
        run.operand = self.operand(run, state, masks, _STATE, training)
        return self.product(_STATE, run.operand, run.recurrent_kernel, bias)

    def state_masks(self, state: Any, training: Any) -> Any:
        """Dropout masks of the state: None, one, or one per gate."""
        if 0.0 < self.recurrent_dropout < 1.0 and training:
            return self.get_recurrent_dropout_mask(state)
        return None

    def operand(self, run: _Run, x: Any, masks: Any, index: int, training: Any) -> Any:
        """Q_A of x under its dropout masks; with one per gate, these side by side."""
        if isinstance(masks, list):
            axis = self.channel_axis
            axis = axis if axis < 0 else axis + len(x.shape) - len(masks[0].shape)
            x = keras_ops.concatenate([x * mask for mask in masks], axis=axis)
        elif masks is not None:
            x = x * masks
        x, seen = self.quantize_and_look(x, index, training)
        if index in run.tracked:
            run.seen[index] = seen
        elif seen is not None and run.records:
            self.record_range(seen, index)
        return x

    def product(
        self, which: int, operand: Any, kernel: Any, bias: Any = None, sequence: bool = False
    ) -> Any:
        """The product of an operand and the kernels of all gates, or of each gate's and its.

        Args:
            which: The product with the inputs or the one with the state.
            operand: Left operand; where masks differ, one for each gate, side by side.
            kernel: Kernels of all gates, side by side.
            bias: Their biases, or None.
            sequence: Whether the first axis of the operand is time: only on a datapath.
        """
        axis = self.channel_axis
        count = operand.shape[axis + sequence if axis >= 0 else axis] // kernel.shape[-2]
        if self.lns_config.datapath is not None:
            form = Gates(self.form(which), count, axis) if count > 1 else self.form(which)
            return self.multiply(form, operand, kernel, self.spread(bias), sequence)
        multiply = self.multiply_inputs if which == _INPUTS else self.multiply_state
        if count == 1:
            y = multiply(operand, kernel)
        else:
            operands = keras_ops.split(operand, count, axis=axis)
            kernels = keras_ops.split(kernel, count, axis=-1)
            products = [multiply(x, k) for x, k in zip(operands, kernels, strict=True)]
            y = keras_ops.concatenate(products, axis=axis)
        return y if bias is None else keras_ops.add(y, self.spread(bias))

    def form(self, which: int) -> Any:
        """What a product sums over what on a datapath; see `products.Form`."""
        return Einsum("...k,kn->...n")

    def multiply_inputs(self, inputs: Any, kernel: Any) -> Any:
        """The product with the inputs of a time step."""
        return keras_ops.matmul(inputs, kernel)

    def multiply_state(self, state: Any, kernel: Any) -> Any:
        """The product with the state."""
        return keras_ops.matmul(state, kernel)

    def input_bias(self, bias: Any) -> Any:
        """The part of the bias that belongs to the product with the inputs."""
        return bias

    def spread(self, bias: Any) -> Any:
        """The bias in a shape that broadcasts to the products."""
        return bias

    def read_weights(self) -> tuple[Any, Any, Any]:
        """Kernel, recurrent kernel and bias, as the products see them."""

        def read(weight: keras.Variable | None) -> Any:
            if weight is None:
                return None
            return tf.cast(tf.convert_to_tensor(weight.value), self.compute_dtype)

        on_datapath = self.lns_config.datapath is not None
        operand = self.as_operand if on_datapath else read
        with forward_reads():
            return operand(self.kernel), operand(self.recurrent_kernel), read(self.bias)

    def ranges_in(self, training: Any) -> tuple[int, ...]:
        """Activations whose ranges a call records."""
        config = self.lns_config
        records = config.activations is not None and config.activation_scale == "moving"
        if not records or not (is_tensor(training) or training or is_calibrating()):
            return ()
        return tuple(range(self.recorded_ranges))

    def link(self, run: _Run, x: Any) -> Any:
        """Projected inputs whose gradient gives that of the recurrent kernel, too.

        Within the loop that would be a product per step and a sum over the steps; here it is
        one product, of the operands of all steps and their errors. Second derivatives would
        lack the kernel's part in the loop backwards, so they are refused.
        """
        flat = (-1, *x.shape[2:])

        @tf.custom_gradient
        def linked(x: Any, kernel: Any) -> tuple[Any, Callable]:
            def gradient(dx: Any) -> tuple[Any, Any]:
                operand = tf.reshape(run.operand, (-1, *run.operand.shape[2:]))
                with tf.GradientTape() as tape:
                    tape.watch(kernel)
                    z = self.product(_STATE, operand, kernel)
                dkernel = tape.gradient(z, kernel, output_gradients=tf.reshape(dx, flat))
                return _first_order(dx), _first_order(dkernel)

            return tf.identity(x), gradient

        x = linked(x, run.recurrent_kernel)
        run.recurrent_kernel = tf.stop_gradient(run.recurrent_kernel)
        return x


def _first_order(gradient: Any) -> Any:
    """A gradient that has none itself: asking for it is a LookupError."""
    message = "An LNS recurrent layer has second derivatives with unroll=True only."
    return tf.raw_ops.PreventGradient(input=gradient, message=message)


class SimpleRNNArithmetic(_Cell):
    """The step of a simple recurrent layer."""

    def step(self, run: _Run, x: Any, states: list, training: Any) -> tuple[Any, list]:
        """``h = activation(x + h U)``."""
        z = self.quantize_result_error(x + self.recur(run, states[0], training))
        h = z if self.activation is None else self.activation(z)
        return h, [h]


@register_layer(keras.layers.SimpleRNNCell)
class LNSSimpleRNNCell(SimpleRNNArithmetic, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` in LNS; one more argument, `lns_config`."""


class LSTMArithmetic(_Cell):
    """The step of an LSTM, whatever its products are."""

    state_count = 2

    def step(self, run: _Run, x: Any, states: list, training: Any) -> tuple[Any, list]:
        """``c = f c + i g``, ``h = o activation(c)``, gates from ``z = x + h U``."""
        h, c = states
        z = self.quantize_result_error(x + self.recur(run, h, training))
        i, f, g, o = keras_ops.split(z, 4, axis=self.channel_axis)
        i, f = self.recurrent_activation(i), self.recurrent_activation(f)
        c = f * c + i * self.activation(g)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]


@register_layer(keras.layers.LSTMCell)
class LNSLSTMCell(LSTMArithmetic, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` in LNS; one more argument, `lns_config`."""


class GRUArithmetic(_Cell):
    """The step of a GRU.

    The reset gate stands between the error of the product with the inputs and that of the
    product with the state, so each goes through a Q_E of its own.
    """

    linked = False
    recorded_ranges: Any = property(lambda self: 2 if self.reset_after else 3)

    def read_weights(self) -> tuple[Any, Any, Any]:
        """As in `_Cell`; the recurrent kernel in two where the state is reset in between."""
        kernel, recurrent_kernel, bias = super().read_weights()
        if not self.reset_after:
            parts = tf.split(recurrent_kernel, [2 * self.units, self.units], axis=1)
            if self.lns_config.datapath is not None:
                parts = [encoded(rearranged(part, recurrent_kernel)) for part in parts]
            recurrent_kernel = parts
        return kernel, recurrent_kernel, bias

    def input_bias(self, bias: Any) -> Any:
        """The first of two where the state is reset after the product."""
        return bias[0] if self.reset_after else bias

    def project(self, run: _Run, inputs: Any, training: Any, sequence: bool = False) -> Any:
        """As in `_Cell`, and Q_E with one scale per time step."""
        x = super().project(run, inputs, training, sequence)
        return self.quantize_result_error(x, axis=0 if sequence else None)

    def step(self, run: _Run, x: Any, states: list, training: Any) -> tuple[Any, list]:
        """``h = z h + (1 - z) activation(x_h + r (h U_h))``, or with ``(r h) U_h``."""
        h = states[0]
        x_z, x_r, x_h = keras_ops.split(x, 3, axis=-1)
        if self.reset_after:
            bias = None if run.bias is None else run.bias[1]
            inner = self.recur(run, h, training, bias)
            inner_z, inner_r, inner_h = keras_ops.split(
                self.quantize_result_error(inner), 3, axis=-1
            )
            z = self.recurrent_activation(x_z + inner_z)
            r = self.recurrent_activation(x_r + inner_r)
            inner_h = r * inner_h
        else:
            masks = self.state_masks(h, training) or [None, None, None]
            both = masks[:2] if masks[0] is not None else None
            operand = self.operand(run, h, both, _STATE, training)
            of_gates, of_state = run.recurrent_kernel
            inner = self.quantize_result_error(self.product(_STATE, operand, of_gates))
            inner_z, inner_r = keras_ops.split(inner, 2, axis=-1)
            z = self.recurrent_activation(x_z + inner_z)
            r = self.recurrent_activation(x_r + inner_r)
            operand = self.operand(run, r * h, masks[2], _RESET_STATE, training)
            inner_h = self.quantize_result_error(self.product(_STATE, operand, of_state))
        h = z * h + (1 - z) * self.activation(x_h + inner_h)
        return h, [h]


@register_layer(keras.layers.GRUCell)
class LNSGRUCell(GRUArithmetic, keras.layers.GRUCell):
    """`keras.layers.GRUCell` in LNS; one more argument, `lns_config`."""


class ConvLSTMArithmetic(LSTMArithmetic):
    """The step of an LSTM whose products are convolutions."""

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in the inputs and states of a time step."""
        return -1 if self.data_format == "channels_last" else 1

    def multiply_inputs(self, inputs: Any, kernel: Any) -> Any:
        """A convolution with the layer's strides and padding."""
        return self.input_conv(inputs, kernel, padding=self.padding)

    def multiply_state(self, state: Any, kernel: Any) -> Any:
        """A convolution that keeps the size."""
        return self.recurrent_conv(state, kernel)

    def spread(self, bias: Any) -> Any:
        """The bias in a shape that broadcasts to the convolutions."""
        if bias is None or self.channel_axis < 0:
            return bias
        return keras_ops.reshape(bias, (1, -1, *[1] * self.rank))

    def form(self, which: int) -> Any:
        """Convolutions; see `products.Form`."""
        if which == _INPUTS:
            return convolution_of(self)
        ones = (1,) * self.rank
        return convolution_of(self, strides=ones, dilations=ones, padding="same")


@register_layer(keras_hooks.ConvLSTMCell)
class LNSConvLSTMCell(ConvLSTMArithmetic, keras_hooks.ConvLSTMCell):
    """The cell of `keras.layers.ConvLSTM1D` to `3D` in LNS; one more argument, `lns_config`."""


# --- Layers -----------------------------------------------------------------------------------


class _Recurrent(LNSComposite):
    """Mixin of the recurrent layers, whose weights and ranges are the cell's.

    The cuDNN kernels of Keras, which hide the products, are not used: `use_cudnn` is False,
    whatever is asked for.
    """

    quantized_inputs = 0
    quantized_outputs = False
    recorded_ranges = 0
    takes_datapath = True
    products_in_methods = True

    use_cudnn = property(lambda self: False, lambda self, value: None)
    supports_jit = property(lambda self: True, lambda self, value: None)

    def call(
        self, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False
    ) -> Any:
        """As in Keras, with the weights read once."""
        with contextlib.ExitStack() as stack:
            for cell in self._cells():
                stack.enter_context(running_cell(cell, records=False))
            return super().call(
                sequences, initial_state=initial_state, mask=mask, training=training
            )

    def _cells(self) -> list[Any]:
        """The LNS cells inside."""
        inside = all_layers(self.cell) if isinstance(self.cell, keras.layers.Layer) else []
        return [cell for cell in [self.cell, *inside] if isinstance(cell, _Cell)]

    def inner_loop(
        self, sequences: Any, initial_state: Any, mask: Any, training: Any = False
    ) -> tuple[Any, Any, Any]:
        """Keras' loop over time, on projected inputs; then the ranges are recorded."""
        mask = mask[0] if keras.tree.is_nested(mask) else mask
        x = _swapped(sequences)  # the first axis is time from here on
        batch = keras_ops.shape(sequences)[0]
        for cell in self._cells():
            _runs.of[id(cell)].records = True
        first, *others = cells = _leaves(self.cell)
        for cell in cells:
            if _is_split(cell):
                _runs.of[id(cell)].tracked = cell.ranges_in(training)
        linked = None
        if _is_split(first) and not any(cell is first for cell in others):
            run = _runs.of[id(first)]
            run.tracked = run.tracked[1:]
            x = first.project(run, x, training, sequence=True)
            run.projected = True
            on_datapath = first.lns_config.datapath is not None  # its products are in the loop
            if first is self.cell and first.linked and not self.unroll and not on_datapath:
                linked = run
                x = first.link(run, x)

        outputs_wanted = self.return_sequences or mask is not None or linked is None
        kwargs = {"training": training} if _takes_training(self.cell) else {}

        def step(x: Any, states: Any) -> tuple[Any, Any]:
            output, states = (self.cell.call if _is_split(self.cell) else self.cell)(
                x, list(states), **kwargs
            )
            states = states if keras.tree.is_nested(states) else [states]
            if linked is not None:
                output = (linked.operand, output) if outputs_wanted else (linked.operand,)
            return output, states

        slots = _with_slots(self.cell, initial_state)
        last, outputs, final = keras_hooks.rnn(
            step,
            x,
            keras.tree.map_structure(
                lambda s: s.zeros(batch) if isinstance(s, _Slot) else s, slots
            ),
            go_backwards=self.go_backwards,
            mask=None if mask is None else _swapped(mask),
            unroll=self.unroll,
            input_length=x.shape[0],
            time_major=True,
            zero_output_for_mask=self.zero_output_for_mask,
            return_all_outputs=self.return_sequences or linked is not None,
        )
        kept = []
        for slot, state in zip(keras.tree.flatten(slots), keras.tree.flatten(final), strict=True):
            if isinstance(slot, _Slot):
                slot.cell.record_range(tf.cast(tf.reduce_max(state), tf.float32), slot.index)
            else:
                kept.append(state)
        if linked is not None:
            linked.operand = outputs[0][::-1] if self.go_backwards else outputs[0]
            last, outputs = (last[1], outputs[1]) if outputs_wanted else (kept[0], None)
        outputs = _swapped(outputs) if self.return_sequences else last
        return last, outputs, keras.tree.pack_sequence_as(initial_state, kept)


@dataclasses.dataclass(frozen=True)
class _Slot:
    """The place among the states for the abs-max of one of a cell's activations."""

    cell: Any
    index: int

    def zeros(self, batch: Any) -> Any:
        """Where it starts: one number for each sample, as the loop masks samples."""
        return keras_ops.zeros((batch, 1), dtype=self.cell.compute_dtype)


def _with_slots(cell: Any, states: Any) -> Any:
    """States with a slot for each tracked range of a cell behind its own."""
    if isinstance(cell, keras.layers.StackedRNNCells):
        return [_with_slots(c, s) for c, s in zip(cell.cells, states, strict=True)]
    if not _is_split(cell) or not _runs.of[id(cell)].tracked:
        return states
    slots = [_Slot(cell, index) for index in _runs.of[id(cell)].tracked]
    return [*(states if keras.tree.is_nested(states) else [states]), *slots]


def _leaves(cell: Any) -> list:
    """The cells in a stack of cells, however deep; of another cell, itself."""
    if not isinstance(cell, keras.layers.StackedRNNCells):
        return [cell]
    return [leaf for inner in cell.cells for leaf in _leaves(inner)]


def _is_split(cell: Any) -> bool:
    """Whether a cell's call is the one of `_Cell`, in two parts, and no subclass's own."""
    return isinstance(cell, _Cell) and type(cell).call is _Cell.call


def _takes_training(cell: Any) -> bool:
    is_layer = isinstance(cell, keras.layers.Layer | _Cell)
    return is_layer and "training" in inspect.signature(cell.call).parameters


def _swapped(x: Any) -> Any:
    """X with the axes of samples and of time exchanged."""
    return keras_ops.swapaxes(x, 0, 1)


@register_layer(keras.layers.RNN)
class LNSRNN(_Recurrent, keras.layers.RNN):
    """`keras.layers.RNN` that reads the weights of LNS cells once; also takes `lns_config`.

    Cells of another kind, and what a user's own cell does around LNS layers, are left alone.
    """

    def __init__(self, cell: Any, *args: Any, **kwargs: Any):
        super().__init__(cell, *args, **kwargs)


@register_layer(keras.layers.SimpleRNN)
class LNSSimpleRNN(_Recurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` in LNS; one more argument, `lns_config`."""


@register_layer(keras.layers.LSTM)
class LNSLSTM(_Recurrent, keras.layers.LSTM):
    """`keras.layers.LSTM` in LNS; one more argument, `lns_config`."""


@register_layer(keras.layers.GRU)
class LNSGRU(_Recurrent, keras.layers.GRU):
    """`keras.layers.GRU` in LNS; one more argument, `lns_config`."""


@register_layer(keras.layers.ConvLSTM1D)
class LNSConvLSTM1D(_Recurrent, keras.layers.ConvLSTM1D):
    """`keras.layers.ConvLSTM1D` in LNS; one more argument, `lns_config`."""


@register_layer(keras.layers.ConvLSTM2D)
class LNSConvLSTM2D(_Recurrent, keras.layers.ConvLSTM2D):
    """`keras.layers.ConvLSTM2D` in LNS; one more argument, `lns_config`."""


@register_layer(keras.layers.ConvLSTM3D)
class LNSConvLSTM3D(_Recurrent, keras.layers.ConvLSTM3D):
    """`keras.layers.ConvLSTM3D` in LNS; one more argument, `lns_config`."""
