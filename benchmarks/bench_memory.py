"""Memory of training a dense layer of 50 million parameters: resident set, peak and at rest.

    python benchmarks/bench_memory.py [--parameters 50000000] [--json FILE]

Each rival trains in a process of its own. "At rest" is between steps, after the allocator has
given back what it holds; the process before the model is subtracted from both figures. TensorFlow
runs without oneDNN here, whose allocator keeps freed memory in a pool of its own: with it, what is
resident between steps is the largest that was ever needed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys

from common import write_json

RIVALS = ("fp32_adam", "lns", "lns_1_byte_v")


def resident_mb(field: str = "VmRSS") -> float:
    """Resident set of this process (VmRSS) or its peak (VmHWM), MB of 10**6 bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"{field} is not in /proc/self/status")


def train(rival: str, parameters: int) -> dict[str, float]:
    """Trains three steps in this process and measures it."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import keras
    import numpy as np

    import tf_lns

    side = int(parameters**0.5)
    keras.ops.matmul(np.ones((8, 8), "float32"), np.ones((8, 8), "float32"))  # wake TensorFlow
    before = resident_mb()
    if rival == "fp32_adam":
        layer, optimizer = keras.layers.Dense(side), keras.optimizers.Adam(1e-3)
    else:
        layer = tf_lns.layers.LNSDense(side)
        compact = rival == "lns_1_byte_v"
        optimizer = tf_lns.LNSMadam(second_moment="lns8:4" if compact else None)
    model = keras.Sequential([keras.layers.Input((side,)), layer])
    model.compile(optimizer, "mse", jit_compile=False)
    x = np.ones((4, side), "float32")
    for _ in range(3):
        model.train_on_batch(x, x)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return {
        "at_rest_mb": resident_mb() - before,
        "peak_mb": resident_mb("VmHWM") - before,
        "bytes_per_parameter_at_rest": (resident_mb() - before) * 1e6 / side**2,
    }


def run(parameters: int = 50_000_000) -> dict[str, dict[str, float]]:
    """The figures of every rival, and their ratios to FP32 with Adam."""
    results = {}
    for rival in RIVALS:
        command = [sys.executable, __file__, "--rival", rival, "--parameters", str(parameters)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[rival] = json.loads(output.splitlines()[-1])
    for figures in results.values():
        for key in ("at_rest_mb", "peak_mb"):
            figures[key.replace("_mb", "_ratio")] = figures[key] / results["fp32_adam"][key]
    return results


def main() -> None:
    """Prints the table, or with --rival the figures of this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=50_000_000)
    parser.add_argument("--rival", choices=RIVALS)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.rival:
        print(json.dumps(train(arguments.rival, arguments.parameters)))
        return
    results = run(arguments.parameters)
    for rival, figures in results.items():
        print(rival, {key: round(value, 2) for key, value in figures.items()})
    write_json(results, arguments.json)


if __name__ == "__main__":
    main()
