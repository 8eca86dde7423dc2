"""Q_G of integer weights: in the optimizer where it is one of tf_lns.tfmot, else in the layer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tf_lns import keras_hooks, ops

_mode = threading.local()


@contextlib.contextmanager
def left_to_the_optimizer() -> Iterator[None]:
    """Inside, gradients of integer weights leave the layers as they are.

    An optimizer that quantizes the sum itself computes the gradients so.
    """
    previous = getattr(_mode, "left", False)
    _mode.left = True
    try:
        yield
    finally:
        _mode.left = previous


@tf.autograph.experimental.do_not_convert
def quantize_weight_gradient(value: tf.Tensor, cell: Any) -> tf.Tensor:
    """The identity on what a layer reads of a weight, whose gradient goes through Q_G.

    Args:
        value: The weight as the layer's products see it.
        cell: The `LNSCell` it was read from, which has the format of the gradient.

    Returns:
        `value`. Its gradient is quantized unless that happens `left_to_the_optimizer`.
    """
    format, options = cell.gradient_format, cell.gradient_options
    if format is None:
        return value

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        if getattr(_mode, "left", False):
            return dy
        quantized = ops.quantize(dy, format, **{**options, "axis": options.get("axis") or None})
        # An overflow must stay one: by it a LossScaleOptimizer knows to skip the step.
        return tf.where(tf.math.is_inf(dy), dy, quantized)

    if tf.executing_eagerly():
        return tf.custom_gradient(lambda x: (tf.identity(x), gradient))(value)
    settings = ":".join(f"{key}={options[key]}" for key in sorted(options))
    return keras_hooks.identity_with_gradient(value, f"LnsWeight:{format}:{settings}", gradient)
