"""Every private hook of tf_keras and tfmot that tf_lns.tfmot relies on, and nothing else.

`tests/test_tfmot_hooks.py` (of optimizers `tests/test_tfmot_optimizer.py`) checks each one and
fails loudly when a release changes it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_annotate,
    quantize_aware_activation,
    quantize_layer,
)
from tf_keras.src.engine.functional import Functional
from tf_keras.src.layers.core import tf_op_layer
from tf_keras.src.mixed_precision.autocast_variable import AutoCastVariable
from tf_keras.src.saving.legacy.saved_model.utils import in_tf_saved_model_scope

from tf_lns import keras_hooks

if TYPE_CHECKING:  # what the mixin stands before
    _OptimizerMixin: TypeAlias = Any
else:
    _OptimizerMixin = object

# --- Variables of a layer ---------------------------------------------------------------------


def own_variables(layer: Any) -> list[Any]:
    """A layer's own variables in the order in which tf_keras saves them."""
    return [*layer._trainable_weights, *layer._non_trainable_weights]


def uncast(variable: Any) -> Any:
    """The variable itself, where mixed precision has put one around it that casts reads."""
    return variable._variable if isinstance(variable, AutoCastVariable) else variable


def replace_variable(layer: Any, old: Any, new: Any) -> None:
    """Puts `new` where `old` stands: attributes, lists, the trackables and the regularizer.

    Args:
        layer: The layer that owns the variable.
        old: The variable that is there, compared by identity.
        new: The variable to be there; on several devices, checkpoints know its first copy.
    """
    for variables in (layer._trainable_weights, layer._non_trainable_weights):
        for i, variable in enumerate(variables):
            if variable is old:
                variables[i] = new
    for name, value in list(vars(layer).items()):
        if value is old:
            vars(layer)[name] = new
            layer._track_trackable(keras_hooks.parts(new)[0], name, overwrite=True)
    layer._callable_losses = [_follow(loss, old, new) for loss in layer._callable_losses]


def _follow(loss: Any, old: Any, new: Any) -> Any:
    """A regularizer's loss, a partial function (of another one) of the variable it is of."""
    if loss is old:
        return new
    if isinstance(loss, functools.partial):
        return functools.partial(loss.func, *(_follow(arg, old, new) for arg in loss.args))
    return loss


def add_variable(layer: Any, variable: Any, name: str, tracked: Any) -> None:
    """Adds a variable to those that a layer lists as its own, not trainable.

    Args:
        layer: The layer.
        variable: What its lists show.
        name: Name under which checkpoints know it.
        tracked: What checkpoints save.
    """
    layer._non_trainable_weights.append(variable)
    layer._track_trackable(tracked, name, overwrite=True)


def set_untracked(layer: Any, name: str, value: Any) -> None:
    """Sets an attribute of a layer that no tracker wraps or looks into."""
    vars(layer)[name] = value


class Swapped:
    """Inside, attributes of objects have other values; the present ones come back."""

    def __init__(self) -> None:
        self._present: list[tuple[Any, str, Any]] = []

    def set(self, holder: Any, name: str, value: Any) -> None:
        """Gives an attribute a value behind the back of the trackers."""
        self._present.append((holder, name, vars(holder).get(name, self)))
        vars(holder)[name] = value

    @contextlib.contextmanager
    def unless_it_fails(self) -> Iterator[Swapped]:
        """For `set` before the object is entered: an error brings the present values back."""
        try:
            yield self
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Swapped:
        return self

    def __exit__(self, *error: Any) -> None:
        while self._present:
            holder, name, value = self._present.pop()
            if value is self:
                del vars(holder)[name]
            else:
                vars(holder)[name] = value


# --- Layers -----------------------------------------------------------------------------------


def call_arguments(layer: Any) -> set[str]:
    """Names of the arguments of a layer's `call`."""
    return set(inspect.signature(layer.call).parameters)


def share_activity_regularizer(wrapper: Any, layer: Any) -> None:
    """Lets a wrapper that runs a layer's `call` apply the layer's activity regularizer.

    What the layer itself has added to the losses, in models that are no more, is dropped.
    """
    wrapper._activity_regularizer = getattr(layer, "_activity_regularizer", None)
    layer._losses.clear()


def is_operation(layer: Any) -> bool:
    """Whether a layer stands for a function: an operation on tensors, or a `Lambda`."""
    operations = tf_op_layer.TFOpLambda, tf_op_layer.ClassMethod, tf_op_layer.SlicingOpLambda
    return isinstance(layer, (*operations, tf_keras.layers.Lambda))


