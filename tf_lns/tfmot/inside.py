"""Layers with more than one product: what is quantized inside one call of them.

The arithmetic is that of the Keras 3 layers of tf_lns, run on a *view*: an object with the
attributes of a tf_keras layer and with the quantizers of its wrapper.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import tensorflow as tf

from tf_lns.config import LNSConfig
from tf_lns.layers.attention import LNSMultiHeadAttention
from tf_lns.layers.conv import SeparableArithmetic
from tf_lns.layers.mixin import ActivationMixin, is_tensor
from tf_lns.layers.recurrent import (
    LNSLSTM,
    ConvLSTMArithmetic,
    GRUArithmetic,
    LSTMArithmetic,
    SimpleRNNArithmetic,
    running_cell,
)
from tf_lns.tfmot import hooks


@dataclasses.dataclass
class Running:
    """One call of a wrapped layer.

    Attributes:
        config: The formats.
        training: What the call was given.
        swapped: Where attributes are given other values for the time of the call.
        values: Q_W of the weights, by the identity of the layer that has them and name.
        ranges: The layer's recorded ranges inside, each taken by whoever needs it next.
        seen: Pairs of a range and what is to be recorded in it once the call is over: on
            several devices recording switches between replicas, which share the layer.
    """

    config: LNSConfig
    training: Any
    swapped: hooks.Swapped
    values: dict[tuple[int, str], tf.Tensor]
    ranges: list[Any]
    seen: list[tuple[Any, tf.Tensor]] = dataclasses.field(default_factory=list)

    def take(self, count: int) -> list[Any]:
        """The next recorded ranges; none where nothing is recorded."""
        taken, self.ranges = self.ranges[:count], self.ranges[count:]
        return taken


class View(ActivationMixin):
    """A tf_keras layer as the arithmetic of tf_lns sees it."""

    def __init__(self, layer: Any, running: Running, ranges: list[Any]):
        self.lns_config = running.config
        self.compute_dtype = layer.compute_dtype
        self.input_ranges = ranges
        self._layer, self._running = layer, running

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def record_range(self, seen: tf.Tensor, index: int = 0) -> None:
        """Leaves it to the wrapper."""
        self._running.seen.append((self.input_ranges[index], seen))


# --- Separable convolutions -------------------------------------------------------------------


def separable(layer: Any, running: Running) -> None:
    """Depthwise, then pointwise convolution, each a product of its own."""
    view: Any = View(layer, running, [None, *running.take(1)])

    @tf.autograph.experimental.do_not_convert
    def call(inputs: Any) -> Any:
        if layer.padding == "causal":
            inputs = tf.pad(inputs, hooks.causal_padding(layer, inputs))
            view.padding = "valid"
        return SeparableArithmetic.call(view, inputs, running.training)

    running.swapped.set(layer, "call", call)


# --- Attention --------------------------------------------------------------------------------


class _Attention(View):
    """`MultiHeadAttention`, whose output is the operand of one more projection."""

    _compute: Any = LNSMultiHeadAttention._compute_attention
    _scores = LNSMultiHeadAttention._scores

    @property
    def _inverse_root(self) -> float:
        return 1.0 / math.sqrt(float(self._key_dim))

    @tf.autograph.experimental.do_not_convert
    def attend(
        self, query: Any, key: Any, value: Any, attention_mask: Any = None, training: Any = None
    ) -> tuple[Any, Any]:
        """What `_compute_attention` of tf_keras returns."""
        output, scores = self._compute(query, key, value, attention_mask, training)
        return self.quantize_activation(output, 4, training), scores


def attention(layer: Any, running: Running) -> None:
    """The two products between activations, and the operand of the output's projection."""
    view = _Attention(layer, running, running.take(5))
    running.swapped.set(layer, "_compute_attention", view.attend)


# --- Recurrent layers -------------------------------------------------------------------------


