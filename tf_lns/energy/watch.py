"""Which steps a model executes: their shapes, noted inside the compiled step itself.

A callback is not shown the data. So the model's `train_step` (or `test_step`) gets a
companion that writes the shapes of its batch into a small variable, which is read now and
then: exact for smaller last batches, for several steps per execution, under jit and on every
replica.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import weakref
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks
from tf_lns.energy import trace

SPARE_ROWS = 256
"""Executions that may go by before they are looked at."""


@dataclasses.dataclass(frozen=True)
class Step:
    """Shapes of one batch.

    Attributes:
        specs: The batch as a nest of `tf.TensorSpec`, as the step takes it.
        samples: Samples in it.
        share: Share of a step: one over the number of replicas.
    """

    specs: Any
    samples: int
    share: float = 1.0


@dataclasses.dataclass
class _Layout:
    """One structure of data on one replica, and where its shapes are written.

    Attributes:
        structure: Nest of specifications with dimensions that may be unknown.
        rows: Shapes of the last executions, one per row, after the number of the execution.
        counter: Number of executions.
        share: See `Step`.
    """

    structure: Any
    rows: tf.Variable
    counter: tf.Variable
    share: float


class _Companion:
    """Notes the shapes of the batches on which one step function of a model is executed."""

    def __init__(self, model: Any, method: str, function: str):
        self._model = weakref.ref(model)
        self._method = method
        self._function = function
        self._compiled: Any = None
        self.layouts: dict[Any, _Layout] = {}
        self._steps: dict[Any, Step] = {}

    def install(self) -> None:
        """Goes into the model, which compiles its step again unless it has this one."""
        model = self._model()
        if vars(model).get(self._method) is not None:
            return
        original = getattr(model, self._method)

        @functools.wraps(original)
        def step(data: Any, *args: Any, **kwargs: Any) -> Any:
            if not trace.is_counting():
                self._note(data)
            return original(data, *args, **kwargs)

        keras_hooks.set_untracked(model, self._method, step)
        compiled = getattr(model, self._function)
        if compiled is None or compiled is not self._compiled:
            setattr(model, self._function, None)

    def remove(self) -> None:
        """Leaves the model; a step that is compiled goes on with its companion, unhindered."""
        model = self._model()
        if vars(model).get(self._method) is not None:
            delattr(model, self._method)
        self._compiled = getattr(model, self._function)

    # --- Inside the step -------------------------------------------------------------

    def _note(self, data: Any) -> None:
        """Writes the shapes of a batch; part of the compiled step."""
        leaves = [
            None if x is None else x if isinstance(x, tf.Tensor) else tf.convert_to_tensor(x)
            for x in tf.nest.flatten(data, expand_composites=False)
        ]
        tensors = [x for x in leaves if x is not None]
        if any(x.shape.rank is None for x in tensors):
            raise ValueError(
                "EnergyCallback counts steps on tensors of known rank. Received: a batch of "
                f"{data}. Count such a step by itself with `tf_lns.energy.tally`"
            )
        layout = self._layout(data, leaves)
        number = layout.counter.assign_add(1, read_value=True)
        dims = [tf.shape(x, out_type=tf.int64) for x in tensors if x.shape.rank]
        row = tf.concat([tf.reshape(number, (1,)), *dims], 0)
        slot = (number - 1) % layout.rows.shape[0]
        layout.rows.scatter_nd_update([[slot]], [row])

    def _layout(self, data: Any, leaves: list[Any]) -> _Layout:
        """The place for batches of this structure on this replica; made at the first."""
        model: Any = self._model()
        specs = [
            None if x is None else tf.TensorSpec((None,) * x.shape.rank, x.dtype) for x in leaves
        ]
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context is not None else 0
        replica = replica if isinstance(replica, int) else int(tf.get_static_value(replica) or 0)
        replicas = context.num_replicas_in_sync if context is not None else 1
        key = (replica, str(specs))
        if key not in self.layouts:
            width = 1 + sum(x.shape.rank for x in leaves if x is not None)
            slots = SPARE_ROWS + _steps_per_execution(model)
            with keras_hooks.late_creation():
                self.layouts[key] = _Layout(
                    structure=tf.nest.pack_sequence_as(data, specs),
                    rows=tf.Variable(tf.zeros((slots, width), tf.int64), trainable=False),
                    counter=tf.Variable(tf.zeros((), tf.int64), trainable=False),
                    share=1 / replicas,
                )
        return self.layouts[key]

    # --- Outside ---------------------------------------------------------------------

    def step_of(self, key: Any, dims: tuple[int, ...]) -> Step:
        """The step of a layout with these dimensions; always the same object."""
        if (key, dims) not in self._steps:
            layout = self.layouts[key]
            rest = list(map(int, dims))
            shaped = []
            for spec in tf.nest.flatten(layout.structure):
                rank = spec.shape.rank if spec is not None else 0
                shape, rest = rest[:rank], rest[rank:]
                shaped.append(None if spec is None else tf.TensorSpec(shape, spec.dtype))
            first = next(s for s in shaped if s is not None)
            self._steps[(key, dims)] = Step(
                tf.nest.pack_sequence_as(layout.structure, shaped),
                int(first.shape[0]) if first.shape.rank else 1,
                layout.share,
            )
        return self._steps[(key, dims)]


def _steps_per_execution(model: Any) -> int:
    """How many steps a call of the compiled function executes.

    In tf_keras it is a variable, which may grow while the step stays compiled; `SPARE_ROWS`
    leaves room for that.
    """
    steps = getattr(model, "steps_per_execution", None)
    if isinstance(steps, tf.Variable):
        with tf.init_scope():
            steps = int(tf.convert_to_tensor(steps))
    return int(steps or 1)


_companions: weakref.WeakKeyDictionary[Any, dict[str, _Companion]] = weakref.WeakKeyDictionary()
_watching: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""How many watchers each companion serves."""


