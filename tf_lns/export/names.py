"""Names of layers and weights that stand in a manifest, and as names of files."""

from __future__ import annotations

import re

import keras

from tf_lns.layers.tree import children


class Names:
    """Gives out names, each once; files whose names differ in case alone collide on some disks."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, name: str) -> str:
        """`name`, or with a number behind it where it is taken."""
        found, count = name, 1
        while found.lower() in self._taken:
            count += 1
            found = f"{name}_{count}"
        self._taken.add(found.lower())
        return found


def plain_name(name: str) -> str:
    """A name that is one part of a path on any system."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name) or "_"


def layer_paths(model: keras.Model) -> dict[int, str]:
    """Path of each layer by its id: names from the outside in, ``encoder/attention/query``.

    The model's own is "", each layer has one path, whatever number of places it is used in.
    """
    paths = {id(model): ""}
    names = Names()

    def visit(parent: keras.layers.Layer, prefix: str) -> None:
        for _, child in children(parent):
            if id(child) not in paths:
                paths[id(child)] = path = names.unique(prefix + plain_name(child.name))
                visit(child, f"{path}/")

    visit(model, "")
    return paths
