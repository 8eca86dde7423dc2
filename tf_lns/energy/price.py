"""Prices counts with a table: energy per layer, pass, kind of operation and part of it.

Every operation is taken apart by `recipes.py` into primitives and these are priced by a table of
`table.py`; what either does not know is listed, never dropped. All energies are in
picojoules (pJ) and belong to the arithmetic alone; memory is a separate account.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tf_lns.energy import recipes
from tf_lns.energy.recipes import Part, UnknownFormatError
from tf_lns.energy.records import Record
from tf_lns.energy.report import csv_text, human_energy, json_text
from tf_lns.energy.table import Cost, EnergyTable

if TYPE_CHECKING:
    from tf_lns.energy.counts import Tally

VERSION = 1
"""Version of `Energy.to_dict`."""


@dataclasses.dataclass(frozen=True)
class PartPrice:
    """Energy of one part of an operation.

    Attributes:
        name: One of `recipes.PARTS`.
        op: The primitive that was priced, one of `tables.OPS`.
        format: Its format.
        number: How many of it.
        pj: Energy of all of them, pJ.
        low: Low estimate, pJ.
        high: High estimate, pJ.
        origin: Of the row: `"published"`, `"recalled"` or `"derived"`.
    """

    name: str
    op: str
    format: str
    number: float
    pj: float
    low: float
    high: float
    origin: str

    def __str__(self) -> str:
        times = "" if self.number == 1 else f"{self.number:g} x "
        return f"{self.name}: {times}{self.op} {self.format} = {self.pj:.6g} pJ ({self.origin})"


@dataclasses.dataclass(frozen=True)
class Price:
    """Energy of one operation.

    Attributes:
        kind: One of `records.KINDS`.
        formats: Names of its formats.
        table: Name of the table.
        pj: The estimate, pJ; 0 where `missing` is not empty.
        low: Low estimate, pJ: every part at its lowest.
        high: High estimate, pJ: every part at its highest.
        parts: What it is made of.
        missing: Primitives that the table does not price, such as `"add fp32"`, or formats
            that no recipe knows.
    """

    kind: str
    formats: tuple[str, ...]
    table: str
    pj: float
    low: float
    high: float
    parts: tuple[PartPrice, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def priced(self) -> bool:
        """Whether the table prices it."""
        return not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**dataclasses.asdict(self), "priced": self.priced}

    def __str__(self) -> str:
        what = recipes.label(self.kind, self.formats)
        if self.missing:
            return f"{what}: unpriced, no {', '.join(self.missing)} in {self.table}"
        return f"{what}: {self.pj:.6g} pJ ({self.low:.6g} to {self.high:.6g}), {self.table}"


def unit_price(
    table: str | pathlib.Path | EnergyTable, kind: str, formats: Iterable[str] | str
) -> Price:
    """Energy of one operation of a kind, with what it is made of.

    Args:
        table: As for `EnergyTable.load`.
        kind: One of `records.KINDS`.
        formats: Names of the operands' formats, as in `records.Record`.

    Returns:
        The price; one that the table cannot give is 0 and names what is missing.

    Raises:
        ValueError: No such table or kind, or the wrong number of formats.

    Example:
        >>> print(unit_price("horowitz-45nm", "mac", ("fp32", "fp32")))
        mac fp32 x fp32: 4.6 pJ (4.6 to 4.6), horowitz-45nm
    """
    table = EnergyTable.load(table)
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    key = (kind, formats)
    if key not in table.prices:
        table.prices[key] = _unit_price(table, kind, formats)
    return table.prices[key]


def _unit_price(table: EnergyTable, kind: str, formats: tuple[str, ...]) -> Price:
    try:
        parts = recipes.recipe(kind, formats)
    except UnknownFormatError as error:
        return Price(kind, formats, table.name, 0.0, 0.0, 0.0, missing=(f"format {error}",))
    name = "mac" if kind == "mac" else _conversion_or_element(kind)
    for format in recipes.whole(kind, formats):
        if table.cost(kind, format) is not None:
            parts = (Part(name, kind, format),)
            break
    priced: list[PartPrice] = []
    missing: list[str] = []
    for part in parts:
        price = _part_price(table, part)
        if price is None:
            missing.append(_needed(part))
        else:
            priced.append(price)
    if missing:
        if kind not in ("add", "multiply") and any(row.op == kind for row in table.rows):
            # A table of whole operations: what it lacks is one more of these.
            missing = [f"{kind} {recipes.whole(kind, formats)[0]}"]
        return Price(
            kind, formats, table.name, 0.0, 0.0, 0.0, missing=tuple(dict.fromkeys(missing))
        )
    return Price(
        kind,
        formats,
        table.name,
        math.fsum(p.pj for p in priced),
        math.fsum(p.low for p in priced),
        math.fsum(p.high for p in priced),
        tuple(priced),
    )


def _part_price(table: EnergyTable, part: Part) -> PartPrice | None:
    """Price of the first alternative of a part that the table has."""
    cost = table.cost(part.op, part.format)
    if cost is None:
        if any(part.numbers):
            return None if part.otherwise is None else _part_price(table, part.otherwise)
        cost = Cost(0.0, 0.0, 0.0)
    cheap = table.cost(part.op, part.low_format) if part.low_format else None
    low, middle, high = part.numbers
    lowest = cost.low if cheap is None else min(cost.low, cheap.low)
    return PartPrice(
        part.name,
        part.op,
        part.format,
        middle,
        middle * cost.pj,
        low * lowest,
        high * cost.high,
        cost.origin,
    )


def _needed(part: Part) -> str:
    """The primitive that a table would need, the simplest alternative of it."""
    while part.otherwise is not None:
        part = part.otherwise
    return f"{part.op} {part.format}"


def _conversion_or_element(kind: str) -> str:
    return "conversion" if kind in ("encode", "requantize", "decode") else "element-wise"


@dataclasses.dataclass(frozen=True)
class PricedRecord:
    """Operations of a record and what they cost.

    Attributes:
        record: What was counted.
        price: Of one operation.
        pj: Of all, pJ.
        low_pj: Low estimate, pJ.
        high_pj: High estimate, pJ.
    """

    record: Record
    price: Price
    pj: float
    low_pj: float
    high_pj: float


@dataclasses.dataclass(frozen=True)
class Gap:
    """Operations that are executed and not in the total.

    Attributes:
        what: Type of the graph operation, or kind and formats: `"transcendental fp32"`.
        reason: Why it has no price.
        count: How many per step.
        layers: Where.
    """

    what: str
    reason: str
    count: float
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} ({self.count:,.0f} per step): {self.reason}"


@dataclasses.dataclass(frozen=True)
class Energy:
    """What one step costs under one table.

    Attributes:
        table: The table that it was priced with.
        records: Counts with their energies.
        unpriced: Operations that are executed and not in the total, with the reason.
        memory: Energy of all traffic if it went to one memory level, by level.
        samples: Samples per step.
        name: Name of the model.
        period: What it is the energy of, see `Tally.period`.
    """

    table: EnergyTable
    records: tuple[PricedRecord, ...]
    unpriced: tuple[Gap, ...] = ()
    memory: dict[str, Cost] = dataclasses.field(default_factory=dict)
    samples: int = 1
    name: str = ""
    period: str = "step"

    @functools.cached_property
    def total_pj(self) -> float:
        """Energy of the arithmetic of one step, pJ; memory is not in it."""
        return math.fsum(r.pj for r in self.records)

    @functools.cached_property
    def low_pj(self) -> float:
        """Low estimate of `total_pj`."""
        return math.fsum(r.low_pj for r in self.records)

    @functools.cached_property
    def high_pj(self) -> float:
        """High estimate of `total_pj`."""
        return math.fsum(r.high_pj for r in self.records)

    @property
    def per_sample_pj(self) -> float:
        """`total_pj` per sample of the batch."""
        return self.total_pj / self.samples

    @functools.cached_property
    def by_layer(self) -> dict[str, float]:
        """Energy in pJ by path of a layer, in the order of the step; "" is outside of any layer."""
        return self._sums(lambda record: record.layer)

    @functools.cached_property
    def by_pass(self) -> dict[str, float]:
        """Energy in pJ by pass: forward, error, gradient, update, other; only those that occur."""
        return self._sums(lambda record: record.pass_)

    @functools.cached_property
    def by_kind(self) -> dict[str, float]:
        """Energy in pJ by kind of operation, see `records.KINDS`; only those that occur."""
        return self._sums(lambda record: record.kind)

    @functools.cached_property
    def by_part(self) -> dict[str, float]:
        """Energy in pJ by part of an operation, see `recipes.PARTS`; only those that occur."""
        groups: dict[str, list[float]] = collections.defaultdict(list)
        for entry in self.records:
            for part in entry.price.parts:
                groups[part.name].append(entry.record.count * part.pj)
        return {name: math.fsum(groups[name]) for name in recipes.PARTS if name in groups}

    @property
    def memory_pj(self) -> dict[str, float]:
        """Energy in pJ of all traffic if it went to one memory level, by level; see `memory`."""
        return {level: cost.pj for level, cost in self.memory.items()}

    def _sums(self, key: Callable[[Record], str]) -> dict[str, float]:
        groups: dict[str, list[float]] = collections.defaultdict(list)
        for entry in self.records:
            groups[key(entry.record)].append(entry.pj)
        return {name: math.fsum(values) for name, values in groups.items()}

    def __repr__(self) -> str:
        left_out = f", {len(self.unpriced)} unpriced" if self.unpriced else ""
        return (
            f"<Energy {human_energy(self.total_pj)} per {self.period} "
            f"({human_energy(self.low_pj)} to {human_energy(self.high_pj)}), table "
            f"{self.table.name}{left_out}>"
        )

    def __str__(self) -> str:
        samples = f", {human_energy(self.per_sample_pj)} per sample" if self.samples > 1 else ""
        left_out = (
            f"; not in it: {', '.join(dict.fromkeys(g.what for g in self.unpriced))}"
            if self.unpriced
            else ""
        )
        return (
            f"{human_energy(self.total_pj)} per {self.period} ({human_energy(self.low_pj)} to "
            f"{human_energy(self.high_pj)}){samples}, arithmetic only, table "
            f"{self.table.name}{left_out}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; energies in pJ."""
        return {
            "version": VERSION,
            "name": self.name,
            "table": self.table.name,
            "source": dict(self.table.source),
            "samples": self.samples,
            "period": self.period,
            "total_pj": self.total_pj,
            "low_pj": self.low_pj,
            "high_pj": self.high_pj,
            "per_sample_pj": self.per_sample_pj,
            "by_layer": self.by_layer,
            "by_pass": self.by_pass,
            "by_kind": self.by_kind,
            "by_part": self.by_part,
            "memory_pj": {
                level: {"pj": c.pj, "low": c.low, "high": c.high}
                for level, c in self.memory.items()
            },
            "unpriced": [dataclasses.asdict(gap) for gap in self.unpriced],
            "records": [
                {
                    **dataclasses.asdict(r.record),
                    "pj": r.pj,
                    "low_pj": r.low_pj,
                    "high_pj": r.high_pj,
                }
                for r in self.records
            ],
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """`to_dict` as text, also written to a file if `path` is given."""
        return json_text(self.to_dict(), path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """One line per record as text, also written to a file if `path` is given."""
        rows: list[tuple[Any, ...]] = []
        head = ("layer", "pass", "kind", "formats", "op", "count", "pj", "low_pj", "high_pj")
        rows.append((*head, "table"))
        for r in self.records:
            c = r.record
            counted = (c.layer, c.pass_, c.kind, " ".join(c.formats), c.op, c.count)
            rows.append((*counted, r.pj, r.low_pj, r.high_pj, self.table.name))
        for gap in self.unpriced:
            counted = (" ".join(gap.layers), "", "unpriced", gap.what, "", gap.count)
            rows.append((*counted, "", "", "", self.table.name))
        return csv_text(rows, path)


def price(tally: Tally, table: str | pathlib.Path | EnergyTable = "horowitz-45nm") -> Energy:
    """Prices the counts of a step.

    Each record costs its count times the unit price of its kind and formats. The traffic is
    priced for every memory level of the table as if all of it went there, per 64 bits.

    Args:
        tally: Counts.
        table: As for `EnergyTable.load`.

    Returns:
        The energy; what the counter or the table does not know is in `unpriced`.

    Raises:
        ValueError: No such table, or a record of an unknown kind.
    """
    table = EnergyTable.load(table)
    records: list[PricedRecord] = []
    missing: dict[tuple[str, str], list[Record]] = {}
    for record in tally.records:
        unit = unit_price(table, record.kind, record.formats)
        if unit.priced:
            n = record.count
            records.append(PricedRecord(record, unit, n * unit.pj, n * unit.low, n * unit.high))
        else:
            what = recipes.label(record.kind, record.formats)
            reason = f"{table.name} has no {', '.join(unit.missing)}"
            missing.setdefault((what, reason), []).append(record)
    gaps = [
        Gap(u.op, "no rule of the counter knows this operation", u.count, u.layers)
        for u in tally.unpriced
    ]
    gaps += [
        Gap(
            what,
            reason,
            math.fsum(r.count for r in group),
            tuple(dict.fromkeys(r.layer for r in group if r.layer)),
        )
        for (what, reason), group in missing.items()
    ]
    return Energy(
        table=table,
        records=tuple(records),
        unpriced=tuple(gaps),
        memory=_memory(tally, table),
        samples=tally.samples,
        name=tally.name,
        period=tally.period,
    )


def _memory(tally: Tally, table: EnergyTable) -> dict[str, Cost]:
    """Energy of all traffic by level of memory."""
    words = {
        direction: math.fsum(
            t.elements * t.bits / 64 for t in tally.traffic if t.direction == direction
        )
        for direction in ("read", "write")
    }
    result = {}
    for level in table.levels:
        costs = [(table.cost(direction, level), n) for direction, n in words.items()]
        if any(cost is None and n for cost, n in costs):
            continue
        known = [(cost, n) for cost, n in costs if cost is not None]
        result[level] = Cost(
            math.fsum(cost.pj * n for cost, n in known),
            math.fsum(cost.low * n for cost, n in known),
            math.fsum(cost.high * n for cost, n in known),
        )
    return result
