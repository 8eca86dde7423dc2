"""Timing that survives a shared machine: rivals take turns, the median of their ratios counts."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable


def interleaved(
    work: dict[str, Callable[[], object]],
    rounds: int = 15,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each rival in each round; in a round every rival runs once, in turn."""
    for _ in range(warmup):
        for run in work.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, peer: str) -> float:
    """Median over the rounds of one rival's time over its peer's."""
    return statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True))


def write_json(results: object, path: str | None) -> None:
    """Writes the raw figures of a benchmark, if a file is asked for."""
    if path:
        with open(path, "w") as file:
            json.dump(results, file, indent=2)
            file.write("\n")


def machine() -> dict[str, object]:
    """What a figure was measured on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    import keras
    import tensorflow as tf

    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
