"""The fused LNS-Madam updates, in place on variables."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_lns.formats import LNSFormat
from tf_lns.ops.call import call, seed_tensor

NO_EXPONENT = -(1 << 31)
"""Exponent of a one-byte second moment before its first gradient."""


def apply_madam(
    weight: tf.Tensor,
    scale: Any,
    second_moment: tf.Tensor,
    gradient: tf.Tensor,
    *,
    learning_rate: Any,
    step: Any,
    weight_type: tf.DType,
    moment_type: tf.DType,
    format: LNSFormat,
    moment_exponent: tf.Tensor | None = None,
    gradient_format: LNSFormat | None = None,
    gradient_scale: Any = None,
    gradient_axis: tuple[int, ...] = (),
    gradient_underflow: str = "clamp",
    weight_decay: float = 0.0,
    beta: float = 0.999,
    g_bound: float = 10.0,
    rounding: str = "nearest",
    round_gradient: bool = False,
    seed: Any = 0,
    cap: Any = -1,
    floor: Any = -1,
) -> tf.Tensor:
    """One LNS-Madam step on a weight: `tf_lns.reference.madam_step`.

    Args:
        weight: Handle of a variable of codes, or of float32 values on the grid.
        scale: Scale of the storage format.
        second_moment: Handle of v, float32 or int8 (one byte per weight).
        gradient: float32; non-finite elements count as 0.
        learning_rate: Octaves per unit of the normalised gradient.
        step: Number of this step, from 1.
        weight_type: dtype behind `weight`: tf.int8, tf.int16 or tf.float32.
        moment_type: dtype behind `second_moment`: tf.float32 or tf.int8.
        format: Storage format.
        moment_exponent: Handle of the int32 exponent of a one-byte second moment.
        gradient_format: Format that the gradient is quantized to first (Q_G), or None.
        gradient_scale: Its scale.
        gradient_axis: Its channel axes.
        gradient_underflow: "clamp" or "flush".
        weight_decay: Decoupled decay.
        beta: Decay rate of v.
        g_bound: Bound of the normalised gradient.
        rounding: Rounding of the step.
        round_gradient: Round the normalised gradient to integers first.
        seed: Integer seed, for stochastic rounding and the one-byte second moment.
        cap: Largest exponent a weight may grow to, -1 for none.
        floor: Exponent at which a weight changes sign, -1 for none.

    Returns:
        int64 scalar: the number of gradient elements that were not finite.
    """
    quantized: dict[str, Any] = {}
    if gradient_format is not None:
        quantized = {
            "grad_bits": gradient_format.bits,
            "grad_base_factor": gradient_format.base_factor,
            "grad_axis": list(gradient_axis),
            "grad_underflow": gradient_underflow,
        }
    return call(
        "lns_apply_madam",
        weight,
        scale,
        second_moment,
        second_moment if moment_exponent is None else moment_exponent,
        gradient,
        tf.constant(1.0) if gradient_format is None else gradient_scale,
        learning_rate,
        tf.constant(weight_decay, tf.float32),
        step,
        seed_tensor(seed, "stochastic"),
        tf.cast(cap, tf.int32),
        tf.cast(floor, tf.int32),
        Tweight=weight_type,
        Tmoment=moment_type,
        bits=format.bits,
        base_factor=format.base_factor,
        beta=beta,
        g_bound=g_bound,
        rounding=rounding,
        round_gradient=round_gradient,
        **quantized,
    )


def apply_madam_additive(
    weight: tf.Tensor,
    second_moment: tf.Tensor,
    gradient: tf.Tensor,
    *,
    learning_rate: Any,
    step: Any,
    weight_decay: float = 0.0,
    beta: float = 0.999,
    g_bound: float = 10.0,
) -> tf.Tensor:
    """The additive step of a float32 variable: `tf_lns.reference.additive_step`.

    Returns:
        int64 scalar: the number of gradient elements that were not finite.
    """
    return call(
        "lns_apply_madam_additive",
        weight,
        second_moment,
        gradient,
        learning_rate,
        tf.constant(weight_decay, tf.float32),
        step,
        beta=beta,
        g_bound=g_bound,
    )
