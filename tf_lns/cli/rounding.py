"""What rounding costs at which magnitude, for LNS formats and for two that people know.

Magnitudes are octaves below the largest value of a format. LNS values are rounded by
`tf_lns.reference`, which defines them; int8 has 127 even steps and fp8 is E4M3, which keeps
its values down to its denormals.
"""

from __future__ import annotations

import functools

import numpy as np

from tf_lns import reference
from tf_lns.formats import LNSFormat

OTHERS = ("int8", "fp8")
"""Formats beside LNS, for comparison."""

_DEEPEST = 120
"""Octaves that float32 has room for."""

_BESIDE = 1e-6
"""Relative distance from a boundary: more than a float32 resolves, less than any gap."""


@functools.cache
def magnitudes(name: str) -> np.ndarray:
    """Positive values of `int8` or `fp8`, rising, the largest being 1."""
    if name == "int8":
        values = np.arange(1, 128, dtype=np.float64)
    else:
        normal = [(8 + m) * 2.0 ** (e - 3) for e in range(1, 16) for m in range(8)]
        values = np.array([m * 2.0**-2 for m in range(1, 8)] + normal[:-1])
    return values / values[-1]


def octaves(format: LNSFormat | str) -> float:
    """Octaves between the smallest and the largest magnitude."""
    if isinstance(format, LNSFormat):
        return format.octaves
    return float(-np.log2(magnitudes(format)[0]))


def rounded(x: np.ndarray, format: LNSFormat | str) -> np.ndarray:
    """Values in (0, 1] rounded to nearest, where 1 is the largest of the format."""
    if isinstance(format, LNSFormat):
        scale = reference.scale_from_abs_max(1.0, format)
        return reference.quantize(x.astype(np.float32), format, scale).astype(np.float64)
    values = np.concatenate([[0.0], magnitudes(format)])
    index = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
    lower, upper = values[index - 1], values[index]
    return np.where(x - lower < upper - x, lower, upper)


def boundaries(format: LNSFormat | str, deepest: float) -> np.ndarray:
    """Where rounding changes from one magnitude to the next, values in (0, 1)."""
    if isinstance(format, LNSFormat):
        count = min(format.max_exponent, int(deepest * format.base_factor) + 1)
        return np.exp2(-(np.arange(count) + 0.5) / format.base_factor)
    values = np.concatenate([[0.0], magnitudes(format)])
    return (values[:-1] + values[1:]) / 2


def worst_errors(
    format: LNSFormat | str, deepest: float, per_octave: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Worst relative error by magnitude.

    It occurs beside a boundary of rounding or at an end of an interval, so these are tried.

    Args:
        format: An LNS format, `"int8"` or `"fp8"`.
        deepest: How many octaves below the largest value to look, at most 120.
        per_octave: Intervals per octave; the last one ends at `deepest`.

    Returns:
        Middles of the intervals, in octaves (0 down to -deepest), and the largest relative
        error in each.
    """
    deepest = min(deepest, _DEEPEST)
    edges = -np.minimum(np.arange(np.ceil(deepest * per_octave) + 1) / per_octave, deepest)
    middle = boundaries(format, deepest)
    x = np.concatenate([middle * (1 - _BESIDE), middle * (1 + _BESIDE), np.exp2(edges)])
    errors = np.abs(rounded(x, format) - x) / x
    worst = np.zeros(len(edges) - 1)
    for nudge in (-_BESIDE, _BESIDE):  # an end belongs to both of its intervals
        place = np.searchsorted(-edges, -np.log2(x) + nudge) - 1
        inside = (place >= 0) & (place < worst.size)
        np.maximum.at(worst, place[inside], errors[inside])
    return (edges[:-1] + edges[1:]) / 2, worst
