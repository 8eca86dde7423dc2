"""`tf-lns tables`: the energy tables, one of them, or a check of one's own file."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tf_lns.cli.console import one_line, output


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "tables",
        parents=[common],
        help="list, show and check energy tables",
        description="Lists the energy tables that come with the package, shows or checks one.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run_list)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    actions.add_parser("list", parents=[common], help="the built-in tables (the default)")
    show = actions.add_parser("show", parents=[common], help="the rows and sources of one table")
    show.add_argument("table", metavar="NAME|FILE", help="a built-in table, or a .toml/.yaml file")
    show.add_argument("--json", action="store_true", help="print it as JSON instead")
    show.set_defaults(run=run_show)
    check = actions.add_parser(
        "check",
        parents=[common],
        help="every mistake in the file of a table, a line each",
        description="Prints every mistake in files of tables, a line each; exit code 1 if any.",
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="a .toml or .yaml file")
    check.set_defaults(run=run_check)


def run_list(arguments: argparse.Namespace) -> int:
    """Lists the built-in tables."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from tf_lns.energy.table import tables

    console = output()
    listing = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    listing.add_column("table", no_wrap=True)
    for name in ("node", "voltage", "rows"):
        listing.add_column(name, justify="right", no_wrap=True)
    listing.add_column("memory", overflow="fold")
    listing.add_column("what it is", overflow="fold")
    for name, table in tables().items():
        listing.add_row(
            name,
            "" if table.node_nm is None else f"{table.node_nm:g} nm",
            "" if table.voltage_v is None else f"{table.voltage_v:g} V",
            str(len(table.rows)),
            Text(", ".join(table.levels)),
            Text(table.title),
        )
    console.print(listing)
    console.print("`tf-lns tables show NAME` prints rows, rules and sources.")
    console.print(
        "--table takes these names, your own .toml or .yaml file, or hwcomponents (extra)."
    )
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Shows one table."""
    from tf_lns.cli.energy import load_table
    from tf_lns.energy.report import price_table

    table = load_table(arguments.table)
    if arguments.json:
        print(json.dumps(table.to_dict(), indent=2, allow_nan=False, default=str))
    else:
        output().print(price_table(table))
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """Checks files; the problems are the result and go to stdout."""
    from tf_lns.energy.table import BUILT_IN, EnergyTable, check_table

    wrong = False
    for name in arguments.files:
        try:
            problems = check_table(name)
        except (ValueError, ImportError) as error:
            problems = (str(error),)
        for problem in problems:
            print(one_line(problem))
        if problems:
            wrong = True
            continue
        table = EnergyTable.load(name)
        clash = ", a name of a built-in table: rename it to use both in one comparison"
        taken = table.name in BUILT_IN and name not in BUILT_IN
        print(f"{name}: fine, {len(table.rows)} rows, table {table.name}{clash if taken else ''}")
    return int(wrong)
