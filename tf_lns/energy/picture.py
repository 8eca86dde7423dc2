"""The picture of a comparison: bars per format and energy table. matplotlib draws it."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from tf_lns.energy.report import human_energy, human_ratio

if TYPE_CHECKING:
    import matplotlib.figure

    from tf_lns.energy.comparison import Comparison

_COLOURS = {"products": "#2f6db5", "conversions": "#e0913a", "element-wise": "#b9bfc7"}
_INK = "#333a44"


def draw(
    comparison: Comparison, path: str | pathlib.Path | None = None
) -> matplotlib.figure.Figure:
    """Draws one panel per energy table with a bar per format.

    A bar is split into products, conversions and element-wise work (with loss and update, the
    same in every format); the whisker goes from the low to the high estimate of the total; the
    label is the total and its ratio to the first format. Panels have scales of their own:
    energies of different tables are never compared.

    Args:
        comparison: What to draw.
        path: File to write, its kind by its suffix; nothing is written if None.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "A picture needs matplotlib: pip install matplotlib (or tf-lns[demo])."
        ) from None
    names, formats = comparison.table_names, comparison.formats
    height = 0.9 + len(names) * (0.75 + 0.36 * len(formats))
    figure = Figure(figsize=(8.6, height), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    title = "Energy of one training step by format of its products"
    figure.suptitle(
        f"{title}{f': {comparison.name}' if comparison.name else ''}",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
        color=_INK,
    )
    for name, axes in zip(names, panels, strict=True):
        _panel(axes, comparison, name)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
    if path is not None:
        figure.savefig(path)
    return figure


def _panel(axes: Any, comparison: Comparison, name: str) -> None:
    """The bars of one energy table."""
    rows = {row.format: row for row in comparison.rows if row.table == name}
    first = comparison.formats[0]
    priced = {f: row for f, row in rows.items() if row.priced}
    widest = max((row.energy.high_pj for row in priced.values()), default=0.0) or 1.0
    scale, unit = _unit(widest)
    places = range(len(rows))
    left = [0.0] * len(rows)
    pieces = {
        "products": [rows[f].products_pj if f in priced else 0.0 for f in rows],
        "conversions": [rows[f].conversions_pj if f in priced else 0.0 for f in rows],
        "element-wise": [rows[f].rest_pj if f in priced else 0.0 for f in rows],
    }
    for label, values in pieces.items():
        widths = [value / scale for value in values]
        axes.barh(places, widths, 0.62, left=left, color=_COLOURS[label], label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, (format, row) in zip(places, rows.items(), strict=True):
        if format not in priced:
            axes.text(0.0, place, " not in this table", va="center", fontsize=8.5, color="#8a919b")
            continue
        low, total, high = (
            value / scale for value in (row.energy.low_pj, row.energy.total_pj, row.energy.high_pj)
        )
        axes.errorbar(
            total,
            place,
            xerr=[[total - low], [high - total]],
            fmt="none",
            ecolor=_INK,
            elinewidth=1.0,
            capsize=3,
            label="low to high" if place == 0 else None,
        )
        ratio = comparison.ratio(name, format, first)
        times = "" if ratio is None or format == first else f"   {human_ratio(ratio)} {first}"
        axes.text(
            max(high, total) + 0.012 * widest / scale,
            place,
            f"{human_energy(row.energy.total_pj)}{times}",
            va="center",
            fontsize=8.5,
            color=_INK,
        )
    axes.set_yticks(list(places), list(rows), fontsize=9, color=_INK)
    axes.invert_yaxis()
    axes.set_xlim(0, widest / scale * 1.3)
    axes.set_xlabel(f"{unit} per step", fontsize=8.5, color=_INK)
    axes.set_title(f"table {name}", loc="left", fontsize=10, color=_INK)
    axes.tick_params(axis="x", labelsize=8, colors=_INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9ced6")


def _unit(pj: float) -> tuple[float, str]:
    """Scale and name of the unit in which an energy is printed."""
    text, unit = human_energy(pj).split()
    return pj / float(text), unit
