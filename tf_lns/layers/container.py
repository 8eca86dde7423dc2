"""Converts layers and models in place, and saves those that no registered class stands for.

Keras rebuilds a subclassed model, or a layer that makes layers of its own, from its
constructor's arguments; what was converted inside would come back as plain layers. A
container is that model or layer itself with one more base class: it is saved with the formats
of what it holds, and converts anew when it is built. In the same way a user's subclass of a
known layer gets the LNS layer as one more base class.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras

from tf_lns import keras_hooks
from tf_lns.config import LNSConfig
from tf_lns.layers.mixin import LNSMixin, becomes_integer, signature_with_training
from tf_lns.layers.registry import CONTAINER, accepted, keras_class_of, lns_layer_of, plain_class
from tf_lns.layers.tree import all_layers, children, walk
from tf_lns.roles import keeps_grid, multiplies_activations

Choose = Callable[[str, keras.layers.Layer, LNSConfig | None], LNSConfig | None]


def convert(
    layer: keras.layers.Layer,
    choose: Choose,
    place: str = "",
    around: LNSConfig | None = None,
    overrides: Mapping[str, LNSConfig | None] | None = None,
    wrapped: Collection[int] = (),
) -> list[str]:
    """Turns a layer or model, and all inside, into LNS layers and containers, in place.

    Args:
        layer: Plain layer or model, built or not.
        choose: Function of a layer's place (see `tree.children`), the layer, and the formats of
            what it is in, to its formats; None leaves it as it is.
        place: Place of `layer`.
        around: Formats of what it is in.
        overrides: By place, what containers are told of layers that they are still to make.
        wrapped: Ids of layers to convert as `LNSWrapper` does.

    Returns:
        In words, the layers that have kernels, were meant to be converted and stay float.

    Raises:
        ValueError: A kernel has a constraint, or a layer that gets a datapath cannot compute its
            products on one; then nothing has been changed.
    """
    found: dict[int, tuple[keras.layers.Layer, str, LNSConfig | None]] = {}

    def visit(layer: keras.layers.Layer, place: str, around: LNSConfig | None) -> None:
        if id(layer) in found:
            return
        config = choose(place, layer, around)
        found[id(layer)] = layer, place, config
        for step, child in children(layer):
            visit(child, f"{place}.{step}" if place else step, config)

    visit(layer, place, around)
    for inside, _, config in found.values():
        target = LNSMixin if id(inside) in wrapped else lns_class_for(inside)
        if config is not None and target is not None:
            _check_constraints(inside)
            target.check_datapath(config, inside.name)
    left = []
    for inside, where, config in found.values():
        if config is not None and id(inside) in wrapped:
            wrap(inside, config)
        elif config is not None and not convert_alone(inside, config, _below(where, overrides)):
            left.append(f"{inside.name} ({type(inside).__name__})")
    for inside, _, _ in found.values():
        keras_hooks.follow_replacements(inside)
        if isinstance(inside, LNSContainer):
            inside.note_overrides()
    return left


def _check_constraints(layer: keras.layers.Layer) -> None:
    """Raises where a variable that becomes an integer has a constraint that it cannot keep."""
    for variable in keras_hooks.own_variables(layer):
        constraint = getattr(variable, "constraint", None)
        if not keeps_grid(constraint) and becomes_integer(variable):
            raise ValueError(
                f"{variable.path} has a constraint, which would move an integer weight off "
                f"its grid. Received: constraint={constraint!r}. Leave layer {layer.name!r} "
                "float with `overrides`, or drop the constraint."
            )


def is_lns_kind(layer: keras.layers.Layer) -> bool:
    """Whether a layer is an LNS layer, or is one when it is converted."""
    return isinstance(layer, LNSMixin) or lns_class_for(layer) is not None


def lns_layers(layer: keras.layers.Layer) -> list[Any]:
    """All LNS layers inside a layer or model, at any depth."""
    return [inside for inside in all_layers(layer) if isinstance(inside, LNSMixin)]


def convert_alone(
    layer: keras.layers.Layer,
    config: LNSConfig,
    overrides: dict[str, LNSConfig | None] | None = None,
) -> bool:
    """Turns one layer or model into an LNS layer or a container; what is inside stays.

    Returns:
        Whether its own kernels, if it has any, are in LNS.
    """
    if isinstance(layer, LNSMixin) or _convert_layer(layer, config):
        return True
    if _makes_layers(layer):
        contain(layer, config, overrides)
    return not any(multiplies_activations(v) for v in keras_hooks.own_variables(layer))


def _below(place: str, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The part of overrides that is for layers inside the one at a place."""
    prefix = f"{place}." if place else ""
    found = (overrides or {}).items()
    return {key[len(prefix) :]: value for key, value in found if key.startswith(prefix)}


