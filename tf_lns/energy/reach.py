"""What becomes of a result: whether a product uses it, and in which format it is kept."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tf_lns.energy import rules, trace
from tf_lns.energy.graph import CALL, CASE, IF, WHILE, Frame

_ENTERING = WHILE + IF + CASE + CALL


class Reach:
    """Finds out which results reach a product, or the scatter of an embedding."""

    def __init__(self) -> None:
        self._reaching: dict[int, set[str]] = {}
        self._ending: dict[tuple[int, str], bool] = {}

    def reaches_product(self, frame: Frame, op: Any) -> bool:
        """Whether a product uses the results of `op`, in its frame or where that is called."""
        if frame.number not in self._reaching:
            self._reaching[frame.number] = self._find(frame)
        return op.name in self._reaching[frame.number]

    def _find(self, frame: Frame) -> set[str]:
        """Names of the operations of a graph whose results reach a product."""
        graph = frame.graph
        ends = [op for op in graph.get_operations() if self._ends(frame, op)]
        inside = upstream(x.op for op in ends for x in op.inputs if x.dtype != tf.resource)
        leading = self._leading_outputs(frame)
        while True:
            found = inside | upstream(graph.outputs[i].op for i in leading)
            if frame.call is None or frame.call.type not in WHILE:
                return found
            more = {  # what the next round of the loop uses
                i
                for i, x in enumerate(graph.inputs[: len(graph.outputs)])
                if any(c.name in found or self._ends(frame, c) for c in x.consumers())
            }
            if more <= leading:
                return found
            leading |= more

    def _leading_outputs(self, frame: Frame) -> set[int]:
        """Positions of a graph's outputs that reach a product where it is called."""
        parent = frame.parent
        if parent is None:
            return set()
        return {
            i
            for i, tensor in enumerate(frame.call.outputs)
            for consumer in tensor.consumers()
            if self._ends(parent, consumer) or self.reaches_product(parent, consumer)
        }

    def _ends(self, frame: Frame, op: Any) -> bool:
        """Whether an operation is a product or a scatter, or calls one."""
        if op.type in rules.SCATTERS:
            return True
        if trace.is_update(op.name):
            return False
        if op.type in rules.PRODUCTS:
            return True
        if op.type not in _ENTERING:
            return False
        key = (id(frame.graph), op.name)
        if key not in self._ending:
            self._ending[key] = any(
                self._ends(function, inside)
                for function in _functions(frame, op)
                for inside in function.graph.get_operations()
            )
        return self._ending[key]


def _functions(frame: Frame, op: Any) -> list[Frame]:
    """What a loop, branch or call enters."""
    if op.type in WHILE:
        return list(frame.loop_functions(op))
    return frame.branches(op) if op.type in IF + CASE else [frame.called(op)]


def upstream(ends: Iterable[Any]) -> set[str]:
    """Names of the given operations and of all whose results they use."""
    found: set[str] = set()
    waiting = list(ends)
    while waiting:
        op = waiting.pop()
        if op.name not in found:
            found.add(op.name)
            waiting.extend(x.op for x in op.inputs)
    return found


def executed(graph: Any, results: Iterable[int]) -> list[Any]:
    """The operations that some results and all side effects of a graph need.

    They come in the order in which they were made, but none before its inputs: loops are
    given further inputs when their gradient is made.
    """
    waiting = [graph.outputs[i].op for i in results]
    waiting += [getattr(x, "op", x) for x in graph.control_outputs]
    missing: dict[str, int] = {}  # dependencies that are still to come
    followers: dict[str, list[Any]] = defaultdict(list)
    while waiting:
        op = waiting.pop()
        if op.name in missing:
            continue
        before = {x.op.name: x.op for x in op.inputs} | {x.name: x for x in op.control_inputs}
        missing[op.name] = len(before)
        for name, other in before.items():
            followers[name].append(op)
            waiting.append(other)
    operations = graph.get_operations()
    position = {op.name: i for i, op in enumerate(operations)}
    ready = [position[name] for name, count in missing.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        op = operations[heapq.heappop(ready)]
        order.append(op)
        for follower in followers[op.name]:
            missing[follower.name] -= 1
            if missing[follower.name] == 0:
                heapq.heappush(ready, position[follower.name])
    return order


def written_format(op: Any) -> str:
    """Format in which a product's result is kept.

    That is the first low-bit format into which it is converted before another product uses
    it; element-wise work in between is taken as fused with the product. Errors that are
    computed from a result of the forward pass are no use of it.
    """
    forward = not trace.is_backward(op.name)
    seen = set()
    waiting = [op.outputs[0]]
    while waiting:
        tensor = waiting.pop(0)
        for consumer in tensor.consumers():
            if forward and trace.is_backward(consumer.name):
                continue
            made = rules.consumed_format(consumer)
            if made is not None:
                return made
            ends = consumer.type in rules.PRODUCTS or consumer.type in _ENTERING
            if consumer.name in seen or ends:
                continue
            seen.add(consumer.name)
            if consumer.type == "IdentityN":
                names = [x.name for x in consumer.inputs]
                waiting.append(consumer.outputs[names.index(tensor.name)])
            else:
                waiting.extend(consumer.outputs[:1])
    return rules.format_of(op.outputs[0].dtype)
