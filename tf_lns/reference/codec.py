"""Encode, decode, requantize and quantize in NumPy, with the tables behind them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from tf_lns.formats import LNSFormat

F32 = np.float32

MIN_NORMAL = F32(2.0**-126)
"""Smallest normal float32; inputs below it in magnitude count as zero."""

LOG2_FRACTION_BITS = 24
"""Fraction bits of the fixed-point logarithm behind stochastic rounding."""

# ---------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------


@functools.cache
def decode_table(base_factor: int) -> np.ndarray:
    """``T[r] = float32(2**(r / base_factor))`` for r in 0..base_factor-1."""
    return np.exp2(np.arange(base_factor) / base_factor).astype(F32)


@functools.cache
def threshold_table(base_factor: int) -> np.ndarray:
    """Smallest float32 at or above ``2**((2 r + 1) / (2 base_factor))``, r in 0..base_factor-1.

    These are the decision boundaries of the mantissa in [1, 2). They are irrational, so a
    float32 never lies on one and round-to-nearest never ties.
    """
    exact = np.exp2((2 * np.arange(base_factor) + 1) / (2 * base_factor))
    rounded = exact.astype(F32)
    below = rounded.astype(np.float64) < exact
    return np.where(below, np.nextafter(rounded, F32(np.inf)), rounded)


@functools.cache
def log2_segments() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integer coefficients of ``log2(1 + (i + t) / 256)``, i in 0..255, t in [0, 1).

    Each segment is the parabola through t = 0, 1/2 and 1, with 24 fraction bits.
    """
    i = np.arange(256)
    start, middle, end = (np.log2(1 + (i + t) / 256) for t in (0.0, 0.5, 1.0))
    square = 2 * (start + end - 2 * middle)
    slope = end - start - square
    unit = 2.0**LOG2_FRACTION_BITS
    start, slope, square = (np.rint(c * unit).astype(np.int64) for c in (start, slope, square))
    return start, slope, square


def log2_fixed(mantissa_bits: np.ndarray) -> np.ndarray:
    """``log2(1 + mantissa_bits / 2**23)`` in fixed point, 24 fraction bits.

    Integer arithmetic only, so that every device agrees; within 2**-22 of the logarithm.

    Args:
        mantissa_bits: The 23 fraction bits of a float32, as an integer array.

    Returns:
        int64 array in 0..2**24.
    """
    start, slope, square = log2_segments()
    segment, t = mantissa_bits >> 15, mantissa_bits & 0x7FFF
    curve = ((square[segment] * t >> 15) * t) >> 15
    return start[segment] + (slope[segment] * t >> 15) + curve


# ---------------------------------------------------------------------------------------
# Random numbers
# ---------------------------------------------------------------------------------------


