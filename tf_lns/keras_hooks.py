"""Every private hook of TensorFlow and Keras that tf_lns relies on, and nothing else.

`tests/test_keras_hooks.py` checks each one and fails loudly when a release changes it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend import rnn as keras_rnn
from keras.src.backend.common.stateless_scope import get_stateless_scope, in_stateless_scope
from keras.src.layers.rnn import conv_lstm
from keras.src.models.functional import Functional
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES
from keras.src.saving.serialization_lib import serialize_with_public_class
from tensorflow.core.framework import types_pb2, versions_pb2
from tensorflow.core.protobuf import saved_object_graph_pb2
from tensorflow.python.distribute import values as distribute_values
from tensorflow.python.eager import record
from tensorflow.python.framework import (
    auto_control_deps_utils,
    cpp_shape_inference_pb2,
    func_graph,
    op_callbacks,
)
from tensorflow.python.framework import tensor_shape as tf_tensor_shape
from tensorflow.python.ops import handle_data_util, resource_variable_ops
from tensorflow.python.ops.parallel_for import pfor as parallel_for

if TYPE_CHECKING:  # what mixins stand before
    _LayerMixin: TypeAlias = Any
    _OptimizerMixin: TypeAlias = Any
else:
    _LayerMixin = object
    _OptimizerMixin = object

BaseResourceVariable = resource_variable_ops.BaseResourceVariable
"""Base of every `tf.Variable` that lives behind a handle."""

variable_accessed = resource_variable_ops.variable_accessed
"""Tells gradient tapes and function graphs that a variable was read."""

get_handle_data = resource_variable_ops.get_eager_safe_handle_data
"""What a handle says of the shape and dtype behind it."""


def behind_handle(handle: tf.Tensor) -> tuple[int, tf.DType]:
    """Number of elements and dtype of what a handle stands for; 0 where it does not say."""
    data = get_handle_data(handle)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return 0, tf.float32
    shape = tf.TensorShape(data.shape_and_type[0].shape)
    return shape.num_elements() or 0, tf.as_dtype(data.shape_and_type[0].dtype)


def float_alias(handle: tf.Tensor, shape: Any) -> tf.Tensor:
    """A second handle of the same resource, which says that float32 of `shape` is behind it.

    Gradient tapes and control flow look only at what a handle says: through the alias an
    integer variable takes part in differentiation as a float one does.
    """
    alias = tf.identity(handle)
    data = cpp_shape_inference_pb2.CppShapeInferenceResult.HandleData()
    data.is_set = True
    data.shape_and_type.append(
        cpp_shape_inference_pb2.CppShapeInferenceResult.HandleShapeAndType(
            shape=tf_tensor_shape.as_shape(shape).as_proto(), dtype=types_pb2.DT_FLOAT
        )
    )
    alias._handle_data = data
    return alias


def record_read(value: tf.Tensor, handle: tf.Tensor) -> None:
    """Records a read on the tapes, so that it leads to `handle` even inside control flow."""
    record.record_operation(
        "LnsReadVariable", [value], [handle], lambda grad: [grad], lambda grad: [grad]
    )


def refuse_derivatives(results: list[tf.Tensor], sources: list[tf.Tensor], message: str) -> None:
    """Tells the tapes that the derivatives of some tensors are a LookupError.

    Args:
        results: Tensors that no tape has seen made.
        sources: What they were made of.
        message: What the error says.
    """

    def refuse(*gradients: Any) -> Any:
        raise LookupError(message)

    for result in results:
        record.record_operation("LnsRefused", [result], sources, refuse, None)


@contextlib.contextmanager
def watched_operations(watch: Callable[[str], None]) -> Iterator[None]:
    """Inside, on this thread, `watch` gets the type of each operation run or put into a graph."""

    def callback(op_type: Any, *about: Any, **more: Any) -> None:
        watch(op_type.decode() if isinstance(op_type, bytes) else op_type)

    op_callbacks.add_op_callback(callback)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(callback)


def write_plain_object(proto: Any) -> None:
    """Declares a SavedModel's node an object that is no more than its children."""
    proto.user_object.CopyFrom(
        saved_object_graph_pb2.SavedUserObject(
            identifier="_generic_user_object",
            version=versions_pb2.VersionDef(producer=1, min_consumer=1),
        )
    )


