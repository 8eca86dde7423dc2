"""Models as graphs of layers, in either Keras: read from one, built in the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tf_lns import keras_hooks
from tf_lns.tfmot import hooks


@dataclasses.dataclass(frozen=True)
class Library:
    """What is needed of a Keras to read and build its models.

    Attributes:
        name: What messages call it.
        module: The package.
        is_graph: Whether a model is one of the package's own graph classes.
        calls: The calls within a functional model.
        maker_of: The layer that a symbolic tensor comes from.
    """

    name: str
    module: Any
    is_graph: Callable[[Any], bool]
    calls: Callable[[Any], Iterator[tuple[Any, tuple, dict[str, Any], list[Any]]]]
    maker_of: Callable[[Any], Any]


def _is_keras_graph(model: Any) -> bool:
    return type(model) in (keras.Sequential, keras_hooks.Functional)


KERAS = Library("Keras 3", keras, _is_keras_graph, keras_hooks.graph_calls, keras_hooks.maker_of)
TF_KERAS = Library("tf_keras", tf_keras, hooks.is_graph, hooks.calls, hooks.maker_of)

Adapt = Callable[[Any, tuple, dict[str, Any]], tuple[tuple, dict[str, Any]]]


def library_of(layer: Any) -> Library:
    """The Keras that a layer or model belongs to."""
    return TF_KERAS if isinstance(layer, tf_keras.layers.Layer) else KERAS


def rebuilt(
    model: Any, make: Callable[[Any], Any], target: Library, adapt: Adapt | None = None
) -> Any:
    """A model of new layers in the place of a model's layers; nested models are rebuilt too.

    Args:
        model: Sequential or functional model, in either Keras.
        make: From a layer to the new one, called once for each; None drops a layer that
            returns what it gets.
        target: The Keras of the new model.
        adapt: From a layer, its arguments and keyword arguments to those of the new one.

    Returns:
        The new model, of the same name.

    Raises:
        ValueError: A model is subclassed or not built, or an operation stands between layers.
    """
    made: dict[int, Any] = {}

    def new_of(layer: Any) -> Any:
        if id(layer) not in made:
            is_model = isinstance(layer, keras.Model | tf_keras.Model)
            made[id(layer)] = _rebuilt(layer, new_of, target, adapt) if is_model else make(layer)
        return made[id(layer)]

    return _rebuilt(model, new_of, target, adapt)


def _rebuilt(model: Any, new_of: Callable, target: Library, adapt: Adapt | None) -> Any:
    new = _connected(model, new_of, target, adapt)
    if not model.trainable:
        new.trainable = False  # and all within, of which the layers' own flags come later
    return new


def _connected(model: Any, new_of: Callable, target: Library, adapt: Adapt | None) -> Any:
    source = library_of(model)
    if not source.is_graph(model):
        raise ValueError(
            f"Model {model.name!r} ({type(model).__name__}) is neither Sequential nor functional: "
            "of a subclassed model the layers are known, and not what is done with them. Build "
            "it as a functional model of the same layers, or make the other model yourself and "
            "give it the values: other.set_weights(model.get_weights())."
        )
    if not model.inputs:
        raise ValueError(f"Model {model.name!r} is not built: call it on data, or give it an Input")
    inputs = [_input_like(x, source, target) for x in model.inputs]
    if isinstance(model, source.module.Sequential):
        layers = [new_of(layer) for layer in model.layers if not _is_input(layer)]
        parts = [source_layer for source_layer in layers if source_layer is not None]
        return target.module.Sequential([inputs[0], *parts], name=model.name)
    new = {id(old): x for old, x in zip(model.inputs, inputs, strict=True)}

    def known(x: Any) -> Any:
        if not tf.is_tensor(x) and not isinstance(x, keras.KerasTensor):
            return x
        if id(x) not in new:
            raise ValueError(
                f"{source.maker_of(x).name!r} in model {model.name!r} is an operation on tensors. "
                "Ways out: write it as a layer (Add, Multiply, Rescaling, Activation, ...)."
            )
        return new[id(x)]

    for layer, args, kwargs, outputs in source.calls(model):
        if not isinstance(layer, source.module.layers.Layer):
            continue  # an operation: an error where a layer needs what it makes, see `known`
        if adapt is not None:
            args, kwargs = adapt(layer, args, kwargs)
        args, kwargs = mapped(known, list(args)), mapped(known, kwargs)
        found = _called(new_of(layer), args, kwargs, target)
        new |= {id(old): x for old, x in zip(outputs, tf.nest.flatten(found), strict=True)}
    inputs, outputs = mapped(known, model.input), mapped(known, model.output)
    return target.module.Model(inputs, outputs, name=model.name)


def _called(layer: Any, args: list, kwargs: dict[str, Any], target: Library) -> Any:
    """What a new layer returns; where there is none, what it would be given."""
    if layer is None:
        return args[0]
    try:
        return layer(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            f"Layer {layer.name!r} cannot be called in {target.name} as it was called: {error}"
        ) from error


def mapped(function: Callable[[Any], Any], structure: Any) -> Any:
    """A structure of plain lists, tuples and dicts, with a function of each leaf."""
    if isinstance(structure, Mapping):
        return {key: mapped(function, item) for key, item in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(mapped(function, item) for item in structure))
    if isinstance(structure, list | tuple):
        kind = tuple if isinstance(structure, tuple) else list
        return kind(mapped(function, item) for item in structure)
    return function(structure)


def _is_input(layer: Any) -> bool:
    return isinstance(layer, keras.layers.InputLayer | tf_keras.layers.InputLayer)


def _input_like(tensor: Any, source: Library, target: Library) -> Any:
    """A new input of the shape, dtype and name of an old one."""
    config = source.maker_of(tensor).get_config()
    shape = config.get("batch_shape", config.get("batch_input_shape"))
    options = {key: True for key in ("sparse", "ragged") if config.get(key)}
    dtype = tf.as_dtype(tensor.dtype).name
    return target.module.Input(
        batch_shape=tuple(shape), dtype=dtype, name=config["name"], **options
    )
