"""A layer's config in one Keras as the other's constructor takes it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import tf_keras

from tf_lns.tfmot.graphs import KERAS, TF_KERAS, Library

_MISSING = object()

_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}}
"""By class: names of arguments in tf_keras, and in Keras 3."""

_OTHER_CLASS = {"SyncBatchNormalization": ("BatchNormalization", {"synchronized": True})}
"""Classes of tf_keras that Keras 3 has as an argument of another."""

_OTHER_FUNCTION = ("hard_sigmoid",)
"""Activations whose slope differs: 1/5 in tf_keras, 1/6 in Keras 3."""

_WITHOUT_EFFECT = {
    *("batch_input_shape", "input_length", "dynamic"),  # what is in the graph
    *("query_shape", "key_shape", "value_shape"),  # what building sets
    *("implementation", "use_cudnn", "flash_attention"),  # how it is computed
    "seed",  # generators differ between the two
}
"""Arguments that one Keras has and that change no value in a model with weights."""

_KINDS = ("layers", "initializers", "regularizers", "constraints")


def layer_like(layer: Any, config: dict[str, Any], source: Library, custom: Mapping) -> Any:
    """A new layer, in the other Keras, of the same class and settings.

    Args:
        layer: The layer, for its class and name.
        config: Its config.
        source: The Keras it is of.
        custom: The user's classes and functions of the other Keras, by name.

    Raises:
        ValueError: The other Keras has no such class, or the class no such argument.
    """
    target = TF_KERAS if source is KERAS else KERAS
    try:
        with target.module.utils.custom_object_scope(dict(custom)):
            class_, config = _converted(type(layer), config, "layers", source, target, custom)
            return _made(class_, config)
    except Exception as error:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has no counterpart in {target.name}: "
            f"{error}\nWays out: give `custom_objects` a class of {target.name} by that name, "
            "which takes the same config and has the same weights in the same order; or build "
            "the model of layers that both have."
        ) from error


def _converted(
    class_: Any, config: Any, kind: str, source: Library, target: Library, custom: Mapping
) -> tuple[Any, dict[str, Any]]:
    """Class and config of an object in the other Keras."""
    name = class_.__name__
    other = _other_class(class_, kind, source, target, custom)
    config = dict(config)
    if source is TF_KERAS:
        config |= _OTHER_CLASS.get(name, ("", {}))[1]
    takes, had = _parameters(other), _parameters(class_)
    if issubclass(other, tf_keras.layers.RNN):
        takes["zero_output_for_mask"] = False  # among its keyword arguments, without a name
    takes_all = other.__module__.split(".")[0] != target.module.__name__  # the user has seen to it
    renamed = _RENAMED.get(name, {})
    if source is KERAS:
        renamed = {new: old for old, new in renamed.items()}
    result = {}
    for key, value in config.items():
        key = renamed.get(key, key)
        if key in takes or (takes_all and key not in _WITHOUT_EFFECT):
            result[key] = _value(key, value, name, source, target, custom)
        elif not _is_default(key, value, had.get(key, _MISSING)):
            raise ValueError(f"{target.name} has no argument `{key}`. Received: {key}={value!r}")
    return other, result


def _other_class(class_: Any, kind: str, source: Library, target: Library, custom: Mapping) -> Any:
    """The class of the other Keras that stands for one of this."""
    name = class_.__name__
    registered = source.module.saving.get_registered_name(class_)
    found = custom.get(registered) or custom.get(name)
    if found is None and class_.__module__.split(".")[0] == source.module.__name__:
        name = _OTHER_CLASS.get(name, (name,))[0] if source is TF_KERAS else name
        found = getattr(getattr(target.module, kind), name, None)
    elif found is None:
        found = target.module.saving.get_registered_object(registered)
    if found is None:
        raise ValueError(f"{target.name} knows no class {name}.")
    return found


def _value(
    key: str, value: Any, name: str, source: Library, target: Library, custom: Mapping
) -> Any:
    """An argument's value, with the objects and layers in it converted."""
    if key == "dtype":
        return value["config"]["name"] if isinstance(value, Mapping) else value
    if key.endswith("activation") and value in _OTHER_FUNCTION:
        raise ValueError(
            f"{target.name} has another function by the name that `{key}` has. "
            f"Received: {key}={value!r}"
        )
    if key == "axis" and name.endswith("BatchNormalization") and isinstance(value, list | tuple):
        (value,) = value  # a list in tf_keras once it is built

    def inside(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [inside(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        if {"class_name", "config"} <= set(value):
            return _object(value, source, target, custom)
        return {k: inside(v) for k, v in value.items()}

    return inside(value)


def _object(value: Mapping, source: Library, target: Library, custom: Mapping) -> Any:
    """A serialized object as the other Keras writes it."""
    if not isinstance(value["config"], Mapping):
        return dict(value)  # a function, by its name
    module, class_name = value.get("module") or "", value["class_name"]
    kind = module.rsplit(".", 1)[-1]
    if kind in _KINDS and module.split(".")[0] in ("keras", "tf_keras"):
        class_ = getattr(getattr(source.module, kind), class_name)
    else:
        kind = ""
        class_ = source.module.saving.get_registered_object(value.get("registered_name"))
        if class_ is None:
            return dict(value)  # for the other Keras to understand or to refuse
    other, config = _converted(class_, value["config"], kind, source, target, custom)
    return target.module.saving.serialize_keras_object(_made(other, config))


def _made(class_: Any, config: dict[str, Any]) -> Any:
    """A new object from its config."""
    if class_ is TF_KERAS.module.layers.MultiHeadAttention:  # it asks for shapes, too
        return class_(**config)
    return class_.from_config(config)


def _parameters(class_: Any) -> dict[str, Any]:
    """The arguments of a class's constructor and of those of its bases, with their defaults."""
    found: dict[str, Any] = {}
    for base in class_.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        kinds = {parameter.kind for parameter in parameters}
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter.default)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break  # the arguments of the bases are no arguments of this one
    return found


def _is_default(key: str, value: Any, default: Any) -> bool:
    """Whether a model with weights computes the same without this argument."""
    if key in _WITHOUT_EFFECT or key.endswith("_initializer"):
        return True
    return value in (None, False) if default is _MISSING else value == default
