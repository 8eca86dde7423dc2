"""Tables of energy per operation: data files with a source, checked when they are read.

A table prices *primitives*: an adder, a multiplier, a multiplexer of some format, a read of a
memory. What an operation of a training step is made of stands in `recipes.py`. All energies
are in picojoules (pJ).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import importlib.util
import pathlib
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

from tf_lns.energy.records import KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLOATS = {"fp64": (53, 64), "fp32": (24, 32), "fp16": (11, 16), "bf16": (8, 16), "fp8": (4, 8)}
"""Bits of the significand, the hidden one included, and of the whole number; fp8 is E4M3."""

OPS = {
    "add": "an adder: int8, fp32, ...",
    "multiply": "a multiplier",
    "select": "a two-way multiplexer as wide as the format",
    "shift": "a whole barrel shifter as wide as the format",
    "lookup": "one reading of a constant table, e.g. 8x9: 8 entries of 9 bits",
    "conversion": "logarithm to linear inside a MAC, by table size: lut8; no recipe uses it",
    "read": "64 bits from a memory level",
    "write": "64 bits to a memory level",
}
OPS.update({kind: text for kind, text in KINDS.items() if kind not in OPS})
"""What a row can price. A kind of `records.KINDS` prices that operation whole."""

ORIGINS = ("published", "recalled", "derived")
"""Printed in the source; said to be in the source, from memory; computed by a stated rule."""

FAMILIES = ("int", "fp")
_MEMORY = ("read", "write")
_COEFFICIENTS = ("pj", "pj_per_bit", "pj_per_bit_squared")
_TABLE_KEYS = {"name", "title", "source", "node_nm", "voltage_v", "notes", "row"}
_SOURCE_KEYS = {"citation", "year", "doi", "url", "read"}
_ROW_KEYS = {"op", "format", "family", "level", "low", "high", "origin", "rule", *_COEFFICIENTS}
_FORMAT = re.compile(r"int[1-9]\d{0,3}|lns\d{1,2}(:\d{1,4})?|fp64|fp32|fp16|bf16|fp8")
_FORMATS_OF = {
    "lookup": (re.compile(r"[1-9]\d*x[1-9]\d*"), 'entries x bits, such as "8x9"'),
    "conversion": (re.compile(r"lut[1-9]\d*"), 'a table size, such as "lut8"'),
}
_LEVEL = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Energy of one primitive with its range.

    Attributes:
        pj: The estimate, pJ.
        low: Low estimate, pJ.
        high: High estimate, pJ.
        origin: One of `ORIGINS`.
        rule: For derived ones, how.
    """

    pj: float
    low: float
    high: float
    origin: str = "derived"
    rule: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table; the triples are (low, middle, high).

    A row of one `format` or memory `level` has the energy `pj`. A row of a `family`
    prices every format of it that has no row of its own::

        pJ(b) = pj + pj_per_bit b + pj_per_bit_squared b²

    with b the width of an integer, or the bits of a float's significand with the hidden one.

    Attributes:
        op: One of `OPS`.
        format: Name of a format, or "".
        family: `"int"` or `"fp"`, or "".
        level: Of `read` and `write`: the memory, e.g. `"sram-8k"`.
        pj: pJ per operation, or the constant of a family's formula.
        pj_per_bit: pJ per bit.
        pj_per_bit_squared: pJ per squared bit.
        origin: One of `ORIGINS`.
        rule: Of a derived row, a sentence that says how.
    """

    op: str
    format: str = ""
    family: str = ""
    level: str = ""
    pj: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pj_per_bit: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pj_per_bit_squared: tuple[float, float, float] = (0.0, 0.0, 0.0)
    origin: str = "published"
    rule: str = ""

    @property
    def what(self) -> str:
        """What it prices: a format, a level, or all of a family (`"int*"`)."""
        return self.format or self.level or f"{self.family}*"

    def cost(self, bits: int = 0) -> Cost:
        """The energy for a width; low and high are widened to hold the middle.

        Args:
            bits: Width of an integer, significand bits of a float; only for a family.
        """
        low, middle, high = (
            c + b * bits + a * bits * bits
            for c, b, a in zip(self.pj, self.pj_per_bit, self.pj_per_bit_squared, strict=True)
        )
        return Cost(middle, min(low, middle), max(high, middle), self.origin, self.rule)


@dataclasses.dataclass(frozen=True, eq=False)
class EnergyTable:
    """Energies per operation from one source, at one process node.

    Attributes:
        name: Short name, printed beside every energy.
        title: Name to read.
        source: `citation`, `year`, `doi`, `url` and how it was `read`, as far as known.
        rows: What it prices.
        node_nm: Process node in nanometres, None if unknown.
        voltage_v: Supply voltage in volts, None if unknown.
        notes: What a reader must know, in sentences.
        path: The file it was read from, "" if built in.

    Example:
        >>> table = EnergyTable.load("horowitz-45nm")
        >>> table.cost("add", "int8").pj, table.cost("multiply", "fp32").pj
        (0.03, 3.7)
    """

    name: str
    title: str
    source: Mapping[str, Any]
    rows: tuple[Row, ...]
    node_nm: float | None = None
    voltage_v: float | None = None
    notes: tuple[str, ...] = ()
    path: str = ""
    prices: dict[Any, Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Unit prices computed so far, see `price.unit_price`."""

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"EnergyTable({self.name!r}, {len(self.rows)} rows)"

    @classmethod
    def load(cls, table: str | pathlib.Path | EnergyTable) -> EnergyTable:
        """Reads a table.

        Args:
            table: Name of a built-in one, path of a TOML or YAML file, `"hwcomponents"`
                (computed by that package), or a table, which is returned as it is.

        Raises:
            TypeError: `table` is none of these.
            ValueError: No such table, or its file is wrong; the message lists every mistake.
            ImportError: A package that this table needs is not installed.
        """
        if isinstance(table, EnergyTable):
            return table
        if not isinstance(table, str | pathlib.Path):
            raise TypeError(
                "`table` must be the name of a table, the path of a file or an EnergyTable. "
                f"Received: table={table!r}"
            )
        if str(table) in BUILT_IN:
            return _built_in(str(table))
        if str(table) == "hwcomponents":
            from tf_lns.energy.hwcomponents import table as computed

            return computed()
        path = pathlib.Path(table)
        if not path.exists() and (path.suffix or len(path.parts) > 1):
            raise ValueError(f"`table` is no file that is there. Received: table={str(table)!r}")
        if not path.is_file():
            raise ValueError(
                f"`table` must be one of {', '.join(BUILT_IN)}, or the path of a TOML or YAML "
                f"file. Received: table={str(table)!r}"
            )
        found = check_table(path)
        if found:
            raise ValueError("\n".join(found))
        return _from_data(_read(path), str(path))

    @functools.cached_property
    def levels(self) -> tuple[str, ...]:
        """Memory levels that it has, in the order of its file."""
        return tuple(dict.fromkeys(r.level for r in self.rows if r.level))

    @functools.cached_property
    def _index(self) -> dict[tuple[str, str], Row]:
        return {(r.op, r.what): r for r in self.rows}

    def row(self, op: str, what: str) -> Row | None:
        """The row of exactly this operation and format, level or family (`"int*"`)."""
        return self._index.get((op, what))

    def cost(self, op: str, format: str) -> Cost | None:
        """Energy of one primitive.

        Args:
            op: One of `OPS`.
            format: Name of a format, or the level for `read` and `write`. A level that has
                no `write` row is written at the price of a read.

        Returns:
            From the row of that format, else by the rule of its family; None without either.
        """
        row = self.row(op, format)
        if row is None and op == "write":
            row = self.row("read", format)
        if row is not None:
            return row.cost()
        if format in FLOATS:
            rule, bits = self.row(op, "fp*"), FLOATS[format][0]
        elif re.fullmatch(r"int\d+", format):
            rule, bits = self.row(op, "int*"), int(format[3:])
        else:
            return None
        return rule.cost(bits) if rule is not None else None

    def to_dict(self) -> dict[str, Any]:
        """The table as plain data for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "source": dict(self.source),
            "node_nm": self.node_nm,
            "voltage_v": self.voltage_v,
            "notes": list(self.notes),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


BUILT_IN = ("horowitz-45nm", "jouppi-7nm", "lns-madam-paper")
"""Names of the tables that come with the package."""


@functools.cache
def _built_in(name: str) -> EnergyTable:
    file = importlib.resources.files("tf_lns.energy") / "data" / f"{name}.toml"
    return _from_data(tomllib.loads(file.read_text(encoding="utf-8")), "")


def tables() -> Mapping[str, EnergyTable]:
    """The built-in tables by name; iterating gives the names.

    Example:
        >>> list(tables())
        ['horowitz-45nm', 'jouppi-7nm', 'lns-madam-paper']
    """
    return types.MappingProxyType({name: _built_in(name) for name in BUILT_IN})


def check_table(path: str | pathlib.Path) -> tuple[str, ...]:
    """What is wrong with the file of a table, one sentence per mistake; empty if nothing.

    Args:
        path: A TOML (`.toml`) or YAML (`.yaml`, `.yml`) file, or the name of a built-in table.

    Returns:
        Sentences that name the file, the row (from 1), the field, the value and what would be
        right.

    Raises:
        ValueError: The file is missing, of another kind, or cannot be parsed at all.
        ImportError: It is YAML and PyYAML is not installed.
    """
    if str(path) in BUILT_IN:
        file = importlib.resources.files("tf_lns.energy") / "data" / f"{path}.toml"
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    else:
        data = _read(pathlib.Path(path))
    return tuple(f"{path}: {problem}" for problem in _problems(data))


def _read(path: pathlib.Path) -> Any:
    """Parses a file into plain data."""
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise ValueError(
            f"{path}: a table must be a .toml, .yaml or .yml file. Received: {path.suffix!r}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the table cannot be read: {error}") from None
    if suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: not valid TOML: {error}") from None
    if importlib.util.find_spec("yaml") is None:
        raise ImportError(
            f"{path}: reading a YAML table needs PyYAML: pip install pyyaml, or write it as TOML."
        )
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses what TOML refuses: a key that comes twice."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice!r} comes twice{node.start_mark}")
        return dict(loader.construct_pairs(node, deep=True))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _from_data(data: dict[str, Any], path: str) -> EnergyTable:
    """Builds a table from data without problems."""
    return EnergyTable(
        name=data["name"],
        title=data.get("title", data["name"]),
        source=dict(data["source"]),
        rows=tuple(_row(row) for row in data["row"]),
        node_nm=data.get("node_nm"),
        voltage_v=data.get("voltage_v"),
        notes=tuple(data.get("notes", ())),
        path=path,
    )


def _row(data: dict[str, Any]) -> Row:
    fields: dict[str, Any] = {
        k: v for k, v in data.items() if k not in {"low", "high", *_COEFFICIENTS}
    }
    for key in _COEFFICIENTS:
        value = data.get(key, 0.0)
        fields[key] = tuple(map(float, value if isinstance(value, list) else [value] * 3))
    if "family" not in data:
        middle = data["pj"] if "pj" in data else (data["low"] + data["high"]) / 2
        fields["pj"] = tuple(
            map(float, (data.get("low", middle), middle, data.get("high", middle)))
        )
    return Row(**fields)


def _problems(data: Any) -> list[str]:
    """Sentences on what is wrong with the data of a table."""
    if not isinstance(data, dict):
        return [f"a table must be a mapping of keys. Received: {type(data).__name__}"]
    found = [_unknown(key, _TABLE_KEYS) for key in data if key not in _TABLE_KEYS]
    name = data.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        found.append(f"`name` must be letters, digits, '-', '_' and '.'. Received: name={name!r}")
    if "title" in data and not _text(data["title"]):
        found.append(f"`title` must be a text. Received: title={data['title']!r}")
    for key in ("node_nm", "voltage_v"):
        if key in data and not (_number(data[key]) and data[key] > 0):
            found.append(f"`{key}` must be a number above 0. Received: {key}={data[key]!r}")
    notes = data.get("notes", [])
    if not isinstance(notes, list) or not all(map(_text, notes)):
        found.append(f"`notes` must be a list of texts. Received: notes={notes!r}")
    found += _source_problems(data.get("source"))
    rows = data.get("row")
    if not isinstance(rows, list) or not rows:
        found.append(f"`row` must be a list with at least one row. Received: row={rows!r}")
        return found
    seen: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows, 1):
        problems = _row_problems(row)
        found += [f"row {number}: {problem}" for problem in problems]
        if not problems:
            place = tuple(row.get(k) for k in ("op", "format", "family", "level"))
            if place in seen:
                what = " ".join(str(part) for part in place if part)
                found.append(
                    f"row {number}: {what} stands in row {seen[place]} already; keep one of them"
                )
            seen.setdefault(place, number)
    return found


def _source_problems(source: Any) -> list[str]:
    if not isinstance(source, dict) or not _text(source.get("citation")):
        return [
            "`source` must be a mapping with at least a `citation`: where the numbers come "
            f"from. Received: source={source!r}"
        ]
    found = [f"source: {_unknown(key, _SOURCE_KEYS)}" for key in source if key not in _SOURCE_KEYS]
    year = source.get("year", 2000)
    if not isinstance(year, int) or isinstance(year, bool) or not 1900 <= year <= 2100:
        found.append(f"source: `year` must be a year, 1900 to 2100. Received: year={year!r}")
    for key in ("doi", "url", "read"):
        if key in source and not _text(source[key]):
            found.append(f"source: `{key}` must be a text. Received: {key}={source[key]!r}")
    return found


def _row_problems(row: Any) -> list[str]:
    if not isinstance(row, dict):
        return [f"a row must be a mapping of keys. Received: {row!r}"]
    found = [_unknown(key, _ROW_KEYS) for key in row if key not in _ROW_KEYS]
    op = row.get("op")
    if not isinstance(op, str) or op not in OPS:
        return [*found, f"`op` must be one of {', '.join(OPS)}. Received: op={op!r}"]
    kinds = [key for key in ("format", "family", "level") if key in row]
    wanted = ["level"] if op in _MEMORY else ["format", "family"]
    if len(kinds) != 1 or kinds[0] not in wanted:
        found.append(
            f"a row of {op} needs exactly one of {' and '.join(f'`{k}`' for k in wanted)}. "
            f"Received: {', '.join(f'{k}={row[k]!r}' for k in kinds) or 'none'}"
        )
    elif (problem := _what_problem(op, kinds[0], row[kinds[0]])) is not None:
        found.append(problem)
    origin = row.get("origin")
    if origin not in ORIGINS:
        found.append(f"`origin` must be one of {', '.join(ORIGINS)}. Received: origin={origin!r}")
    if (origin == "derived" or "family" in row) and not _text(row.get("rule")):
        found.append(
            "`rule` must say in a sentence how the value was derived. "
            f"Received: rule={row.get('rule')!r}"
        )
    elif "rule" in row and not _text(row["rule"]):
        found.append(f"`rule` must be a text. Received: rule={row['rule']!r}")
    return found + (_rule_problems(row) if "family" in row else _value_problems(row))


def _what_problem(op: str, key: str, value: Any) -> str | None:
    """What is wrong with a format, family or level."""
    if key == "family":
        good, right = value in FAMILIES, "one of " + ", ".join(FAMILIES)
    elif key == "level":
        good = isinstance(value, str) and _LEVEL.fullmatch(value) is not None
        right = 'the name of a memory, such as "sram-8k"'
    else:
        pattern, right = _FORMATS_OF.get(
            op, (_FORMAT, f'{", ".join(FLOATS)}, "int" and its width, or "lns" and its bits')
        )
        good = isinstance(value, str) and pattern.fullmatch(value) is not None
    return None if good else f"`{key}` must be {right}. Received: {key}={value!r}"


def _value_problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with `pj`, `low` and `high` of a row of one format or level."""
    found = [
        f"`{key}` is for a family; a row of one format has `pj`. Received: {key}={row[key]!r}"
        for key in _COEFFICIENTS[1:]
        if key in row
    ]
    values = {key: row[key] for key in ("low", "pj", "high") if key in row}
    bad = [key for key, value in values.items() if not (_number(value) and value >= 0)]
    found += [
        f"`{key}` must be a number of pJ, 0 or more. Received: {key}={values[key]!r}" for key in bad
    ]
    if "pj" not in values and not {"low", "high"} <= set(values):
        found.append("`pj` is missing; a row needs `pj`, or both `low` and `high`")
    elif not bad and list(values.values()) != sorted(values.values()):
        text = ", ".join(f"{k}={v!r}" for k, v in values.items())
        found.append(f"low <= pj <= high must hold. Received: {text}")
    return found


