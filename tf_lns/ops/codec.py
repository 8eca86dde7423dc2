"""Encode, decode, requantize and quantize tensors: the compiled ops behind checked wrappers.

Each equals the function of the same name in `tf_lns.reference` bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks
from tf_lns.formats import LNSFormat
from tf_lns.ops import gradients  # importing it registers the gradients
from tf_lns.ops.call import (
    ROUNDINGS,
    UNDERFLOWS,
    call,
    choice,
    code_tensor,
    flag,
    float_tensor,
    scale_layout,
    scale_tensor,
    seed_tensor,
)

FormatLike = LNSFormat | str | tuple | list | dict
Axis = int | Sequence[int] | None


def _attributes(format: LNSFormat, rounding: str, underflow: str) -> dict[str, Any]:
    return {
        "bits": format.bits,
        "base_factor": format.base_factor,
        "rounding": choice(rounding, "rounding", ROUNDINGS),
        "underflow": choice(underflow, "underflow", UNDERFLOWS),
    }


def encode(
    x: Any,
    scale: Any,
    format: FormatLike,
    rounding: str = "nearest",
    underflow: str = "clamp",
    seed: Any = None,
    axis: Axis = None,
    vector_size: int | None = None,
) -> tf.Tensor:
    """Float to codes, rounding in the log domain.

    ``e = clamp(round(base_factor * log2(|x| / scale)), 0, L-1)``, ``code = sign(x) (e + 1)``.
    Denormals count as zero, Inf saturates. There is no gradient: codes are integers.

    Args:
        x: Float tensor of any shape (computed in float32).
        scale: Smallest non-zero magnitude, finite and at least 2**-126: a scalar; with
            `axis`, one per index along it; with `vector_size` too, one for every
            `vector_size` consecutive elements along `axis`.
        format: `LNSFormat`, or a short form such as "lns8:8".
        rounding: "nearest", or "stochastic": ``e = floor(base_factor log2(|x|/scale) + u)``.
        underflow: "clamp" keeps small non-zero values at the smallest magnitude (the paper),
            "flush" makes values below scale / 2 zero.
        seed: Integer seed of stochastic rounding. The same seed gives the same codes on every
            device; None draws one from `tf.random`.
        axis: Channel axis, or several neighbouring ones.
        vector_size: Elements that share a scale along `axis`.

    Returns:
        tf.int8 (up to 8 bits) or tf.int16 codes of x's shape.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
        tf.errors.InvalidArgumentError: x holds NaN, or the scale is not a finite normal
            number of the right shape. Compiled with jit_compile=True nothing can be refused:
            there NaN gives code 0, and an invalid scale counts as 1.
    """
    format = LNSFormat.get(format)
    x, _ = float_tensor(x, "x")
    return call(
        "lns_encode",
        x,
        scale_tensor(scale),
        seed_tensor(seed, rounding),
        Tcode=tf.as_dtype(format.dtype),
        **scale_layout(axis, vector_size, x.shape.rank),
        **_attributes(format, rounding, underflow),
    )


def decode(
    codes: Any,
    scale: Any,
    format: FormatLike,
    axis: Axis = None,
    vector_size: int | None = None,
) -> tf.Tensor:
    """Codes to float32: ``sign(c) * scale * 2**((|c| - 1) / base_factor)``, 0 for code 0.

    Args:
        codes: Tensor of the format's dtype.
        scale: As in `encode`.
        format: `LNSFormat`, or its short form.
        axis: As in `encode`.
        vector_size: As in `encode`.

    Returns:
        float32 tensor of the shape of `codes`.

    Raises:
        TypeError: `codes` has another dtype than the format's.
        tf.errors.InvalidArgumentError: A code lies outside -L..L. (With jit_compile=True it
            counts as 0.)
    """
    format = LNSFormat.get(format)
    codes = code_tensor(codes, format)
    return call(
        "lns_decode",
        codes,
        scale_tensor(scale),
        bits=format.bits,
        base_factor=format.base_factor,
        **scale_layout(axis, vector_size, codes.shape.rank),
    )


def requantize(codes: Any, from_format: FormatLike, to_format: FormatLike) -> tf.Tensor:
    """Changes the format of codes by integer arithmetic, the top of the range kept.

    The scale changes with it: `requantize_scale`.

    Args:
        codes: Tensor of `from_format`'s dtype.
        from_format: Format of `codes`.
        to_format: Format wanted.

    Returns:
        Codes in `to_format`, of its dtype.

    Raises:
        TypeError: `codes` has another dtype than `from_format`'s.
        tf.errors.InvalidArgumentError: A code lies outside -L..L. (With jit_compile=True it
            counts as 0.)
    """
    from_format, to_format = LNSFormat.get(from_format), LNSFormat.get(to_format)
    return call(
        "lns_requantize",
        code_tensor(codes, from_format),
        Tto=tf.as_dtype(to_format.dtype),
        from_bits=from_format.bits,
        from_base_factor=from_format.base_factor,
        to_bits=to_format.bits,
        to_base_factor=to_format.base_factor,
    )


def requantize_scale(scale: Any, from_format: FormatLike, to_format: FormatLike) -> tf.Tensor:
    """Scale of codes after `requantize`, ``scale * 2**(octaves_from - octaves_to)``."""
    from_format, to_format = LNSFormat.get(from_format), LNSFormat.get(to_format)
    with np.errstate(under="ignore", over="ignore"):
        factor = np.float64(np.float32(np.exp2(from_format.octaves - to_format.octaves)))
    # The product of two float32 is exact in float64, where no device flushes a denormal.
    product = tf.cast(scale_tensor(scale), tf.float64) * factor
    return tf.cast(tf.maximum(product, 2.0**-126), tf.float32)


def scale_of(
    x: Any,
    format: FormatLike,
    axis: Axis = None,
    vector_size: int | None = None,
    power_of_two: bool = False,
) -> tf.Tensor:
    """The scale that puts the largest magnitude of x at the top of the range.

    ``float32(max|x| * float32(2**-octaves))``, at least 2**-126; 1 where all is zero. NaN, Inf
    and denormals do not take part.

    Args:
        x: Float tensor.
        format: `LNSFormat`, or its short form.
        axis: As in `encode`.
        vector_size: As in `encode`.
        power_of_two: Round up to a power of two.

    Returns:
        float32 scale, of the shape that `axis` and `vector_size` say.
    """
    format = LNSFormat.get(format)
    x, _ = float_tensor(x, "x")
    return call(
        "lns_scale",
        x,
        bits=format.bits,
        base_factor=format.base_factor,
        power_of_two=flag(power_of_two, "power_of_two"),
        **scale_layout(axis, vector_size, x.shape.rank),
    )


def quantize_with_scale(
    x: Any,
    format: FormatLike,
    axis: Axis = None,
    vector_size: int | None = None,
    rounding: str = "nearest",
    underflow: str = "clamp",
    power_of_two: bool = False,
    seed: Any = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`quantize` under the scale of x itself, which is returned too.

    Returns:
        ``(y, scale)``; see `quantize` and `scale_of`.
    """
    format = LNSFormat.get(format)
    x, dtype = float_tensor(x, "x")
    y, scale = call(
        "lns_quantize_dynamic",
        x,
        seed_tensor(seed, rounding),
        power_of_two=flag(power_of_two, "power_of_two"),
        **scale_layout(axis, vector_size, x.shape.rank),
        **_attributes(format, rounding, underflow),
    )
    return tf.cast(y, dtype), scale