def _convert_layer(layer: keras.layers.Layer, config: LNSConfig) -> bool:
    """Turns a Keras layer into its LNS layer, if there is one; the layers inside stay."""
    target = lns_class_for(layer)
    if target is None:
        return False
    target.adopt(layer, config)
    return True


def lns_class_for(layer: keras.layers.Layer) -> type[Any] | None:
    """The LNS class for a plain layer: a registered one, or one derived from its base's."""
    if isinstance(layer, LNSMixin | LNSContainer) or not _is_convertible(layer):
        return None
    class_: Any = type(layer)
    for base in class_.__mro__:
        registered: Any = lns_layer_of(base)
        if registered is None:
            continue
        if base is class_:
            return registered
        return derived_class(class_, registered) if _can_derive(class_, base, registered) else None
    return None


def _is_convertible(layer: keras.layers.Layer) -> bool:
    """Whether a layer computes with weights of its own in float, as Keras made them."""
    own = getattr(layer.dtype_policy, "quantization_mode", None) is not None
    return not own and not getattr(layer, "lora_enabled", False)


def _can_derive(class_: Any, base: Any, lns_class: Any) -> bool:
    """Whether a user's `call` still runs what the LNS class puts in the place of Keras' call."""
    added = lns_class.__mro__[: lns_class.__mro__.index(base)]
    own_call = any("call" in vars(c) and not issubclass(c, keras.layers.Layer) for c in added)
    return not own_call or class_.call is base.call


def _makes_layers(layer: keras.layers.Layer) -> bool:
    """Whether a layer makes layers inside that Keras does not save with it, or may make some."""
    is_keras = type(layer).__module__.split(".")[0] == "keras"
    saves_them = (
        is_exact_graph(layer)
        or type(layer) in (keras.layers.RNN, keras.layers.StackedRNNCells)
        or (is_keras and isinstance(layer, keras.layers.Wrapper))
    )
    inside = any(is_lns_kind(child) for child in all_layers(layer))
    is_own_wrapper = getattr(layer, "stands_for_its_layer", False)
    return not (saves_them or is_own_wrapper) and (inside or not (layer.built or is_keras))


def is_exact_graph(layer: Any) -> bool:
    """Whether a model is one of Keras' own graph classes, not a subclass of the user's."""
    return plain_class(layer) in (keras.Sequential, keras_hooks.Functional)


class LNSContainer(keras_hooks.AfterBuild):
    """Mixin of a layer or model whose inner layers were converted; see `contain`.

    Attributes:
        lns_config: Formats of the layers inside.
        lns_overrides: Formats of those inside that have others, by their place; None for
            layers that stay float.
    """

    lns_config: LNSConfig
    lns_overrides: Mapping[str, LNSConfig | None] = types.MappingProxyType({})

    def after_build(self) -> None:
        """Converts what was made when the layer was built."""
        super().after_build()
        self.convert_inside()

    def convert_inside(self) -> None:
        """Turns the layers inside into LNS layers and containers, as the formats say."""

        def choose(place: str, layer: Any, around: LNSConfig | None) -> LNSConfig | None:
            return self.lns_overrides.get(place, around)

        for place, child in children(self):
            convert(child, choose, place, self.lns_config, self.lns_overrides)

    def note_overrides(self) -> None:
        """Sets `lns_overrides` to what the layers inside are now."""
        found = dict(self.lns_overrides)
        for place, child in walk(self):
            if isinstance(child, LNSMixin | LNSContainer):
                found.pop(place, None)
                if child.lns_config != self.lns_config:
                    found[place] = child.lns_config
            elif lns_class_for(child) is not None:
                found[place] = None
        keras_hooks.set_untracked(self, "lns_overrides", found)

    def overrides_config(self) -> dict[str, Any]:
        """`lns_overrides` as a JSON-able dict."""
        self.note_overrides()
        return {k: None if v is None else v.get_config() for k, v in self.lns_overrides.items()}


def overrides_from(config: dict[str, Any] | None) -> dict[str, LNSConfig | None]:
    """`lns_overrides` from what `overrides_config` wrote."""
    return {k: None if v is None else LNSConfig.get(v) for k, v in (config or {}).items()}


