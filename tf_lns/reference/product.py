"""The product of two matrices of codes on a datapath, in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tf_lns.datapath import Datapath, pair_of_formats
from tf_lns.reference.codec import F32, MIN_NORMAL, checked_codes


class LNSProduct(NamedTuple):
    """A product with what happened inside.

    Attributes:
        values: float32 ``[..., M, N]``.
        accumulators: int32 ``[..., M, N]``, with conversion="bins" ``[..., M, N, 2**lut_bits]``.
        saturated: int64 scalar: how many accumulators were clamped, once or more often.
        truncated: int64 scalar: how many accumulators had a term of which bits were dropped.
    """

    values: Any
    accumulators: Any
    saturated: Any
    truncated: Any


def term_table(datapath: Datapath, a_format: Any, b_format: Any = None) -> np.ndarray:
    """Magnitude of the term for each sum of exponents p, 0 to the largest.

    With conversion="bins" the term before the table's entry is multiplied in, which goes into
    accumulator ``(p mod base_factor) >> (g - m)``.

    Returns:
        int64 ``[L_a + L_b - 1]``.
    """
    a_format, b_format = pair_of_formats(a_format, b_format)
    p = np.arange(a_format.max_exponent + b_format.max_exponent + 1)
    return _terms(p, datapath, a_format, b_format)[0]


def _terms(p: np.ndarray, datapath: Datapath, a_format, b_format):
    """Magnitude of each term, its bin, and whether it lost bits."""
    factor, g = a_format.base_factor, a_format.log2_base_factor
    m = datapath.table_bits(factor)
    q, r = p >> g, p % factor
    h, rest = r >> (g - m), r % (1 << (g - m))
    if datapath.conversion == "bins":
        n = factor + rest
        shift = q - datapath.lsb(a_format, b_format) - g
    else:
        n = np.array(datapath.table(factor))[h] * (factor + rest)
        shift = q - datapath.lsb(a_format, b_format) - datapath.fraction_bits - g
    left, right = np.maximum(shift, 0), np.minimum(np.maximum(-shift, 0), 62)
    return (n << left) >> right, h, (n & ((1 << right) - 1)) != 0


def value_of(total, exponent: int, scale) -> np.ndarray:
    """``ldexp(float32(total), exponent) * scale`` in float32; 0 where total is 0.

    Where that is Inf times 0, the product is taken first: nothing is NaN.
    """
    total, scale = np.asarray(total), np.asarray(scale, F32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        number = total.astype(F32)
        value = np.ldexp(number, exponent) * scale
        # 2**512 is beyond float32 as well, and not Inf in float64.
        exact = (np.ldexp(number.astype(np.float64), min(exponent, 512)) * scale).astype(F32)
        value = np.where(np.isnan(value), exact, value)
    return np.where(total == 0, F32(0), value).astype(F32)


def lns_matmul(
    a,
    b,
    a_format,
    b_format=None,
    a_scale=1.0,
    b_scale=1.0,
    transpose_a: bool = False,
    transpose_b: bool = False,
    datapath: Datapath | dict | None = None,
    return_details: bool = False,
):
    """Product of matrices of codes on a datapath; see `Datapath` for what each step does.

    Without vectors that have scales of their own::

        result = ldexp(float32(acc), lsb) * float32(a_scale * b_scale)
        result = ldexp(float32(sum_h T[h] acc_h), lsb - F) * float32(a_scale * b_scale)   (bins)

    Args:
        a: Codes ``[..., M, K]``; ``[..., K, M]`` with `transpose_a`.
        b: Codes ``[..., K, N]``; ``[..., N, K]`` with `transpose_b`.
        a_format: Format of `a`.
        b_format: Format of `b`, of the same base factor; None for that of `a`.
        a_scale: Scale of `a`: a scalar, ``[..., M, 1]`` for one per row or ``[..., M, G]`` (or
            ``[..., 1, G]``) for one per vector of ``vector_size`` terms, ``G = ceil(K /
            vector_size)``. Then each vector has an accumulator of its own, and their results
            are added in float32 in ascending order (ours).
        b_scale: Scale of `b`: a scalar, ``[..., 1, N]`` or ``[..., G, N]``.
        transpose_a: Whether the last two axes of `a` are swapped first.
        transpose_b: Whether those of `b` are.
        datapath: `Datapath`, its dict, or None for the defaults.
        return_details: Whether to return an `LNSProduct`. Not with scales per vector.

    Returns:
        float32 ``[..., M, N]``, or an `LNSProduct`.

    Raises:
        ValueError: The formats' base factors differ (`requantize` one), codes are out of range,
            shapes do not fit, or a scale is no finite normal number.
    """
    datapath = Datapath.get(datapath)
    a_format, b_format = pair_of_formats(a_format, b_format)
    a, b = checked_codes(a, a_format), checked_codes(b, b_format)
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(
            f"`a` and `b` must have rank 2 or more. Received: shapes {a.shape} and {b.shape}"
        )
    a = np.swapaxes(a, -1, -2) if transpose_a else a
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"`a` and `b` do not agree in K. Received: a of [M, K] = {a.shape[-2:]}, "
            f"b of [K, N] = {b.shape[-2:]}"
        )
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
    K, size = a.shape[-1], datapath.vector_size
    vectors = max(1, -(-K // size))
    a_scale = _scales(a_scale, (*lead, a.shape[-2], vectors), "a_scale")
    b_scale = _scales(b_scale, (*lead, vectors, b.shape[-1]), "b_scale")
    per_vector = max(a_scale.shape[-1], b_scale.shape[-2]) > 1
    if per_vector and return_details:
        raise ValueError("`return_details` needs scales that do not change along K.")

    m = datapath.table_bits(a_format.base_factor)
    bins = 1 << m if datapath.conversion == "bins" else 1
    largest = (1 << (datapath.accumulator_bits - 1)) - 1
    shape = (*lead, a.shape[-2], b.shape[-1], bins)
    acc, total = np.zeros(shape, np.int64), np.zeros(shape[:-1], F32)
    saturated, truncated = np.zeros(shape, bool), np.zeros(shape, bool)
    for v in range(-(-K // size)):
        at = slice(v * size, (v + 1) * size)
        left, right = a[..., :, at, None], b[..., None, at, :]
        p = np.maximum(np.abs(left) + np.abs(right) - 2, 0)
        term, h, lost = _terms(p, datapath, a_format, b_format)
        sign = np.sign(left) * np.sign(right)
        for i in range(bins):
            mine = sign * ((h == i) | (bins == 1))
            exact = acc[..., i] + np.sum(mine * term, axis=-2)
            acc[..., i] = np.clip(exact, -largest, largest)
            saturated[..., i] |= exact != acc[..., i]
            truncated[..., i] |= np.any((mine != 0) & lost, axis=-2)
        if per_vector:
            sa = a_scale[..., :, min(v, a_scale.shape[-1] - 1), None]
            sb = b_scale[..., min(v, b_scale.shape[-2] - 1), None, :]
            total = total + _result(acc, datapath, a_format, b_format, sa, sb)
            acc[...] = 0
    if per_vector:
        return total
    values = _result(acc, datapath, a_format, b_format, a_scale, b_scale)
    if not return_details:
        return values
    shown = acc if datapath.conversion == "bins" else acc[..., 0]
    counts = (np.int64(np.count_nonzero(x)) for x in (saturated, truncated))
    return LNSProduct(values, shown.astype(np.int32), *counts)


def _result(acc, datapath, a_format, b_format, a_scale, b_scale):
    with np.errstate(over="ignore", under="ignore"):
        scale = (a_scale * b_scale).astype(F32)
    lsb = datapath.lsb(a_format, b_format)
    if datapath.conversion == "bins":
        total = np.sum(acc * np.array(datapath.table(a_format.base_factor)), axis=-1)
        return value_of(total, lsb - datapath.fraction_bits, scale)
    return value_of(acc[..., 0], lsb, scale)


def _scales(scale, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A scale of the rank of its operand: 1 or the full size on each axis."""
    scale = np.asarray(scale, F32)
    if not np.all((scale >= MIN_NORMAL) & (scale < np.inf)):
        raise ValueError(f"`{name}` must be finite and at least 2**-126. Received: {name}={scale}")
    aligned = scale.reshape((1,) * max(0, len(shape) - scale.ndim) + scale.shape)
    fits = len(aligned.shape) == len(shape) and all(
        have in (1, want) for have, want in zip(aligned.shape, shape, strict=True)
    )
    if not fits or scale.ndim == 1:
        raise ValueError(
            f"`{name}` must be a scalar or have 1 or the full size on each axis of {shape}. "
            f"Received: {name} of shape {scale.shape}"
        )
    return aligned
