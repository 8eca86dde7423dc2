"""Gradients of the compiled ops: straight through, or quantized."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_lns.ops.call import call, seed_tensor

_FORMAT_ATTRIBUTES = (
    "bits",
    "base_factor",
    "axis",
    "vector_size",
    "rounding",
    "underflow",
    "power_of_two",
)

for _name in ("LnsEncode", "LnsDecode", "LnsRequantize", "LnsScale", "LnsAssignVariable"):
    tf.no_gradient(_name)
for _name in ("LnsApplyMadam", "LnsApplyMadamAdditive"):
    tf.no_gradient(_name)


@tf.RegisterGradient("LnsQuantize")
def _quantize_grad(op: tf.Operation, grad: tf.Tensor) -> tuple:
    """x: grad, as it is (straight-through); scale and seed: none, they are not trained."""
    return grad, None, None


@tf.RegisterGradient("LnsQuantizeDynamic")
def _quantize_dynamic_grad(op: tf.Operation, grad: tf.Tensor, _scale: tf.Tensor) -> tuple:
    """x: grad, as it is (straight-through; the scale counts as constant); seed: none."""
    return grad, None


def quantized_gradient(grad: tf.Tensor, attrs: dict[str, Any]) -> tf.Tensor:
    """The gradient of `LnsQuantizeGradient`: grad quantized under a scale of its own.

    Args:
        grad: Gradient, float16, bfloat16 or float32.
        attrs: The op's attributes.

    Returns:
        Tensor like grad.
    """
    error, _ = call(
        "lns_quantize_dynamic",
        tf.cast(grad, tf.float32),
        seed_tensor(None, attrs["rounding"]),
        **attrs,
    )
    error = tf.cast(error, grad.dtype)
    if grad.dtype == tf.float16:
        # An overflow must stay one: by it a LossScaleOptimizer knows to skip the step.
        error = tf.where(tf.math.is_inf(grad), grad, error)
    return error


@tf.RegisterGradient("LnsQuantizeGradient")
def _quantize_gradient_grad(op: tf.Operation, grad: tf.Tensor) -> tf.Tensor:
    """x: grad quantized to the op's format, under a scale of its own."""
    attrs = {name: op.get_attr(name) for name in _FORMAT_ATTRIBUTES}
    attrs = {k: v.decode() if isinstance(v, bytes) else v for k, v in attrs.items()}
    return quantized_gradient(grad, attrs)


@tf.RegisterGradient("LnsReadVariable")
def _read_variable_grad(op: tf.Operation, grad: tf.Tensor) -> tuple:
    """codes: grad, as ReadVariableOp does for the variable behind a handle; scale: none."""
    return grad, None