class LNSComposite(LNSContainer, LNSMixin):
    """Mixin of an LNS layer that is made of layers, such as attention and recurrent layers.

    Its constructor takes `lns_overrides` too: formats of layers inside, by their place.
    """

    def __init__(self, *args: Any, lns_overrides: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        keras_hooks.set_untracked(self, "lns_overrides", overrides_from(lns_overrides))
        self.convert_inside()  # what the constructor made

    def get_config(self) -> dict[str, Any]:
        """The Keras layer's config, `lns_config` and, where there are any, `lns_overrides`."""
        overrides = self.overrides_config()
        return {**super().get_config(), **({"lns_overrides": overrides} if overrides else {})}


class _SavedAsPlain(LNSContainer):
    """Mixin of the classes made here: saved as the plain layer, and what makes it LNS."""

    _plain_class: type

    def get_config(self) -> dict[str, Any]:
        """The layer as Keras saves it, and the formats."""
        plain = self._plain_class
        with keras_hooks.as_class(self, plain):
            layer = keras.saving.serialize_keras_object(self)
        layer["config"] = accepted(plain, layer["config"])
        for key in ("build_config", "compile_config"):  # Keras adds them to this config
            layer.pop(key, None)
        return {
            "layer": layer,
            "lns_config": self.lns_config.get_config(),
            "lns_overrides": self.overrides_config(),
            "wrapped": is_wrapped(self),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Rebuilds the plain layer and converts it."""
        layer: Any = keras.saving.deserialize_keras_object(config["layer"], custom_objects)
        formats = LNSConfig.get(config["lns_config"])
        overrides = overrides_from(config.get("lns_overrides"))
        if config.get("wrapped"):
            wrap(layer, formats)
        if isinstance(layer, LNSMixin) or _convert_layer(layer, formats):
            keras_hooks.set_untracked(layer, "lns_overrides", overrides)
        else:
            contain(layer, formats, overrides)
        layer.convert_inside()
        return layer


# What the registered name of all these classes leads to.
keras.saving.register_keras_serializable(package="tf_lns", name="LNSContainer")(_SavedAsPlain)


def contain(
    layer: keras.layers.Layer,
    config: LNSConfig,
    overrides: dict[str, LNSConfig | None] | None = None,
) -> None:
    """Makes a layer or model a container, in place; what is inside is not converted yet."""
    class_: Any = type(layer)
    if not isinstance(layer, LNSContainer):
        keras_hooks.change_class(layer, _container_class(class_))
    container: Any = layer
    container.lns_config = config
    keras_hooks.set_untracked(container, "lns_overrides", dict(overrides or {}))


def wrap(layer: keras.layers.Layer, config: LNSConfig) -> None:
    """Makes an LNS layer of a layer of any kind, in place."""
    class_: Any = type(layer)
    mixin: Any = LNSMixin
    derived_class(class_, mixin).adopt(layer, config)


def is_wrapped(layer: keras.layers.Layer) -> bool:
    """Whether `wrap` made it."""
    return isinstance(layer, _SavedAsPlain) and LNSMixin in type(layer).__bases__


@functools.cache
def _container_class(plain: Any) -> type[Any]:
    """The container class of a Keras class."""
    takes_training = "training" in inspect.signature(plain.call).parameters
    members = {} if takes_training else {"call": _with_training(plain.call)}
    of_models = _MODEL_BASES if issubclass(plain, keras.Model) else []
    return _make_class(plain, (_SavedAsPlain, *of_models, plain), members)


_MODEL_BASES: list[type] = []


def base_of_models(class_: type) -> type:
    """Class decorator: one more base of the containers that are models."""
    _MODEL_BASES.append(class_)
    return class_


@functools.cache
def derived_class(plain: Any, lns_class: Any) -> Any:
    """The LNS class of a user's subclass of a layer that has an LNS class.

    Args:
        plain: The subclass.
        lns_class: LNS class of one of its bases; `LNSMixin` for a layer of any kind.
    """
    base = keras_class_of(lns_class) or keras.layers.Layer
    members = {} if plain.call is base.call else {"call": plain.call}
    return _make_class(plain, (_SavedAsPlain, lns_class, plain), members)


def _make_class(plain: Any, bases: tuple, members: dict[str, Any]) -> type[Any]:
    """A class that bears the name of the plain one: paths in weight files are made of it."""
    described = {
        "_plain_class": plain,
        "__module__": __name__,
        "__qualname__": f"LNS[{plain.__qualname__}]",
        "__doc__": plain.__doc__,
    }
    made = type(plain.__name__, bases, {**described, **members})
    keras_hooks.name_for_saving(made, CONTAINER)
    return made


def _with_training(call: Callable) -> Callable:
    """A `call` that takes `training`, so that Keras tells the layers inside."""
    signature = signature_with_training(call)

    @functools.wraps(call)
    def contained_call(*args: Any, training: Any = None, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    wrapped: Any = contained_call
    wrapped.__signature__ = signature
    return wrapped
