"""`tf-lns energy`: what one step of a saved model costs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tf_lns.cli import library, models, shapes
from tf_lns.cli.console import InputError, output, plain, working

if TYPE_CHECKING:
    from rich.console import Console

    from tf_lns.energy import Comparison, Energy, EnergyTable, Tally

VERSION = 1
"""Version of the JSON document."""

DEFAULT_TABLE = "horowitz-45nm"

_EPILOG = """\
A step is traced and counted, not run; nothing is trained and no data are needed. A model
saved without an optimizer is counted with the mean of squares of its outputs as loss and without
an update; the notes below the tables say so.

examples:
  tf-lns energy mnist.keras
  tf-lns energy bert.keras --batch 8 --shape 384 --compare
  tf-lns energy net.keras --table jouppi-7nm --table mine.toml --json > net.json
"""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "energy",
        parents=[common],
        help="count one training step of a model and price it",
        description="Counts one training step of a saved Keras model and prices it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    models.add_arguments(parser)
    parser.add_argument(
        "--batch", type=_positive, default=32, metavar="N", help="samples per step (default 32)"
    )
    parser.add_argument(
        "--shape",
        type=shapes.parse,
        action="append",
        default=[],
        metavar="[NAME=]SIZES[:DTYPE]",
        help="sizes of an input without the batch, where the model leaves them open: 384 or "
        "ids=384 or 224,224,3 or 128:int32; may be repeated",
    )
    parser.add_argument(
        "--table",
        action="append",
        metavar="NAME|FILE",
        help=f"energy table (default {DEFAULT_TABLE}); may be repeated; see `tf-lns tables`",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also price the same step in other formats, under the given tables or all",
    )
    parser.add_argument(
        "--formats",
        type=_names,
        metavar="A,B,...",
        help="formats to compare: lns8, lns8:16, fp8, int8, bf16, fp16, fp32, ...; sets --compare",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="count a step of evaluate() instead of fit()"
    )
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="leave out the saved loss and optimizer",
    )
    parser.add_argument(
        "--layers",
        type=_natural,
        default=30,
        metavar="N",
        help="show the N layers of the highest energy (default 30, 0 for all)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")
    parser.add_argument(
        "--csv",
        type=pathlib.Path,
        metavar="FILE",
        help="write a line per layer, pass, kind and formats; with --compare one per table and "
        "format",
    )
    parser.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="draw the comparison, .png, .svg or .pdf; needs matplotlib",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    check_output(arguments.csv)
    check_picture(arguments.plot)
    chosen = [load_table(name) for name in arguments.table or ()]
    names = [table.name for table in chosen]
    if len(set(names)) < len(names):
        raise InputError(f"--table: two tables have one name: {', '.join(names)}")
    models.check_file(arguments.model)
    with working("starting TensorFlow", arguments.traceback) as say:
        library.load()
        formats = _formats(arguments.formats)
        counts = _count(arguments, say)
        say("pricing")
        energies = [counts.energy(table) for table in chosen or [load_table(DEFAULT_TABLE)]]
        comparison = None
        if arguments.compare or arguments.formats or arguments.plot:
            from tf_lns.energy import compare

            comparison = compare(counts, formats=formats, tables=chosen or None)
        if arguments.plot and comparison is not None:
            say("drawing")
            write(arguments.plot, comparison.plot)
    if not (arguments.compare or arguments.formats):
        comparison = None  # it was for the picture alone
    if arguments.csv:
        text = _csv(energies) if comparison is None else comparison.to_csv()
        write(arguments.csv, lambda path: path.write_text(text, encoding="utf-8"))
    if arguments.json:
        result = document(arguments, counts, energies, comparison)
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _show(output(), arguments, counts, energies, comparison)
    return 0


def document(
    arguments: argparse.Namespace,
    counts: Tally,
    energies: Sequence[Energy],
    comparison: Comparison | None,
) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "version": VERSION,
        "file": str(arguments.model),
        "step": "evaluate" if arguments.evaluate else "training",
        "batch": arguments.batch,
        "tally": counts.to_dict(),
        "energy": [energy.to_dict() for energy in energies],
        "comparison": None if comparison is None else comparison.to_dict(),
    }


def load_table(name: str) -> EnergyTable:
    """A table by name or path.

    Raises:
        InputError: There is none, or its file is wrong.
    """
    from tf_lns.energy.table import EnergyTable

    try:
        return EnergyTable.load(name)
    except ValueError as error:
        problems = str(error).splitlines()
        more = (
            f" (and {len(problems) - 1} more problems: `tf-lns tables check {name}` lists them)"
            if len(problems) > 1
            else ""
        )
        raise InputError(f"{problems[0]}{more}") from error
    except (ImportError, OSError) as error:
        raise InputError(f"table {name}: {error}") from error


def check_output(path: pathlib.Path | None) -> None:
    """Raises InputError where a file cannot be written later: before the long work."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{path} is a directory; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: no directory {path.parent}; make it first")