def _rule_problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with the coefficients of a family's row."""
    found = [
        f"`{key}` is for a row of one format; write a coefficient as [low, middle, high]. "
        f"Received: {key}={row[key]!r}"
        for key in ("low", "high")
        if key in row
    ]
    present = [key for key in _COEFFICIENTS if key in row]
    if not present:
        found.append(f"a family needs at least one of {', '.join(f'`{k}`' for k in _COEFFICIENTS)}")
    for key in present:
        value = row[key]
        parts = value if isinstance(value, list) and len(value) == 3 else [value]
        if not all(_number(part) and part >= 0 for part in parts):
            found.append(
                f"`{key}` must be a number of pJ, 0 or more, or three of them: "
                f"[low, middle, high]. Received: {key}={value!r}"
            )
    if found:
        return found
    width = 8  # a fit need not hold where other rows are published
    low, middle, high = (
        sum(_three(row.get(key, 0))[i] * width**power for power, key in enumerate(_COEFFICIENTS))
        for i in range(3)
    )
    if not low <= middle <= high:
        given = ", ".join(f"{key}={row[key]!r}" for key in present)
        return [f"low <= middle <= high must hold at {width} bits. Received: {given}"]
    return []


def _three(value: Any) -> list[float]:
    """A coefficient as low, middle and high."""
    return list(value) if isinstance(value, list) else [value] * 3


def _unknown(key: Any, known: set[str]) -> str:
    return f"unknown key {key!r}; known are {', '.join(sorted(known))}"


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_LARGEST_PJ = 1e9
"""A millijoule for one operation: beyond it is a slip of the pen."""


def _number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -_LARGEST_PJ <= value <= _LARGEST_PJ