def splitmix64(x: int) -> int:
    """One step of the generator of that name, which makes keys from a seed."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def random_bits(seed: int, count: int, start: int = 0) -> np.ndarray:
    """32 uniform bits for each element of a tensor, from its flat index and a seed.

    A counter-based generator: two keys from the 64-bit seed (splitmix64), mixed into the
    index by two multiply-xorshift rounds. No state, so any split of the work over threads
    or devices draws the same numbers.

    Args:
        seed: Any 64-bit integer.
        count: Number of elements.
        start: Flat index of the first one.

    Returns:
        uint32 array of shape ``[count]``.
    """
    key = splitmix64(int(seed) & ((1 << 64) - 1))
    key0, key1 = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    x = np.arange(start, start + count, dtype=np.uint64).astype(np.uint32) ^ key0
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = x + key1
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


# ---------------------------------------------------------------------------------------
# Scales
# ---------------------------------------------------------------------------------------


def _axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return ()
    axes = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"`axis` is out of range for rank {ndim}. Received: axis={axis}")
    axes = tuple(sorted(a % ndim for a in axes))
    if axes and axes != tuple(range(axes[0], axes[0] + len(axes))):
        raise ValueError(f"`axis` must name neighbouring axes. Received: axis={axis}")
    return axes


def scale_shape(
    shape: Sequence[int], axis: int | Sequence[int] | None = None, vector_size: int | None = None
) -> tuple[int, ...]:
    """Shape of the scale of a tensor.

    Args:
        shape: The tensor's shape.
        axis: None for one scale per tensor. An axis, or neighbouring axes, for one scale
            per index along them (per channel).
        vector_size: With one `axis`: one scale for every `vector_size` consecutive
            elements along it, the last vector possibly short.

    Returns:
        ``()``, the sizes of the channel axes, or `shape` with its axis counted in vectors.
    """
    axes = _axes(axis, len(shape))
    if vector_size:
        if len(axes) != 1:
            raise ValueError(f"`vector_size` needs exactly one axis. Received: axis={axis}")
        blocks = list(shape)
        blocks[axes[0]] = -(-shape[axes[0]] // vector_size)
        return tuple(blocks)
    return tuple(shape[a] for a in axes)


def expand_scale(scale, shape, axis=None, vector_size=None) -> np.ndarray:
    """Repeats a scale over the elements it stands for: float32 of the tensor's shape.

    Raises:
        ValueError: `scale` has the wrong shape, or is not a finite normal number.
    """
    scale = np.asarray(scale, F32)
    expected = scale_shape(shape, axis, vector_size)
    if scale.shape != expected:
        raise ValueError(f"`scale` must have shape {expected}. Received: {scale.shape}")
    if not np.all(np.isfinite(scale) & (scale >= MIN_NORMAL)):
        raise ValueError(f"`scale` must be finite and at least 2**-126. Received: {scale}")
    axes = _axes(axis, len(shape))
    if vector_size:
        scale = np.repeat(scale, vector_size, axis=axes[0])
        return scale[tuple(slice(n) for n in shape)]
    keep = [n if i in axes else 1 for i, n in enumerate(shape)]
    return np.broadcast_to(scale.reshape(keep), shape)


def abs_max(x, axis=None, vector_size=None) -> np.ndarray:
    """Largest magnitude per scale; NaN, Inf and denormals do not take part.

    Returns:
        float32 of shape `scale_shape`, 0 where no finite normal element is.
    """
    x = np.asarray(x, F32)
    magnitude = np.abs(x)
    magnitude = np.where(np.isfinite(x) & (magnitude >= MIN_NORMAL), magnitude, F32(0))
    axes = _axes(axis, x.ndim)
    if vector_size:
        expected = scale_shape(x.shape, axis, vector_size)
        blocks = expected[axes[0]]
        pad = [(0, 0)] * x.ndim
        pad[axes[0]] = (0, blocks * vector_size - x.shape[axes[0]])
        split = list(x.shape)
        split[axes[0] : axes[0] + 1] = [blocks, vector_size]
        return np.pad(magnitude, pad).reshape(split).max(axis=axes[0] + 1, initial=F32(0))
    others = tuple(i for i in range(x.ndim) if i not in axes)
    return magnitude.max(axis=others, initial=F32(0))


def scale_from_abs_max(largest, format: LNSFormat, power_of_two: bool = False) -> np.ndarray:
    """The scale that puts `largest` at the top of the range.

    ``float32(largest * float32(2**(-(L-1)/base_factor)))``, at least 2**-126; 1 where
    `largest` is 0. With `power_of_two` it is then rounded up to a power of two, at most
    2**127.
    """
    largest = np.asarray(largest, F32)
    factor = F32(2.0**-format.octaves)
    with np.errstate(under="ignore"):
        scale = np.maximum(largest * factor, MIN_NORMAL).astype(F32)
    scale = np.where(largest > 0, scale, F32(1))
    if power_of_two:
        mantissa, exponent = np.frexp(scale)  # scale = mantissa * 2**exponent, mantissa < 1
        exponent = np.where(mantissa == 0.5, exponent - 1, exponent)
        scale = np.ldexp(F32(1), np.minimum(exponent, 127))
    return scale.astype(F32)


def scale_of(x, format, axis=None, vector_size=None, power_of_two=False) -> np.ndarray:
    """Scale of a tensor from its largest magnitudes; see `scale_from_abs_max`."""
    format = LNSFormat.get(format)
    return scale_from_abs_max(abs_max(x, axis, vector_size), format, power_of_two)


def weight_scale(weights, format: LNSFormat = LNSFormat(16, 2048)) -> np.float32:
    """Power-of-two scale of a weight tensor, chosen once from its initial values.

    The top of the range is the first power of two >= max(10 RMS, max|w|) and the scale is
    ``top / 2**ceil(octaves)``, within 2**-126..2**127. As the largest code stands slightly
    below that top, the range goes up one octave where the largest weight would otherwise be
    clipped (it then lies within a code of a power of two): conversion never clips.

    Args:
        weights: Initial values, finite float32.
        format: Storage format.

    Returns:
        float32 scale; 1 for an all-zero tensor.
    """
    weights = np.asarray(weights, np.float64)
    largest = float(np.max(np.abs(weights), initial=0.0))
    rms = float(np.sqrt(np.mean(np.square(weights)))) if weights.size else 0.0
    return weight_scale_from(rms, largest, format)


def weight_scale_from(rms: float, largest: float, format: LNSFormat) -> np.float32:
    """`weight_scale` from the weights' RMS and largest magnitude."""
    if largest < MIN_NORMAL:
        return F32(1)
    wanted = max(10 * rms, largest)
    top = int(np.ceil(np.log2(wanted)))
    top += int(2.0**top < wanted) - int(2.0 ** (top - 1) >= wanted)  # log2 itself is rounded
    exponent = max(top - int(np.ceil(format.octaves)), -126)
    if np.rint(format.base_factor * (np.log2(largest) - exponent)) > format.max_exponent:
        exponent += 1
    return F32(2.0 ** min(exponent, 127))