@contextlib.contextmanager
def _no_creators() -> Iterator[None]:
    """Variables made inside are plain ones, whatever creator scopes are around."""
    graph = tf.compat.v1.get_default_graph()
    creators = graph._thread_local._variable_creator_stack
    graph._thread_local._variable_creator_stack = []
    try:
        yield
    finally:
        graph._thread_local._variable_creator_stack = creators


@contextlib.contextmanager
def late_creation() -> Iterator[None]:
    """Outside of the function being traced, where variables may be made at any trace.

    `tf.function` forbids new variables after its first trace, through a creator scope that
    reaches into `tf.init_scope`.
    """
    with tf.init_scope(), _no_creators():
        yield


def on_each_device(make: Callable[[tf.Variable], tf.Variable], scale: tf.Variable) -> tf.Variable:
    """A variable made of parts, one per device of the strategy around; `scale` has as many.

    Args:
        make: Makes the part that belongs to one part of `scale`.
        scale: A variable made under the same strategy.

    Raises:
        ValueError: The strategy is none that integer weights work under.
    """
    strategy = tf.distribute.get_strategy()
    distributed = isinstance(scale, distribute_values.DistributedVariable)
    if not distributed and strategy.num_replicas_in_sync == 1:
        return make(scale)
    if not isinstance(strategy, tf.distribute.MirroredStrategy):
        raise ValueError(
            "Integer weights work on one device and under tf.distribute.MirroredStrategy. "
            f"Received: a variable made under {type(strategy).__name__}"
        )
    scales = iter(parts(scale))

    def creator(**kwargs: Any) -> tf.Variable:
        with _no_creators():
            return make(next(scales))

    return strategy.extended._create_variable(
        creator, initial_value=None, name=scale.name.split(":")[0]
    )


def parts(variable: tf.Variable) -> list[tf.Variable]:
    """The variable's copies on the devices of its strategy; itself where there is but one."""
    if isinstance(variable, distribute_values.DistributedVariable):
        return list(variable.values)
    return [variable]


def local_part(variable: tf.Variable) -> tf.Variable:
    """The copy on this replica's device, the first one outside of replicas."""
    if isinstance(variable, distribute_values.DistributedVariable):
        return variable._get_on_device_or_primary()
    return variable


