"""Seconds that `import tf_lns` takes beyond `import keras`, each in a fresh process.

python benchmarks/bench_import.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

CODE = "import time; s = time.perf_counter(); import {}; print(time.perf_counter() - s)"


def seconds(module: str) -> float:
    """Time of one import in a fresh process."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", CODE.format(module)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(output.stdout.splitlines()[-1])


def run(rounds: int = 7) -> dict[str, float]:
    """Medians, and the median of the differences of neighbouring runs."""
    seconds("tf_lns")  # warms the page cache
    pairs = [(seconds("keras"), seconds("tf_lns")) for _ in range(rounds)]
    return {
        "keras_s": statistics.median(a for a, _ in pairs),
        "tf_lns_s": statistics.median(b for _, b in pairs),
        "over_keras_s": statistics.median(b - a for a, b in pairs),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    for name, value in run(parser.parse_args().rounds).items():
        print(f"{name:14s} {value:6.2f}")


if __name__ == "__main__":
    main()
