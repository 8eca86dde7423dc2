"""What was counted: immutable records of operations and of memory traffic.

Everything here is plain data. `formats` are names: `"fp32"`, `"fp16"`, `"bf16"`, `"fp8"`,
`"fp64"`, `"int8"`, `"int32"` and LNS formats as `LNSFormat` prints them, `"lns8:8"`.
"""

from __future__ import annotations

import dataclasses

PASSES = ("forward", "error", "gradient", "update", "other")
"""Passes of a training step: y = op(x, w); dL/dx; dL/dw; the optimizer; loss and metrics."""

KINDS = {
    "mac": "multiply-accumulate: formats of both operands",
    "encode": "conversion into a low-bit format: from, to",
    "requantize": "change of LNS format on integers: from, to",
    "decode": "LNS code to float: from, to",
    "add": "addition, subtraction, one step of a sum",
    "multiply": "multiplication of single elements",
    "divide": "division or reciprocal",
    "sqrt": "square root or its reciprocal",
    "transcendental": "exp, log, tanh, sigmoid, erf, sin, power",
    "compare": "maximum, minimum, ReLU, clip, select, comparison",
    "round": "rounding of a float to an integer",
    "random": "one 32-bit draw",
    "lookup": 'read of a small constant table: entries x bits, as in "128x32"',
}
"""Kinds of operations; `formats` holds one name unless the description says otherwise."""

ROLES = ("weights", "activations", "errors", "gradients", "state")
"""What is moved between memory and the arithmetic; `state` is the optimizer's."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Operations of one kind that one layer executes in one pass of a step.

    Attributes:
        layer: Path of the layer in the model (`"encoder/dense"`), "" outside of any.
        pass_: One of `PASSES`.
        kind: One of `KINDS`.
        formats: Names of the operands' formats, see `KINDS`.
        count: How many per step. A whole number, unless part of a step is executed only
            every few steps (gradient accumulation).
        reduction: Of a MAC, how many products are summed into one result (the mean, where
            borders make it vary); None otherwise.
        op: Type of the graph operation that was counted, e.g. `"MatMul"`.
    """

    layer: str
    pass_: str
    kind: str
    formats: tuple[str, ...]
    count: float
    reduction: float | None = None
    op: str = ""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Elements that cross between memory and arithmetic, a separate account.

    Each product reads both operands once and writes its result once; element-wise work is
    taken as fused into what comes before it; the update reads gradient, weight and state
    and writes weight and state.

    Attributes:
        layer: As in `Record`.
        pass_: As in `Record`.
        role: One of `ROLES`.
        direction: `"read"` or `"write"`.
        format: Name of the format in which the elements lie in memory.
        bits: Bits per element.
        elements: How many per step.
    """

    layer: str
    pass_: str
    role: str
    direction: str
    format: str
    bits: int
    elements: float

    @property
    def bytes(self) -> float:
        """Bytes per step."""
        return self.elements * self.bits / 8


@dataclasses.dataclass(frozen=True)
class Operand:
    """Distinct elements of one role that enter products: what a low-bit format converts.

    Attributes:
        layer: As in `Record`.
        pass_: As in `Record`.
        role: One of `ROLES`; a tensor that several products read is listed once.
        format: Its format in the counted model.
        elements: How many per step.
    """

    layer: str
    pass_: str
    role: str
    format: str
    elements: float


@dataclasses.dataclass(frozen=True)
class Unpriced:
    """Operations that are executed and that no rule of the counter knows.

    Attributes:
        op: Type of the graph operation.
        count: How often it is executed per step.
        elements: Elements of its results per step.
        layers: Where.
    """

    op: str
    count: float
    elements: float
    layers: tuple[str, ...] = ()
