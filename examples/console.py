"""What the examples show on a terminal: no start-up noise, and bars of progress."""

from __future__ import annotations

import contextlib
import os

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextlib.contextmanager
def silent_stderr():
    """Hides what TensorFlow's C++ side writes while it starts; exceptions come through."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def progress_bars(console: Console, width: int, figures: str) -> Progress:
    """Bars with a description of at most `width` letters and the text `figures` behind them."""
    return Progress(
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(bar_width=20),
        TextColumn(figures),
        TimeElapsedColumn(),
        console=console,
    )
