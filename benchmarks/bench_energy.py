"""What EnergyCallback costs in `fit`: epochs with it and without it, in turn.

    python benchmarks/bench_energy.py [--rounds 15] [--steps 200] [--json FILE]

Two models of the same net are fitted on the same data, one with the callback and one without;
the figure is the median ratio of their epochs. Counting the step itself happens once, before the
rounds, and is given apart. `same` is the ratio of two fits without it: the noise of the
measurement.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from bench_step import Net, conv_net, mlp
from common import interleaved, ratio, write_json

import tf_lns

NETS = {"conv_net": conv_net, "mlp_4m": mlp}


def fitter(net: Net, steps: int, callbacks: list) -> tuple[object, float]:
    """A function that fits one epoch, and the seconds that its first call took."""
    model, batch = net
    config = tf_lns.LNSConfig()
    model = tf_lns.quantize_model(model, config)
    model.compile(tf_lns.LNSMadam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.concatenate([batch] * steps)
    y = np.zeros(len(x), np.int32)

    def run() -> None:
        model.fit(x, y, batch_size=len(batch), shuffle=False, verbose=0, callbacks=callbacks)

    start = time.perf_counter()
    run()
    return run, time.perf_counter() - start


def measure(name: str, rounds: int, steps: int) -> dict[str, float]:
    """Ratios for one net."""
    make = NETS[name]
    rivals, first = {}, {}
    for label, callbacks in (
        ("without", []),
        ("same", []),
        ("with", [tf_lns.EnergyCallback()]),
    ):
        rivals[label], first[label] = fitter(make(), steps, callbacks)
    times = interleaved(rivals, rounds, warmup=1)
    return {
        "step_ms": statistics.median(times["without"]) / steps * 1e3,
        "ratio": ratio(times, "with", "without"),
        "same": ratio(times, "same", "without"),
        "counting_s": first["with"] - first["same"],
    }


def run(rounds: int = 15, steps: int = 200) -> dict[str, dict[str, float]]:
    """All nets."""
    return {name: measure(name, rounds, steps) for name in NETS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json")
    options = parser.parse_args()
    results = run(options.rounds, options.steps)
    for name, r in results.items():
        print(
            f"{name}: step {r['step_ms']:.2f} ms, with EnergyCallback {r['ratio']:.4f}x, "
            f"noise {r['same']:.4f}x, first epoch {r['counting_s']:+.2f} s"
        )
    write_json(results, options.json)


if __name__ == "__main__":
    main()
