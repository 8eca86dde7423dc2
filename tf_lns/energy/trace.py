"""One step of a model as a graph whose operations know the layer that made them.

While the step is traced, each layer runs inside a name scope of its own, and so does each
optimizer. TensorFlow repeats the scope in the names of gradient operations and of functions,
which is how an operation anywhere in the graph is traced back to its layer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks

_LAYER = "tf_lns.layer."
_UPDATE = "tf_lns.update"
_TAG = re.compile(rf"{re.escape(_LAYER)}(\d+)")
_BACKWARD = re.compile(r"(^|/)(gradient_tape|gradients)/")


@dataclasses.dataclass(frozen=True)
class Trace:
    """A traced step.

    Attributes:
        graph: Its graph.
        paths: Path of the layer behind each number in the names of operations.
        variables: All variables that it captures.
        samples: Samples in the batch.
        accumulation: Steps between two updates of the optimizer.
        signature: Shapes of the batch and what is trained.
        notes: What was assumed, in sentences.
        name: The model's name.
    """

    graph: Any
    paths: tuple[str, ...]
    variables: tuple[Any, ...]
    samples: int
    accumulation: int = 1
    signature: str = ""
    notes: tuple[str, ...] = ()
    name: str = ""

    def layer_of(self, name: str) -> str | None:
        """Path of the layer in the name of an operation, None where there is none."""
        found = _TAG.findall(name)
        return self.paths[int(found[-1])] if found else None


def is_update(name: str) -> bool:
    """Whether an operation of this name was made by an optimizer."""
    return _UPDATE in name


def is_backward(name: str) -> bool:
    """Whether an operation of this name was made by automatic differentiation."""
    return _BACKWARD.search(name) is not None


def training_step(model: Any, batch: Any, per_replica: bool = False) -> Trace:
    """Traces one training step: forward, loss, backward and update.

    Args:
        model: A Keras or tf_keras model, or any callable, which is called with the batch.
        batch: What one step is given; see `tf_lns.energy.tally`.
        per_replica: The batch is that of each replica, not of all together.

    Raises:
        TypeError: `model` is not callable.
        ValueError: The batch does not fit the model.
    """
    if not _is_model(model):
        if not callable(model):
            raise TypeError(
                "`model` must be a Keras model or a callable. "
                f"Received: model={model!r} of type {type(model).__name__}"
            )
        batch = batch if isinstance(batch, tuple) else (batch,)
        return _trace(lambda data: model(*data), batch, None)
    batch = _batch_for(model, batch)
    _build(model, batch)
    if not _is_compiled(model):
        notes = (
            "The model is not compiled: counted with the mean of squares of its outputs as "
            "loss, and without an update.",
        )
        return _trace(lambda data: _plain_step(model, data), batch, model, notes)
    _build_optimizer(model)
    batch = batch if per_replica else _of_replica(model, batch)
    return _trace(model.train_step, batch, model)


def evaluation_step(model: Any, batch: Any, per_replica: bool = False) -> Trace:
    """Traces one step of `evaluate`; arguments as in `training_step`."""
    batch = _batch_for(model, batch)
    _build(model, batch)
    if not _is_compiled(model):
        return _trace(lambda data: model(_inputs_of(data), training=False), batch, model)
    batch = batch if per_replica else _of_replica(model, batch)
    return _trace(model.test_step, batch, model)


def _build_optimizer(model: Any) -> None:
    """Makes the optimizer's state, where the model's strategy wants it."""
    optimizer = model.optimizer
    buildable = hasattr(optimizer, "build") and not keras_hooks.is_built(optimizer)
    if buildable and model.trainable_variables:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)


def _replicas(model: Any) -> int:
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.num_replicas_in_sync if strategy is not None else 1


def _of_replica(model: Any, specs: Any) -> Any:
    """What each replica is given of a batch; the largest share where it does not divide."""
    replicas = _replicas(model)

    def share(spec: tf.TensorSpec | None) -> tf.TensorSpec | None:
        if spec is None or not spec.shape.rank:
            return spec
        return tf.TensorSpec((-(-spec.shape[0] // replicas), *spec.shape[1:]), spec.dtype)

    return specs if replicas == 1 else tf.nest.map_structure(share, specs)


def _plain_step(model: Any, data: Any) -> Any:
    """Gradients of the mean square of the outputs, for a model without a loss."""
    with tf.GradientTape() as tape:
        outputs = model(_inputs_of(data), training=True)
        squares = [
            tf.reduce_mean(tf.square(tf.cast(y, "float32"))) for y in tf.nest.flatten(outputs)
        ]
        loss = tf.add_n(squares)
    return tape.gradient(loss, model.trainable_variables)


# --- Batches -------------------------------------------------------------------------


def _is_model(model: Any) -> bool:
    return isinstance(model, tuple(cls for cls, _ in _model_classes()))


def _is_compiled(model: Any) -> bool:
    """Whether a model knows how it is trained; its own `train_step` may need no loss."""
    return bool(getattr(model, "compiled", False)) or getattr(model, "optimizer", None) is not None


def _model_classes() -> list[tuple[type, Any]]:
    """Classes of models, and the module each comes from; tf_keras only where it is in use."""
    classes: list[tuple[type, Any]] = [(keras.Model, keras)]
    if "tf_keras" in sys.modules:
        tf_keras = sys.modules["tf_keras"]
        classes.append((tf_keras.Model, tf_keras))
    return classes


def _inputs_of(data: Any) -> Any:
    return data[0] if isinstance(data, tuple) else data


def _specification(value: Any) -> tf.TensorSpec | None:
    if value is None or isinstance(value, tf.TensorSpec):
        return value
    if isinstance(value, tf.Tensor | tf.Variable):
        return tf.TensorSpec(value.shape, value.dtype)
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind in "US":
        raise ValueError(
            "`batch` must hold arrays, tensors or `tf.TensorSpec`s of numbers. "
            f"Received an element of type {type(value).__name__}: {str(value)[:60]}"
        )
    if array.dtype == np.float64:  # as Keras feeds it
        return tf.TensorSpec(array.shape, keras.config.floatx())
    return tf.TensorSpec(array.shape, array.dtype)


def _leaves(specs: Any) -> list[tf.TensorSpec]:
    return [spec for spec in tf.nest.flatten(specs) if spec is not None]


def _specifications(batch: Any) -> Any:
    specs = tf.nest.map_structure(_specification, batch)
    for spec in _leaves(specs):
        if not spec.shape.is_fully_defined():
            raise ValueError(
                "`batch` must have a known shape. "
                f"Received an element of shape {spec.shape}: give a batch of real data"
            )
    return specs


def _batch_for(model: Any, batch: Any) -> Any:
    """The batch as a structure of specifications, as `train_step` takes it."""
    if isinstance(batch, tf.data.Dataset):
        batch = batch.element_spec if _is_static(batch.element_spec) else next(iter(batch))
    if isinstance(batch, int | np.integer) and not isinstance(batch, bool):
        batch = example_batch(model, int(batch))
    if isinstance(batch, list):
        batch = tuple(batch)
    if batch is None or not tf.nest.flatten(batch):
        raise ValueError(
            "`batch` must be what one step is given: (inputs, targets), inputs alone, a "
            f"tf.data.Dataset of batches, or a batch size. Received: batch={batch!r}"
        )
    specs = _specifications(batch)
    alone = not isinstance(specs, tuple) or len(specs) == 1
    if alone and _is_compiled(model) and getattr(model, "loss", None) is not None:
        return _with_targets(model, specs)
    return specs


def _with_targets(model: Any, inputs: Any) -> Any:
    """Inputs, and targets of the shapes that the outputs have."""
    inputs = _inputs_of(inputs)

    def call(x: Any) -> Any:
        return model(x, training=False)

    outputs = tf.function(call).get_concrete_function(inputs).structured_outputs
    leaves = [tf.TensorSpec(y.shape, y.dtype) for y in tf.nest.flatten(outputs)]
    targets = [_target(model, spec, i) for i, spec in enumerate(leaves)]
    return inputs, tf.nest.pack_sequence_as(outputs, targets)


def _is_static(specs: Any) -> bool:
    return all(
        isinstance(spec, tf.TensorSpec) and spec.shape.is_fully_defined()
        for spec in tf.nest.flatten(specs)
    )


def example_batch(model: Any, size: int) -> Any:
    """Specifications of a batch of `size` samples, from what the model says of its inputs.

    Args:
        model: A built model that knows the shapes of its inputs.
        size: Number of samples.

    Returns:
        (inputs, targets) where the model is compiled with a loss, else inputs.

    Raises:
        ValueError: The size is no positive number, or a shape is not known.
    """
    if size < 1:
        raise ValueError(f"`batch` must be at least 1 sample. Received: batch={size}")

    def sized(tensor: Any) -> tf.TensorSpec:
        shape = tuple(tensor.shape)
        if None in shape[1:]:
            raise ValueError(
                f"The model '{model.name}' has an input of shape {shape}: a batch size alone "
                "does not say how large it is. Give a batch, or `tf.TensorSpec`s, as `batch`"
            )
        return tf.TensorSpec((size, *shape[1:]), tensor.dtype)

    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ValueError(
            f"The model '{model.name}' does not say which shapes its inputs have. "
            "Give a batch of data as `batch`"
        )
    names = [getattr(x, "name", None) for x in inputs]
    structure = getattr(model, "input", inputs)
    x = (
        {name: sized(t) for name, t in structure.items()}
        if isinstance(structure, dict)
        else sized(inputs[0])
        if len(names) == 1
        else [sized(t) for t in inputs]
    )
    if not _is_compiled(model):
        return x
    targets = [_target(model, sized(t), i) for i, t in enumerate(outputs)]
    return x, targets[0] if len(targets) == 1 else targets


def _target(model: Any, output: tf.TensorSpec, index: int) -> tf.TensorSpec:
    """Labels where the loss takes labels, else what has the shape of the output."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, list | tuple) and index < len(loss):
        loss = loss[index]
    elif isinstance(loss, dict):
        loss = list(loss.values())[min(index, len(loss) - 1)]
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    if "sparse" in str(name):
        return tf.TensorSpec(output.shape[:-1], "int32")
    return tf.TensorSpec(output.shape, "float32" if output.dtype.is_floating else output.dtype)


