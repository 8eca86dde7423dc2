"""`tally`: counts one training step from its traced graph.

The walk goes through the graph in the order of execution and into loops, branches and calls,
with a factor for how often each is run. It carries along where every tensor comes from: from
data, from variables, from the backward pass; in which format its values lie; and which layer
made it. From that follows to which pass a product belongs:

* error: a backward product with a weight, dL/dx = dL/dy Wᵀ;
* gradient: a backward product of activations and errors whose result goes to the update alone;
* a backward product of activations and errors whose result goes on to other products is an
  error again: attention differentiates QKᵀ by both of its factors.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import defaultdict
from typing import Any

import tensorflow as tf

from tf_lns import keras_hooks
from tf_lns.energy import flow as flows_of
from tf_lns.energy import rules, trace
from tf_lns.energy.counts import Tally
from tf_lns.energy.flow import Flow, merge
from tf_lns.energy.graph import CALL, CASE, IF, WHILE, Frame, UnknownValueError
from tf_lns.energy.reach import Reach, executed, written_format
from tf_lns.energy.records import Operand, Record, Traffic, Unpriced

_GATHERS = ("GatherV2", "GatherNd", "ResourceGather", "ResourceGatherNd")


def tally(model: Any, batch: Any = None) -> Tally:
    """Counts what one training step really executes.

    The step is traced, not run: forward pass, loss, both backward products and the update of
    the model's optimizer, as `fit` would execute them, whatever `train_step` does. Nothing is
    trained. Operations whose results nobody uses are left out, as TensorFlow leaves them out.

    Args:
        model: A Keras model (LNS or float), a tf_keras model, or any callable, which is then
            called with the batch. A model that is not compiled is counted with the mean of
            squares of its outputs as loss and without an update.
        batch: What one step is given: (inputs, targets), inputs alone, a `tf.data.Dataset` of
            batches (its first counts), or `tf.TensorSpec`s instead of data; or a number of
            samples, for a model that knows the shapes of its inputs.

    Returns:
        A `Tally`: `.macs()`, `.records`, `.unpriced`, `.energy(table)`.

    Raises:
        TypeError: `model` is no model and not callable.
        ValueError: The batch does not fit the model.

    Example:
        counts = tf_lns.energy.tally(model, (x[:32], y[:32]))
        counts.macs("forward"), counts.energy("horowitz-45nm").total_pj
    """
    return count(trace.training_step(model, batch))


def tally_evaluation(model: Any, batch: Any) -> Tally:
    """Counts one step of `evaluate`: forward pass, loss and metrics. See `tally`."""
    return count(trace.evaluation_step(model, batch))


def count(step: trace.Trace) -> Tally:
    """Counts a traced step."""
    counter = _Counter(step)
    counter.run_step()
    return Tally(
        **counter.account.finished(),
        samples=step.samples,
        signature=step.signature,
        notes=(*step.notes, *dict.fromkeys(counter.notes)),
        name=step.name,
    )


class _Account:
    """Sums of what was counted."""

    def __init__(self) -> None:
        self._records: dict[tuple, float] = defaultdict(float)
        self._traffic: dict[tuple, float] = defaultdict(float)
        self._operands: dict[tuple, float] = defaultdict(float)
        self._unpriced: dict[str, tuple[float, float, list[str]]] = {}

    def add(self, record: Record) -> None:
        """Adds operations."""
        if record.count:
            r = record
            self._records[(r.layer, r.pass_, r.kind, r.formats, r.reduction, r.op)] += r.count

    def move(
        self, layer: str, pass_: str, role: str, direction: str, format_: str, elements: float
    ) -> None:
        """Adds memory traffic."""
        digits = re.match(r"[a-z]+(\d+)", format_)  # "fp32" 32, "lns8:8" 8
        bits = int(digits[1]) if digits else 32
        self._traffic[(layer, pass_, role, direction, format_, bits)] += elements

    def convert(self, layer: str, pass_: str, role: str, format_: str, elements: float) -> None:
        """Adds distinct elements of operands."""
        self._operands[(layer, pass_, role, format_)] += elements

    def leave(self, op: str, layer: str, runs: float, elements: float) -> None:
        """Adds executions of an operation that no rule knows."""
        n, size, layers = self._unpriced.get(op, (0, 0, []))
        self._unpriced[op] = (n + runs, size + elements, [*layers, layer])

    def finished(self) -> dict[str, Any]:
        """The sums as records."""
        return {
            "records": tuple(
                Record(layer, pass_, kind, formats, _whole(n), reduction, op)
                for (layer, pass_, kind, formats, reduction, op), n in self._records.items()
            ),
            "traffic": tuple(Traffic(*(*key, _whole(n))) for key, n in self._traffic.items()),
            "operands": tuple(
                Operand(*(*key, _whole(n))) for key, n in self._operands.items() if n
            ),
            "unpriced": tuple(
                Unpriced(op, _whole(n), _whole(size), tuple(dict.fromkeys(layers)))
                for op, (n, size, layers) in self._unpriced.items()
            ),
        }


def _whole(n: float) -> float:
    return int(n) if n == int(n) else n


@dataclasses.dataclass(frozen=True)
class _Variable:
    """What is behind the handle of a variable."""

    elements: int
    dtype: tf.DType
    trained: bool


@dataclasses.dataclass(frozen=True)
class _Context:
    """Where an operation is, and what an inner graph inherits from the call that enters it."""

    runs: float = 1
    layer: str | None = None
    update: bool = False
    backward: bool = False
    recording: bool = True

    @property
    def path(self) -> str:
        return self.layer or ""


class _Counter:
    """One walk over a traced step."""

    def __init__(self, step: trace.Trace) -> None:
        self.step = step
        self.account = _Account()
        self.notes: list[str] = []
        trained = {id(v.handle) for v in step.variables if getattr(v, "trainable", False)}
        self._variables = {
            internal.name: _Variable(*keras_hooks.behind_handle(external), id(external) in trained)
            for external, internal in step.graph.captures
            if internal.dtype == tf.resource
        }
        self._handle_layers: dict[Any, str] = {}
        self._moved: dict[Any, tuple[bool, str, str, float]] = {}
        self._converted: dict[Any, float] = defaultdict(float)
        self._operands_seen: set[tuple[int, str]] = set()
        self._partners: dict[Any, set[bool]] = defaultdict(set)  # of forward products, by source
        self._orders: dict[tuple[int, tuple[int, ...]], list[Any]] = {}
        self._reach = Reach()
        self._has_layers = any(step.paths)

    def run_step(self) -> None:
        """Counts the whole step."""
        captured = {internal.name for _, internal in self.step.graph.captures}
        arguments = [
            Flow(variable=True, source=x.name)
            if x.name in captured
            else Flow(data=True, source=x.name, size=flows_of.size_of(x))
            for x in self.step.graph.inputs
        ]
        self._run(Frame(self.step.graph), arguments, _Context())
        self._count_moved()

    # --- Graphs ----------------------------------------------------------------------

    def _run(
        self,
        frame: Frame,
        arguments: list[Flow],
        context: _Context,
        wanted: tuple[int, ...] | None = None,
    ) -> list[Flow]:
        """Counts one graph, or what of it some results need; returns the flows of its outputs."""
        graph = frame.graph
        flows = {
            x.name: flow.named(frame.number, x)
            for x, flow in zip(graph.inputs, arguments, strict=True)
        }
        if wanted is None:
            wanted = tuple(range(len(graph.outputs)))
        key = (id(graph), wanted)
        if key not in self._orders:
            self._orders[key] = executed(graph, wanted)
        frame.executed = {op.name for op in self._orders[key]}
        for op in self._orders[key]:
            if op.outputs and op.outputs[0].name in flows:  # an argument
                continue
            results = self._execute(frame, op, [flows[x.name] for x in op.inputs], context)
            for x, flow in zip(op.outputs, results, strict=True):
                flows[x.name] = flow.named(frame.number, x)
        return [flows.get(x.name, Flow()) for x in graph.outputs]

    def _execute(self, frame: Frame, op: Any, inputs: list[Flow], context: _Context) -> list[Flow]:
        """Counts one operation; returns the flows of its results."""
        update = context.update or trace.is_update(op.name)
        backward = not update and (
            context.backward or trace.is_backward(op.name) or any(flow.backward for flow in inputs)
        )
        here = dataclasses.replace(context, update=update, backward=backward)
        here = dataclasses.replace(here, layer=self._layer(op, inputs, here))
        if op.type in WHILE:
            return self._loop(frame, op, inputs, here)
        if op.type in IF + CASE:
            return self._branch(frame, op, inputs, here)
        if op.type in CALL:
            return self._run(frame.called(op), inputs, here, frame.used_results(op))
        if op.type == "IdentityN":
            return inputs
        result = flows_of.result(op, inputs, backward, here.layer, here.runs)
        if op.type in flows_of.READS:
            result = self._read(inputs[0].source, result, here)
        simulates = bool(inputs) and rules.serves_simulation(op, inputs[0].format)
        if context.recording and not result.constant and not simulates:
            self._record(frame, op, inputs, here)
        if update and here.layer:  # state belongs to the layer of the weight that it serves
            for x, flow in zip(op.inputs, inputs, strict=True):
                if x.dtype == tf.resource:
                    self._handle_layers.setdefault(flow.source, here.layer)
        return [result] * len(op.outputs)

    def _layer(self, op: Any, inputs: list[Flow], context: _Context) -> str | None:
        """Path of the layer that an operation belongs to: by its name, else by its inputs."""
        named = self.step.layer_of(op.name)
        if named is not None:
            return named
        found: list[str | None] = []
        if context.update:
            # The weight that is updated, or what its gradient or state belongs to.
            found = [self._handle_layers.get(flow.source) or flow.layer for flow in inputs]
        elif context.backward and context.layer is None:
            # The gradient of a call uses results of that call; other gradients without a
            # name use what their layer kept for them.
            found = [self.step.layer_of(x.op.name) for x in op.inputs if x.op.type in CALL]
            found += [flow.layer for flow in inputs if not flow.backward]
            found += [flow.layer for flow in inputs if flow.backward]
        return next((path for path in found if path), context.layer)

    def _read(self, handle: Any, result: Flow, context: _Context) -> Flow:
        """The flow of a variable's value, which is the same tensor at every read."""
        if context.layer and not context.update:
            self._handle_layers.setdefault(handle, context.layer)
        variable = self._variables.get(handle)
        return dataclasses.replace(
            result,
            backward=False,
            layer=self._handle_layers.get(handle) if context.update else context.layer,
            source=(handle, result.format),
            size=variable.elements if variable else None,
            runs=1,
        )

    # --- Control flow ----------------------------------------------------------------

    def _loop(self, frame: Frame, op: Any, inputs: list[Flow], context: _Context) -> list[Flow]:
        try:
            trips = frame.loop(op)[0]
        except UnknownValueError:
            trips = 1
            if context.recording:
                self.notes.append(
                    f"The loop {op.name} runs as often as its data say: counted once."
                )
                self.account.leave(op.type, context.path, context.runs, 0)
        condition, body = frame.loop_functions(op)
        inside = dataclasses.replace(context, runs=context.runs * trips)
        flows = list(inputs)
        while True:  # until what comes round the loop says nothing new
            outputs = self._run(body, flows, dataclasses.replace(inside, recording=False))
            merged = [merge(a, b) for a, b in zip(inputs, outputs, strict=True)]
            if merged == flows:
                break
            flows = merged
        tests = dataclasses.replace(context, runs=context.runs * (trips + 1))
        self._run(condition, flows, tests)
        self._run(body, flows, inside)
        return flows

    def _branch(self, frame: Frame, op: Any, inputs: list[Flow], context: _Context) -> list[Flow]:
        results = []
        shares = self._shares(frame, op, inputs, context)
        for branch, share in zip(frame.branches(op), shares, strict=True):
            inside = dataclasses.replace(
                context,
                runs=context.runs * share,
                recording=context.recording and share > 0,
            )
            results.append(self._run(branch, inputs[1:], inside))
        return [functools.reduce(merge, flows) for flows in zip(*results, strict=True)]

    def _shares(self, frame: Frame, op: Any, inputs: list[Flow], context: _Context) -> list[float]:
        """How large a share of the executions takes each branch."""
        shares = [0.0] * (2 if op.type in IF else len(op.get_attr("branches")))
        every = self.step.accumulation
        try:
            shares[frame.branch(op)] = 1
        except UnknownValueError:
            if context.update and every > 1 and not inputs[0].data and op.type in IF:
                note = f"The update is executed in one of {every} steps: the mean counts."
                shares = [1 / every, 1 - 1 / every]
            else:
                note = f"The condition {op.name} depends on values: its first branch counts."
                shares[0] = 1
            if context.recording:
                self.notes.append(note)
        return shares

    # --- Records ---------------------------------------------------------------------

    def _record(self, frame: Frame, op: Any, inputs: list[Flow], context: _Context) -> None:
        try:
            counts = rules.counts_of(op, [flow.constant for flow in inputs])
            if isinstance(counts, rules.Product):
                self._record_product(frame, op, counts, inputs, context)
                return
        except rules.UnknownShapeError as unknown:
            self.notes.append(f"The shape of {unknown} is not known before it is executed.")
            counts = None
        if counts is None:
            size = sum(flows_of.size_of(x) or 0 for x in op.outputs[:1])
            self.account.leave(op.type, context.path, context.runs, size * context.runs)
            return
        pass_ = self._pass(frame, op, context)
        for kind, formats, n in counts:
            self.account.add(
                Record(context.path, pass_, kind, formats, n * context.runs, op=op.type)
            )
        if pass_ == "update":
            self._note_moved(op, inputs, context)
        elif op.type in _GATHERS and inputs[0].role == "weights" and not context.backward:
            rows = rules.elements(op.outputs[0]) * context.runs
            format_ = inputs[0].format_of(op.outputs[0])
            self.account.move(context.path, pass_, "weights", "read", format_, rows)

    def _record_product(
        self, frame: Frame, op: Any, product: rules.Product, inputs: list[Flow], context: _Context
    ) -> None:
        if not product.macs:
            return
        pairs = [(op.inputs[i], inputs[i]) for i in product.operands]
        pass_ = self._product_pass(frame, op, [flow for _, flow in pairs], context)
        formats = tuple(flow.format_of(x) for x, flow in pairs)
        runs, path = context.runs, context.path
        self.account.add(
            Record(path, pass_, "mac", formats, product.macs * runs, product.reduction, op.type)
        )
        for (x, flow), format_ in zip(pairs, formats, strict=True):
            self.account.move(path, pass_, flow.role, "read", format_, flow.elements(x) * runs)
            fresh = self._fresh(frame, x, flow, runs)
            self.account.convert(path, pass_, flow.role, format_, fresh)
        role = {"error": "errors", "gradient": "gradients"}.get(pass_, "activations")
        self.account.move(path, pass_, role, "write", written_format(op), product.results * runs)

    def _fresh(self, frame: Frame, x: Any, flow: Flow, runs: float) -> float:
        """Elements of an operand that no product has read before."""
        key = (frame.number, x.name)
        if key in self._operands_seen:
            return 0
        self._operands_seen.add(key)
        n = rules.elements(x) * runs
        if flow.size is not None:
            n = min(n, flow.size * flow.runs - self._converted[flow.source])
        self._converted[flow.source] += n
        return n

    def _product_pass(self, frame: Frame, op: Any, operands: list[Flow], context: _Context) -> str:
        if context.update:
            return "update"
        if not any(flow.backward for flow in operands):  # also where it is computed once more
            for flow, other in (operands, reversed(operands)):
                self._partners[flow.source].add(other.role == "weights" and other.variable)
            return "forward"
        # dL/da of a product a b is made of the error and b: it is a gradient if a is a weight.
        partners: set[bool] = set()
        for flow in operands:
            if not flow.backward:
                partners |= self._partners[flow.source]
        if len(partners) == 1:
            return "gradient" if partners == {True} else "error"
        if any(flow.role == "weights" and flow.variable for flow in operands):
            return "error"
        return "error" if self._reach.reaches_product(frame, op) else "gradient"

    def _pass(self, frame: Frame, op: Any, context: _Context) -> str:
        """Pass of an operation that is no product."""
        if context.update:
            return "update"
        if context.backward:
            return "error" if self._reach.reaches_product(frame, op) else "gradient"
        return "forward" if context.layer is not None or not self._has_layers else "other"

    # --- Memory traffic of the update ------------------------------------------------

    def _note_moved(self, op: Any, inputs: list[Flow], context: _Context) -> None:
        """Notes the variables that an operation of the update reads or writes."""
        for position, flow in enumerate(inputs):
            variable = self._variables.get(flow.source)
            if variable is None or variable.elements <= 1 or flow.source in self._moved:
                continue
            gradient = rules.consumed_format(op) if variable.trained else None
            if variable.dtype == tf.float64:
                gradient = "fp64"
            stored = rules.stored_format(op, position) or rules.format_of(variable.dtype)
            elements = variable.elements * context.runs
            self._moved[flow.source] = (variable.trained, stored, gradient or "fp32", elements)

    def _count_moved(self) -> None:
        """Memory traffic of the update, once the layer of each variable is known."""
        for source, (trained, stored, gradient, elements) in self._moved.items():
            layer = self._handle_layers.get(source, "")
            role = "weights" if trained else "state"
            for direction in ("read", "write"):
                self.account.move(layer, "update", role, direction, stored, elements)
            if trained:
                self.account.move(layer, "update", "gradients", "read", gradient, elements)
