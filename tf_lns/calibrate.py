"""Recorded ranges of activations from data, without training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns.copying import check_model
from tf_lns.layers.container import lns_layers
from tf_lns.layers.mixin import calibration
from tf_lns.ops.call import integer


def calibrate(
    model: keras.Model,
    data: Any,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int = 1,
) -> keras.Model:
    """Records the range of every layer's activations from data, without training.

    Afterwards, and after training, predictions do not depend on the batch they come in.

    Args:
        model: Model with LNS layers.
        data: Input array, or tuple or dict of arrays as the model takes them; or an iterable
            of batches (`tf.data.Dataset`, `keras.utils.PyDataset`, generator), where of a
            tuple batch the first element is the input.
        batch_size: For arrays.
        steps: Number of batches at most.
        verbose: 1 for a progress bar, 0 for none.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no Keras model, or a number is no integer.
        ValueError: `model` has no LNS layer with a recorded range, a number is out of range,
            or `data` is empty. Recorded ranges then stay as they were.
    """
    check_model(model)
    for name, value in (("batch_size", batch_size), ("steps", steps)):
        if value is not None and integer(value, name) < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value!r}")

    def recording() -> list[tf.Variable]:
        return [r for layer in lns_layers(model) for r in layer.input_ranges]

    if model.built and not recording():
        raise ValueError(
            f"`model` has no layer that records ranges. Received: model {model.name!r}; convert "
            'it with tf_lns.quantize_model and activation_scale="moving".'
        )
    before = [(r, r.numpy()) for r in recording()]
    batches, total = input_batches(data, batch_size, steps)
    bar = keras.utils.Progbar(total) if verbose else None
    count = 0
    for recorded, _ in before:
        recorded.assign(0.0)
    try:
        with calibration():
            for batch in batches:
                model(batch, training=False)
                count += 1
                if bar is not None:
                    bar.update(count)
                if count == steps:
                    break
        if not count:
            raise ValueError("`data` holds no batch to calibrate on.")
        if recording() and not any(float(r.numpy()) > 0 for r in recording()):
            raise ValueError(
                "No layer recorded a range: `data` holds zeros or NaN alone, or the layers run "
                "inside a tf.function of the model's own, where ranges cannot be recorded."
            )
    except BaseException:
        for recorded, value in before:
            recorded.assign(value)
        raise
    if bar is not None:
        bar.update(count, finalize=True)
    return model


def input_batches(data: Any, batch_size: int, steps: int | None) -> tuple[Iterable, int | None]:
    """Batches of model inputs, and how many there will be if that is known."""
    arrays = isinstance(data, np.ndarray | np.generic | tf.Tensor | dict) or (
        isinstance(data, list | tuple) and data and all(hasattr(a, "shape") for a in data)
    )
    if arrays:
        if any(len(a.shape) == 0 for a in keras.tree.flatten(data)):
            raise ValueError(f"`data` must have a batch axis. Received: data={data!r}")
        size = int(keras.tree.flatten(data)[0].shape[0])
        count = -(-size // batch_size)

        def cut() -> Iterable:
            for start in range(0, size, batch_size):
                rows = slice(start, start + batch_size)
                yield keras.tree.map_structure(lambda a, rows=rows: a[rows], data)

        return cut(), count if steps is None else min(count, steps)
    if isinstance(data, keras.utils.PyDataset):
        items: Iterable = (data[i] for i in range(len(data)))
        total = len(data)
    elif isinstance(data, Iterable) and not isinstance(data, str):
        items = iter(data)
        total = int(data.cardinality()) if isinstance(data, tf.data.Dataset) else -1
    else:
        raise TypeError(f"`data` must be arrays or an iterable of batches. Received: data={data!r}")
    inputs = (batch[0] if isinstance(batch, tuple) else batch for batch in items)
    if steps is not None:
        total = steps if total < 0 else min(total, steps)
    return inputs, total if total >= 0 else None
