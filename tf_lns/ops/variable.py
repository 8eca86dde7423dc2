"""Read and write an integer weight through its handle."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_lns.formats import LNSFormat
from tf_lns.ops.call import call, choice, seed_tensor


def read_variable(
    handle: tf.Tensor, scale: tf.Tensor, storage: LNSFormat, seen: LNSFormat | None = None
) -> tf.Tensor:
    """Float32 value of an integer weight.

    Args:
        handle: Handle of the variable of codes (`keras_hooks.float_alias`).
        scale: Scale of the storage format, a scalar.
        storage: Format of the codes.
        seen: Narrower format in which the weight is read (the change of format is integer
            arithmetic); None for the storage format.

    Returns:
        float32 tensor of the weight's shape.
    """
    seen = seen or storage
    return call(
        "lns_read_variable",
        handle,
        scale,
        Tcode=tf.as_dtype(storage.dtype),
        bits=storage.bits,
        base_factor=storage.base_factor,
        read_bits=seen.bits,
        read_base_factor=seen.base_factor,
    )


def assign_variable(
    handle: tf.Tensor,
    scale: tf.Tensor,
    value: tf.Tensor,
    storage: LNSFormat,
    rounding: str = "nearest",
    seed: Any = None,
) -> tf.Operation | None:
    """Writes float32 values into an integer weight; small non-zero values clamp.

    Raises:
        tf.errors.InvalidArgumentError: `value` holds NaN; nothing is written.
    """
    choice(rounding, "rounding", ("nearest", "stochastic"))
    return call(
        "lns_assign_variable",
        handle,
        scale,
        value,
        seed_tensor(seed, rounding),
        Tcode=tf.as_dtype(storage.dtype),
        bits=storage.bits,
        base_factor=storage.base_factor,
        rounding=rounding,
    )
