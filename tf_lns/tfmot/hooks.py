"""Every private hook of tf_keras and tfmot that tf_lns.tfmot relies on, and nothing else.

`tests/test_tfmot_hooks.py` checks each one and fails loudly when a release changes it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_annotate
from tf_keras.src.layers.core import tf_op_layer
from tf_keras.src.mixed_precision.autocast_variable import AutoCastVariable

from tf_lns import keras_hooks

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


# --- Models -----------------------------------------------------------------------------------


def edges(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Each call of a layer within a model: the layer, and the layers that its inputs come from."""
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            yield node.layer, tf.nest.flatten(node.inbound_layers) if node.parent_nodes else []


def output_layers(model: Any) -> list[Any]:
    """The layers whose outputs are the model's."""
    return list(model._output_layers)
