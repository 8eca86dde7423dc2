"""The parser of `tf-lns`, and the one place where errors become exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tf_lns.cli import energy, export, formats, summary, tables
from tf_lns.cli.console import InputError, one_line

WRONG_INPUT, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
"""Exit codes beside 0; a reader of the output that goes away is no fault of anybody's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments; those of the process if None.

    Returns:
        The exit code: 0 fine, 1 the input is wrong (a line on stderr says what to do), 2 wrong
        usage, 130 interrupted, 141 the reader of the output went away.
    """
    arguments = None
    try:
        arguments = parser().parse_args(argv)
        if arguments.run is None:
            parser().print_help()
            return _flushed(0)
        return _flushed(arguments.run(arguments))
    except SystemExit as error:  # argparse: --help, --version or wrong usage
        return error.code if isinstance(error.code, int) else USAGE
    except KeyboardInterrupt:
        print("tf-lns: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if getattr(arguments, "traceback", False):
            raise
        known = isinstance(error, InputError)
        text = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        hint = "" if known else "; --traceback shows where"
        print(f"tf-lns: {one_line(text)}{hint}", file=sys.stderr)
        return WRONG_INPUT


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    result = argparse.ArgumentParser(
        prog="tf-lns",
        description="Energy, formats and weights of Keras models in logarithmic numbers (LNS).",
        epilog="`tf-lns COMMAND --help` says more.",
        allow_abbrev=False,
    )
    result.add_argument("--version", action=_Version, help="show the version and exit")
    result.set_defaults(run=None)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--traceback", action="store_true", help="show the whole error, and TensorFlow's messages"
    )
    commands = result.add_subparsers(title="commands", metavar="COMMAND")
    for module in (energy, summary, export, tables, formats):
        module.add(commands, common)
    return result


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from tf_lns.cli.library import version

        print(f"tf-lns {version()}")
        parser.exit()


def _flushed(code: int) -> int:
    """The code once everything is written: a closed pipe shows here at the latest."""
    sys.stdout.flush()
    return code


def _forget_stdout() -> None:
    """Nothing more is written to a closed pipe, not even by Python as it exits."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # a stdout without a file behind it
        pass
