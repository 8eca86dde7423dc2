"""`tf-lns formats`: bits, range, gap and rounding error of LNS formats."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tf_lns.cli.console import InputError, output, working

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from tf_lns.formats import LNSFormat

USUAL = ("lns8:8", "lns8:16", "lns6:2", "lns5:2", "lns5:1", "lns16:2048")
"""Shown if nothing else is asked for: those of the user guide."""

_LIMITS = (0.01, 0.05, 0.15, 0.5)
_SHADES, _ASCII_SHADES = tuple("█▓▒░·…"), tuple("#=-.:>")
"""A letter per limit, one for more, and one for a range that goes on."""

_AXIS = 48


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "formats",
        parents=[common],
        help="range, gap and worst rounding error of number formats",
        description="Range, gap and worst relative error of LNS formats, with a picture.",
        epilog="--bits and --base-factor together give every combination; either alone is "
        "shown with the usual values of the other.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "format", nargs="*", metavar="FORMAT", help="such as lns8:8 (bits, then base factor)"
    )
    parser.add_argument(
        "--bits",
        type=_numbers,
        default=(),
        metavar="B[,B...]",
        help="width of a code, 2 to 16; several with commas",
    )
    parser.add_argument(
        "--base-factor",
        type=_numbers,
        default=(),
        metavar="G[,G...]",
        help="codes per octave, a power of two, 1 to 4096",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON instead")
    parser.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="draw values and rounding error, .png, .svg or .pdf; needs matplotlib",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    from tf_lns.cli.energy import check_picture, write

    formats = chosen(arguments.format, arguments.bits, arguments.base_factor)
    check_picture(arguments.plot)
    if arguments.plot:
        with working("drawing", arguments.traceback):
            from tf_lns.cli.format_picture import draw

            write(arguments.plot, lambda path: draw(formats, path))
    if arguments.json:
        print(json.dumps([facts(format) for format in formats], indent=2, allow_nan=False))
        return 0
    console = output()
    console.print(table(formats))
    console.print(picture(formats, console.encoding))
    if arguments.plot:
        console.print(f"Wrote {arguments.plot}", markup=False)
    return 0


def chosen(
    names: Sequence[str], bits: Sequence[int], base_factors: Sequence[int]
) -> list[LNSFormat]:
    """The formats that were asked for, each once.

    Raises:
        InputError: There is no such format.
    """
    from tf_lns.formats import LNSFormat

    try:
        formats = [LNSFormat.parse(name) for name in names]
        if bits and base_factors:
            formats += [LNSFormat(b, g) for b in bits for g in base_factors]
        else:
            formats += [f for b in bits for f in _of_bits(b)]
            formats += [LNSFormat(b, g) for g in base_factors for b in (4, 5, 6, 8, 10, 12, 16)]
    except ValueError as error:
        raise InputError(str(error)) from error
    return list(dict.fromkeys(formats)) or [LNSFormat.parse(name) for name in USUAL]


def _of_bits(bits: int) -> list[LNSFormat]:
    """Formats of a width that have between 1 and 32 octaves, or the one with base factor 1."""
    from tf_lns.formats import MAX_BASE_FACTOR, LNSFormat

    factors = [1 << i for i in range(MAX_BASE_FACTOR.bit_length())]
    formats = [LNSFormat(bits, g) for g in factors]
    return [f for f in formats if 1 <= f.octaves <= 32] or formats[:1]


def facts(format: LNSFormat) -> dict[str, Any]:
    """Everything about a format as plain data."""
    return {
        "format": str(format),
        "bits": format.bits,
        "base_factor": format.base_factor,
        "codes": 2 * format.max_code + 1,
        "octaves": format.octaves,
        "decades": format.octaves * math.log10(2),
        "gap": 2.0 ** (1 / format.base_factor) - 1,
        "max_relative_error": format.max_relative_error,
    }


def table(formats: Sequence[LNSFormat]) -> Table:
    """Range, gap and worst relative error."""
    from rich import box
    from rich.table import Table

    result = Table(
        title="LNS formats",
        caption="codes: values with sign and zero; octaves: log2(largest / smallest); gap: from "
        "one magnitude to the next; error: worst relative error of rounding within the range.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    result.add_column("format", no_wrap=True)
    names = ("bits", "base factor", "codes", "octaves", "largest/smallest", "gap", "error")
    for name in names:
        result.add_column(name, justify="right", no_wrap=True)
    for format in formats:
        fact = facts(format)
        result.add_row(
            str(format),
            str(format.bits),
            str(format.base_factor),
            f"{fact['codes']:,}",
            f"{format.octaves:,.2f}",
            _power(fact["decades"]),
            _percent(fact["gap"]),
            _percent(fact["max_relative_error"]),
        )
    return result


def picture(formats: Sequence[LNSFormat], encoding: str = "utf-8") -> Text:
    """A line per format, a letter per octave below the largest value, darker being more exact."""
    from rich.text import Text

    from tf_lns.cli import rounding

    *shades, worse, onward = _SHADES if encoding.lower().startswith("utf") else _ASCII_SHADES
    named = list(zip(_LIMITS, shades, strict=True))
    rows: list[LNSFormat | str] = [*formats, *rounding.OTHERS]
    shown = min(max(math.ceil(rounding.octaves(row)) for row in rows), _AXIS)
    wide = max(len(str(row)) for row in rows)
    ruler = "".join(f"{-n:<8d}" for n in range(0, shown, 8))
    lines = ["Octaves below the largest value", f"{'':{wide}}  {ruler.rstrip()}"]
    for row in rows:
        reach = rounding.octaves(row)
        depth = max(min(reach, shown), 2.0**-20)  # a format of one magnitude has a letter too
        _, errors = rounding.worst_errors(row, depth)
        letters = "".join(next((s for limit, s in named if e < limit), worse) for e in errors)
        lines.append(f"{row!s:{wide}}  {letters}{onward if reach > shown else ''}")
    scale = "  ".join(f"{s} <{limit:.0%}" for limit, s in named)
    lines.append(f"{'':{wide}}  worst rounding error: {scale}  {worse} more")
    return Text("\n".join(lines))


def _power(decades: float) -> str:
    """10**decades to two digits, also where no float holds it."""
    mantissa, exponent = 10 ** (decades % 1), math.floor(decades)
    if f"{mantissa:.1f}" == "10.0":
        mantissa, exponent = 1.0, exponent + 1
    return f"{10**decades:.3g}" if exponent < 3 else f"{mantissa:.1f}e{exponent}"


def _percent(share: float) -> str:
    return f"{share:.3g}" if share >= 10 else f"{100 * share:.3g}%"


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, or several: 5,8")
    return tuple(map(int, parts))
