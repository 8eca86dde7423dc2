"""`tf-lns summary`: what a saved model stores."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from tf_lns.cli import library, models
from tf_lns.cli.console import InputError, output, working


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "summary",
        parents=[common],
        help="formats, parameters and true bytes of a model",
        description="Formats, parameters, bytes and use of the range of every weight of a model.",
        allow_abbrev=False,
    )
    models.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON instead")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    models.check_file(arguments.model)
    with working("starting TensorFlow", arguments.traceback) as say:
        library.load()
        say(f"loading {pathlib.Path(arguments.model).name}")
        model = models.load(arguments.model, arguments.imports, arguments.unsafe, compile=False)
        say("reading its weights")
        from tf_lns.summary import summary

        try:
            result = summary(model, print_table=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"{arguments.model} cannot be summarised: {error}") from error
    if arguments.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        output().print(result)
    return 0