def identity_with_gradient(
    x: tf.Tensor, name: str, gradient: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """`tf.identity` in a graph, with a gradient function of its own.

    Not `tf.custom_gradient`: that leaves an IdentityN between a product and its activation
    function, which keeps TensorFlow from fusing the two.

    Args:
        x: Tensor of the graph that is being built.
        name: Name of the gradient; the same name always means the same function.
        gradient: Function from dy to dx.
    """
    if name not in _named_gradients:
        tf.RegisterGradient(name)(lambda op, grad: gradient(grad))
        _named_gradients.add(name)
    graph = tf.compat.v1.get_default_graph()
    with record.stop_recording(), graph.gradient_override_map({"Identity": name}):
        y = tf.identity(x)
    scope = graph.get_name_scope()

    def backward(grad: tf.Tensor) -> list[tf.Tensor]:
        with tf.name_scope(f"gradient_tape/{scope}/" if scope else "gradient_tape/"):
            return [gradient(grad)]

    record.record_operation(name, [y], [x], backward, None)
    return y


_named_gradients: set[str] = set()


def register_read_only(op_name: str) -> None:
    """Declares that an op only reads its resource: reads are not ordered among themselves."""
    auto_control_deps_utils.register_read_only_resource_op(op_name)


def register_unvectorized(op_name: str) -> None:
    """Lets `tf.vectorized_map` and jacobians pass an op whose inputs do not vary."""

    @parallel_for.RegisterPFor(op_name)
    def _convert(pfor_input: Any) -> Any:
        op = pfor_input.op
        inputs = [pfor_input.unstacked_input(i) for i in range(len(op.inputs))]
        same = parallel_for._create_op(
            op.type, inputs, [x.dtype for x in op.outputs], attrs=op.node_def.attr
        )
        return [parallel_for.wrap(x, False) for x in same.outputs]


# ---------------------------------------------------------------------------------------
# Keras
# ---------------------------------------------------------------------------------------


def stateless_value(variable: keras.Variable) -> Any:
    """The value that a `keras.StatelessScope` holds for a variable, or None."""
    if not in_stateless_scope():
        return None
    return get_stateless_scope().get_current_value(variable)


def name_alike(variable: keras.Variable, other: keras.Variable) -> None:
    """Gives a variable the name and the path of another."""
    variable._name, variable._path = other._name, other._path


def values_of(variable: keras.Variable) -> np.ndarray:
    """A variable's values, or those it is going to have where Keras makes it later."""
    with tf.init_scope():
        if variable._value is None:  # made while Keras finds out the shape of an output
            return np.asarray(variable._initializer(variable.shape, dtype=variable.dtype))
        return np.asarray(variable._value)


def variable_lists(layer: keras.layers.Layer) -> list[list]:
    """The lists in which a layer keeps its own variables."""
    return [layer._trainable_variables, layer._non_trainable_variables]


@contextlib.contextmanager
def unlocked(layer: keras.layers.Layer) -> Iterator[None]:
    """Lets a built layer take on variables or attributes."""
    tracker = layer._tracker
    locked, message = tracker.locked, tracker._lock_violation_msg
    tracker.unlock()
    try:
        yield
    finally:
        if locked:
            tracker.lock(message)


def replace_variable(layer: keras.layers.Layer, old: keras.Variable, new: keras.Variable) -> None:
    """Puts `new` where `old` stands: in the layer's attributes, lists and trackers.

    By identity, not by name: `Dense.kernel` is a property over `_kernel`, other layers keep
    collections of variables. What other layers hold of it, `follow_replacements` finds.
    """
    vars(new).pop("_replaced_by", None)  # it may have been replaced itself, and come back
    old._replaced_by = new
    follow_replacements(layer)


def follow_replacements(layer: keras.layers.Layer) -> None:
    """Puts their replacements where a layer still holds variables that were replaced."""
    with unlocked(layer):
        tracker = layer._tracker
        for variables in variable_lists(layer):
            for i, variable in enumerate(variables):
                new = _followed(variable)
                if new is not variable:
                    list.__setitem__(variables, i, new)
                    for store in tracker.stored_ids.values():
                        if id(variable) in store:
                            store.discard(id(variable))
                            store.add(id(new))
        for name, value in list(vars(layer).items()):
            if name in ("_trainable_variables", "_non_trainable_variables", "_tracker"):
                continue
            if name.startswith("_self_"):  # TensorFlow's own, see below
                continue
            new = _followed(value)
            if new is not value:
                object.__setattr__(layer, name, new)
                if isinstance(new, keras.Variable):
                    layer._track_trackable(new, name, overwrite=True)


def _followed(value: Any) -> Any:
    """A value, or what it is with replacements followed; lists and dicts change in place."""
    if isinstance(value, keras.Variable):
        while hasattr(value, "_replaced_by"):
            value = value._replaced_by
        return value
    if isinstance(value, list):
        for i, item in enumerate(value):
            new = _followed(item)
            if new is not item:
                list.__setitem__(value, i, new)
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            new = _followed(item)
            if new is not item:
                dict.__setitem__(value, key, new)
    elif type(value) is tuple:
        items = tuple(_followed(item) for item in value)
        if any(a is not b for a, b in zip(items, value, strict=True)):
            return items
    return value


def forget_functions(model: keras.Model) -> None:
    """Drops a model's traced train, test and predict functions."""
    model.train_function = None
    model.test_function = None
    model.predict_function = None


def is_built(optimizer: Any) -> bool:
    """Whether an optimizer has its state; those of tf_keras say so in private."""
    return bool(getattr(optimizer, "built", getattr(optimizer, "_built", False)))


def use_weight_decay(optimizer: keras.optimizers.Optimizer, variable: Any) -> bool:
    """Whether `exclude_from_weight_decay` leaves a variable in."""
    return optimizer._use_weight_decay(variable)


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Position of a variable among those the optimizer was built for."""
    return optimizer._get_variable_index(variable)


def set_untracked(optimizer: keras.optimizers.Optimizer, name: str, value: Any) -> None:
    """Sets an attribute that no tracker wraps: what it holds is saved through `variables`."""
    object.__setattr__(optimizer, name, value)


def variable_key(optimizer: Any, variable: Any) -> Any:
    """What an optimizer knows a variable by; a stand-in has it as its `_unique_id`."""
    return optimizer._var_key(variable)


def untrack_variables(optimizer: keras.optimizers.Optimizer, variables: list) -> None:
    """Takes variables out of those that an optimizer saves and loads."""
    for variable in variables:
        optimizer._untrack_variable(variable)


class FusedWeightDecay(_OptimizerMixin):
    """Optimizer mixin: weight decay is part of the update, not a pass before it."""

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing: `update_step` folds the decay in."""


class AfterBuild(_LayerMixin):
    """Layer mixin: `after_build` runs when the layer's own build is done, before it is locked."""

    def _post_build(self) -> None:
        """Keras' hook; an overridden `build` would hide the signature that Keras inspects."""
        super()._post_build()
        self.after_build()

    def after_build(self) -> None:
        """Nothing; a subclass adds to it."""


def change_class(layer: keras.layers.Layer, new_class: type) -> None:
    """Gives a layer another class, and what Keras reads off the class when it makes a layer."""
    object.__setattr__(layer, "__class__", new_class)
    signature = inspect.signature(layer.call)
    parameters = list(signature.parameters)
    layer._call_signature = signature
    layer.call_signature_parameters = parameters
    layer._call_has_training_arg = "training" in parameters
    layer._call_has_mask_arg = "mask" in parameters
    layer._call_has_context_arg = {arg: arg in parameters for arg in layer._call_context_args}
    vars(layer).pop("quantize", None)  # bound to the old class


@contextlib.contextmanager
def as_class(layer: keras.layers.Layer, other: type) -> Iterator[None]:
    """Inside, a layer is of another class, for Keras to take its config as that class does."""
    present = type(layer)
    object.__setattr__(layer, "__class__", other)
    try:
        yield
    finally:
        object.__setattr__(layer, "__class__", present)


def name_for_saving(class_: type, registered_name: str) -> None:
    """Says under which registered name objects of a class are saved."""
    GLOBAL_CUSTOM_NAMES[class_] = registered_name


def serialized_class(class_: type, config: dict[str, Any]) -> dict[str, Any]:
    """What `serialize_keras_object` writes for an object of a class with this config."""
    return serialize_with_public_class(class_, config)


def is_graph(model: Any) -> bool:
    """Whether a model is Sequential or functional: its layers and their order are known."""
    return isinstance(model, keras.Sequential | Functional)


def graph_calls(model: Any) -> Iterator[tuple[Any, tuple, dict[str, Any], list[Any]]]:
    """The calls within a functional model in an order of execution.

    Yields:
        The layer or operation, its arguments, its keyword arguments, what it returned.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                arguments = node.arguments
                yield node.operation, arguments.args, dict(arguments.kwargs), list(node.outputs)


def maker_of(tensor: Any) -> Any:
    """The layer or operation that a symbolic tensor comes from."""
    return tensor._keras_history.operation


def mask_of(tensor: Any) -> Any:
    """The mask that Keras hands on with a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


_new = threading.local()
_new_lock = threading.Lock()
_new_users = 0


@contextlib.contextmanager
def redirect_new(choose: Callable[[type], type], note: Callable[[Any], None]) -> Iterator[None]:
    """Inside, on this thread, making a layer of a class makes one of the class chosen for it.

    Args:
        choose: From the class asked for to itself or a subclass, whose constructor Python then
            runs in the place of the other.
        note: Gets each layer made, before its constructor runs.
    """
    global _new_users
    with _new_lock:
        _new_users += 1
        if _new_users == 1:
            keras.layers.Layer.__new__ = _redirected_new
    stack = _new.__dict__.setdefault("stack", [])
    stack.append((choose, note))
    try:
        yield
    finally:
        stack.pop()
        with _new_lock:
            _new_users -= 1
            if not _new_users:
                keras.layers.Layer.__new__ = _layer_new


_layer_new = keras.layers.Layer.__new__


def _redirected_new(cls: type, *args: Any, **kwargs: Any) -> Any:
    stack = _new.__dict__.get("stack")
    if not stack:
        return _layer_new(cls, *args, **kwargs)
    choose, note = stack[-1]
    layer = _layer_new(choose(cls), *args, **kwargs)
    note(layer)
    return layer


def track_variable(layer: keras.layers.Layer, variable: keras.Variable) -> None:
    """Adds a variable to a layer's own, as `add_weight` does."""
    layer._track_variable(variable)


def own_variables(layer: Any) -> list[Any]:
    """A layer's own variables in the order in which it saves them."""
    if not isinstance(layer, keras.layers.Layer):  # of tf_keras
        return [*layer._trainable_weights, *layer._non_trainable_weights]
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def check_saved_count(layer: keras.layers.Layer, store: dict) -> None:
    """Keras' own check that a file holds as many variables as the layer has, and its message."""
    layer._check_load_own_variables(store)


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that a layer or model holds directly."""
    return [child for child in layer._layers if not isinstance(child, keras.metrics.Metric)]


def tf_keras_sublayers(layer: Any) -> list[Any]:
    """The layers that a layer or model of tf_keras holds directly."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def compile_arguments(model: keras.Model) -> dict[str, Any] | None:
    """The arguments that a model was compiled with, None if it is not compiled."""
    if not model.compiled or not hasattr(model, "_compile_config"):
        return None
    return dict(model._compile_config.config)


@contextlib.contextmanager
def not_compiled(models: list[keras.Model]) -> Iterator[None]:
    """Inside, `clone_model` takes models for uncompiled: it would build optimizers too early."""
    compiled = [model for model in models if model.compiled]
    for model in compiled:
        model.compiled = False
    try:
        yield
    finally:
        for model in compiled:
            model.compiled = True


def rnn(step: Callable, inputs: Any, initial_states: Any, **options: Any) -> tuple[Any, Any, Any]:
    """Keras' loop over time: last output, all outputs, last states.

    Unlike `keras.layers.RNN`, it may have time as the first axis.
    """
    return keras_rnn(step, inputs, initial_states, **options)


ConvLSTMCell = conv_lstm.ConvLSTMCell
"""The cell of Keras' ConvLSTM layers, which has no public name."""


def function_graph(graph: Any, name: str) -> Any:
    """The graph of the function that a call, loop or branch of `graph` names."""
    return graph._get_function(name).graph


def with_shapes(graph: Any, shapes: list[tf.TensorShape]) -> Any:
    """A copy of a function's graph in which its inputs have the given shapes.

    Args:
        graph: Graph of a function, traced for shapes that may not have been known.
        shapes: Shapes of its inputs.
    """
    copy = func_graph.FuncGraph(graph.name)
    with copy.as_default():
        inputs = []
        for old, shape in zip(graph.inputs, shapes, strict=True):
            new = tf.compat.v1.placeholder(old.dtype, shape, old.op.name)
            if old.dtype == tf.resource:
                handle_data_util.set_handle_data(new, get_handle_data(old))
            inputs.append(new)
        definition = graph.as_graph_def()
        given = {old.name: new for old, new in zip(graph.inputs, inputs, strict=True)}
        names = {x.op.name for x in graph.inputs}
        for node in definition.node:  # their values are given; what was inferred is not
            node.attr.pop("_output_shapes", None)
        wanted = [x.name for x in graph.outputs]
        wanted += [getattr(x, "op", x).name for x in graph.control_outputs]
        found = tf.graph_util.import_graph_def(
            definition, input_map=given, return_elements=wanted, name=""
        )
    copy.inputs = inputs
    copy.outputs = [
        given[x.name] if x.op.name in names else y
        for x, y in zip(graph.outputs, found, strict=False)
    ]
    copy.control_outputs = found[len(graph.outputs) :]
    return copy


@contextlib.contextmanager
def around_methods(
    methods: list[tuple[type, str]], scope: Callable[[Any], contextlib.AbstractContextManager]
) -> Iterator[None]:
    """Inside, calls of methods of classes run within `scope(self)`.

    Args:
        methods: Classes that define a method, and its name.
        scope: Makes the context manager of a call from the object whose method it is.
    """
    originals = [(cls, name, cls.__dict__[name]) for cls, name in methods]

    def wrap(original: Callable) -> Callable:
        @functools.wraps(original)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            with scope(self):
                return original(self, *args, **kwargs)

        return wrapped

    for cls, name, original in originals:
        setattr(cls, name, wrap(original))
    try:
        yield
    finally:
        for cls, name, original in originals:
            setattr(cls, name, original)
