"""Where the values of a tensor come from, as far as counting needs to know."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tf_lns.energy import rules


@dataclasses.dataclass(frozen=True)
class Flow:
    """Where a tensor comes from.

    Attributes:
        data: It depends on the batch or on random numbers.
        backward: It depends on a derivative.
        variable: It depends on a variable.
        format: Low-bit format that its values lie in, None for that of its dtype.
        layer: Path of the layer that made it.
        source: Identity of the tensor that it is a rearrangement of, None for itself.
        size: Elements of that tensor, None where that is not known.
        runs: How often that tensor is made per step.
    """

    data: bool = False
    backward: bool = False
    variable: bool = False
    format: str | None = None
    layer: str | None = None
    source: Any = None
    size: int | None = None
    runs: float = 1

    @property
    def constant(self) -> bool:
        """It is the same in every step."""
        return not (self.data or self.variable)

    @property
    def role(self) -> str:
        """Its role as an operand, one of `records.ROLES`."""
        if self.backward:
            return "errors"
        return "activations" if self.data else "weights"

    def named(self, frame_number: int, tensor: Any) -> Flow:
        """Itself; where it has no source yet, with the tensor as its source."""
        if self.source is not None:
            return self
        return dataclasses.replace(self, source=(frame_number, tensor.name), size=size_of(tensor))

    def format_of(self, tensor: Any) -> str:
        """Name of the format in which the tensor's values lie."""
        return self.format or rules.format_of(tensor.dtype)

    def elements(self, tensor: Any) -> int:
        """Elements that are read of a tensor: not its padding, nor what is repeated in it."""
        size = rules.elements(tensor)
        return size if self.size is None else min(size, self.size)


def merge(a: Flow, b: Flow) -> Flow:
    """What is known of a tensor that is one of two."""
    if a.constant or b.constant:  # what starts as zeros is what it becomes
        one = b if a.constant else a
        return dataclasses.replace(one, backward=a.backward or b.backward)
    same = a.source == b.source
    return Flow(
        data=a.data or b.data,
        backward=a.backward or b.backward,
        variable=a.variable or b.variable,
        format=a.format if a.format == b.format else None,
        layer=a.layer if a.layer is not None else b.layer,
        source=a.source if same else None,
        size=a.size if same else None,
        runs=max(a.runs, b.runs),
    )


def size_of(tensor: Any) -> int | None:
    """Elements of an array of known shape; None for handles and lists."""
    array = tensor.dtype not in (tf.resource, tf.variant)
    return tensor.shape.num_elements() if array and tensor.shape.is_fully_defined() else None


_CONSTANT = Flow()

# --- What an operation does to it -----------------------------------------------------

_OF_SHAPES = frozenset(
    """
    EmptyTensorList OnesLike Rank Shape ShapeN Size TensorListElementShape TensorListLength
    TensorListReserve VariableShape ZerosLike
    """.split()  # noqa: SIM905
)
"""Operations whose results depend on shapes alone."""

_RANDOM = ("Random", "StatelessRandom", "Truncated", "StatelessTruncated")

READS = ("ReadVariableOp", "LnsReadVariable")
"""Operations that give the value of a variable."""


def result(op: Any, inputs: list[Flow], backward: bool, layer: str | None, runs: float) -> Flow:
    """The flow of an operation's results.

    Args:
        op: An operation that enters no other graph.
        inputs: Flows of its inputs.
        backward: Whether it belongs to the backward pass.
        layer: Path of its layer.
        runs: How often it is run per step.
    """
    of_shapes = op.type in _OF_SHAPES
    values = [] if of_shapes else inputs
    derivative = any(flow.backward for flow in values)
    if backward and not derivative:
        # What is kept from the forward pass is no derivative because it is moved there.
        made_there = _is_float(op) and all(flow.constant for flow in values)
        derivative = op.type not in rules.FREE or made_there
    flow = Flow(
        data=op.type.startswith(_RANDOM) or any(flow.data for flow in values),
        backward=derivative,
        variable=any(flow.variable for flow in values),
        format=rules.result_format(op),
        layer=layer,
        runs=runs,
    )
    recoded = op.type == "LnsEncode" and inputs[0].format == flow.format
    keeps = op.type in rules.KEEPS_FORMAT or adds_lists(op)
    if not recoded and (flow.format is not None or not keeps):
        return flow
    kept = inputs[:1] if op.type == "ReluGrad" or recoded else inputs
    if op.type == "SelectV2" and op.inputs[0].op.type == "IsInf":
        kept = [_CONSTANT, _CONSTANT, inputs[2]]  # Q_E lets an overflow pass, see ops/gradients.py
    values = [
        flow
        for flow, x in zip(kept, op.inputs, strict=False)
        if x.dtype.is_floating or x.dtype == tf.variant or flow.format
    ]
    carrying = [flow for flow in values if not flow.constant]
    if not carrying:  # zeros lie in every format; a quantized one will be joined by others
        formats = {flow.format for flow in values if flow.format}
        return dataclasses.replace(flow, format=formats.pop()) if len(formats) == 1 else flow
    first = carrying[0]
    if all(other.format == first.format for other in carrying):
        flow = dataclasses.replace(flow, format=first.format)
    moves = op.type in rules.FREE or adds_lists(op) or recoded
    if moves and all(other.source == first.source for other in carrying):
        flow = dataclasses.replace(flow, source=first.source, size=first.size, runs=first.runs)
    return flow


def adds_lists(op: Any) -> bool:
    """Whether lists of tensors are added, as in the gradient of a loop: each item has one."""
    return op.type in ("AddN", "AddV2") and op.outputs[0].dtype == tf.variant


def _is_float(op: Any) -> bool:
    return bool(op.outputs) and op.outputs[0].dtype.is_floating
