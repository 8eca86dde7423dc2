"""Plain Keras copies of models, and what moves between a model and its copy."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras

from tf_lns import keras_hooks
from tf_lns.layers.container import is_exact_graph, is_wrapped
from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.registry import accepted, plain_build_config, plain_class, plain_config
from tf_lns.layers.tree import all_layers, pairs
from tf_lns.layers.wrapper import LNSWrapper
from tf_lns.variable import LNSVariable


def check_model(model: keras.Model) -> None:
    """Raises TypeError if `model` is no Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")


def plain_copy(model: keras.Model, seen: bool = False) -> tuple[keras.Model, list[tuple]]:
    """A plain Keras model with the values of a model, plain or LNS, and the pairs of layers.

    Args:
        model: The model.
        seen: Copy the weights as the forward pass sees them.

    Raises:
        ValueError: `model` cannot be copied.
    """
    copies: dict[int, keras.layers.Layer] = {}

    def fresh(layer: keras.layers.Layer) -> keras.layers.Layer:
        """A new plain layer with the settings of another."""
        if isinstance(layer, LNSWrapper):  # what is inside stands in its place
            inside = fresh(layer.layer)
            inside.name = layer.name
            return inside
        if id(layer) not in copies:
            copies[id(layer)] = _clone(layer, fresh) if is_exact_graph(layer) else _remade(layer)
        return copies[id(layer)]

    try:
        with keras_hooks.redirect_new(lambda cls: cls, lambda layer: None):  # also in a scope
            copy = fresh(model)
            _name_alike(model, copy)  # what constructors made: paths of variables have the names
            _build_alike(model, copy)
        _name_alike(model, copy)  # what was made in building
        partners = pairs(model, copy)
        copy_state(partners, seen)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"`model` {model.name!r} ({plain_class(model).__name__}) cannot be copied: {error}\n"
            "Give it, or the layer named, a `get_config` that holds the arguments of its "
            "constructor; or convert the model itself: quantize_model(..., in_place=True)."
        ) from error
    return copy, partners


def _clone(model: keras.Model, function: Callable) -> keras.Model:
    """A Sequential or functional model of what `function` makes of each layer."""
    models = [m for m in [model, *all_layers(model)] if isinstance(m, keras.Model)]
    with keras_hooks.not_compiled(models):
        clone = keras.models.clone_model(
            model, input_tensors=_inputs_like(model), clone_function=function
        )
    if type(clone) is not plain_class(model):
        keras_hooks.change_class(clone, plain_class(model))
    return clone


def _inputs_like(model: keras.Model) -> Any:
    """New inputs for a functional model, named and set as its own; None for a Sequential one.

    Keras' own cloning names them anew and makes none of them optional.
    """
    if isinstance(model, keras.Sequential):
        return None
    layers = {
        id(layer.output): layer
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    }
    return keras.tree.map_structure(
        lambda x: keras.layers.InputLayer.from_config(layers[id(x)].get_config()).output,
        model.input,
    )


def _remade(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A new plain layer or model of the same class and settings, not built."""
    if isinstance(layer, keras.layers.Lambda):
        return layer  # it has no state, and Keras does not rebuild functions without a name
    class_ = plain_class(layer)
    if issubclass(class_, LNSMixin):
        raise ValueError(
            f"no Keras layer is known for {class_.__name__} (layer {layer.name!r}); register "
            "the class with `tf_lns.register_layer`"
        )
    with keras_hooks.as_class(layer, class_):
        config = layer.get_config()
    return class_.from_config(accepted(class_, plain_config(config)))


def _name_alike(source: keras.Model, copy: keras.Model) -> None:
    """Gives the layers of a copy, which Keras may have named anew, the names of the original."""
    for old, new in pairs(source, copy, complete=False):
        if new.name != old.name and not is_wrapped(old):
            new.name = old.name


def _build_alike(source: keras.Model, copy: keras.Model) -> None:
    """Builds the layers of a copy that are built in the original."""
    if not source.built:
        return
    if not copy.built and source.get_build_config():
        with warnings.catch_warnings():  # what it leaves unbuilt is built below
            warnings.simplefilter("ignore")
            copy.build_from_config(plain_build_config(source.get_build_config()))
    for old, new in reversed(pairs(source, copy, complete=False)):
        if old.built and not new.built:
            new.build_from_config(plain_build_config(old.get_build_config()) or {})
            new.built = True


def copy_state(partners: list[tuple], seen: bool = False) -> None:
    """Copies weights and trainability from each layer to its plain partner."""
    for old, new in partners:
        new.trainable = old.trainable  # of all within, so the outer ones come first
    for old, new in partners:
        mine, theirs = keras_hooks.own_variables(old), keras_hooks.own_variables(new)
        for a, b in zip(mine, theirs, strict=True):
            keras_hooks.name_alike(b, a)
        copy_layer(old, new, seen)


def copy_layer(old: keras.layers.Layer, new: keras.layers.Layer, seen: bool = False) -> None:
    """Copies the values of a layer's own variables to a partner that may be plain or LNS.

    Args:
        old: Layer to copy from.
        new: Its partner.
        seen: Take integer weights as the forward pass sees them.
    """
    if not isinstance(old, LNSMixin) and not isinstance(new, LNSMixin):
        _copy_plain(old, new)
        return
    mine, theirs = keras_hooks.own_variables(old), keras_hooks.own_variables(new)
    for a, b in zip(mine, theirs, strict=True):
        if isinstance(a, LNSVariable):
            b.assign(a.cell.read(a.cell.seen if seen else None))
        else:
            b.assign(a.value)


def _copy_plain(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Copies what a file would hold: variables and assets such as vocabularies."""
    if keras_hooks.own_variables(old):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables(store)
    if hasattr(old, "save_assets") and old.built:
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
