"""Which steps a model executes: their shapes, noted inside the compiled step itself.

A callback is not shown the data. So the model's `train_step` (or `test_step`) gets a
companion that writes the shapes of its batch into a small variable, which is read after
each call: exact for smaller last batches, for several steps per execution, under jit and on
every replica.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks

_MOST_STEPS = 256
"""Steps per execution that are noted each by itself where their number may change."""


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
        seen: How many of them have been taken.
    """

    structure: Any
    rows: tf.Variable
    counter: tf.Variable
    share: float
    seen: int = 0


class StepWatcher:
    """Notes the shapes of the batches on which a model's step is executed.

    Args:
        model: A model of Keras or tf_keras.
        method: `"train_step"` or `"test_step"`.
        function: Name of the attribute that caches the compiled step: `"train_function"` or
            `"test_function"`.
    """

    def __init__(self, model: Any, method: str, function: str):
        self.model = model
        self._method = method
        self._function = function
        self._compiled: Any = None
        self._layouts: dict[Any, _Layout] = {}
        self._steps: dict[Any, Step] = {}
        self._lock = threading.Lock()
        self._silent = False

    # --- On and off ------------------------------------------------------------------

    def install(self) -> None:
        """Puts the companion in; the model compiles its step again unless it has it already."""
        if self._method in vars(self.model):
            return
        original = getattr(self.model, self._method)

        @functools.wraps(original)
        def step(data: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._silent:
                self._note(data)
            return original(data, *args, **kwargs)

        keras_hooks.set_untracked(self.model, self._method, step)
        compiled = getattr(self.model, self._function)
        if compiled is None or compiled is not self._compiled:
            setattr(self.model, self._function, None)

    def remove(self) -> None:
        """Takes the companion out; a step that is compiled keeps it, and goes on unhindered."""
        if self._method in vars(self.model):
            delattr(self.model, self._method)
        self._compiled = getattr(self.model, self._function)

    def silent(self) -> _Silent:
        """A context in which the step may be traced without being noted."""
        return _Silent(self)

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
        slots = layout.rows.shape[0]
        if slots == 1:
            layout.rows.assign(tf.reshape(row, (1, -1)))
        else:
            layout.rows.scatter_nd_update([[(number - 1) % slots]], [row])

    def _layout(self, data: Any, leaves: list[Any]) -> _Layout:
        """The place for batches of this structure on this replica; made at the first."""
        specs = [None if x is None else tf.TensorSpec((None,) * x.ndim, x.dtype) for x in leaves]
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context is not None else 0
        replica = replica if isinstance(replica, int) else int(tf.get_static_value(replica) or 0)
        replicas = context.num_replicas_in_sync if context is not None else 1
        key = (replica, str(specs))
        if key not in self._layouts:
            width = 1 + sum(x.ndim for x in leaves if x is not None)
            slots = self._slots()
            with keras_hooks.late_creation():
                self._layouts[key] = _Layout(
                    structure=tf.nest.pack_sequence_as(data, specs),
                    rows=tf.Variable(tf.zeros((slots, width), tf.int64), trainable=False),
                    counter=tf.Variable(tf.zeros((), tf.int64), trainable=False),
                    share=1 / replicas,
                )
        return self._layouts[key]

    def _slots(self) -> int:
        """How many steps may be executed before they are taken."""
        steps = getattr(self.model, "steps_per_execution", None)
        if not isinstance(steps, tf.Variable):
            return int(steps or 1)
        with tf.init_scope():  # tf_keras: a variable, which may grow while the step stays compiled
            steps = int(tf.convert_to_tensor(steps))
        grows = steps > 1 or self.model.autotune_steps_per_execution
        return max(steps, _MOST_STEPS) if grows else 1

    # --- Outside ---------------------------------------------------------------------

    @property
    def layouts(self) -> int:
        """How many structures of batches have been met; 0 if the step never ran."""
        return len(self._layouts)

    def take(self) -> list[Step]:
        """The steps that were executed since the last call, in order."""
        found = []
        with self._lock:
            for key, layout in list(self._layouts.items()):
                rows = layout.rows.numpy()
                new = rows[rows[:, 0] > layout.seen]
                if not len(new):
                    continue
                new = new[np.argsort(new[:, 0])]
                missed = int(new[-1, 0]) - layout.seen - len(new)
                layout.seen = int(new[-1, 0])
                steps = [self._step(key, layout, tuple(row[1:])) for row in new]
                # Rows that were overwritten before they could be read were like these.
                found += steps[:1] * missed + steps
        return found

    def _step(self, key: Any, layout: _Layout, dims: tuple[int, ...]) -> Step:
        if (key, dims) not in self._steps:
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


class _Silent:
    def __init__(self, watcher: StepWatcher):
        self._watcher = watcher

    def __enter__(self) -> None:
        self._watcher._silent = True

    def __exit__(self, *exception: Any) -> None:
        self._watcher._silent = False
