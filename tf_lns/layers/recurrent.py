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
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops as keras_ops

from tf_lns.layers.container import LNSComposite
from tf_lns.layers.mixin import LNSMixin, is_calibrating, quantizes_itself
from tf_lns.layers.registry import register_layer
from tf_lns.layers.tree import all_layers
from tf_lns.variable import forward_reads

_INPUTS, _STATE, _RESET_STATE = range(3)


@dataclasses.dataclass
class _Run:
    """What a cell keeps during one call of the layer around it, or of its own.

    Attributes:
        kernel: Q_W of the weight, as are the next two.
        recurrent_kernel: As `kernel`.
        bias: The bias, or None.
        projected: Whether the cell's inputs are projected already.
        records: Whether the cell may record ranges as it goes.
        tracked: Activations whose abs-max the cell hands on as one more state each, to be
            recorded when the loop is over.
        seen: Abs-max of these in this step.
    """

    kernel: Any
    recurrent_kernel: Any
    bias: Any
    projected: bool = False
    records: bool = True
    tracked: tuple[int, ...] = ()
    seen: dict[int, Any] = dataclasses.field(default_factory=dict)


_runs = threading.local()


@contextlib.contextmanager
def _running(cell: Any, records: bool) -> Iterator[_Run]:
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


class _Cell(LNSMixin):
    """Mixin of the recurrent cells.

    Alone, a cell does all its products in each call and records ranges in each. In an LNS layer
    it does what is left to do in a step.

    Attributes:
        state_count: Class attribute: how many states the Keras cell has.
    """

    recorded_ranges = 2
    state_count = 1
    channel_axis = -1

    @quantizes_itself
    def call(self, inputs: Any, states: Any, training: Any = False) -> tuple[Any, Any]:
        """As in Keras; behind the states may stand the abs-max of what the run tracks."""
        nested = keras.tree.is_nested(states)
        states = list(states) if nested else [states]
        states, largest = states[: self.state_count], states[self.state_count :]
        with _running(self, records=True) as run:
            x = inputs if run.projected else self.project(run, inputs, training)
            output, states = self.step(run, x, states, training)
            if largest:
                for i, index in enumerate(run.tracked):
                    seen = tf.cast(run.seen.pop(index), largest[i].dtype)
                    largest[i] = tf.stop_gradient(tf.maximum(largest[i], seen))
                return output, [*states, *largest]
        return output, states if nested else states[0]

    def project(self, run: _Run, inputs: Any, training: Any, sequence: bool = False) -> Any:
        """The product with the inputs and its bias, for one time step or a sequence."""
        rate, masks = self.dropout, None
        if 0.0 < rate < 1.0 and training:
            masks = self.get_dropout_mask(inputs[:, 0] if sequence else inputs)
            if sequence:
                masks = keras.tree.map_structure(lambda m: keras_ops.expand_dims(m, 1), masks)
        operands = self.operands(run, inputs, masks, _INPUTS, training)
        x = _gatewise(self.multiply_inputs, operands, run.kernel, self.channel_axis)
        bias = self.input_bias(run)
        return x if bias is None else keras_ops.add(x, bias)

    def step(self, run: _Run, x: Any, states: list, training: Any) -> tuple[Any, list]:
        """The output and the new states, from projected inputs and the states."""
        raise NotImplementedError

    def recur(self, run: _Run, state: Any, training: Any) -> Any:
        """The product of the state and the recurrent kernel."""
        masks = self.state_masks(state, training)
        operands = self.operands(run, state, masks, _STATE, training)
        return _gatewise(self.multiply_state, operands, run.recurrent_kernel, self.channel_axis)

    def state_masks(self, state: Any, training: Any) -> Any:
        """Dropout masks of the state: None, one, or one per gate."""
        if 0.0 < self.recurrent_dropout < 1.0 and training:
            return self.get_recurrent_dropout_mask(state)
        return None

    def operands(self, run: _Run, x: Any, masks: Any, index: int, training: Any) -> list:
        """Q_A of x under its dropout masks: one operand for all gates, or one for each."""
        if not isinstance(masks, list):
            return [self.quantize_operand(run, x if masks is None else x * masks, index, training)]
        masked = keras_ops.concatenate([x * mask for mask in masks], axis=self.channel_axis)
        masked = self.quantize_operand(run, masked, index, training)
        return keras_ops.split(masked, len(masks), axis=self.channel_axis)

    def quantize_operand(self, run: _Run, x: Any, index: int, training: Any) -> Any:
        """Q_A, with its range recorded now or later as the run says."""
        x, seen = self.quantize_and_look(x, index, training)
        if index in run.tracked:
            run.seen[index] = seen
        elif seen is not None and run.records:
            self.record_range(seen, index)
        return x

    def multiply_inputs(self, x: Any, kernel: Any) -> Any:
        """The product with the inputs; as a product of matrices it is far faster."""
        if len(x.shape) == 2:
            return keras_ops.matmul(x, kernel)
        flat = keras_ops.matmul(keras_ops.reshape(x, (-1, x.shape[-1])), kernel)
        return keras_ops.reshape(flat, (*_leading(x), kernel.shape[-1]))

    def multiply_state(self, state: Any, kernel: Any) -> Any:
        """The product with the state."""
        return keras_ops.matmul(state, kernel)

    def input_bias(self, run: _Run) -> Any:
        """What is added to the product with the inputs, or None."""
        return run.bias

    def read_weights(self) -> tuple[Any, Any, Any]:
        """Kernel, recurrent kernel and bias, as the products see them."""

        def read(weight: keras.Variable | None) -> Any:
            if weight is None:
                return None
            return tf.cast(tf.convert_to_tensor(weight.value), self.compute_dtype)

        with forward_reads():
            return read(self.kernel), read(self.recurrent_kernel), read(self.bias)

    def tracked(self, training: Any) -> tuple[int, ...]:
        """Activations whose ranges a call records."""
        config = self.lns_config
        records = config.activations is not None and config.activation_scale == "moving"
        is_tensor = isinstance(training, tf.Tensor | tf.Variable | keras.Variable)
        if not records or not (is_tensor or training or is_calibrating()):
            return ()
        return tuple(range(self.recorded_ranges))


