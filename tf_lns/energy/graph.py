"""Functions inside a traced graph, and values that can be known without running it.

A traced step is a graph whose loops, branches and calls are functions with graphs of their
own. A `Frame` is one such graph together with the call that enters it. Trip counts and
predicates are computed by following their integer arithmetic, as far as it depends on
constants and shapes alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks

WHILE = ("While", "StatelessWhile")
IF = ("If", "StatelessIf")
CASE = ("Case", "StatelessCase")
CALL = ("PartitionedCall", "StatefulPartitionedCall")

_LARGEST_VALUE = 65536  # elements; control flow hangs on small tensors
_MOST_TRIPS = 1_000_000


class UnknownValueError(Exception):
    """The value depends on data, or on an operation that is not followed."""


@dataclasses.dataclass(eq=False)
class Frame:
    """One graph as it is entered from another.

    Attributes:
        graph: The function's graph.
        parent: The frame of the call, None for the traced step itself.
        call: The operation that enters it.
        arguments: The caller's tensors, one for each of `graph.inputs`.
        values: Known values of tensors of this graph, by name.
        library: The graph that knows the functions which this one names.
        copies: Graphs of functions with the shapes of a call, by their own and these.
        number: Tells frames apart.
    """

    graph: Any
    parent: Frame | None = None
    call: Any = None
    arguments: tuple[Any, ...] = ()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    library: Any = None
    copies: dict[Any, Any] = dataclasses.field(default_factory=dict)
    number: int = dataclasses.field(default_factory=itertools.count().__next__)

    def __post_init__(self) -> None:
        self.positions = {tensor.name: i for i, tensor in enumerate(self.graph.inputs)}
        self.executed: set[str] = set()  # names of the operations that are run

    def used_results(self, op: Any) -> tuple[int, ...]:
        """Positions of the results of `op` that an executed operation or the caller uses."""
        returned = {tensor.name for tensor in self.graph.outputs}
        return tuple(
            i
            for i, tensor in enumerate(op.outputs)
            if tensor.name in returned or any(c.name in self.executed for c in tensor.consumers())
        )

    def inner(self, op: Any, name: str, skip: int = 0) -> Frame:
        """The function of that name, called by `op` with its inputs after the first `skip`."""
        graph = keras_hooks.function_graph(self.library or self.graph, name)
        return Frame(graph, self, op, tuple(op.inputs)[skip:], copies=self.copies)

    def called(self, op: Any) -> Frame:
        """What a call enters; shapes that are known only at the call are known inside."""
        frame = self.inner(op, op.get_attr("f").name)
        shapes = [x.shape for x in op.inputs]
        if not any(
            given.is_fully_defined() and not x.shape.is_fully_defined()
            for x, given in zip(frame.graph.inputs, shapes, strict=True)
        ):
            return frame
        key = (id(frame.graph), str(shapes))
        if key not in self.copies:
            self.copies[key] = keras_hooks.with_shapes(frame.graph, shapes)
        copy = Frame(
            self.copies[key],
            self,
            op,
            tuple(op.inputs),
            library=frame.graph,
            copies=self.copies,
        )
        if self.parent is None or self.library is not None:  # no graph that others call, too
            for outer, inner in zip(op.outputs, copy.graph.outputs, strict=True):
                outer.set_shape(inner.shape)
        return copy

    def branches(self, op: Any) -> list[Frame]:
        """The branches of a condition or a case: [true, false], or by index."""
        if op.type in IF:
            names = [op.get_attr(name).name for name in ("then_branch", "else_branch")]
        else:
            names = [function.name for function in op.get_attr("branches")]
        return [self.inner(op, name, skip=1) for name in names]

    def loop_functions(self, op: Any) -> tuple[Frame, Frame]:
        """Condition and body of a loop; what changes from round to round is not known there."""
        condition, body = (self.inner(op, op.get_attr(name).name) for name in ("cond", "body"))
        for i, (before, after) in enumerate(
            zip(body.graph.inputs, body.graph.outputs, strict=True)
        ):
            if before.name != after.name:
                body.values[before.name] = UnknownValueError
                condition.values[condition.graph.inputs[i].name] = UnknownValueError
        return condition, body

    # --- Values ----------------------------------------------------------------------

    def value(self, tensor: Any) -> Any:
        """The tensor's value as a NumPy array.

        Raises:
            UnknownValueError: It depends on data.
        """
        known = self.values.get(tensor.name)
        if known is None:
            known = self.values[tensor.name] = self._evaluate(tensor)
        if known is UnknownValueError:
            raise UnknownValueError(tensor.name)
        return known

    def _evaluate(self, tensor: Any) -> Any:
        try:
            value = np.asarray(self._value_of(tensor))
        except UnknownValueError:
            return UnknownValueError
        return value if value.size <= _LARGEST_VALUE else UnknownValueError

    def _value_of(self, tensor: Any) -> Any:
        op = tensor.op
        if tensor.name in self.positions:
            if self.parent is None:
                raise UnknownValueError(tensor.name)
            return self.parent.value(self.arguments[self.positions[tensor.name]])
        if op.type == "Const":
            return tf.make_ndarray(op.get_attr("value"))
        if op.type in WHILE:
            return self.loop(op, (tensor.value_index,))[1][tensor.value_index]
        if op.type in IF + CASE:
            inner = self.branches(op)[self.branch(op)]
            return inner.value(inner.graph.outputs[tensor.value_index])
        if op.type in CALL:
            inner = self.called(op)
            return inner.value(inner.graph.outputs[tensor.value_index])
        if op.type in ("Shape", "Size", "Rank", "ShapeN"):
            return self._shape_value(op, tensor)
        if op.type not in _EVALUATORS:
            raise UnknownValueError(tensor.name)
        try:
            return _EVALUATORS[op.type](op, [self.value(x) for x in op.inputs])
        except (ValueError, IndexError, TypeError) as error:
            raise UnknownValueError(tensor.name) from error

    @staticmethod
    def _shape_value(op: Any, tensor: Any) -> Any:
        shape = op.inputs[tensor.value_index].shape
        if op.type == "Rank" and shape.rank is not None:
            return np.int32(shape.rank)
        if not shape.is_fully_defined():
            raise UnknownValueError(tensor.name)
        dtype = tensor.dtype.as_numpy_dtype
        return dtype(shape.num_elements()) if op.type == "Size" else np.array(shape, dtype)

    def branch(self, op: Any) -> int:
        """Position of the branch that a condition or a case takes.

        Raises:
            UnknownValueError: It depends on data.
        """
        value = self.value(op.inputs[0])
        if op.type in IF:
            return 0 if value else 1
        last = len(op.get_attr("branches")) - 1
        return int(value) if 0 <= value <= last else last

    # --- Loops -----------------------------------------------------------------------

    def loop(self, op: Any, wanted: tuple[int, ...] = ()) -> tuple[int, dict[int, Any]]:
        """Runs what controls a loop.

        Args:
            op: A While of this graph.
            wanted: Positions of outputs whose last values are wanted too.

        Returns:
            How often the body runs, and the last values of the loop's control variables by
            position.

        Raises:
            UnknownValueError: It depends on data.
        """
        condition, body = self.loop_functions(op)
        controls = _positions(condition.graph, [condition.graph.outputs[0]]) | set(wanted)
        while True:  # what the control variables are computed from controls as well
            outputs = [body.graph.outputs[i] for i in controls]
            more = controls | _positions(body.graph, outputs)
            if more == controls:
                break
            controls = more
        state = {i: self.value(op.inputs[i]) for i in controls}
        trips = 0
        while _run(condition, state, [0])[0]:
            state = dict(zip(controls, _run(body, state, list(controls)), strict=True))
            trips += 1
            if trips > _MOST_TRIPS:
                raise UnknownValueError(op.name)
        return trips, state


def _run(frame: Frame, state: dict[int, Any], outputs: list[int]) -> list[Any]:
    """Outputs of a graph for known values of some of its inputs."""
    inputs, results = frame.graph.inputs, frame.graph.outputs
    once = Frame(frame.graph, frame.parent, frame.call, frame.arguments)
    once.values.update((inputs[i].name, value) for i, value in state.items())
    return [once.value(results[i]) for i in outputs]


def _positions(graph: Any, tensors: list[Any]) -> set[int]:
    """Positions of the graph's inputs that the tensors depend on."""
    positions = {tensor.name: i for i, tensor in enumerate(graph.inputs)}
    found: set[int] = set()
    seen: set[str] = set()
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop()
        if tensor.name in seen:
            continue
        seen.add(tensor.name)
        if tensor.name in positions:
            found.add(positions[tensor.name])
        else:
            waiting.extend(tensor.op.inputs)
    return found