def computes_mask(layer: Any) -> bool:
    """Whether a layer hands on a mask, or makes one."""
    return layer.supports_masking or not getattr(layer.compute_mask, "_is_default", False)


def mark_built(layer: Any, input_shape: Any) -> None:
    """What `Layer.build` itself does."""
    tf_keras.layers.Layer.build(layer, input_shape)


def forget_calls(layer: Any) -> None:
    """Drops the nodes of the calls of a layer so far: its next one is its first."""
    layer._inbound_nodes.clear()
    layer._outbound_nodes.clear()


def causal_padding(layer: Any, inputs: tf.Tensor) -> Any:
    """The padding, as `tf.pad` takes it, of a convolution over time that looks back only."""
    return layer._compute_causal_padding(inputs)


ATTENTION = (
    *("_dot_product_equation", "_combine_equation", "_masked_softmax", "_dropout_layer"),
    *("_compute_attention", "_key_dim"),
)
"""What the arithmetic of attention takes of `MultiHeadAttention`, as in Keras 3."""


def projections(layer: Any) -> list[Any]:
    """The projections of a `MultiHeadAttention`: of query, key, value and output."""
    return [layer._query_dense, layer._key_dense, layer._value_dense, layer._output_dense]


def build_projections(layer: Any, input_shape: Any) -> None:
    """Builds them, which a `MultiHeadAttention` from a file has without variables.

    Args:
        layer: The layer.
        input_shape: Shape of query, key and value, where the layer does not know them.
    """
    if not layer._built_from_signature:
        layer._build_from_signature(input_shape, input_shape)
    query, key, value = layer._query_shape, layer._key_shape, layer._value_shape
    output = [*query[:-1], layer._num_heads, layer._value_dim]
    for dense, shape in zip(projections(layer), (query, key, value, output), strict=True):
        if not dense.built:
            dense.build(shape)
            dense.built = True


def begin_recurrent(layer: Any, inputs: Any, initial_state: Any, constants: Any) -> Any:
    """Inputs, initial states and constants of a call of a recurrent layer, told apart.

    The dropout masks of its cell are new from here on.
    """
    layer._maybe_reset_cell_dropout_mask(layer.cell)
    return layer._process_inputs(inputs, initial_state, constants)


def renew_dropout(layer: Any, cell: Any) -> None:
    """Lets the dropout masks of one of a recurrent layer's cells be new from here on."""
    layer._maybe_reset_cell_dropout_mask(cell)


def is_annotated(layer: Any) -> bool:
    """Whether tfmot has put its annotation around a layer."""
    return isinstance(layer, quantize_annotate.QuantizeAnnotate)


def is_input_quantizer(layer: Any) -> bool:
    """Whether a layer is the one by which tfmot quantizes inputs of a model."""
    return isinstance(layer, quantize_layer.QuantizeLayer)


def inner_layers(layer: Any) -> list[Any]:
    """A layer and all layers inside it, outer before inner ones."""
    return list(layer._flatten_layers())


def attribute_of(layer: Any, variable: Any) -> str:
    """Name of the attribute in which a layer has one of its own variables."""
    return next(name for name, value in vars(layer).items() if value is variable)


def quantized_weights(wrapper: Any) -> list[tuple[Any, Any, Any]]:
    """The weights that tfmot's own wrapper quantizes: variable, quantizer and its variables."""
    return list(wrapper._weight_vars)


@contextlib.contextmanager
def plain_activations(layer: Any) -> Iterator[None]:
    """Inside, a layer and those in it have the activation functions that tfmot has wrapped."""
    with Swapped() as swapped:
        for inner in inner_layers(layer):
            function = vars(inner).get("activation")
            if isinstance(function, quantize_aware_activation.QuantizeAwareActivation):
                function = function.activation
            if isinstance(function, quantize_aware_activation.NoOpActivation):
                function = tf_keras.activations.linear
            if function is not vars(inner).get("activation"):
                swapped.set(inner, "activation", function)
        yield


# --- Models -----------------------------------------------------------------------------------


