"""The picture of formats: where their values lie, and what rounding costs there."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lns.cli import rounding
from tf_lns.formats import LNSFormat

if TYPE_CHECKING:
    import matplotlib.figure

_COLOURS = ("#2f6db5", "#e0913a", "#4a9a62", "#b5447c", "#7a5cc0", "#2a9da8", "#8a6d3b", "#c0453a")
_GREY = {"int8": "#8a919b", "fp8": "#333a44"}
_INK = "#333a44"
_MOST_OCTAVES = 40
_MOST_TICKS = 300


def draw(formats: Sequence[LNSFormat], path: pathlib.Path) -> matplotlib.figure.Figure:
    """Draws the values of formats on a line each, and the worst error against magnitude.

    Args:
        formats: What to draw; int8 and fp8 are added for comparison.
        path: File to write, its kind by its suffix.

    Returns:
        The figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: list[LNSFormat | str] = [*formats, *rounding.OTHERS]
    colours = [
        _GREY[row] if isinstance(row, str) else _COLOURS[i % len(_COLOURS)]
        for i, row in enumerate(rows)
    ]
    deepest = min(max(rounding.octaves(row) for row in rows) + 1.5, _MOST_OCTAVES)
    height = 0.26 * len(rows) + 0.5
    figure = Figure(figsize=(8.6, height + 4.4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(height, 3.6))
    figure.suptitle(
        "Number formats by magnitude", x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK
    )
    _values(top, rows, colours, deepest)
    _errors(bottom, rows, colours, deepest)
    for axes in (top, bottom):
        axes.tick_params(labelsize=8, colors=_INK, length=0)
        axes.tick_params(axis="x", labelbottom=axes is bottom)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color("#c9ced6")
    for label, colour in zip(top.get_yticklabels(), colours, strict=True):
        label.set_color(colour)
        label.set_fontweight("bold")
    figure.savefig(path)
    return figure


def _values(
    axes: Any, rows: Sequence[LNSFormat | str], colours: Sequence[str], deepest: float
) -> None:
    """A tick per representable magnitude; a band where ticks would touch."""
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        places = _places(row)
        places = places[places >= -deepest]
        if places.size > _MOST_TICKS:
            axes.fill_betweenx((place - 0.32, place + 0.32), places.min(), 0, color=colour, lw=0)
        else:
            axes.vlines(places, place - 0.32, place + 0.32, color=colour, linewidth=0.7)
    axes.set_yticks(range(len(rows)), [str(row) for row in rows])
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title(
        "magnitudes that can be represented (a solid bar: too many to tell apart)",
        loc="left",
        fontsize=9,
        color=_INK,
    )


def _places(row: LNSFormat | str) -> np.ndarray:
    """Positions of the magnitudes, in octaves below the largest."""
    if isinstance(row, LNSFormat):
        return -np.arange(row.max_code) / row.base_factor
    return np.log2(rounding.magnitudes(row))


def _errors(
    axes: Any, rows: Sequence[LNSFormat | str], colours: Sequence[str], deepest: float
) -> None:
    """Worst relative error in each octave; a line rises where the range ends."""
    lowest = 1.0
    for row, colour in zip(rows, colours, strict=True):
        reach = max(rounding.octaves(row), 2.0**-20)
        _, errors = rounding.worst_errors(row, min(reach, deepest))
        ends = -np.minimum(np.arange(errors.size + 1), reach)
        lowest = min(lowest, float(errors[errors > 0].min(initial=1.0)))
        rise = 2.0 if reach <= deepest else errors[-1]
        x, y = np.repeat(ends, 2)[1:], np.append(np.repeat(errors, 2), rise)
        style = (0, (4, 2)) if isinstance(row, str) else "-"
        axes.plot(x, y, linestyle=style, color=colour, linewidth=1.5)
    axes.set_yscale("log")
    axes.set_ylim(lowest / 2, 1.0)
    axes.set_xlim(-deepest, 0.4)
    step = 1 if deepest <= 20 else 2 if deepest <= 32 else 4
    axes.set_xticks(range(0, -int(deepest) - 1, -step))
    ticks = [t for t in (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0) if t >= lowest / 2]
    axes.set_yticks(ticks, [f"{100 * t:g}%" for t in ticks])
    axes.minorticks_off()
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_xlabel("octaves below the largest value of the format", fontsize=8.5, color=_INK)
    axes.set_title(
        "worst relative error of rounding, by octave, in the colours above; a line rises where "
        "the range ends",
        loc="left",
        fontsize=9,
        color=_INK,
    )
