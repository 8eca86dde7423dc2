"""The same counts in other number formats: LNS-8 against FP8, INT8, BF16, FP16 and FP32.

`retarget` says what would be counted if the products of the network were computed in another
format. Nothing else of the step changes: element-wise work, the loss and the update stay as
they were counted, in every format.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group

from tf_lns.energy import recipes, report
from tf_lns.energy.count import tally as count_step
from tf_lns.energy.counts import Tally
from tf_lns.energy.price import Energy, price
from tf_lns.energy.records import Operand, Record, Traffic
from tf_lns.energy.table import BUILT_IN, FLOATS, EnergyTable
from tf_lns.formats import LNSFormat

if TYPE_CHECKING:
    import matplotlib.figure

FORMATS = ("lns8", "fp8", "int8", "bf16", "fp16", "fp32")
"""What `compare` compares unless told otherwise."""

LNS8 = "lns8:8"
"""What `"lns8"` means for a model that is not in LNS."""

STORAGE = "lns16:2048"
"""Storage format of an LNS weight, from which products take theirs by a requantize."""

NETWORK = ("forward", "error", "gradient")
"""Passes whose products, conversions and traffic change with the format."""

VERSION = 1
"""Version of `Comparison.to_dict`."""

_CONVERSIONS = ("encode", "requantize", "decode")


def target_format(format: str | LNSFormat) -> str:
    """Full name of a format that products can be computed in.

    Args:
        format: `"lns8"` (which is `"lns8:8"`), any LNS format, `"int8"` or a float:
            `"fp8"`, `"bf16"`, `"fp16"`, `"fp32"`, `"fp64"`.

    Raises:
        TypeError: Not a name of a format.
        ValueError: No such format.
    """
    if isinstance(format, LNSFormat):
        return str(format)
    if not isinstance(format, str):
        raise TypeError(
            f'`format` must be the name of a format, such as "lns8:8". Received: format={format!r}'
        )
    name = format.strip().lower()
    if name == "lns8":
        return LNS8
    if name in FLOATS or name == "int8":
        return name
    try:
        return str(LNSFormat.parse(name))
    except ValueError:
        raise ValueError(
            f"`format` must be one of {', '.join(FORMATS)}, fp64, or an LNS format such as "
            f'"lns8:8". Received: format={format!r}'
        ) from None


def retarget(tally: Tally, format: str | LNSFormat) -> Tally:
    """The counts of the same step with its products in another format.

    What changes are the passes forward, error and gradient:

    * A model of floats: both operands of every product get the format. Each distinct element
      that enters products is converted once: encoded from its float, and a weight that goes
      to LNS requantized from its storage in lns16:2048; nothing for bf16, fp16 and fp32.
    * A model with low-bit products (LNS, fp8, int8): operands in a low-bit format get the
      new one, and those in a float stay. Its counted conversions keep their number and
      get the format too, a requantize becoming an encode from fp32; for bf16, fp16 and fp32
      they are dropped. `"lns8"` leaves every LNS format as it is, so an LNS model is itself.
    * Traffic of weights, activations and errors (and low-bit gradients) has the bits of the
      new format.

    Element-wise work, the loss and the update with its traffic stay as counted.

    Args:
        tally: Counts of a step.
        format: See `target_format`.

    Returns:
        New counts with one note more.

    Raises:
        TypeError: `tally` is no `Tally`, or `format` no name.
        ValueError: No such format.
    """
    if not isinstance(tally, Tally):
        raise TypeError(f"`tally` must be a Tally. Received: tally={tally!r}")
    target = target_format(format)
    keep_lns = isinstance(format, str) and format.strip().lower() == "lns8"
    network = [r for r in tally.records if r.pass_ in NETWORK]
    low_bit = any(r.kind == "mac" and any(map(recipes.is_low_bit, r.formats)) for r in network)

    def new(format: str) -> str:
        """The format that takes the place of one."""
        if keep_lns and recipes.is_lns(format):
            return format
        changes = recipes.is_low_bit(format) if low_bit else format in FLOATS
        return target if changes else format

    records = [
        changed
        for record in tally.records
        if (changed := _record(record, new) if record.pass_ in NETWORK else record) is not None
    ]
    counted = any(r.kind in _CONVERSIONS and _converts(r) for r in network)
    if recipes.is_low_bit(target) and not (low_bit and counted):
        records += [
            _conversion(o, target)
            for o in tally.operands
            if o.pass_ in NETWORK and new(o.format) != o.format
        ]
    note = (
        f"Products of forward, error and gradient pass in {target}; element-wise work, loss and "
        "update as counted."
    )
    return dataclasses.replace(
        tally,
        records=tuple(records),
        traffic=tuple(_traffic(t, new, low_bit) for t in tally.traffic),
        operands=tuple(
            dataclasses.replace(o, format=new(o.format)) if o.pass_ in NETWORK else o
            for o in tally.operands
        ),
        notes=(*tally.notes, note),
    )


def _converts(record: Record) -> bool:
    """Whether a conversion has a low-bit format on the side of the products."""
    side = record.formats[0] if record.kind == "decode" else record.formats[-1]
    return recipes.is_low_bit(side)


def _record(record: Record, new: Any) -> Record | None:
    """A record of the network in the new format; None if it falls away."""
    if record.kind == "mac":
        return dataclasses.replace(record, formats=tuple(map(new, record.formats)))
    if record.kind not in _CONVERSIONS or not _converts(record):
        return record
    source, goal = record.formats
    if record.kind == "decode":
        formats, side = (new(source), goal), source
    else:
        formats, side = (source, new(goal)), goal
    if new(side) == side:
        return record
    if not recipes.is_low_bit(new(side)):
        return None
    if record.kind == "requantize" and not recipes.is_lns(new(side)):
        return dataclasses.replace(record, kind="encode", formats=("fp32", new(side)))
    return dataclasses.replace(record, formats=formats)


def _conversion(operand: Operand, target: str) -> Record:
    """One conversion per element that enters products."""
    kind, formats = "encode", (operand.format, target)
    if operand.role == "weights" and recipes.is_lns(target):
        kind, formats = "requantize", (STORAGE, target)
    elif recipes.is_low_bit(operand.format):
        formats = ("fp32", target)
    return Record(
        operand.layer, operand.pass_, kind, formats, operand.elements, op=f"of {operand.role}"
    )


def _traffic(traffic: Traffic, new: Any, low_bit: bool) -> Traffic:
    """Traffic of the network in the new format."""
    tensors = ("weights", "activations", "errors", *(("gradients",) if low_bit else ()))
    format = new(traffic.format)
    if traffic.pass_ not in NETWORK or traffic.role not in tensors or format == traffic.format:
        return traffic
    return dataclasses.replace(traffic, format=format, bits=recipes.bits(format))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One format under one table.

    Attributes:
        format: Name of the format as it was asked for.
        energy: What the step costs in it.
    """

    format: str
    energy: Energy

    @property
    def table(self) -> str:
        """Name of the table."""
        return self.energy.table.name

    @property
    def priced(self) -> bool:
        """Whether the table prices this format's products; without them no total says much."""
        return not any(gap.what.startswith("mac ") for gap in self.energy.unpriced)

    @property
    def total_pj(self) -> float | None:
        """Energy of a step in pJ; None if the table does not price this format."""
        return self.energy.total_pj if self.priced else None

    @property
    def low_pj(self) -> float | None:
        """Low estimate of `total_pj`."""
        return self.energy.low_pj if self.priced else None

    @property
    def high_pj(self) -> float | None:
        """High estimate of `total_pj`."""
        return self.energy.high_pj if self.priced else None

    @property
    def by_kind(self) -> dict[str, float]:
        """Energy in pJ by kind of operation."""
        return self.energy.by_kind

    @property
    def products_pj(self) -> float:
        """Energy in pJ of multiply-accumulates in every pass."""
        return self.by_kind.get("mac", 0.0)

    @property
    def conversions_pj(self) -> float:
        """Energy in pJ of encode, requantize and decode."""
        return self.energy.by_part.get("conversion", 0.0)

    @property
    def rest_pj(self) -> float:
        """Energy in pJ of element-wise work, the same in every format."""
        return self.energy.by_part.get("element-wise", 0.0)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Formats under tables; prints as a table that names them.

    Attributes:
        rows: One `Entry` per table and format, tables outermost.
        formats: Names of the formats as they were asked for.
        table_names: Names of the tables.
        samples: Samples per step.
        name: Name of the model.
        notes: What was assumed, in sentences.
        period: What they are energies of, see `Tally.period`.
    """

    rows: tuple[Entry, ...]
    formats: tuple[str, ...]
    table_names: tuple[str, ...]
    samples: int = 1
    name: str = ""
    notes: tuple[str, ...] = ()
    period: str = "step"

    def entry(self, table: str | EnergyTable, format: str | LNSFormat) -> Entry:
        """The entry of one table and format.

        Raises:
            ValueError: It is not among those compared.
        """
        for row in self.rows:
            if (row.table, row.format) == (str(table), str(format)):
                return row
        raise ValueError(
            f"`table` must be one of {', '.join(self.table_names)} and `format` one of "
            f"{', '.join(self.formats)}. Received: table={str(table)!r}, format={str(format)!r}"
        )

    def ratio(
        self, table: str | EnergyTable, first: str | LNSFormat, second: str | LNSFormat
    ) -> float | None:
        """How many times the energy of `second` the format `first` takes, under one table.

        Returns:
            The ratio; None if the table does not price one of the two, or `second` costs nothing.

        Raises:
            ValueError: A table or format that was not compared.
        """
        a, b = self.entry(table, first).total_pj, self.entry(table, second).total_pj
        return None if a is None or not b else a / b

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; energies in pJ, None where unpriced."""
        return {
            "version": VERSION,
            "name": self.name,
            "samples": self.samples,
            "formats": list(self.formats),
            "tables": list(self.table_names),
            "notes": list(self.notes),
            "rows": [
                {
                    "table": row.table,
                    "format": row.format,
                    "priced": row.priced,
                    "total_pj": row.total_pj,
                    "low_pj": row.low_pj,
                    "high_pj": row.high_pj,
                    "by_kind": row.by_kind,
                    "by_part": row.energy.by_part,
                    "by_pass": row.energy.by_pass,
                    "memory_pj": row.energy.memory_pj,
                    "ratios": {f: self.ratio(row.table, f, row.format) for f in self.formats},
                    "unpriced": [dataclasses.asdict(gap) for gap in row.energy.unpriced],
                }
                for row in self.rows
            ],
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """`to_dict` as text, also written to a file if `path` is given."""
        return report.json_text(self.to_dict(), path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """One line per table and format as text, also written to a file if `path` is given."""
        rows: list[tuple[Any, ...]] = []
        energies = ("total_pj", "low_pj", "high_pj", "products_pj", "conversions_pj", "rest_pj")
        rows.append(("table", "format", *energies, *(f"{f}_ratio" for f in self.formats)))
        for row in self.rows:
            ratios = (self.ratio(row.table, f, row.format) for f in self.formats)
            values = (getattr(row, name) for name in energies)
            rows.append((row.table, row.format, *values, *ratios))
        return report.csv_text(rows, path)

    def plot(self, path: str | pathlib.Path | None = None) -> matplotlib.figure.Figure:
        """Draws a bar per format and table, with its range and its ratio to the first format.

        Args:
            path: File to write, its kind by its suffix (`.png`, `.svg`, `.pdf`).

        Returns:
            The figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from tf_lns.energy.picture import draw

        return draw(self, path)

    def __repr__(self) -> str:
        return (
            f"<Comparison of {', '.join(self.formats)} under {', '.join(self.table_names)}"
            f"{f', model {self.name}' if self.name else ''}>"
        )

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def __rich__(self) -> Group:
        return Group(*report.comparison_tables(self))


def compare(
    model: Any,
    batch: Any = None,
    formats: Iterable[str | LNSFormat] = FORMATS,
    tables: Iterable[str | pathlib.Path | EnergyTable] | None = None,
) -> Comparison:
    """Prices one step in several number formats under several tables.

    Args:
        model: A model, whose step on `batch` is counted; or a `Tally`.
        batch: What `tally` takes; None for a `Tally`.
        formats: Names of formats, see `target_format`. `"lns8"` of an LNS model is the
            model as it is.
        tables: Names, paths or tables, see `EnergyTable.load`; all built-in ones if None.

    Returns:
        The comparison; print it, or take `.ratio(table, "fp32", "lns8")`, `.rows`, `.plot(path)`.

    Raises:
        TypeError: An argument of the wrong kind.
        ValueError: No such format or table, or none of them.
    """
    if isinstance(model, Tally):
        if batch is not None:
            raise ValueError("`batch` must be None with a Tally, whose step is counted already.")
        counts = model
    else:
        counts = count_step(model, batch)
    formats = _several("formats", formats, str | LNSFormat)
    chosen = _several("tables", BUILT_IN if tables is None else tables, _TABLE)
    loaded = [EnergyTable.load(table) for table in chosen]
    names = [table.name for table in loaded]
    if len(set(names)) < len(names):
        raise ValueError(f"`tables` must have different names. Received: {', '.join(names)}")
    retargeted = {str(format): retarget(counts, format) for format in formats}
    rows = [
        Entry(format, price(changed, table))
        for table in loaded
        for format, changed in retargeted.items()
    ]
    notes = (
        *counts.notes,
        "In every format element-wise work, the loss and the update are those that were counted; "
        "the products of the network, its conversions and its traffic are in that format.",
    )
    return Comparison(
        rows=tuple(rows),
        formats=tuple(retargeted),
        table_names=tuple(names),
        samples=counts.samples,
        name=counts.name,
        notes=notes,
        period=counts.period,
    )


_TABLE = str | pathlib.Path | EnergyTable


def _several(name: str, values: Any, kind: Any) -> tuple[Any, ...]:
    """One or several values as a tuple."""
    if isinstance(values, kind):
        return (values,)
    values = tuple(values)
    if not values:
        raise ValueError(f"`{name}` must name at least one. Received: {name}={values!r}")
    return values