def check_picture(path: pathlib.Path | None) -> None:
    """Raises InputError where a picture cannot be drawn or written."""
    check_output(path)
    if path is None:
        return
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"{path}: a picture must be a .png, .svg or .pdf file")
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a picture needs matplotlib: pip install matplotlib (or tf-lns[demo])")


def write(path: pathlib.Path, writer: Callable[[pathlib.Path], Any]) -> None:
    """Writes a file by `writer(path)`.

    Raises:
        InputError: It cannot be written.
    """
    try:
        writer(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def _count(arguments: argparse.Namespace, say: Callable[[str], None]) -> Tally:
    """Loads the model and counts a step."""
    name = pathlib.Path(arguments.model).name
    say(f"loading {name}")
    model = models.load(arguments.model, arguments.imports, arguments.unsafe, arguments.compile)
    say(f"counting a step of {name}")
    from tf_lns.energy import tally, tally_evaluation

    try:
        batch, notes = shapes.batch_for(model, arguments.batch, arguments.shape)
        counts = (tally_evaluation if arguments.evaluate else tally)(model, batch)
    except InputError as error:
        raise InputError(f"{arguments.model}: {error}") from error
    except Exception as error:
        raise InputError(f"{arguments.model}: a step cannot be counted: {plain(error)}") from error
    return dataclasses.replace(counts, notes=(*counts.notes, *notes))


def _show(
    console: Console,
    arguments: argparse.Namespace,
    counts: Tally,
    energies: Sequence[Energy],
    comparison: Comparison | None,
) -> None:
    """Prints the tables."""
    from rich.text import Text

    from tf_lns.energy import report
    from tf_lns.energy.records import PASSES

    step = "evaluation" if arguments.evaluate else "training"
    passes = [(name, counts.macs(name)) for name in PASSES]
    samples = f"{counts.samples} sample{'s' if counts.samples != 1 else ''}"
    console.print(
        Text(
            f"{counts.name or arguments.model}: {counts.macs():,.0f} multiply-accumulates per "
            f"{step} step of {samples}"
        )
    )
    if counts.macs():
        console.print(Text(", ".join(f"{name} {n:,.0f}" for name, n in passes if n)))
    for energy in energies:
        console.print()
        console.print(report.layer_table(energy, arguments.layers or None))
        kinds = report.kind_table(energy)
        kinds.caption = None  # said above
        console.print(kinds)
        if energy.memory:
            console.print(report.memory_table(energy))
        for gap in energy.unpriced:
            console.print(Text(f"Not in the total: {gap}."))
    if comparison is not None:
        console.print()
        console.print(comparison)
    notes = comparison.notes if comparison is not None else counts.notes
    for note in notes:
        console.print(Text(f"Note: {note}"))
    for path in (arguments.csv, arguments.plot):
        if path:
            console.print(Text(f"Wrote {path}"))


def _csv(energies: Sequence[Energy]) -> str:
    """The records under every table, with one head."""
    first, *rest = [energy.to_csv() for energy in energies]
    return first + "".join(text.split("\n", 1)[1] for text in rest)


def _formats(names: Sequence[str] | None) -> tuple[str, ...]:
    from tf_lns.energy.comparison import FORMATS, target_format

    for name in names or ():
        try:
            target_format(name)
        except ValueError as error:
            raise InputError(f"--formats: {error}") from error
    return tuple(names or FORMATS)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise argparse.ArgumentTypeError("at least one format, such as lns8,fp32")
    return names


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of 1 or more")
    return int(text)


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of 0 or more")
    return int(text)