class StepWatcher:
    """Takes note of the steps that a model executes from now on.

    Any number of watchers share one companion of the model's step.

    Args:
        model: A model of Keras or tf_keras.
        method: `"train_step"` or `"test_step"`.
        function: Name of the attribute that caches the compiled step: `"train_function"` or
            `"test_function"`.
    """

    def __init__(self, model: Any, method: str, function: str):
        self.model = model
        own = _companions.setdefault(model, {})
        self._companion = own.setdefault(method, _Companion(model, method, function))
        self._seen = {key: self._count(key) for key in self._companion.layouts}
        self._installed = False
        self._lock = threading.Lock()

    def _count(self, key: Any) -> int:
        return int(self._companion.layouts[key].counter.numpy())

    def install(self) -> None:
        """Puts the companion into the model."""
        if not self._installed:
            _watching[self._companion] = _watching.get(self._companion, 0) + 1
            self._installed = True
        self._companion.install()

    def remove(self) -> None:
        """Takes the companion out if no other watcher needs it."""
        if self._installed:
            self._installed = False
            _watching[self._companion] -= 1
        if not _watching.get(self._companion):
            self._companion.remove()

    @property
    def ran(self) -> bool:
        """Whether the step was ever traced with its companion."""
        return bool(self._companion.layouts)

    def take(self) -> list[Step]:
        """The steps that were executed since the last call, in order."""
        found = []
        with self._lock:
            for key, layout in list(self._companion.layouts.items()):
                rows = layout.rows.numpy()
                seen = self._seen.get(key, 0)
                new = rows[rows[:, 0] > seen]
                if not len(new):
                    continue
                new = new[np.argsort(new[:, 0])]
                missed = int(new[-1, 0]) - seen - len(new)
                self._seen[key] = int(new[-1, 0])
                steps = [self._companion.step_of(key, tuple(row[1:])) for row in new]
                # Rows that were overwritten before they could be read were like these.
                found += steps[:1] * missed + steps
        return found
