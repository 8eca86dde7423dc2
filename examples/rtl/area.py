"""Count the gates of LNS-8 units and of their peers with yosys, and write AREA.md.

    python examples/rtl/area.py            # some minutes

Units with the same accumulator, saturation and interface: INT8, FP16 and FP8 multiply in
peers/, LNS-8 adds exponents. AREA.md names the limits of such a count.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import tempfile
from typing import NamedTuple

from product import Product

from tf_lns.datapath import Datapath
from tf_lns.formats import LNSFormat

HERE = pathlib.Path(__file__).resolve().parent
LNS8 = LNSFormat(8, 8)
# Flip-flops of one kind, of which yosys knows the transistors.
SYNTHESIS = ("synth -flatten", "dfflegalize -cell $_DFF_P_ x", "abc -g gates", "opt_clean")
FP16 = {"EXPONENT_BITS": 5, "FRACTION_BITS": 10}
FP8 = {"EXPONENT_BITS": 4, "FRACTION_BITS": 3}


class Area(NamedTuple):
    """What yosys counts in a unit."""

    gates: int
    transistors: int
    path: int


class Unit(NamedTuple):
    """A row of the table: how its term and its multiply-accumulate unit are called."""

    name: str
    kind: str
    parameters: dict

    def term(self, accumulator_bits: int = 24) -> Area:
        return count(f"{self.kind}_term", self._with(f"{self.kind}_term", accumulator_bits))

    def mac(self, vector: int, accumulator_bits: int = 24) -> Area:
        return count(f"{self.kind}_mac", self._with(f"{self.kind}_mac", accumulator_bits, vector))

    def _with(self, top: str, accumulator_bits: int, vector: int = 1) -> dict:
        if self.kind == "lns":
            datapath = dict(self.parameters)
            if top == "lns_term" and datapath.pop("conversion", None) == "bins":
                datapath["fraction_bits"] = 0  # as in lns_mac, but for the table
            parameters = lns_parameters(
                accumulator_bits=accumulator_bits, vector_size=vector, **datapath
            )
        else:
            parameters = {
                **self.parameters,
                "ACC_BITS": accumulator_bits,
                "HEADROOM": 4,
                "VECTOR": vector,
            }
        # Terms know nothing of vectors, and whole numbers nothing of the accumulator.
        known = (HERE / source_of(top)).read_text()
        return {k: v for k, v in parameters.items() if re.search(rf"parameter [^=]*\b{k} =", known)}


UNITS = (
    Unit("INT8", "int", {"BITS": 8}),
    Unit("FP16", "fp", FP16),
    Unit("FP8 (e4m3)", "fp", FP8),
    *(Unit(f"LNS-8, m = {m}", "lns", {"lut_bits": m}) for m in range(4)),
    *(Unit(f"LNS-8, m = {m}, bins", "lns", {"lut_bits": m, "conversion": "bins"}) for m in (1, 3)),
)


def lns_parameters(**datapath) -> dict:
    """Parameters of an LNS-8 unit on a datapath, the table among them."""
    product = Product(1, 1, 1, LNS8, LNS8, Datapath(**datapath))
    return {**product.parameters(), "TABLE": product.table()}


def source_of(module: str) -> str:
    folder = "peers/" if module.startswith(("int_", "fp_")) else ""
    return f"{folder}{module}.sv"


def commands(top: str, parameters: dict) -> list[str]:
    """What yosys does with a unit."""
    modules = [top]
    if top == "lns_array":
        modules.append("lns_mac")
    if not top.endswith("_term"):
        modules += [f"{top.split('_')[0]}_term", "saturating_accumulator"]
    return [
        "read_verilog -sv " + " ".join(source_of(module) for module in modules),
        *(f"chparam -set {name} {value} {top}" for name, value in parameters.items()),
        f"hierarchy -top {top}",
        *SYNTHESIS,
    ]


def yosys(lines: list[str]) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".ys") as script:
        script.write("\n".join(lines) + "\n")
        script.flush()
        done = subprocess.run(
            ["yosys", "-s", script.name], cwd=HERE, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"yosys failed:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def version() -> str:
    return subprocess.run(
        ["yosys", "-V"], capture_output=True, text=True, check=True
    ).stdout.strip()


def count(top: str, parameters: dict) -> Area:
    """Gates, transistors and the longest path of a unit."""
    log = yosys([*commands(top, parameters), "ltp -noff", "stat -tech cmos"])
    path = re.findall(r"Longest topological path.*length=(\d+)", log)[-1]
    statistics = log[log.rindex("Printing statistics") :]
    cells = re.search(r"Number of cells: +(\d+)", statistics)[1]
    # "1234+" where yosys does not know a cell: then the sum would be wrong.
    transistors = re.search(r"transistors: +(\d+)$", statistics, re.MULTILINE)[1]
    return Area(int(cells), int(transistors), int(path))


def write_netlist(path, parameters: dict, columns: int = 4) -> None:
    """The gates of `lns_array` as Verilog, for `simulate(netlist=...)`."""
    lines = commands("lns_array", {**parameters, "COLUMNS": columns})
    # The name of a module with parameters set is not that in the source.
    yosys([*lines, "rename -top lns_array", f"write_verilog -noattr {path}"])


def row(unit: Unit, peer: tuple[Area, Area]) -> str:
    """A line of the first table; `peer` is what is 1.00."""
    term, one, sixteen = unit.term(), unit.mac(1), unit.mac(16)
    return (
        f"| {unit.name} | {term.gates} | {term.transistors} "
        f"| {one.gates} | {one.transistors} | {one.transistors / peer[0].transistors:.2f} "
        f"| {one.path} | {sixteen.gates / 16:.0f} | {sixteen.transistors / 16:.0f} "
        f"| {sixteen.transistors / peer[1].transistors:.2f} | {sixteen.path} |"
    )


def narrow_row(unit: Unit, peer: Area) -> str:
    """A line of the second table: transistors per term for each accumulator."""
    areas = [unit.mac(16, bits) for bits in (12, 16, 20, 24, 32)]
    cells = [f"{a.transistors / 16:.0f} ({a.transistors / peer.transistors:.2f})" for a in areas]
    return f"| {unit.name} | {' | '.join(cells)} |"


def report() -> str:
    """Text of AREA.md."""
    peer = (UNITS[0].mac(1), UNITS[0].mac(16))
    narrow = (unit for unit in UNITS if unit.kind == "lns" and "conversion" not in unit.parameters)
    return TEXT.format(
        version=version(),
        synthesis="; ".join(SYNTHESIS),
        rows="\n".join(row(unit, peer) for unit in UNITS),
        narrow="\n".join(narrow_row(unit, peer[1]) for unit in narrow),
    )


TEXT = """\
# Gates of the units