def _build(model: Any, specs: Any) -> None:
    """Gives a model that is not built yet its variables."""
    if model.built:
        return
    zeros = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), _inputs_of(specs))
    with contextlib.suppress(NotImplementedError):  # its `train_step` has to do without a `call`
        model(zeros, training=False)


# --- Tracing -------------------------------------------------------------------------


class _Paths:
    """Paths of the layers that are entered, in the order in which they are met."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.found: list[str] = []
        self._numbers: dict[tuple[int, str], int] = {}
        self._stack: list[tuple[Any, str]] = []

    @contextlib.contextmanager
    def scope(self, layer: Any) -> Iterator[None]:
        """The name scope of a layer for the time it is called."""
        if (self._stack and self._stack[-1][0] is layer) or not tf.inside_function():
            yield  # `super().__call__`, or a call that is no part of the step
            return
        above = self._stack[-1][1] if self._stack else ""
        path = "" if layer is self.root else f"{above}/{layer.name}".lstrip("/")
        key = (id(layer), above)
        if key not in self._numbers:
            if path in self.found and path:  # another layer of that name
                path = f"{path}#{sum(p.split('#')[0] == path for p in self.found) + 1}"
            self._numbers[key] = len(self.found)
            self.found.append(path)
        number = self._numbers[key]
        self._stack.append((layer, self.found[number]))
        try:
            with tf.name_scope(f"{_LAYER}{number}/"):
                yield
        finally:
            self._stack.pop()


@contextlib.contextmanager
def _update_scope(optimizer: Any) -> Iterator[None]:
    with tf.name_scope(f"{_UPDATE}/"):
        yield


@contextlib.contextmanager
def _scopes(model: Any) -> Iterator[_Paths]:
    """Inside, layers and optimizers run within name scopes that tell which they are."""
    paths = _Paths(model)
    layers, updates = [], []
    before = is_counting()
    for _, module in _model_classes():
        layers.append((module.layers.Layer, "__call__"))
        name = "apply" if module is keras else "apply_gradients"
        owner = next(c for c in module.optimizers.Optimizer.__mro__ if name in vars(c))
        updates.append((owner, name))
    with (
        keras_hooks.around_methods(layers, paths.scope),
        keras_hooks.around_methods(updates, _update_scope),
    ):
        _state.counting = True
        try:
            yield paths
        finally:
            _state.counting = before


_state = threading.local()


def is_counting() -> bool:
    """Whether this thread traces a step in order to count it."""
    return getattr(_state, "counting", False)


def _trace(
    step: Callable[[Any], Any], specs: Any, model: Any, notes: tuple[str, ...] = ()
) -> Trace:
    """Traces `step(data)` for data of the given specifications."""
    specs = _specifications(specs)
    strategy: Any = getattr(model, "distribute_strategy", None)
    replicas = _replicas(model)

    @tf.autograph.experimental.do_not_convert
    def run(data: Any) -> Any:
        return step(data) if replicas == 1 else strategy.run(step, args=(data,))

    with _scopes(model) as paths:
        try:
            concrete = tf.function(run).get_concrete_function(specs)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            shapes = [f"{s.dtype.name}{list(s.shape)}" for s in _leaves(specs)]
            raise ValueError(
                f"A step on a batch of {shapes} cannot be traced: {str(error).strip()}"
            ) from error
    first = _leaves(specs)[0]
    samples = int(first.shape[0]) if first.shape.rank else 1
    optimizer = getattr(model, "optimizer", None)
    accumulation = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    return Trace(
        graph=concrete.graph,
        paths=tuple(paths.found),
        variables=tuple(concrete.graph.variables),
        samples=samples * replicas,
        accumulation=int(accumulation),
        signature=signature(specs, model),
        notes=notes,
        name=str(getattr(model, "name", "")),
    )


@dataclasses.dataclass(frozen=True)
class PrunableStep:
    """A traced training step of which parts can be computed by themselves.

    Attributes:
        trace: The step.
        function: Its `prune(inputs, fetches)` makes a function of the batch.
        inputs: Tensors of the graph that stand for the batch.
    """

    trace: Trace
    function: Any
    inputs: tuple[Any, ...]


def prunable_step(model: Any, batch: Any) -> PrunableStep:
    """Traces one training step on one device so that parts of it can be computed.

    Args:
        model: A compiled Keras model.
        batch: What one step is given, see `tf_lns.energy.tally`.

    Raises:
        ValueError: The batch does not fit the model.
    """
    specs = _batch_for(model, batch)
    _build(model, specs)
    _build_optimizer(model)
    flat = _leaves(specs)

    @tf.autograph.experimental.do_not_convert
    def run(*leaves: Any) -> Any:
        rest = iter(leaves)
        full = [None if spec is None else next(rest) for spec in tf.nest.flatten(specs)]
        return model.train_step(tf.nest.pack_sequence_as(specs, full))

    with _scopes(model) as paths:
        function = tf.compat.v1.wrap_function(run, flat)
    captured = {internal.name for _, internal in function.graph.captures}
    step = Trace(
        graph=function.graph,
        paths=tuple(paths.found),
        variables=(),
        samples=int(flat[0].shape[0]) if flat[0].shape.rank else 1,
        signature=signature(specs, model),
        name=str(model.name),
    )
    inputs = tuple(x for x in function.graph.inputs if x.name not in captured)
    return PrunableStep(step, function, inputs)


def tensors_of(batch: Any) -> list[tf.Tensor]:
    """The arrays of a batch as tensors, in order, in the dtypes in which Keras feeds them."""
    leaves = [x for x in tf.nest.flatten(batch) if x is not None]
    return [tf.cast(tf.convert_to_tensor(x), _leaves(_specification(x))[0].dtype) for x in leaves]


def signature(specs: Any, model: Any) -> str:
    """Text that is equal for steps with equal counts: shapes, dtypes and what is trained."""
    shapes = ", ".join(
        f"{spec.dtype.name}[{','.join(map(str, spec.shape))}]" for spec in _leaves(specs)
    )
    if not _is_model(model):
        return shapes
    return f"{shapes}; {trained_parameters(model)} parameters trained"


def trained_parameters(model: Any) -> int:
    """Number of parameters that a model trains."""
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)