def edges(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Each call of a layer within a model: the layer, and the layers that its inputs come from."""
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            yield node.layer, tf.nest.flatten(node.inbound_layers) if node.parent_nodes else []


def is_graph(model: Any) -> bool:
    """Whether a model is Sequential or functional, and no subclass of a user's."""
    return type(model) in (tf_keras.Sequential, Functional)


def calls(model: Any) -> Iterator[tuple[Any, tuple, dict[str, Any], list[Any]]]:
    """The calls within a functional model in an order of execution.

    Yields:
        The layer, its arguments, its keyword arguments and a list of what it returned.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                outputs = tf.nest.flatten(node.outputs)
                yield node.layer, tuple(node.call_args), dict(node.call_kwargs), outputs


def maker_of(tensor: Any) -> Any:
    """The layer that a symbolic tensor comes from."""
    return tensor._keras_history.layer


def output_layers(model: Any) -> list[Any]:
    """The layers whose outputs are the model's."""
    return list(model._output_layers)


# --- Optimizers -------------------------------------------------------------------------------


class FusedUpdate(_OptimizerMixin):
    """Mixin before a `tf_keras.optimizers.Optimizer` whose update is one operation."""

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing: `update_step` folds the decay in."""

    def _deduplicate_sparse_grad(self, grads: Any) -> Any:
        """The gradients as they are: `update_step` makes them dense, which adds repeated rows."""
        return grads

    def _update_step_xla(self, gradient: Any, variable: Any, key: int) -> Any:
        """No compiled function for each variable, which would be given a copy of the variable."""
        return self._update_step(gradient, variable)

    def _clip_gradients(self, grads: Any) -> Any:
        return super()._clip_gradients(self.before_clipping(list(grads)))

    def before_clipping(self, gradients: list) -> list:
        """Nothing; a subclass adds to it."""
        return gradients


def variable_index(optimizer: Any, variable: Any) -> int:
    """Position of a variable among those the optimizer was built for."""
    return optimizer._index_dict[optimizer._var_key(variable)]


def use_weight_decay(optimizer: Any, variable: Any) -> bool:
    """Whether `exclude_from_weight_decay` leaves a variable in."""
    return optimizer._use_weight_decay(variable)


def set_rate(optimizer: Any, rate: Any) -> None:
    """Makes the variable of the learning rate, or the schedule with its variable."""
    optimizer._learning_rate = optimizer._build_learning_rate(rate)


def serialized_rate(optimizer: Any) -> Any:
    """The learning rate for a configuration: a float, or a schedule's own configuration."""
    rate = optimizer._serialize_hyperparameter(optimizer._learning_rate)
    return rate if isinstance(rate, dict) else float(rate)


def set_built(optimizer: Any) -> None:
    """Says that the optimizer has its state."""
    optimizer._built = True


def add_state(optimizer: Any, variable: tf.Variable) -> None:
    """Adds a variable to those that the optimizer saves and loads."""
    optimizer._variables.append(variable)


def drop_state(optimizer: Any, variables: list) -> None:
    """Takes variables out of those that the optimizer saves and loads."""
    dropped = {id(v) for v in variables}
    order_state(optimizer, [v for v in optimizer._variables if id(v) not in dropped])


def order_state(optimizer: Any, variables: list) -> None:
    """Makes these the variables that the optimizer saves and loads."""
    optimizer._variables = variables  # a new list: checkpoints refuse one that was changed


def update_copies(optimizer: Any, variable: Any, update: Callable, *arguments: Any) -> None:
    """Calls `update` with the variable on each device that has a copy of it."""
    optimizer._distribution_strategy.extended.update(
        variable, lambda copy: update(copy, *arguments)
    )


def loads_legacy_file() -> bool:
    """Whether tf_keras is loading an HDF5 file or a SavedModel."""
    return in_tf_saved_model_scope()


# --- Old optimizers ---------------------------------------------------------------------------


def check_before_old_optimizers(check: Callable[[Any], None]) -> None:
    """Lets the optimizers of before tf_keras 2.11 and of `tf.compat.v1.train` ask first.

    Their updates are ops on the memory behind a variable's handle, which they take for float32;
    on integers they would end the process.

    Args:
        check: Gets the list of variables that are to be updated, and raises.
    """
    for old in (tf_keras.optimizers.legacy.Optimizer, tf.compat.v1.train.Optimizer):
        apply = old.apply_gradients

        @functools.wraps(apply)
        def checked(self, grads_and_vars, *args, _apply=apply, **kwargs):
            pairs = list(grads_and_vars)
            check([variable for _, variable in pairs])
            return _apply(self, pairs, *args, **kwargs)

        old.apply_gradients = checked