def quantize(
    x: Any,
    format: FormatLike,
    scale: Any = None,
    axis: Axis = None,
    vector_size: int | None = None,
    rounding: str = "nearest",
    underflow: str = "clamp",
    power_of_two: bool = False,
    seed: Any = None,
) -> tf.Tensor:
    """Float to the nearest value of a format, still as float: encode and decode in one pass.

    The gradient passes straight through. NaN passes through (so that `TerminateOnNaN` keeps
    working), Inf saturates. Float16 and bfloat16 tensors are quantized in float32 and cast
    back, which rounds the values of the format to that dtype.

    Args:
        x: Float tensor.
        format: `LNSFormat`, or its short form.
        scale: As in `encode`; None takes it from the largest magnitudes of x.
        axis: As in `encode`.
        vector_size: As in `encode`.
        rounding: As in `encode`.
        underflow: As in `encode`.
        power_of_two: Round a scale taken from x up to a power of two.
        seed: As in `encode`.

    Returns:
        Tensor like x.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
        tf.errors.InvalidArgumentError: The scale is not a finite normal number of the right
            shape.
    """
    if scale is None:
        y, _ = quantize_with_scale(
            x, format, axis, vector_size, rounding, underflow, power_of_two, seed
        )
        return y
    format = LNSFormat.get(format)
    x, dtype = float_tensor(x, "x")
    y = call(
        "lns_quantize",
        x,
        scale_tensor(scale),
        seed_tensor(seed, rounding),
        **scale_layout(axis, vector_size, x.shape.rank),
        **_attributes(format, rounding, underflow),
    )
    return tf.cast(y, dtype)


@tf.autograph.experimental.do_not_convert  # it has functions inside, which AutoGraph confuses
def quantize_gradient(
    x: Any,
    format: FormatLike,
    axis: Axis = None,
    vector_size: int | None = None,
    rounding: str = "nearest",
    underflow: str = "clamp",
    power_of_two: bool = False,
) -> tf.Tensor:
    """The identity, whose gradient is quantized: ``dx = quantize(dy, format, ...)``.

    Args:
        x: Float tensor.
        format: Format of the gradient (the paper's errors).
        axis: As in `quantize`, of the gradient's scale.
        vector_size: As in `quantize`.
        rounding: As in `quantize`; "stochastic" draws a fresh seed from `tf.random`.
        underflow: As in `quantize`.
        power_of_two: As in `quantize`.

    Returns:
        x. Gradients of float64 are quantized in float32.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """
    format = LNSFormat.get(format)
    as_float32, dtype = float_tensor(x, "x")
    x = as_float32 if dtype == tf.float64 else tf.convert_to_tensor(x)
    attrs = {
        "power_of_two": flag(power_of_two, "power_of_two"),
        **scale_layout(axis, vector_size, x.shape.rank),
        **_attributes(format, rounding, underflow),
    }
    if tf.executing_eagerly():
        y = call("lns_quantize_gradient", x, **attrs)
    else:
        # An identity that TensorFlow knows: its optimizer takes it out, and still fuses a
        # product with the activation function behind it.
        name = "LnsQuantizeGradient:" + ":".join(str(attrs[key]) for key in sorted(attrs))
        y = keras_hooks.identity_with_gradient(
            x, name, lambda grad: gradients.quantized_gradient(grad, attrs)
        )
    return tf.cast(y, dtype)