# ---------------------------------------------------------------------------------------
# Codec
# ---------------------------------------------------------------------------------------


def ratio_exponent(ratio: np.ndarray, format: LNSFormat, rounding: str, seed) -> np.ndarray:
    """Unclamped exponent of a float32 ratio; a stand-in far below range for what is tiny."""
    bits = ratio.view(np.uint32).astype(np.int64)
    octave, mantissa_bits = (bits >> 23) - 127, bits & 0x7FFFFF
    if rounding == "nearest":
        mantissa = (mantissa_bits / 2.0**23 + 1.0).astype(F32)
        within = np.searchsorted(threshold_table(format.base_factor), mantissa, side="right")
    elif rounding == "stochastic":
        if seed is None:
            raise ValueError('`rounding="stochastic"` needs a `seed`.')
        fraction = LOG2_FRACTION_BITS - format.log2_base_factor
        draw = random_bits(seed, ratio.size).reshape(ratio.shape).astype(np.int64)
        within = (log2_fixed(mantissa_bits) + (draw >> (32 - fraction))) >> fraction
    else:
        raise ValueError(f'`rounding` must be "nearest" or "stochastic". Received: {rounding!r}')
    return octave * format.base_factor + within


def _encode_with(x, scale, format, rounding, underflow, seed) -> np.ndarray:
    """Codes as int64 of finite or infinite values, `scale` already of the same shape."""
    magnitude = np.abs(x)
    magnitude = np.where(magnitude < MIN_NORMAL, F32(0), magnitude)
    with np.errstate(over="ignore", under="ignore"):
        ratio = (magnitude / scale).astype(F32)
    exponent = ratio_exponent(ratio, format, rounding, seed)
    exponent = np.where(np.isinf(ratio), format.max_exponent, exponent)
    code = np.clip(exponent, 0, format.max_exponent) + 1
    if underflow == "flush":
        code = np.where(ratio < F32(0.5), 0, code)
    elif underflow != "clamp":
        raise ValueError(f'`underflow` must be "clamp" or "flush". Received: {underflow!r}')
    code = np.where(magnitude == 0, 0, code)
    return np.where(np.signbit(x), -code, code)


def encode(
    x,
    scale,
    format,
    rounding="nearest",
    underflow="clamp",
    seed=None,
    axis=None,
    vector_size=None,
) -> np.ndarray:
    """Float32 to codes, rounding to nearest in the log domain.

    ``e = clamp(round(base_factor * log2(|x| / scale)), 0, L-1)``, where ``|x| / scale`` is
    the float32 quotient. Denormal inputs count as zero; Inf saturates.

    Args:
        x: float32 array.
        scale: Scale, see `scale_shape`.
        format: `LNSFormat` or its short form.
        rounding: "nearest", or "stochastic": ``e = floor(base_factor log2(|x|/scale) + u)``
            with u from `random_bits`.
        underflow: "clamp" keeps small non-zero values at e = 0; "flush" makes values below
            scale / 2 zero.
        seed: 64-bit integer, for stochastic rounding.
        axis: Channel axis or axes of the scale.
        vector_size: Elements per scale along `axis`.

    Returns:
        int8 or int16 codes of x's shape.

    Raises:
        ValueError: x holds NaN (the message names its first flat index), or an argument is
            out of range.
    """
    format = LNSFormat.get(format)
    x = np.asarray(x, F32)
    if np.isnan(x).any():
        index = int(np.flatnonzero(np.isnan(x.reshape(-1)))[0])
        raise ValueError(f"`x` must not hold NaN; the first one is at flat index {index}.")
    scale = expand_scale(scale, x.shape, axis, vector_size)
    return _encode_with(x, scale, format, rounding, underflow, seed).astype(format.dtype)


