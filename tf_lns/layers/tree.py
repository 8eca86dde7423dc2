"""The layers inside a layer or model, and where each of them is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from tf_lns import keras_hooks

_SKIPPED = {
    "_layers",
    "_operations",
    "_functional",
    "_metrics",
    "_operations_by_depth",
    # TensorFlow's tracking of what other attributes hold
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_dependency_names",
}


def children(layer: keras.layers.Layer) -> list[tuple[str, keras.layers.Layer]]:
    """What a layer or model holds directly, each once, with its place.

    The place is the attribute that holds the child (``dense``, ``blocks.0``); in a Sequential
    or functional model it is the position (``layers.2``). Places do not depend on names, which
    Keras counts up in each process.
    """
    if keras_hooks.is_graph(layer):
        inner = [c for c in layer.layers if not isinstance(c, keras.layers.InputLayer)]
        found = {id(c): (f"layers.{i}", c) for i, c in enumerate(inner)}
    else:
        found = {}
    places: dict[int, str] = {}
    for name, value in sorted(vars(layer).items()):
        if name not in _SKIPPED:
            _collect(name, value, places)
    graph = vars(layer).get("_functional")  # of a Sequential model: the same layers again
    for i, child in enumerate(keras_hooks.sublayers(layer)):
        if child is not graph and not isinstance(child, keras.layers.InputLayer):
            found.setdefault(id(child), (places.get(id(child), f"layer.{i}"), child))
    return list(found.values())


def _collect(place: str, value: Any, places: dict[int, str]) -> None:
    if isinstance(value, keras.layers.Layer):
        places.setdefault(id(value), place)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _collect(f"{place}.{i}", item, places)
    elif isinstance(value, dict):
        for key, item in value.items():
            _collect(f"{place}.{key}", item, places)


def walk(layer: keras.layers.Layer) -> Iterator[tuple[str, keras.layers.Layer]]:
    """All layers inside at any depth, each once, outer before inner ones, with their places."""
    seen = {id(layer)}

    def inner(parent: keras.layers.Layer, prefix: str) -> Iterator[tuple[str, keras.layers.Layer]]:
        for place, child in children(parent):
            if id(child) not in seen:
                seen.add(id(child))
                yield prefix + place, child
                yield from inner(child, f"{prefix}{place}.")

    yield from inner(layer, "")


def all_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All layers inside a layer or model at any depth, each once."""
    return [child for _, child in walk(layer)]


def pairs(
    source: keras.layers.Layer, target: keras.layers.Layer, complete: bool = True
) -> list[tuple[Any, Any]]:
    """Each layer of a model, itself first, and what a copy of the model has in its place.

    Args:
        source: Layer or model.
        target: Its copy.
        complete: Whether both must hold the same layers; else those of one alone are left out.

    Raises:
        ValueError: The two do not hold the same layers.
    """
    seen: set[int] = set()
    result = []

    def inner(old: Any, new: Any) -> None:
        if id(old) in seen:
            return
        seen.add(id(old))
        result.append((old, new))
        mine, theirs = dict(children(old)), dict(children(new))
        if keras_hooks.is_graph(old) and keras_hooks.is_graph(new):
            # A clone may have its layers in another order; then names tell.
            names = {c.name: place for place, c in mine.items()}
            if len(names) == len(mine) and {c.name for c in theirs.values()} == set(names):
                theirs = {names[c.name]: c for c in theirs.values()}
        if complete and set(mine) != set(theirs):
            raise ValueError(
                f"The copy of {old.name!r} ({type(old).__name__}) holds other layers: "
                f"{sorted(set(mine) ^ set(theirs))}"
            )
        for place, child in mine.items():
            if place in theirs:
                inner(child, theirs[place])

    inner(source, target)
    return result