Written by `python examples/rtl/area.py` with {version}, which does:

    {synthesis}; ltp -noff; stat -tech cmos

Accumulator of 24 bits with saturation, headroom of 4 octaves for FP and LNS. "Term" is the
combinational unit from two operands to one summand. "One term" multiplies and accumulates one
pair a clock; "16 terms" adds sixteen products exactly and accumulates the sum, and stands here
divided by 16. Gates are cells of one or two inputs and flip-flops; transistors are yosys' estimate
for static CMOS; "vs INT8" compares transistors. The path is the longest one in gates.

| Unit | term: gates | transistors | one term: gates | transistors | vs INT8 | path \
| 16 terms, each: gates | transistors | vs INT8 | path |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
{rows}

Transistors of each of 16 terms for narrower and wider accumulators, in parentheses against INT8
with 24 bits. The largest term is the same for each; a narrower accumulator loses more of the small
ones:

| Unit | 12 bits | 16 | 20 | 24 | 32 |
|---|--:|--:|--:|--:|--:|
{narrow}

What the units are:

- **INT8**: an exact product of two's complement numbers (Baugh-Wooley), no shifter. Whoever
  wants values of another range scales them elsewhere.
- **FP16**: IEEE's fields with subnormal numbers, without Inf and NaN; an 11 x 11 multiplier, an
  adder of exponents, a shifter into the same fixed-point accumulator. Not an FP16 accumulator,
  which would have to normalise and round at each step. **FP8** is the same unit with 4 bits of
  exponent and 3 of fraction.
- **LNS-8**: `lns8:8`, two's complement codes, table of 2**m entries with 8 bits of fraction.
  With base factor 8, table and line together are a function of 3 bits whatever m is, and yosys
  makes them as such: a smaller table saves nothing until it is gone (m = 0), where the summand
  has fewer bits that are not zero.
- **bins**: an accumulator for each entry of the table. Each of the 16 terms may go to any of them,
  so there are 2**m exact sums. Multiplying the entries in, once per sum, is not counted.

Limits of such a count:

- Generic gates, not a cell library; no placement, no wires, no clock tree, no timing, no power.
  Paths are not equalised, and those of LNS and FP, with their shifters, are longer than INT8's: at
  the same clock they would be cut by registers or made of larger gates.
- yosys picks simple structures (one kind of adder, no Booth recoding) and counts 12 transistors for
  an exclusive or. FP16's unit of one term has moved by 4 % when only a file it does not use
  changed: differences of a few per cent mean nothing.
- Storage and transport of operands, which decide much of a chip, are not here: 8 bits against
  FP16's 16 count there once more.
- Nor is what comes after the sum: LNS-8 has to take a logarithm of each result, INT8 to rescale
  and round it. That happens once per sum of many terms.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "AREA.md")
    args = parser.parse_args()
    args.out.write_text(report())
    print(args.out.read_text())


if __name__ == "__main__":
    main()