def decode(codes, scale, format, axis=None, vector_size=None) -> np.ndarray:
    """Codes to float32: ``ldexp(float32(scale * T[r]), q)`` with ``e = q base_factor + r``.

    Raises:
        ValueError: A code lies outside -L..L, or `scale` is no finite normal number.
    """
    format = LNSFormat.get(format)
    codes = checked_codes(codes, format)
    scale = expand_scale(scale, codes.shape, axis, vector_size)
    q, r = np.divmod(np.abs(codes) - 1, format.base_factor)
    with np.errstate(over="ignore"):
        magnitude = np.ldexp((scale * decode_table(format.base_factor)[r]).astype(F32), q)
    value = np.where(codes < 0, -magnitude, magnitude)
    return np.where(codes == 0, F32(0), value).astype(F32)


def checked_codes(codes, format: LNSFormat) -> np.ndarray:
    """Codes as int64.

    Raises:
        ValueError: One lies outside -L..L.
    """
    codes = np.asarray(codes).astype(np.int64)
    if np.any(np.abs(codes) > format.max_code):
        index = int(np.flatnonzero(np.abs(codes.reshape(-1)) > format.max_code)[0])
        raise ValueError(
            f"`codes` must lie in -{format.max_code}..{format.max_code} for {format}. "
            f"Received: {codes.reshape(-1)[index]} at flat index {index}."
        )
    return codes


def requantize(codes, from_format, to_format) -> np.ndarray:
    """Changes the format of codes, the top of the range kept; integers alone.

    With ``d = (L1-1) - e1`` steps below the top: ``d2 = round(d base2 / base1)``, ties away
    from the top, ``e2 = max(0, (L2-1) - d2)``. The scale changes too: `requantize_scale`.
    """
    from_format, to_format = LNSFormat.get(from_format), LNSFormat.get(to_format)
    codes = checked_codes(codes, from_format)
    below_top = from_format.max_exponent - (np.abs(codes) - 1)
    below_top = (2 * below_top * to_format.base_factor + from_format.base_factor) // (
        2 * from_format.base_factor
    )
    magnitude = np.maximum(0, to_format.max_exponent - below_top) + 1
    return np.where(codes == 0, 0, np.sign(codes) * magnitude).astype(to_format.dtype)


def requantize_scale(scale, from_format, to_format) -> np.ndarray:
    """Scale after `requantize`: the one under which the top of the range stays in place.

    ``float32(scale * float32(2**(octaves1 - octaves2)))``, at least 2**-126; Inf where that
    overflows.
    """
    from_format, to_format = LNSFormat.get(from_format), LNSFormat.get(to_format)
    with np.errstate(under="ignore", over="ignore"):
        factor = F32(np.exp2(from_format.octaves - to_format.octaves))
        return np.maximum(np.asarray(scale, F32) * factor, MIN_NORMAL)


def quantize(
    x,
    format,
    scale=None,
    axis=None,
    vector_size=None,
    rounding="nearest",
    underflow="clamp",
    power_of_two=False,
    seed=None,
) -> np.ndarray:
    """Float32 to the nearest float32 value of a format: `decode` of `encode`.

    Args:
        x: float32 array. NaN passes through, Inf saturates at the largest value.
        format: `LNSFormat` or its short form.
        scale: Scale; None takes it from the largest magnitudes of x (`scale_of`).
        axis: Channel axis or axes of the scale.
        vector_size: Elements per scale along `axis`.
        rounding: As in `encode`.
        underflow: As in `encode`.
        power_of_two: Round a scale taken from x up to a power of two.
        seed: As in `encode`.

    Returns:
        float32 array of x's shape.
    """
    format = LNSFormat.get(format)
    x = np.asarray(x, F32)
    if scale is None:
        scale = scale_of(x, format, axis, vector_size, power_of_two)
    numbers = np.where(np.isnan(x), F32(0), x)
    expanded = expand_scale(scale, x.shape, axis, vector_size)
    codes = _encode_with(numbers, expanded, format, rounding, underflow, seed)
    return np.where(np.isnan(x), x, decode(codes, scale, format, axis, vector_size))