class _CellView:
    """A recurrent cell, whose inputs the wrapper has quantized already."""

    masks_per_gate = 1

    def __init__(self, cell: Any, running: Running, inputs: Any, states: Any, training: Any):
        self.lns_config, self.compute_dtype = running.config, cell.compute_dtype
        self.activation = cell.activation
        self.recurrent_activation = getattr(cell, "recurrent_activation", None)
        self.reset_after = getattr(cell, "reset_after", False)
        self.dropout = self.recurrent_dropout = 0.0  # the masks are made here
        self._running, self._cell = running, cell
        # More names than ranges where nothing is recorded.
        for i, recorded in enumerate(running.take(range_count(cell)), start=1):
            setattr(self, f"input_range_{i}", recorded)
        drops = is_tensor(training) or bool(training)
        self._input_masks = self._masks(
            drops and cell.dropout, cell.get_dropout_mask_for_cell, inputs[:, 0], training
        )
        self._state_masks = self._masks(
            drops and cell.recurrent_dropout,
            cell.get_recurrent_dropout_mask_for_cell,
            states[0],
            training,
        )

    def _masks(self, wanted: Any, make: Any, like: Any, training: Any) -> Any:
        if not wanted:
            return None
        masks = make(like, training, count=self.masks_per_gate)
        if not isinstance(masks, list):
            return masks
        one = getattr(self._cell, "implementation", 1) == 2
        return [masks[0]] * len(masks) if one else masks

    @property
    def input_ranges(self) -> list[Any]:
        """None of the inputs, then those of the states."""
        names = [f"input_range_{i}" for i in range(1, 3)]
        return [None, *(vars(self)[name] for name in names if name in vars(self))]

    def state_masks(self, state: Any, training: Any) -> Any:
        """Dropout masks of the state, the same in all steps."""
        return self._state_masks

    def operand(self, run: Any, x: Any, masks: Any, index: int, training: Any) -> Any:
        """Q_A of x under its dropout masks."""
        masks = self._input_masks if index == 0 else masks
        return super().operand(run, x, masks, index, training)  # type: ignore[misc]

    def quantize_and_look(self, x: Any, index: int = 0, training: Any = False) -> Any:
        """Q_A of states; inputs come quantized."""
        if index == 0:
            return x, None
        return super().quantize_and_look(x, index, training)  # type: ignore[misc]

    def record_range(self, seen: tf.Tensor, index: int = 0) -> None:
        """Leaves it to the wrapper."""
        self._running.seen.append((self.input_ranges[index], seen))

    def read_weights(self) -> tuple[Any, Any, Any]:
        """Q_W of the kernels, and the bias."""

        def read(name: str) -> Any:
            value = self._running.values.get((id(self._cell), name), getattr(self._cell, name))
            return None if value is None else tf.cast(value, self.compute_dtype)

        return read("kernel"), read("recurrent_kernel"), read("bias")


class _SimpleRNNView(_CellView, SimpleRNNArithmetic):
    """The cell of a simple recurrent layer."""


class _LSTMView(_CellView, LSTMArithmetic):
    """The cell of an LSTM."""

    masks_per_gate = 4


class _ConvLSTMView(_CellView, ConvLSTMArithmetic):
    """The cell of a convolutional LSTM."""

    masks_per_gate = 4

    def __init__(self, cell: Any, *args: Any):
        super().__init__(cell, *args)
        self.data_format, self.padding = cell.data_format, cell.padding
        self.input_conv, self.recurrent_conv = cell.input_conv, cell.recurrent_conv


class _GRUView(_CellView, GRUArithmetic):
    """The cell of a GRU."""

    masks_per_gate = 3

    def read_weights(self) -> tuple[Any, Any, Any]:
        """The recurrent kernel in two where the state is reset before the product."""
        kernel, recurrent_kernel, bias = super().read_weights()
        if not self.reset_after:
            units = self._cell.units
            recurrent_kernel = tf.split(recurrent_kernel, [2 * units, units], axis=1)
        return kernel, recurrent_kernel, bias


VIEWS = {
    "SimpleRNNCell": _SimpleRNNView,
    "LSTMCell": _LSTMView,
    "GRUCell": _GRUView,
    "ConvLSTMCell": _ConvLSTMView,
}
"""The views of the cells of tf_keras, by the names of their classes."""


