"""What each type of graph operation costs, one row each.

A rule turns an operation with known shapes into counts of `records.KINDS`. Adding an
operation means adding a row to one of the tables below.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

Count = tuple[str, float]
"""Kind of operation, and how many."""

FormattedCount = tuple[str, tuple[str, ...], float]
"""Kind of operation, names of its formats, and how many."""


class UnknownShapeError(Exception):
    """A shape that the rule needs is not known."""


def elements(tensor: Any) -> int:
    """Number of elements of a tensor of known shape.

    Raises:
        UnknownShapeError: The shape is not known.
    """
    if not tensor.shape.is_fully_defined():
        raise UnknownShapeError(tensor.name)
    return tensor.shape.num_elements()


def _dims(tensor: Any) -> list[int]:
    elements(tensor)
    return tensor.shape.as_list()


_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


def format_of(dtype: Any) -> str:
    """Name of the format of a dtype."""
    name = dtype.base_dtype.name
    return _DTYPES.get(name, name.replace("uint", "int"))


# --- Products ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Product:
    """A sum of products.

    Attributes:
        macs: Multiply-accumulates.
        results: Elements of the result.
        operands: Positions of the two operands among the operation's inputs.
    """

    macs: int
    results: int
    operands: tuple[int, int] = (0, 1)

    @property
    def reduction(self) -> float:
        """Products per result, the mean where borders make it vary."""
        return self.macs / self.results if self.results else 0.0


def _matmul(op: Any) -> Product:
    a, b = (_dims(x) for x in op.inputs[:2])
    k = a[0] if op.get_attr("transpose_a") else a[1]
    n = b[0] if op.get_attr("transpose_b") else b[1]
    m = a[1] if op.get_attr("transpose_a") else a[0]
    return Product(m * n * k, m * n)


def _batch_matmul(op: Any) -> Product:
    a = _dims(op.inputs[0])
    results = elements(op.outputs[0])
    k = a[-2] if op.get_attr("adj_x") else a[-1]
    return Product(results * k, results)


def _einsum(op: Any) -> Product | list[Count]:
    terms, _, _ = op.get_attr("equation").decode().replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms.split(","), op.inputs, strict=True):
        sizes.update(_label_sizes(term, _dims(tensor)))
    everything = math.prod(sizes.values())
    results = elements(op.outputs[0])
    if len(op.inputs) == 1:
        return [("add", max(0, elements(op.inputs[0]) - results))]
    if everything == results:
        # Nothing is summed; or in an operation of its own, as in gradients of "..."
        total = _sum_behind(op)
        return [("multiply", results)] if total is None else Product(results, elements(total))
    return Product(everything, results)


def _sum_behind(op: Any) -> Any:
    """The result of the one sum that uses all products of an outer product, if there is one."""
    consumers = op.outputs[0].consumers()
    if len(consumers) == 1 and consumers[0].type == "Sum" and len(op.inputs) == 2:
        return consumers[0].outputs[0]
    return None


def _label_sizes(term: str, dims: list[int]) -> dict[str, int]:
    """Sizes of the labels of one einsum operand; those under "..." are counted from its end."""
    before, dots, after = term.partition("...")
    sizes = dict(zip(before, dims, strict=False))
    sizes.update(zip(reversed(after), reversed(dims), strict=False))
    if dots:
        middle = dims[len(before) : len(dims) - len(after)]
        for i, size in enumerate(reversed(middle)):
            sizes[f"...{i}"] = size
    return sizes


def _convolution(op: Any) -> Product:
    """Every result is a sum over the kernel and the input channels of its group.

    Taps that lie in the padding are counted like the others, as published counts do.
    """
    results = _kept(op.outputs[0])
    return Product(results * math.prod(_dims(op.inputs[1])[:-1]), results)


def _convolution_input(op: Any) -> Product:
    """The transpose of a convolution: each element of dy meets the same taps."""
    taps = math.prod(_dims(op.inputs[1])[:-1])
    return Product(_given(op.inputs[2]) * taps, _kept(op.outputs[0]), (1, 2))


def _convolution_filter(op: Any) -> Product:
    taps = math.prod(_dims(op.outputs[0])[:-1])
    return Product(_given(op.inputs[2]) * taps, elements(op.outputs[0]), (0, 2))


def _depthwise(op: Any) -> Product:
    results = _kept(op.outputs[0])
    return Product(results * math.prod(_dims(op.inputs[1])[:2]), results)


def _depthwise_input(op: Any) -> Product:
    taps = math.prod(_dims(op.inputs[1])[:2])
    return Product(_given(op.inputs[2]) * taps, _kept(op.outputs[0]), (1, 2))


def _depthwise_filter(op: Any) -> Product:
    taps = math.prod(_dims(op.outputs[0])[:2])
    return Product(_given(op.inputs[2]) * taps, elements(op.outputs[0]), (0, 2))


def _lns_matmul(op: Any) -> Product:
    """Of codes, on a datapath."""
    a = _dims(op.inputs[0])
    results = elements(op.outputs[0])
    return Product(results * a[-2 if op.get_attr("transpose_a") else -1], results)


def _lns_convolution(op: Any) -> Product:
    """Of codes: a convolution or one of its derivatives, which are convolutions as well.

    Every result is a sum over taps; but zeros between the inputs and around them, by which the
    derivative by the input is a convolution, are no work: there every input meets every tap.
    """
    results = elements(op.outputs[0])
    *taps, per_group, outputs = _dims(op.inputs[1])
    inputs = elements(op.inputs[0])
    groups = _dims(op.inputs[0])[-1] // per_group
    of_results = results * math.prod(taps) * per_group
    of_inputs = inputs * math.prod(taps) * outputs // groups
    return Product(min(of_results, of_inputs), results)


_SAME_ELEMENTS = ("Reshape", "Squeeze", "ExpandDims", "Identity")


def _kept(tensor: Any) -> int:
    """Elements of a result that are used.

    A dilated convolution is computed on the batch made of every d-th element, padded so that
    all parts are equally large; what the padding adds is cut off behind it.
    """
    at = tensor
    while len(at.consumers()) == 1:
        (consumer,) = at.consumers()
        if consumer.type == "BatchToSpaceND":
            return elements(consumer.outputs[0])
        if consumer.type not in _SAME_ELEMENTS:
            break
        at = consumer.outputs[0]
    return elements(tensor)


def _given(tensor: Any) -> int:
    """Elements of an error without the zeros that such padding adds, see `_kept`."""
    at = tensor
    while at.op.type in _SAME_ELEMENTS:
        at = at.op.inputs[0]
    return elements(at.op.inputs[0] if at.op.type == "SpaceToBatchND" else tensor)


PRODUCTS: dict[str, Callable[[Any], Product | list[Count]]] = {
    "MatMul": _matmul,
    "BatchMatMul": _batch_matmul,
    "BatchMatMulV2": _batch_matmul,
    "BatchMatMulV3": _batch_matmul,
    "Einsum": _einsum,
    "Conv2D": _convolution,
    "Conv2DBackpropInput": _convolution_input,
    "Conv2DBackpropFilter": _convolution_filter,
    "Conv3D": _convolution,
    "Conv3DBackpropInputV2": _convolution_input,
    "Conv3DBackpropFilterV2": _convolution_filter,
    "DepthwiseConv2dNative": _depthwise,
    "DepthwiseConv2dNativeBackpropInput": _depthwise_input,
    "DepthwiseConv2dNativeBackpropFilter": _depthwise_filter,
    "LnsMatmul": _lns_matmul,
    "LnsConv": _lns_convolution,
}
"""Operations made of multiply-accumulates."""


# --- Element-wise work and reductions ------------------------------------------------

_PER_RESULT: dict[str, dict[str, float]] = {
    # arithmetic
    "Add": {"add": 1},
    "AddV2": {"add": 1},
    "Sub": {"add": 1},
    "BiasAdd": {"add": 1},
    "Mul": {"multiply": 1},
    "MulNoNan": {"multiply": 1},
    "Square": {"multiply": 1},
    "SquaredDifference": {"add": 1, "multiply": 1},
    "RealDiv": {"divide": 1},
    "Div": {"divide": 1},
    "DivNoNan": {"divide": 1, "compare": 1},
    "FloorDiv": {"divide": 1},
    "TruncateDiv": {"divide": 1},
    "FloorMod": {"divide": 1, "multiply": 1, "add": 1},
    "Mod": {"divide": 1, "multiply": 1, "add": 1},
    "Reciprocal": {"divide": 1},
    "Inv": {"divide": 1},
    "Sqrt": {"sqrt": 1},
    "Rsqrt": {"sqrt": 1},
    # functions
    "Exp": {"transcendental": 1},
    "Expm1": {"transcendental": 1},
    "Log": {"transcendental": 1},
    "Log1p": {"transcendental": 1},
    "Tanh": {"transcendental": 1},
    "Sigmoid": {"transcendental": 1},
    "Softplus": {"transcendental": 1},
    "Erf": {"transcendental": 1},
    "Erfc": {"transcendental": 1},
    "Erfinv": {"transcendental": 1},
    "Ndtri": {"transcendental": 1},
    "Sin": {"transcendental": 1},
    "Cos": {"transcendental": 1},
    "Tan": {"transcendental": 1},
    "Atan": {"transcendental": 1},
    "Atan2": {"transcendental": 1, "divide": 1},
    "Pow": {"transcendental": 2, "multiply": 1},
    "Xlogy": {"transcendental": 1, "multiply": 1},
    "Softsign": {"divide": 1, "add": 1},
    "Elu": {"transcendental": 1, "compare": 1},
    "Selu": {"transcendental": 1, "multiply": 1, "compare": 1},
    # comparisons
    "Relu": {"compare": 1},
    "Relu6": {"compare": 2},
    "LeakyRelu": {"compare": 1, "multiply": 1},
    "Maximum": {"compare": 1},
    "Minimum": {"compare": 1},
    "ClipByValue": {"compare": 2},
    "Greater": {"compare": 1},
    "GreaterEqual": {"compare": 1},
    "Less": {"compare": 1},
    "LessEqual": {"compare": 1},
    "Equal": {"compare": 1},
    "NotEqual": {"compare": 1},
    "ApproximateEqual": {"compare": 1, "add": 1},
    "IsFinite": {"compare": 1},
    "IsInf": {"compare": 1},
    "IsNan": {"compare": 1},
    "Sign": {"compare": 1},
    # rounding
    "Round": {"round": 1},
    "Rint": {"round": 1},
    "Floor": {"round": 1},
    "Ceil": {"round": 1},
    # their gradients
    "ReluGrad": {"compare": 1},
    "Relu6Grad": {"compare": 2},
    "LeakyReluGrad": {"compare": 1, "multiply": 1},
    "EluGrad": {"compare": 1, "multiply": 1, "add": 1},
    "SeluGrad": {"compare": 1, "multiply": 1, "add": 1},
    "SigmoidGrad": {"multiply": 2, "add": 1},
    "TanhGrad": {"multiply": 2, "add": 1},
    "SqrtGrad": {"multiply": 1, "divide": 1},
    "RsqrtGrad": {"multiply": 3},
    "ReciprocalGrad": {"multiply": 2},
    "InvGrad": {"multiply": 2},
    "SoftplusGrad": {"transcendental": 1, "multiply": 1},
    "SoftsignGrad": {"divide": 1, "multiply": 1, "add": 1},
    # random numbers
    "RandomUniform": {"random": 1, "multiply": 1},
    "RandomUniformInt": {"random": 1},
    "RandomStandardNormal": {"random": 1, "transcendental": 2, "multiply": 1},
    "TruncatedNormal": {"random": 1, "transcendental": 2, "multiply": 1},
    "StatelessRandomUniform": {"random": 1, "multiply": 1},
    "StatelessRandomUniformV2": {"random": 1, "multiply": 1},
    "StatelessRandomUniformInt": {"random": 1},
    "StatelessRandomUniformIntV2": {"random": 1},
    "StatelessRandomUniformFullInt": {"random": 1},
    "StatelessRandomUniformFullIntV2": {"random": 1},
    "StatelessRandomNormal": {"random": 1, "transcendental": 2, "multiply": 1},
    "StatelessRandomNormalV2": {"random": 1, "transcendental": 2, "multiply": 1},
    "StatelessTruncatedNormal": {"random": 1, "transcendental": 2, "multiply": 1},
    "StatelessTruncatedNormalV2": {"random": 1, "transcendental": 2, "multiply": 1},
    # loss functions and normalisation in one operation: per element of the largest tensor
    "Softmax": {"compare": 1, "add": 2, "transcendental": 1, "divide": 1},
    "LogSoftmax": {"compare": 1, "add": 3, "transcendental": 1},
    "SoftmaxCrossEntropyWithLogits": {
        "compare": 1,
        "add": 4,
        "transcendental": 1,
        "divide": 1,
        "multiply": 1,
    },
    "SparseSoftmaxCrossEntropyWithLogits": {
        "compare": 1,
        "add": 3,
        "transcendental": 1,
        "divide": 1,
    },
    "FusedBatchNormV3": {"add": 4, "multiply": 3},
    "FusedBatchNormGradV3": {"add": 5, "multiply": 5},
    "L2Loss": {"multiply": 1, "add": 1},
    "Cumsum": {"add": 1},
    "Cumprod": {"multiply": 1},
    "Cross": {"multiply": 2, "add": 1},
    "LRN": {"add": 5, "multiply": 6, "transcendental": 2},
    "Dilation2D": {"add": 9, "compare": 9},
}
"""Counts per element of the largest tensor that the operation reads or writes."""

_REDUCTIONS = {
    "Sum": "add",
    "Mean": "add",
    "Prod": "multiply",
    "Max": "compare",
    "Min": "compare",
    "ArgMax": "compare",
    "ArgMin": "compare",
    "EuclideanNorm": "add",
    "BiasAddGrad": "add",
    "SegmentSum": "add",
    "SegmentSumV2": "add",
    "UnsortedSegmentSum": "add",
    "UnsortedSegmentMax": "compare",
    "SegmentMax": "compare",
}
"""Kinds of the steps of a reduction: as many as elements disappear (`BiasAddGrad`: dy to db)."""

_POOLS = {"MaxPool": "compare", "MaxPoolV2": "compare", "MaxPool3D": "compare"}
_AVERAGES = ("AvgPool", "AvgPool3D")
_POOL_GRADIENTS = ("MaxPoolGrad", "MaxPoolGradV2", "MaxPool3DGrad", "AvgPoolGrad", "AvgPool3DGrad")

_SCATTERS = (
    "ResourceScatterAdd",
    "ResourceScatterSub",
    "ScatterNd",
    "TensorScatterAdd",
    "TensorScatterSub",
    "ResourceScatterNdAdd",
    "ResourceScatterNdSub",
)
"""Operations that add each of their updates (the last input) to where it belongs."""

SCATTERS = (*_SCATTERS, "UnsortedSegmentSum", "SegmentSum", "ResourceScatterUpdate")
"""Where the errors of gathered rows are put together into the gradient of a table."""

# What moves, selects, shapes or names values without computing new ones, and logic on single
# bits. One text, as 150 quoted lines would hide it.
FREE = frozenset(
    """
    Abs All Any Arg Assert AssignVariableOp BatchToSpace BatchToSpaceND Bitcast BitwiseAnd
    BitwiseOr BitwiseXor BroadcastArgs BroadcastGradientArgs BroadcastTo Bucketize CheckNumerics
    CollectiveBcastRecvV2 CollectiveBcastSendV2 CollectiveGatherV2 CollectiveReduceV2 Complex
    Concat ConcatOffset ConcatV2 Const ConsumeMutexLock DepthToSpace Diag DiagPart
    DummySeedGenerator DynamicPartition DynamicStitch Empty EmptyTensorList EnsureShape
    ExpandDims ExtractImagePatches Fill Gather GatherNd GatherV2 Identity IdentityN InTopKV2
    Invert InvertPermutation LeftShift ListDiff LnsQuantizeGradient LogicalAnd LogicalNot
    LogicalOr LogicalXor MatrixBandPart MatrixDiag MatrixDiagPartV3 MatrixDiagV3 MatrixSetDiagV3
    MirrorPad MirrorPadGrad Neg NoOp OneHot OnesLike OptionalFromValue OptionalGetValue
    OptionalHasValue Pack Pad PadV2 ParallelConcat Placeholder PlaceholderWithDefault
    PreventGradient Print PrintV2 Range Rank ReadVariableOp Real Reshape ResourceGather
    ResourceGatherNd ResourceScatterNdUpdate ResourceScatterUpdate ResourceStridedSliceAssign
    Reverse ReverseSequence ReverseV2 RightShift Roll ScatterUpdate Select SelectV2 Shape ShapeN
    Size Slice Snapshot SpaceToBatch SpaceToBatchND SpaceToDepth Split SplitV Squeeze
    StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg
    StopGradient StridedSlice StridedSliceGrad StringFormat TensorListConcatV2
    TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem
    TensorListLength TensorListPopBack TensorListPushBack TensorListReserve TensorListResize
    TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack TensorScatterUpdate
    Tile TopKV2 Transpose TruncateMod Unique UniqueV2 Unpack VarHandleOp VarIsInitializedOp
    VariableShape Where ZerosLike
    """.split()  # noqa: SIM905
)
"""Operations that are executed and count nothing."""

_ASSIGNS = {"AssignAddVariableOp": "add", "AssignSubVariableOp": "add"}


def float_counts(op: Any) -> list[Count] | None:
    """Counts of an operation on single elements; None for a type that has no row here.

    Raises:
        UnknownShapeError: A shape that is needed is not known.
    """
    kind = op.type
    if kind in FREE:
        return []
    if kind in ("AddN", "AddV2") and op.outputs[0].dtype.name == "variant":
        return []  # lists of a loop's gradients: each item comes once
    if kind in _PER_RESULT:
        # Inputs of unknown shape are what the operation keeps for itself.
        known = [x for x in _arrays(op.inputs) if x.shape.is_fully_defined()]
        size = max(map(elements, [*known, *op.outputs[:1]]), default=0)
        return [(name, n * size) for name, n in _PER_RESULT[kind].items()]
    if kind in _REDUCTIONS:
        return _reduction(op)
    if kind in _ASSIGNS:
        return [(_ASSIGNS[kind], elements(op.inputs[1]))]
    if kind in _SCATTERS:
        updates = op.inputs[1] if kind == "ScatterNd" else op.inputs[2]
        return [("add", elements(updates))]
    if kind in ("AddN", "AccumulateNV2"):
        return [("add", (len(op.inputs) - 1) * elements(op.outputs[0]))]
    if kind in _POOLS:
        return [(_POOLS[kind], (_window(op) - 1) * elements(op.outputs[0]))]
    if kind in _AVERAGES:
        size = elements(op.outputs[0])
        return [("add", (_window(op) - 1) * size), ("multiply", size)]
    if kind in _POOL_GRADIENTS:
        # each element of dy goes to its window: to one place (max) or to all (average)
        taps = 1 if kind.startswith("Max") else _window(op)
        return [("add", taps * elements(op.inputs[-1]))]
    if kind in _RESIZES:
        size = max(elements(op.outputs[0]), elements(op.inputs[0]))
        return [(name, n * size) for name, n in _RESIZES[kind].items()]
    return None


_RESIZES: dict[str, dict[str, float]] = {
    "ResizeNearestNeighbor": {},
    "ResizeNearestNeighborGrad": {"add": 1},
    "ResizeBilinear": {"multiply": 3, "add": 6},
    "ResizeBilinearGrad": {"multiply": 4, "add": 4},
    "ResizeBicubic": {"multiply": 20, "add": 15},
    "ResizeBicubicGrad": {"multiply": 16, "add": 16},
}


def _arrays(tensors: Sequence[Any]) -> list[Any]:
    """Tensors that hold numbers, not handles or lists."""
    return [t for t in tensors if t.dtype.is_floating or t.dtype.is_integer or t.dtype.is_bool]


def _reduction(op: Any) -> list[Count]:
    made_by = op.inputs[0].op
    products = op.type == "Sum" and made_by.type == "Einsum" and _sum_behind(made_by) is not None
    if products and isinstance(_einsum(made_by), Product):
        return []  # counted with the products
    source, results = elements(op.inputs[0]), elements(op.outputs[0])
    counts: list[Count] = [(_REDUCTIONS[op.type], max(0, source - results))]
    if op.type == "Mean":
        counts.append(("multiply", results))
    if op.type == "EuclideanNorm":
        counts += [("multiply", source), ("sqrt", results)]
    return counts


def _window(op: Any) -> int:
    return math.prod(op.get_attr("ksize"))


# --- The operations of tf_lns and of fake quantization --------------------------------


def _format(op: Any, prefix: str = "") -> str:
    return f"lns{op.get_attr(f'{prefix}bits')}:{op.get_attr(f'{prefix}base_factor')}"


def _stochastic(op: Any, size: int) -> list[FormattedCount]:
    if op.get_attr("rounding") != b"stochastic":
        return []
    return [("random", ("int32",), size)]


def _quantize(op: Any) -> list[FormattedCount]:
    size = elements(op.inputs[0])
    counts = [("encode", ("fp32", _format(op)), size), *_stochastic(op, size)]
    if op.type == "LnsQuantizeDynamic":  # the largest magnitude is found first
        counts.append(("compare", ("fp32",), size))
    return counts


def _read(op: Any) -> list[FormattedCount]:
    """Codes go to the products as they are, or in a narrower format; nothing is decoded."""
    stored, seen = _format(op), _format(op, "read_")
    return [] if stored == seen else [("requantize", (stored, seen), elements(op.outputs[0]))]


def _apply_madam(op: Any) -> list[FormattedCount]:
    """One LNS-Madam step (`reference.madam_step`), per weight."""
    size = elements(op.inputs[4])
    fp32, code = ("fp32",), (f"int{op.get_attr('bits')}",)
    counts: list[FormattedCount] = []
    if op.get_attr("grad_bits"):
        counts.append(("encode", ("fp32", _format(op, "grad_")), size))
    if op.get_attr("Tmoment").name == "int8":
        # v in one byte: log2|g|, the growth from a table, a draw, k + growth, shift of k
        counts += [
            ("encode", ("fp32", "lns8:8"), size),
            ("lookup", (f"{_GROWTH_ENTRIES}x32",), size),
            ("add", ("int32",), 3 * size),
            ("compare", ("int8",), 4 * size),
            ("random", ("int32",), size / 4),
            ("lookup", ("8x32",), size),  # 2^(r/8) of 1/sqrt(v)
            ("multiply", fp32, 2 * size),  # times sqrt(1 - beta^t), times g
        ]
    else:
        # v = beta v + (1-beta) g^2; g / sqrt(v / (1-beta^t))
        counts += [
            ("multiply", fp32, 4 * size),
            ("add", fp32, size),
            ("sqrt", fp32, size),
            ("divide", fp32, size),
        ]
    counts += [
        ("compare", fp32, 3 * size),  # not finite; clip at g_bound
        ("multiply", fp32, size),  # times learning rate and base factor
        ("add", fp32, size),  # weight decay
        ("round", fp32, size),
        ("add", code, size),  # the multiplication of the weight
        ("compare", code, 2 * size),  # clamp
        *_stochastic(op, size),
    ]
    if op.get_attr("Tweight").name == "float32":  # weights on the grid, kept as floats
        stored = _format(op)
        counts += [("encode", ("fp32", stored), size), ("decode", (stored, "fp32"), size)]
    return counts


_GROWTH_ENTRIES = 128


def _apply_additive(op: Any) -> list[FormattedCount]:
    """The additive step (`reference.additive_step`), per parameter."""
    size = elements(op.inputs[2])
    fp32 = ("fp32",)
    return [
        ("multiply", fp32, 4 * size),
        ("add", fp32, size),
        ("sqrt", fp32, size),
        ("divide", fp32, size),
        ("compare", fp32, 3 * size),
        ("multiply", fp32, 2 * size),  # weight decay, learning rate
        ("add", fp32, 2 * size),
    ]


def _cast(op: Any) -> list[FormattedCount]:
    """A narrower float is rounded to, an integer is converted; wider floats cost nothing."""
    source, target = op.inputs[0].dtype, op.outputs[0].dtype
    size = elements(op.outputs[0])
    if source.is_floating and target.is_floating:
        narrower = target.size < source.size
        return [("encode", (format_of(source), format_of(target)), size)] if narrower else []
    if source.is_floating or target.is_floating:
        return [("round", (format_of(source if source.is_floating else target),), size)]
    return []


def _fake_quantize(op: Any) -> list[FormattedCount]:
    return [("encode", ("fp32", f"int{op.get_attr('num_bits')}"), elements(op.inputs[0]))]


FORMATTED: dict[str, Callable[[Any], list[FormattedCount]]] = {
    "LnsQuantize": _quantize,
    "LnsQuantizeDynamic": _quantize,
    "Cast": _cast,
    "LnsEncode": lambda op: [
        ("encode", ("fp32", _format(op)), elements(op.inputs[0])),
        *_stochastic(op, elements(op.inputs[0])),
    ],
    "LnsDecode": lambda op: [("decode", (_format(op), "fp32"), elements(op.inputs[0]))],
    "LnsRequantize": lambda op: [
        ("requantize", (_format(op, "from_"), _format(op, "to_")), elements(op.inputs[0]))
    ],
    "LnsScale": lambda op: [("compare", ("fp32",), elements(op.inputs[0]))],
    "LnsReadVariable": _read,
    "LnsAssignVariable": lambda op: [("encode", ("fp32", _format(op)), elements(op.inputs[2]))],
    "LnsApplyMadam": _apply_madam,
    "LnsApplyMadamAdditive": _apply_additive,
    "FakeQuantWithMinMaxArgs": _fake_quantize,
    "FakeQuantWithMinMaxVars": _fake_quantize,
    "FakeQuantWithMinMaxVarsPerChannel": _fake_quantize,
    "FakeQuantWithMinMaxArgsGradient": lambda op: [
        ("compare", ("fp32",), 2 * elements(op.inputs[0]))
    ],
    "FakeQuantWithMinMaxVarsGradient": lambda op: [
        ("compare", ("fp32",), 2 * elements(op.inputs[0]))
    ],
    "FakeQuantWithMinMaxVarsPerChannelGradient": lambda op: [
        ("compare", ("fp32",), 2 * elements(op.inputs[0]))
    ],
}
"""Operations whose counts name formats of their own."""


def counts_of(op: Any, constant: Sequence[bool]) -> Product | list[FormattedCount] | None:
    """What one execution of an operation costs; None for a type that no rule knows.

    Args:
        op: The operation.
        constant: Of each input, whether it is the same in every step. A division by a
            constant is a multiplication by its reciprocal.

    Raises:
        UnknownShapeError: A shape that is needed is not known.
    """
    if op.type in FORMATTED:
        return FORMATTED[op.type](op)
    counts = PRODUCTS[op.type](op) if op.type in PRODUCTS else float_counts(op)
    if op.type in ("RealDiv", "Div") and constant[1] and op.outputs[0].dtype.is_floating:
        counts = [("multiply", elements(op.outputs[0]))]
    if counts is None or isinstance(counts, Product):
        return counts
    return [(kind, (_arithmetic(op),), n) for kind, n in counts]


def _arithmetic(op: Any) -> str:
    """Name of the format in which an operation on single elements calculates."""
    for x in (*op.inputs, *op.outputs):
        if x.dtype.is_floating or x.dtype.is_integer:
            return format_of(x.dtype)
    return "bool"


def stored_format(op: Any, position: int) -> str | None:
    """Format in which the variable behind an input of `op` is stored, if `op` says so."""
    integer = op.type == "LnsApplyMadam" and op.get_attr("Tweight").name != "float32"
    if position == 0 and (integer or op.type in ("LnsReadVariable", "LnsAssignVariable")):
        return _format(op)
    return None


def result_format(op: Any) -> str | None:
    """Format of the values that an operation gives, where it is a low-bit one."""
    if op.type in ("LnsQuantize", "LnsQuantizeDynamic", "LnsDecode", "LnsEncode"):
        return _format(op)
    if op.type == "LnsReadVariable":
        return _format(op, "read_")
    if op.type.startswith("FakeQuant") and not op.type.endswith("Gradient"):
        return f"int{op.get_attr('num_bits')}"
    return None


def consumed_format(op: Any) -> str | None:
    """Format into which an operation converts the tensor it is given, if it does."""
    if op.type == "LnsApplyMadam" and op.get_attr("grad_bits"):
        return _format(op, "grad_")
    return None if op.type == "LnsReadVariable" else result_format(op)


def serves_simulation(op: Any, format_: str | None) -> bool:
    """Whether an operation is there because codes are simulated by floats.

    Values that lie in a format already become codes, and are looked through for NaN, before a
    product on a datapath: in hardware they are codes.

    Args:
        op: The operation.
        format_: Low-bit format of its first input.
    """
    if op.type == "LnsEncode":
        return format_ == _format(op)
    return op.type == "IsNan" and format_ is not None


KEEPS_FORMAT = FREE | {"Relu", "ReluGrad", "MaxPool", "MaxPoolV2", "MaxPool3D", "Max", "Cast"}
"""Operations whose results are some of the values they are given (or zero)."""
