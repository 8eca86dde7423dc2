"""What a command writes: results on stdout, progress on stderr, errors as one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
"""Columns where stdout is no terminal and COLUMNS does not say otherwise."""

_LONGEST = 600


class InputError(Exception):
    """The user's input is wrong; the message says what is and what to do."""


def one_line(text: str) -> str:
    """A message without line breaks, cut where it becomes a page."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def plain(error: BaseException) -> str:
    """What an exception of TensorFlow or Keras says, without colours, places and arguments."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.split(r"\n+\s*Arguments received by|\n+Call arguments received", text)[0]
    text = re.sub(r'(?m)^\s*File ".*(\n.*)?$|^\s*in user code:', "", text)
    return f"{type(error).__name__}: {text.strip()}"


def output() -> Console:
    """A console on stdout: as wide as the terminal, without colour where there is none."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    if isinstance(sys.stdout, io.TextIOWrapper):  # "µJ" and bars even in an ASCII locale
        sys.stdout.reconfigure(errors="replace")
    fixed = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Output(highlight=False, width=WIDTH if fixed else None)


@contextlib.contextmanager
def working(text: str, loud: bool = False) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr for the time of long work; everything else is silent meanwhile.

    TensorFlow's C++ side writes to the file descriptor itself, so that one is turned away.
    Prints of imported modules do not get into the output either.

    Args:
        text: What is done first.
        loud: Hide nothing, and show no spinner.

    Yields:
        A function that says what is done next.
    """
    if loud:
        with contextlib.redirect_stdout(sys.stderr):
            yield lambda text: print(text, file=sys.stderr)
        return
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(_silence())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if not terminal.isatty():
            yield lambda text: None
            return
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
        )
        progress = stack.enter_context(
            Progress(
                *columns,
                console=Console(file=terminal),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
        )
        task = progress.add_task(text, total=None)
        yield lambda text: progress.update(task, description=text)


@contextlib.contextmanager
def _silence() -> Iterator[IO[str]]:
    """Sends both streams and file descriptor 2 nowhere; yields a file that writes where 2 went."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere, open(kept, "w", errors="replace") as terminal:
        os.dup2(nowhere.fileno(), 2)
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield terminal
        finally:
            os.dup2(kept, 2)