def cells_of(layer: Any) -> list[Any]:
    """The cells of a recurrent layer: its own, or those that are stacked in it."""
    stacked = type(layer.cell).__name__ == "StackedRNNCells"
    return list(layer.cell.cells) if stacked else [layer.cell]


def range_count(cell: Any) -> int:
    """How many activations within a cell have a recorded range, beside its inputs."""
    return 2 if type(cell).__name__ == "GRUCell" and not cell.reset_after else 1


class _LayerView(View):
    """A recurrent layer around the view of its cell."""

    cell: Any = None
    loop: Any = LNSLSTM.inner_loop

    def _cells(self) -> list[Any]:
        return [self.cell]


def recurrent(layer: Any, running: Running) -> None:
    """A loop over time in which the products with the state are LNS products too."""
    running.swapped.set(layer, "call", functools.partial(_run_recurrent, layer, running))


@tf.autograph.experimental.do_not_convert
def _run_recurrent(
    layer: Any,
    running: Running,
    inputs: Any,
    mask: Any = None,
    training: Any = None,
    initial_state: Any = None,
    constants: Any = None,
) -> Any:
    inputs, initial_state, constants = hooks.begin_recurrent(
        layer, inputs, initial_state, constants
    )
    if constants is not None or isinstance(inputs, tf.RaggedTensor):
        raise ValueError(
            f"Layer {layer.name!r} in LNS takes neither `constants` nor ragged inputs. Received: "
            f"constants={constants!r}, inputs={inputs!r}"
        )
    if layer.time_major:
        inputs = tf.transpose(inputs, [1, 0, *range(2, len(inputs.shape))])
        mask = None if mask is None else tf.transpose(mask)
    mask = mask[0] if isinstance(mask, list | tuple) else mask
    cells = cells_of(layer)
    if layer.cell is cells[0]:
        last, output, states = _loop(layer, running, cells[0], inputs, initial_state, mask)
    else:
        last, output, states = _run_stack(layer, running, cells, inputs, initial_state, mask)
    if layer.stateful:
        assigned = zip(tf.nest.flatten(layer.states), tf.nest.flatten(states), strict=True)
        for variable, state in assigned:
            variable.assign(tf.cast(state, variable.dtype))
    if not layer.return_sequences:
        output = last
    elif layer.time_major:
        output = tf.transpose(output, [1, 0, *range(2, len(output.shape))])
    return [output, *states] if layer.return_state else output


def _run_stack(
    layer: Any, running: Running, cells: list, sequence: Any, states: Any, mask: Any
) -> tuple[Any, Any, list]:
    """Stacked cells, one after the other over the whole time: what the stack does step by step.

    So the products with the inputs are one product for each cell.
    """
    final, last = [], None
    for i, (cell, given) in enumerate(zip(cells, states, strict=True)):
        if i > 0:
            hooks.renew_dropout(layer, cell)
            view: Any = View(layer, running, running.take(1))
            sequence = view.quantize_activation(sequence, 0, running.training)
        backwards = layer.go_backwards and i == 0
        last, sequence, state = _loop(
            layer,
            running,
            cell,
            sequence,
            tf.nest.flatten(given),
            mask,
            go_backwards=backwards,
            return_sequences=layer.return_sequences or cell is not cells[-1],
        )
        final.append(tf.nest.pack_sequence_as(cell.state_size, state))
        mask = tf.reverse(mask, [1]) if backwards and mask is not None else mask
    return last, sequence, final


def _loop(
    layer: Any,
    running: Running,
    cell: Any,
    sequence: Any,
    states: Any,
    mask: Any,
    **others: Any,
) -> tuple[Any, Any, list]:
    """The last output, all outputs and the final states of one cell."""
    training = running.training
    view = _LayerView(layer, running, [])
    vars(view).update(others)
    view.cell = VIEWS[type(cell).__name__](cell, running, sequence, states, training)
    with running_cell(view.cell, records=False):
        last, outputs, final = view.loop(sequence, list(states), mask, training)
    return last, outputs, list(final)
