"""Energies for people: units and tables for a terminal. Every table names its energy table."""

from __future__ import annotations

import collections
import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from tf_lns.energy import recipes
from tf_lns.energy.records import KINDS, PASSES

if TYPE_CHECKING:
    from tf_lns.energy.comparison import Comparison
    from tf_lns.energy.price import Energy, Gap
    from tf_lns.energy.table import EnergyTable, Row

_UNITS = ("pJ", "nJ", "µJ", "mJ", "J", "kJ", "MJ", "GJ")


def json_text(data: Any, path: str | os.PathLike[str] | None = None) -> str:
    """Plain data as JSON text, also written to a file if `path` is given."""
    text = json.dumps(data, indent=2, allow_nan=False)
    if path is not None:
        pathlib.Path(path).write_text(text + "\n", encoding="utf-8")
    return text


def csv_text(rows: Iterable[Iterable[Any]], path: str | os.PathLike[str] | None = None) -> str:
    """Rows as CSV text, also written to a file if `path` is given."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    if path is not None:
        pathlib.Path(path).write_text(out.getvalue(), encoding="utf-8")
    return out.getvalue()


def human_energy(pj: float) -> str:
    """An energy to three digits with its unit.

    Args:
        pj: Energy in picojoules.

    Example:
        >>> human_energy(4.6), human_energy(2_300_000.0)
        ('4.60 pJ', '2.30 µJ')
    """
    if not math.isfinite(pj):
        return f"{pj} pJ"
    value, index = abs(float(pj)), 0
    while value >= 999.5 and index < len(_UNITS) - 1:
        value, index = value / 1000, index + 1
    if index == 0 and 0 < value < 0.995:
        text = f"{value:.3g}"
    else:
        text = f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"
    return f"{'-' if pj < 0 else ''}{text} {_UNITS[index]}"


def human_ratio(ratio: float) -> str:
    """A ratio to three digits: 0.44x, 2.28x, 11.2x, 104x."""
    return f"{ratio:.{0 if ratio >= 99.95 else 1 if ratio >= 9.995 else 2}f}x"


def share(part: float, whole: float) -> str:
    """A share with one digit; what is not quite nothing does not read as nothing."""
    value = part / whole if whole else 0.0
    return "<0.1%" if 0 < value < 0.0005 else f"{value:.1%}"


def layer_table(energy: Energy, limit: int | None = None) -> Table:
    """Energy per layer and pass; the caption names table, range and what has no price.

    Args:
        energy: A priced step.
        limit: Show only so many layers, those of the highest energy, and the rest as one line.
    """
    cells: dict[str, dict[str, float]] = {}
    for entry in energy.records:
        row = cells.setdefault(entry.record.layer, dict.fromkeys(PASSES, 0.0))
        row[entry.record.pass_] += entry.pj
    layers = list(cells)
    rest: list[str] = []
    if limit is not None and len(layers) > limit:
        top = set(sorted(layers, key=lambda name: -energy.by_layer[name])[: max(limit, 0)])
        rest = [name for name in layers if name not in top]
        layers = [name for name in layers if name in top]
    passes = [p for p in PASSES if p in energy.by_pass]
    table = _table(
        f"Energy of a {energy.period}{f' of {energy.name}' if energy.name else ''}", energy
    )
    table.add_column("layer", overflow="fold")
    for name in (*passes, "total", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    groups = [(name or "(outside of layers)", [name]) for name in layers]
    if rest:
        groups.append((f"{len(rest)} more layer{'s' if len(rest) > 1 else ''}", rest))
    for label, names in groups:
        total = math.fsum(energy.by_layer[name] for name in names)
        values = [math.fsum(cells[name][p] for name in names) for p in passes]
        table.add_row(
            escape(label), *map(_cell, values), _cell(total), share(total, energy.total_pj)
        )
    table.add_section()
    table.add_row(
        "total",
        *(_cell(energy.by_pass[p]) for p in passes),
        _cell(energy.total_pj),
        share(energy.total_pj, energy.total_pj),
        style="bold",
    )
    return table


def kind_table(energy: Energy) -> Table:
    """Energy per kind of operation and formats, with the price of one of them."""
    groups: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    for entry in energy.records:
        kind = entry.record.kind
        text = recipes.label(kind, entry.record.formats).removeprefix(f"{kind} ")
        group = groups[kind, text]
        group[0] += entry.record.count
        group[1] += entry.pj
        group[2] = entry.price.pj
    table = _table("Energy by kind of operation", energy)
    table.add_column("kind")
    table.add_column("formats", overflow="fold")
    for name in ("count", "each", "total", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    order = list(KINDS)
    for (kind, formats), (count, pj, unit) in sorted(
        groups.items(), key=lambda item: (order.index(item[0][0]), -item[1][1])
    ):
        table.add_row(
            kind,
            escape(formats),
            f"{count:,.0f}",
            human_energy(unit),
            _cell(pj),
            share(pj, energy.total_pj),
        )
    return table


def part_table(energy: Energy) -> Table:
    """Energy per part of an operation: multiplier, exponent adder, table, shifter, ..."""
    table = _table("Energy by part", energy)
    table.add_column("part")
    for name in ("total", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, pj in energy.by_part.items():
        table.add_row(name, _cell(pj), share(pj, energy.total_pj))
    return table


def memory_table(energy: Energy) -> Table:
    """Energy of the traffic by memory level, each as if all of it went there."""
    table = _plain(
        "Energy of the traffic, not in any total",
        f"All traffic of a step as if it went to one level. Table {energy.table.name}.",
    )
    table.add_column("level")
    for name in ("total", "low", "high"):
        table.add_column(name, justify="right", no_wrap=True)
    for level, cost in energy.memory.items():
        table.add_row(escape(level), *map(_cell, (cost.pj, cost.low, cost.high)))
    return table


def price_table(table: EnergyTable) -> Table:
    """The rows of an energy table, with their origin and source."""
    source = table.source
    year = f" ({source['year']})" if "year" in source else ""
    link = source.get("doi") or source.get("url") or ""
    caption = [f"Source: {source['citation']}{year} {link}".rstrip()]
    if source.get("read"):
        caption.append(f"Read: {source['read']}")
    caption += table.notes
    rules = [row for row in table.rows if row.rule]
    caption += [f"{row.op} {row.what}: {row.rule}" for row in rules]
    facts = ((table.node_nm, "nm"), (table.voltage_v, "V"))
    node = ", ".join(f"{value:g} {unit}" for value, unit in facts if value is not None)
    result = _plain(
        f"{table.name}: {table.title}" + (f" ({node})" if node else ""), "\n".join(caption)
    )
    for name in ("operation", "format", "pJ", "low", "high", "origin"):
        right = name in ("pJ", "low", "high")
        result.add_column(name, justify="right" if right else "left")
    for row in table.rows:
        cost = row.cost()
        if row.family:
            values = [_polynomial(row, 1), _polynomial(row, 0), _polynomial(row, 2)]
        else:
            values = [f"{v:g}" for v in (cost.pj, cost.low, cost.high)]
        result.add_row(row.op, escape(row.what), *values, row.origin)
    return result


def comparison_tables(comparison: Comparison) -> list[Table]:
    """One table of formats per energy table."""
    first = comparison.formats[0]
    result = []
    for name in comparison.table_names:
        title = (
            f"Energy of a {comparison.period}{f' of {comparison.name}' if comparison.name else ''}"
        )
        gaps = (
            gap
            for row in comparison.rows
            if row.table == name and row.priced
            for gap in row.energy.unpriced
        )
        table = _plain(f"{title}, table {name}", _unpriced_text(gaps))
        table.add_column("format", no_wrap=True)
        for column in (
            "products",
            "conversions",
            "all else",
            "total",
            "low to high",
            f"to {first}",
        ):
            table.add_column(column, justify="right", no_wrap=True)
        for row in comparison.rows:
            if row.table != name:
                continue
            if row.total_pj is None:
                table.add_row(escape(row.format), "not in this table", style="dim")
                continue
            ratio = comparison.ratio(name, row.format, first)
            table.add_row(
                escape(row.format),
                *map(_cell, (row.products_pj, row.conversions_pj, row.rest_pj)),
                _cell(row.total_pj),
                f"{human_energy(row.energy.low_pj)} to {human_energy(row.energy.high_pj)}",
                "" if ratio is None else human_ratio(ratio),
            )
        result.append(table)
    return result


def _table(title: str, energy: Energy) -> Table:
    """An empty table whose caption names the energy table, the range and the gaps."""
    samples = f", {human_energy(energy.per_sample_pj)} per sample" if energy.samples > 1 else ""
    lines = [
        f"{human_energy(energy.total_pj)} per {energy.period} ({human_energy(energy.low_pj)} to "
        f"{human_energy(energy.high_pj)}){samples}, arithmetic only. Table {energy.table.name}: "
        f"{energy.table.title}."
    ]
    if unpriced := _unpriced_text(energy.unpriced):
        lines.append(unpriced)
    return _plain(title, "\n".join(lines))


def _plain(title: str, caption: str) -> Table:
    """An empty table in the style of all; names are escaped, they may look like markup."""
    return Table(
        title=escape(title),
        caption=escape(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        min_width=min(72, max(map(len, caption.splitlines()), default=0)),
    )


def _unpriced_text(gaps: Iterable[Gap]) -> str:
    """What has no price, each named once."""
    names = dict.fromkeys(gap.what for gap in gaps)
    return f"Not in the total: {', '.join(names)}." if names else ""


def _cell(pj: float) -> str:
    return human_energy(pj) if pj else "-"


def _polynomial(row: Row, index: int) -> str:
    """The formula of a family's row: 0.0042 b² + 0.054 b; index 0 is low, 1 middle, 2 high."""
    terms = zip((row.pj_per_bit_squared, row.pj_per_bit, row.pj), (" b²", " b", ""), strict=True)
    return " + ".join(f"{c[index]:.4g}{b}" for c, b in terms if c[index]) or "0"