# --- The integer arithmetic of shapes, counters and predicates ------------------------


def _strided_slice(op: Any, inputs: list[Any]) -> Any:
    value, begin, end, strides = inputs
    masks = {
        name: op.get_attr(f"{name}_mask")
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    if masks["ellipsis"] or masks["new_axis"]:
        raise ValueError("not followed")
    index: list[Any] = []
    for i, (b, e, s) in enumerate(zip(begin, end, strides, strict=True)):
        if masks["shrink_axis"] >> i & 1:
            index.append(int(b))
        else:
            start = None if masks["begin"] >> i & 1 else int(b)
            stop = None if masks["end"] >> i & 1 else int(e)
            index.append(slice(start, stop, int(s)))
    return value[tuple(index)]


def _reduce(function: Callable[..., Any]) -> Callable[[Any, list[Any]], Any]:
    def evaluate(op: Any, inputs: list[Any]) -> Any:
        axes = tuple(int(a) for a in np.atleast_1d(inputs[1]))
        return function(inputs[0], axis=axes, keepdims=op.get_attr("keep_dims"))

    return evaluate


def _pointwise(function: Callable[..., Any]) -> Callable[[Any, list[Any]], Any]:
    return lambda op, inputs: function(*inputs)


_EVALUATORS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "Identity": _pointwise(lambda x: x),
    "StopGradient": _pointwise(lambda x: x),
    "EnsureShape": _pointwise(lambda x: x),
    "Cast": lambda op, inputs: inputs[0].astype(op.outputs[0].dtype.as_numpy_dtype),
    "Add": _pointwise(np.add),
    "AddV2": _pointwise(np.add),
    "Sub": _pointwise(np.subtract),
    "Mul": _pointwise(np.multiply),
    "FloorDiv": _pointwise(np.floor_divide),
    "FloorMod": _pointwise(np.mod),
    "RealDiv": _pointwise(np.divide),
    "Ceil": _pointwise(np.ceil),
    "Floor": _pointwise(np.floor),
    "Neg": _pointwise(np.negative),
    "Minimum": _pointwise(np.minimum),
    "Maximum": _pointwise(np.maximum),
    "Less": _pointwise(np.less),
    "LessEqual": _pointwise(np.less_equal),
    "Greater": _pointwise(np.greater),
    "GreaterEqual": _pointwise(np.greater_equal),
    "Equal": _pointwise(np.equal),
    "NotEqual": _pointwise(np.not_equal),
    "LogicalAnd": _pointwise(np.logical_and),
    "LogicalOr": _pointwise(np.logical_or),
    "LogicalNot": _pointwise(np.logical_not),
    "Select": _pointwise(np.where),
    "SelectV2": _pointwise(np.where),
    "Reshape": _pointwise(np.reshape),
    "ExpandDims": _pointwise(lambda x, axis: np.expand_dims(x, int(axis))),
    "Squeeze": lambda op, inputs: np.squeeze(inputs[0], tuple(op.get_attr("squeeze_dims")) or None),
    "Pack": lambda op, inputs: np.stack(inputs, op.get_attr("axis")),
    "ConcatV2": lambda op, inputs: np.concatenate(inputs[:-1], int(inputs[-1])),
    "GatherV2": lambda op, inputs: np.take(inputs[0], inputs[1], int(inputs[2])),
    "Range": _pointwise(np.arange),
    "Fill": _pointwise(lambda dims, x: np.full(tuple(dims), x)),
    "ZerosLike": _pointwise(np.zeros_like),
    "StridedSlice": _strided_slice,
    "Slice": _pointwise(
        lambda x, begin, size: x[
            tuple(
                slice(b, None if n < 0 else b + n)
                for b, n in zip(begin.tolist(), size.tolist(), strict=True)
            )
        ]
    ),
    "Max": _reduce(np.max),
    "Min": _reduce(np.min),
    "Sum": _reduce(np.sum),
    "Prod": _reduce(np.prod),
    "All": _reduce(np.all),
    "Any": _reduce(np.any),
}