def _leading(x: Any) -> tuple:
    """The first two dimensions of x, at most one of them a tensor."""
    first, second = x.shape[:2]
    return (
        (-1, keras_ops.shape(x)[1] if second is None else second) if first is None else x.shape[:2]
    )


def _gatewise(multiply: Any, operands: list, kernel: Any, axis: int) -> Any:
    """The product of one operand and all gates' kernels, or of each gate's own."""
    if len(operands) == 1:
        return multiply(operands[0], kernel)
    kernels = keras_ops.split(kernel, len(operands), axis=-1)
    products = [multiply(x, k) for x, k in zip(operands, kernels, strict=True)]
    return keras_ops.concatenate(products, axis=axis)


@register_layer(keras.layers.SimpleRNNCell)
class LNSSimpleRNNCell(_Cell, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` in LNS; one more argument, `lns_config`."""

    def step(self, run: _Run, x: Any, states: list, training: Any) -> tuple[Any, list]:
        """``h = activation(x + h U)``."""
        z = self.quantize_error(x + self.recur(run, states[0], training))
        h = z if self.activation is None else self.activation(z)
        return h, [h]


class _LSTM(_Cell):
    """The step of an LSTM, whatever its products are."""

    state_count = 2

    def step(self, run: _Run, x: Any, states: list, training: Any) -> tuple[Any, list]:
        """``c = f c + i g``, ``h = o activation(c)``, gates from ``z = x + h U``."""
        h, c = states
        z = self.quantize_error(x + self.recur(run, h, training))
        i, f, g, o = keras_ops.split(z, 4, axis=self.channel_axis)
        i, f = self.recurrent_activation(i), self.recurrent_activation(f)
        c = f * c + i * self.activation(g)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]


@register_layer(keras.layers.LSTMCell)
class LNSLSTMCell(_LSTM, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` in LNS; one more argument, `lns_config`."""


# --- Layers ---------------------------------------------------------------------------------


class _Recurrent(LNSComposite):
    """Mixin of the recurrent layers, whose weights and ranges are the cell's.

    The cuDNN kernels of Keras, which hide the products, are not used.
    """

    quantized_inputs = 0
    quantized_outputs = False
    recorded_ranges = 0

    use_cudnn = property(lambda self: False, lambda self, value: None)
    supports_jit = property(lambda self: True, lambda self, value: None)

    def call(
        self, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False
    ) -> Any:
        """As in Keras, with the weights read once."""
        inside = all_layers(self.cell) if isinstance(self.cell, keras.layers.Layer) else []
        with contextlib.ExitStack() as stack:
            for cell in [self.cell, *inside]:
                if isinstance(cell, _Cell):
                    stack.enter_context(_running(cell, records=False))
            return super().call(
                sequences, initial_state=initial_state, mask=mask, training=training
            )

    def inner_loop(
        self, sequences: Any, initial_state: Any, mask: Any, training: Any = False
    ) -> tuple[Any, Any, Any]:
        """Keras' loop over time, on projected inputs; then the ranges are recorded."""
        for run in _runs.of.values():
            run.records = True
        batch = keras_ops.shape(sequences)[0]
        first, *others = cells = _leaves(self.cell)
        for cell in cells:
            if _is_split(cell):
                _runs.of[id(cell)].tracked = cell.tracked(training)
        if _is_split(first) and not any(cell is first for cell in others):
            run = _runs.of[id(first)]
            run.tracked = run.tracked[1:]
            sequences = first.project(run, sequences, training, sequence=True)
            run.projected = True

        states = _with_slots(self.cell, initial_state)
        last, outputs, final = keras.layers.RNN.inner_loop(
            self,
            sequences,
            keras.tree.map_structure(
                lambda s: s.zeros(batch) if isinstance(s, _Slot) else s, states
            ),
            mask[0] if keras.tree.is_nested(mask) else mask,
            training,
        )
        kept = []
        for slot, state in zip(keras.tree.flatten(states), keras.tree.flatten(final), strict=True):
            if isinstance(slot, _Slot):
                slot.cell.record_range(tf.cast(tf.reduce_max(state), tf.float32), slot.index)
            else:
                kept.append(state)
        return last, outputs, keras.tree.pack_sequence_as(initial_state, kept)


@dataclasses.dataclass(frozen=True)
class _Slot:
    """The place among the states for the abs-max of one of a cell's activations."""

    cell: Any
    index: int

    def zeros(self, batch: Any) -> Any:
        """Where it starts: one number for each sample, as the loop masks samples."""
        return keras_ops.zeros((batch, 1), dtype=self.cell.compute_dtype)


def _leaves(cell: Any) -> list:
    """The cells in a stack of cells, however deep; of another cell, itself."""
    if not isinstance(cell, keras.layers.StackedRNNCells):
        return [cell]
    return [leaf for inner in cell.cells for leaf in _leaves(inner)]


def _is_split(cell: Any) -> bool:
    """Whether a cell's call is the one of `_Cell`, in two parts, and no subclass's own."""
    return isinstance(cell, _Cell) and type(cell).call is _Cell.call


def _with_slots(cell: Any, states: Any) -> Any:
    """States with a slot for each tracked range of a cell behind its own."""
    if isinstance(cell, keras.layers.StackedRNNCells):
        return [_with_slots(c, s) for c, s in zip(cell.cells, states, strict=True)]
    if not _is_split(cell) or not _runs.of[id(cell)].tracked:
        return states
    slots = [_Slot(cell, index) for index in _runs.of[id(cell)].tracked]
    return [*(states if keras.tree.is_nested(states) else [states]), *slots]


@register_layer(keras.layers.SimpleRNN)
class LNSSimpleRNN(_Recurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` in LNS; one more argument, `lns_config`."""


@register_layer(keras.layers.LSTM)
class LNSLSTM(_Recurrent, keras.layers.LSTM):
    """`keras.layers.LSTM` in LNS; one more argument, `lns_config`."""
