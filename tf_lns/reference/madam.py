"""The LNS-Madam step in NumPy, with a float32 second moment or one of a byte."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from tf_lns.formats import LNSFormat
from tf_lns.reference.codec import (
    F32,
    MIN_NORMAL,
    checked_codes,
    decode_table,
    random_bits,
    ratio_exponent,
)

TINY = F32(2.0**-125)
"""Results below this in magnitude count as zero, so that none depends on denormals and on
how a device flushes them."""

LARGEST_GRADIENT = F32(2.0**63)
"""Gradients are clipped here so that a square stays finite."""

LARGEST_STEP = 65536
"""Bound of one update in codes (twice the largest exponent range) and of the learning rate."""


def bias_correction(beta: float, step: int) -> np.float64:
    """``1 - beta**step`` in float64; the power by repeated squaring, as every device does."""
    power, base, n = np.float64(1), np.float64(F32(beta)), int(step)
    while n > 0:
        if n & 1:
            power = power * base
        base, n = base * base, n >> 1
    return np.float64(1) - power


def finite_gradient(gradient) -> tuple[np.ndarray, int]:
    """Replaces non-finite elements by 0 and clips to +-2**63.

    Returns:
        The float32 gradient and the number of non-finite elements.
    """
    gradient = np.asarray(gradient, F32)
    finite = np.isfinite(gradient)
    gradient = np.where(finite & (np.abs(gradient) >= MIN_NORMAL), gradient, F32(0))
    gradient = np.clip(gradient, -LARGEST_GRADIENT, LARGEST_GRADIENT)
    return gradient, int(np.count_nonzero(~finite))


def normalized_gradient(
    gradient, second_moment, *, step, beta=0.999, g_bound=10.0
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient over the root of its bias-corrected second moment (Madam, eq. for g-hat).

    ::

        v <- beta v + (1 - beta) g**2
        g_hat = clip(g / sqrt(v / (1 - beta**t)), -g_bound, g_bound);  0 where v = 0

    Args:
        gradient: Finite float32, from `finite_gradient`.
        second_moment: float32 v.
        step: t, counted from 1.
        beta: Decay rate of v.
        g_bound: Bound of g_hat.

    Returns:
        ``(g_hat, v)``, both float32.
    """
    beta = F32(beta)
    square = _positive((F32(1) - beta) * (gradient * gradient))
    moment = _positive(beta * np.asarray(second_moment, F32)) + square
    correction = F32(1 / bias_correction(beta, step))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = gradient / np.sqrt(moment * correction)
    ratio = np.clip(ratio, -F32(g_bound), F32(g_bound))
    return np.where(moment == 0, F32(0), _no_tiny(ratio)), moment


def _no_tiny(x):
    x = np.asarray(x, F32)
    return np.where(np.abs(x) < TINY, F32(0), x)


def _positive(x):
    """x, or 0 where it is tiny; a v that someone set to NaN or below 0 heals, too."""
    x = np.asarray(x, F32)
    return np.where(x >= TINY, x, F32(0))


class CompactMoment(NamedTuple):
    """Second moment with one byte per weight and one exponent per tensor.

    ``v = 2**(exponent - (127 - k) / 4)`` for k in 1..127, v = 0 for k = 0 (ours).

    Attributes:
        k: int8 array.
        exponent: Integer E; None before the first non-zero gradient.
    """

    k: np.ndarray
    exponent: int | None


COMPACT_FRACTION_BITS = 16
"""Fraction bits Q of the stochastic rounding of k."""

COMPACT_LOWEST, COMPACT_HIGHEST = -104, 23
"""Reach of the growth table: quarter octaves from v to (1 - beta) g**2. Below, the gradient
adds nothing to v; above, v is forgotten."""

COMPACT_LARGEST = 151
"""What is kept of k in a step, six octaves over the top, before the shift; g_hat sees all."""

COMPACT_LOWEST_EXPONENT = -120
"""Smallest exponent of a tensor, about where float32 v would count as zero."""


