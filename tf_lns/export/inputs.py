"""The batch whose products become test vectors: samples of the user's, or random ones."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_lns import keras_hooks
from tf_lns.calibrate import input_batches
from tf_lns.layers.tree import all_layers

SEED = 0
RANDOM = f"random: normal numbers, token ids in range (seed {SEED})"


def samples_of(data: Any, count: int) -> Any:
    """The first samples of what `calibrate` takes as data.

    Raises:
        TypeError: `data` is nothing that holds samples.
        ValueError: There are too few.
    """
    batches, _ = input_batches(data, count, None)
    for batch in batches:
        sizes = {len(x) for x in keras.tree.flatten(batch)}
        if min(sizes, default=0) >= count:
            return keras.tree.map_structure(lambda x: x[:count], batch)
        break
    else:
        sizes = {0}
    raise ValueError(
        f"`data` must hold {count} samples, all in its first batch. Received: {min(sizes)}"
    )


def random_samples(model: keras.Model, count: int) -> Any:
    """Random samples of the shapes that a Sequential or functional model takes.

    Raises:
        ValueError: The shapes are not known.
    """
    if not keras_hooks.is_graph(model):
        raise ValueError(
            f"`data` is needed for a model of your own class, whose inputs are not known. "
            f"Received: data=None, model {model.name!r} ({type(model).__name__})"
        )
    rng = np.random.default_rng(SEED)
    tables = _tables(model)

    def sample(x: Any) -> np.ndarray:
        if None in x.shape[1:]:
            raise ValueError(
                f"`data` is needed, as the input {x.name!r} has no fixed size. Received: "
                f"data=None, an input of shape {tuple(x.shape)}"
            )
        shape, dtype = (count, *x.shape[1:]), keras.backend.standardize_dtype(x.dtype)
        ids = tables.get(id(x))
        if ids is None and keras.backend.is_int_dtype(dtype):
            ids = min(tables.values(), default=2)
        if ids is not None:
            return rng.integers(0, ids, shape).astype(dtype)
        if dtype == "bool":
            return rng.integers(0, 2, shape).astype(bool)
        return rng.standard_normal(shape).astype(dtype)

    sequential = isinstance(model, keras.Sequential)
    return keras.tree.map_structure(sample, model.inputs[0] if sequential else model.input)


def _tables(model: keras.Model) -> dict[int, int]:
    """Rows of embedding tables, by the id of the tensor that holds the token ids."""
    found: dict[int, int] = {}
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Embedding):
            try:
                tensor = layer.input
            except (AttributeError, ValueError):  # used in several places, or inside a layer
                tensor = layer
            found[id(tensor)] = min(layer.input_dim, found.get(id(tensor), layer.input_dim))
    return found