def compact_first(beta: float) -> int:
    """``floor(4 log2(1 - beta))``: from g**2 to the v that it makes out of 0."""
    return int(np.floor(4 * np.log2(1 - np.float64(F32(beta)))))


@functools.cache
def compact_growth(beta: float) -> np.ndarray:
    """Growth of k over x in -104..23, the quarter octaves from v to ``(1-beta) g**2``.

    ``T[x + 104] = round(4 log2(beta + (1-beta) 2**((x - first) / 4)) 2**Q)``, int64: an
    addition in the logarithmic number system.
    """
    beta = np.float64(F32(beta))
    x = np.arange(COMPACT_LOWEST, COMPACT_HIGHEST + 1)
    growth = beta + (1 - beta) * np.exp2((x - compact_first(beta)) / 4)
    unit = 2.0**COMPACT_FRACTION_BITS
    return np.rint(np.maximum(4 * np.log2(growth), -100.0) * unit).astype(np.int64)


def compact_draws(seed: int, count: int) -> np.ndarray:
    """16 uniform bits per element, int64; four elements share the 32 bits of one draw.

    Element i takes two bytes of draw ``i // 4``, from byte ``i % 4`` on, round the end.
    """
    i = np.arange(count)
    word = random_bits(seed, -(-count // 4)).astype(np.int64)[i // 4]
    return ((word | word << 32) >> (8 * (i % 4))) & 0xFFFF


def normalized_gradient_compact(
    gradient, second_moment: CompactMoment, *, step, beta=0.999, g_bound=10.0, seed=0
) -> tuple[np.ndarray, CompactMoment]:
    """`normalized_gradient` on a one-byte second moment; integers but for one product.

    k is rounded stochastically (nearest would freeze it); `seed` and the flat index give u.
    ::

        kn <- round(8 log2|g|) + first - 4 E + 127            k of (1-beta) g**2
        k  <- max(kn, k + floor(T[kn - k] + u), 1)            k = 0: max(kn, 1); g = 0: stays
        g_hat = clip(g / sqrt(v / (1 - beta**t)), +-g_bound)  0 where v = 0

    Returns:
        ``(g_hat, second_moment)``.
    """
    shape = np.shape(gradient)
    k = np.maximum(np.asarray(second_moment.k).astype(np.int64), 0)
    exponent = second_moment.exponent
    first = compact_first(beta)
    # Quarter octaves of g**2, before the tensor's exponent is taken off.
    eighths = _encode_unclamped(np.abs(gradient), 8)
    nonzero = gradient != 0
    if exponent is None:
        if not nonzero.any():
            return np.zeros(shape, F32), second_moment
        exponent = -((-(int(eighths[nonzero].max()) + first)) // 4) + 1
        exponent = max(exponent, COMPACT_LOWEST_EXPONENT)

    kn = np.maximum(eighths + first - 4 * exponent + 127, COMPACT_LOWEST)
    kn = np.where(nonzero, kn, COMPACT_LOWEST)
    x = np.clip(kn - k, COMPACT_LOWEST, COMPACT_HIGHEST) - COMPACT_LOWEST
    growth = compact_growth(float(F32(beta)))[x] + compact_draws(seed, k.size).reshape(shape)
    grown = np.where(k > 0, np.maximum(k + (growth >> COMPACT_FRACTION_BITS), 1), 0)
    # A gradient far below the tensor's others still moves its weight, by g over the root of
    # the smallest v.
    grown = np.maximum(grown, np.where(nonzero, np.maximum(kn, 1), 0))

    # 1 / sqrt(v / (1 - beta**t)) = 2**(z / 8) sqrt(1 - beta**t)
    z = 127 - 4 * exponent - grown
    root = F32(np.sqrt(bias_correction(beta, step)))
    over_root = np.ldexp(decode_table(8)[z & 7] * root, z >> 3).astype(F32)
    with np.errstate(over="ignore", under="ignore"):
        g_hat = np.clip(np.asarray(gradient, F32) * over_root, -F32(g_bound), F32(g_bound))
    g_hat = np.where(grown == 0, F32(0), _no_tiny(g_hat))

    grown, exponent = shift_compact(np.minimum(grown, COMPACT_LARGEST), exponent)
    return g_hat, CompactMoment(grown.astype(np.int8), exponent)


def shift_compact(k: np.ndarray, exponent: int) -> tuple[np.ndarray, int]:
    """Moves the tensor's exponent so that the largest k lies in 115..127, if it left that."""
    largest = int(k.max(initial=0))
    if largest == 0 or 115 <= largest <= 127:
        return k, exponent
    shift = max(-(-(largest - 127) // 4) + 1, COMPACT_LOWEST_EXPONENT - exponent)
    return np.where(k > 0, np.clip(k - 4 * shift, 1, 127), 0), exponent + shift


def _encode_unclamped(magnitude: np.ndarray, base_factor: int) -> np.ndarray:
    """``round(base_factor log2(magnitude))`` as int64, any value where magnitude is 0."""
    format = LNSFormat(16, base_factor)
    return ratio_exponent(np.asarray(magnitude, F32), format, "nearest", None)


def step_in_codes(
    g_hat, codes, *, learning_rate, format, weight_decay=0.0, rounding="nearest", seed=0
) -> np.ndarray:
    """``round(eta base_factor (g_hat sign(c) + wd))``, the update as a number of codes.

    Args:
        g_hat: Normalised float32 gradient.
        codes: Integer codes.
        learning_rate: eta, octaves per unit of g_hat.
        format: Storage format.
        weight_decay: Decoupled decay, a scalar or an array; the base stays 2.
        rounding: "nearest" (half to even) or "stochastic" (``floor(delta + u)``).
        seed: For stochastic rounding.

    Returns:
        int64 steps, positive towards smaller weights.
    """
    rate = np.clip(F32(learning_rate), F32(-LARGEST_STEP), F32(LARGEST_STEP))
    rate = _no_tiny(rate) * F32(format.base_factor)
    toward_zero = np.where(codes < 0, -g_hat, g_hat) + _no_tiny(weight_decay)
    delta = np.clip(rate * toward_zero, F32(-LARGEST_STEP), F32(LARGEST_STEP))
    delta = _no_tiny(delta)
    if rounding == "nearest":
        return np.rint(delta).astype(np.int64)
    if rounding == "stochastic":
        draw = random_bits(seed, delta.size).reshape(delta.shape)
        u = (draw >> np.uint32(8)).astype(F32) * F32(2.0**-24)
        return np.floor((delta + u).astype(F32)).astype(np.int64)
    raise ValueError(f'`rounding` must be "nearest" or "stochastic". Received: {rounding!r}')


def apply_step(codes, steps, format, cap=None, floor=None) -> np.ndarray:
    """Moves exponents down by `steps`, within the range, the cap and the floor.

    Args:
        codes: Integer codes; 0 stays 0.
        steps: Integer steps from `step_in_codes`.
        format: Storage format.
        cap: Largest exponent a weight may grow to; one above it may stay or shrink.
        floor: With sign crossing, the exponent below which a weight changes sign and comes
            back by as much as it went under, at most one octave.

    Returns:
        Codes of the format's dtype.
    """
    codes = np.asarray(codes).astype(np.int64)
    sign, exponent = np.sign(codes), np.abs(codes) - 1
    if floor is not None:
        exponent = np.maximum(exponent, floor)
    moved = exponent - steps
    if floor is not None:
        crossed = moved < floor
        back = np.minimum(2 * floor - moved, floor + format.base_factor)
        moved, sign = np.where(crossed, back, moved), np.where(crossed, -sign, sign)
    moved = np.clip(moved, 0, format.max_exponent)
    if cap is not None:
        moved = np.minimum(moved, np.maximum(cap, exponent))
    return np.where(codes == 0, 0, sign * (moved + 1)).astype(format.dtype)


def madam_step(
    codes,
    gradient,
    second_moment,
    *,
    step,
    learning_rate,
    format=LNSFormat(16, 2048),
    beta=0.999,
    g_bound=10.0,
    weight_decay=0.0,
    rounding="nearest",
    seed=0,
    cap=None,
    floor=None,
    round_gradient=False,
):
    """One LNS-Madam step on integer weights (SPEC section 2; authors' optimizer).

    ::

        v <- beta v + (1 - beta) g**2
        g_hat = clip(g / sqrt(v / (1 - beta**t)), +-g_bound)
        e <- clamp(e - round(eta base_factor (g_hat sign(c) + wd)), 0, L-1)

    Args:
        codes: Integer weights of `format`.
        gradient: float32 gradient. Non-finite elements count as 0.
        second_moment: float32 v, or a `CompactMoment`.
        step: t, counted from 1.
        learning_rate: eta.
        format: Storage format of the weights.
        beta: Decay rate of v.
        g_bound: Bound of the normalised gradient.
        weight_decay: Decoupled weight decay. With `floor`, only weights over an octave above
            it decay.
        rounding: Rounding of the step, "nearest" or "stochastic".
        seed: Seed of stochastic rounding and of the one-byte second moment.
        cap: See `apply_step`.
        floor: See `apply_step`.
        round_gradient: Round g_hat itself to integers first, as the authors' code does.

    Returns:
        ``(codes, second_moment, nonfinite)``: the new state and the number of gradient
        elements that were not finite.
    """
    format = LNSFormat.get(format)
    codes = checked_codes(codes, format)
    gradient, nonfinite = finite_gradient(gradient)
    common = {"step": step, "beta": beta, "g_bound": g_bound}
    if isinstance(second_moment, CompactMoment):
        # A seed of its own, so that v's rounding and the weight's are independent.
        g_hat, second_moment = normalized_gradient_compact(
            gradient, second_moment, seed=int(seed) ^ COMPACT_SEED, **common
        )
    else:
        g_hat, second_moment = normalized_gradient(gradient, second_moment, **common)
    if round_gradient:
        g_hat = np.rint(g_hat)
    decay = F32(weight_decay)
    if floor is not None:
        exponent = np.maximum(np.abs(codes) - 1, floor)
        decay = np.where(exponent > floor + format.base_factor, decay, F32(0))
    steps = step_in_codes(
        g_hat,
        codes,
        learning_rate=learning_rate,
        format=format,
        weight_decay=decay,
        rounding=rounding,
        seed=seed,
    )
    return apply_step(codes, steps, format, cap, floor), second_moment, nonfinite


COMPACT_SEED = 0x5851F42D4C957F2D
"""XORed into the seed for the draws of the one-byte second moment."""


def additive_step(
    weights,
    gradient,
    second_moment,
    *,
    step,
    learning_rate,
    beta=0.999,
    weight_decay=0.0,
    g_bound=10.0,
):
    """The float32 step of variables that are no LNS weights (biases, norm scales).

    ``w <- w - eta (g_hat + wd w)`` with the same g_hat as `madam_step`. Results are bounded by
    the largest float32: a finite weight stays finite.

    Returns:
        ``(weights, second_moment, nonfinite)``.
    """
    gradient, nonfinite = finite_gradient(gradient)
    g_hat, second_moment = normalized_gradient(
        gradient, second_moment, step=step, beta=beta, g_bound=g_bound
    )
    weights = _no_tiny(weights)
    bound = np.finfo(F32).max
    with np.errstate(over="ignore"):
        decay = _no_tiny(np.clip(_no_tiny(weight_decay) * weights, -bound, bound))
        change = _no_tiny(np.clip(_no_tiny(learning_rate) * (g_hat + decay), -bound, bound))
        moved = np.clip(weights - change, -bound, bound)
    return _no_tiny(moved), second_moment, nonfinite
