"""The fused Madam update against TensorFlow's Adam, as ratios of one run.

    python benchmarks/bench_madam.py [--sizes 25000000 1000000] [--sets avx512vbmi avx2]

The rival is ResourceApplyAdam on as many float32 parameters. All take turns; a figure is the
median over the rounds of the ratio. Each instruction set runs in a process of its own. An
update moves 16 bytes a parameter, 10 with a second moment of one byte, Adam 28: where both
wait for memory alone, the ratios are 0.57 and 0.36.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from common import write_json

GOALS = {  # ratios at 25 million parameters on 2 cores
    "avx512vbmi": {"float v": 0.42, "one-byte v": 0.32},
    "avx512": {"float v": 0.42},
    "avx2": {"float v": 0.65},
}
RIVAL = "ResourceApplyAdam"


def cases(size: int) -> dict[str, Callable[[], object]]:
    """Updates to time, by name."""
    import numpy as np
    import tensorflow as tf

    from tf_lns.ops import library

    ops = library.load()
    rng = np.random.default_rng(0)
    gradient = tf.constant(rng.standard_normal(size, np.float32) * np.float32(0.01))
    start = rng.integers(15000, 28000, size).astype(np.int16)
    start *= rng.choice(np.array([-1, 1], np.int16), size)
    scale = tf.constant(2.0**-14)
    count = [0]

    def adam() -> Callable[[], object]:
        var, m, v = (tf.Variable(np.zeros(size, np.float32)) for _ in range(3))
        numbers = (tf.constant(x, tf.float32) for x in (0.5, 0.5, 1e-3, 0.9, 0.999, 1e-7))
        power1, power2, lr, beta1, beta2, epsilon = numbers

        def update() -> object:
            return tf.raw_ops.ResourceApplyAdam(
                var=var.handle, m=m.handle, v=v.handle, beta1_power=power1,
                beta2_power=power2, lr=lr, beta1=beta1, beta2=beta2, epsilon=epsilon,
                grad=gradient,
            )  # fmt: skip

        return update

    def madam(weight: str = "codes", compact: bool = False, wd: float = 0.0, **attrs):
        codes = tf.constant(start)
        if weight == "float":
            codes = ops.lns_decode(codes, scale, bits=16, base_factor=2048)
        var = tf.Variable(codes)
        # As after some training: v about the square of the gradient.
        v = tf.Variable(np.zeros(size, np.int8) if compact else np.full(size, 1e-4, np.float32))
        exponent = tf.Variable(-(2**31), dtype=tf.int32)
        none, decay = tf.constant(-1), tf.constant(wd)
        grad_scale = tf.constant(2.0**-14 if "grad_bits" in attrs else 1.0)

        def update() -> object:
            count[0] += 1
            return ops.lns_apply_madam(
                var.handle, scale, v.handle, exponent.handle, gradient, grad_scale,
                rate(count[0]), decay, tf.constant(500, tf.int64),
                tf.constant(count[0], tf.int64), none, none, Tweight=var.dtype,
                Tmoment=v.dtype, bits=16, base_factor=2048, **attrs,
            )  # fmt: skip

        return update

    def rate(i: int) -> object:
        return tf.constant(2.0**-4 / (1 + i / 200) ** 0.5, tf.float32)

    stochastic = {"rounding": "stochastic"}
    return {
        RIVAL: adam(),
        "float v": madam(),
        "one-byte v": madam(compact=True),
        "float v, decay": madam(wd=0.001),
        "float v, stochastic": madam(**stochastic),
        "one-byte v, stochastic": madam(compact=True, **stochastic),
        "float v, gradient of 5 bits": madam(grad_bits=5, grad_base_factor=2),
        "float weights on the grid, float v": madam("float"),
        "float weights on the grid, one-byte v": madam("float", compact=True),
    }


def measure(size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and ratio to Adam of each update, in this process."""
    from common import interleaved, ratio

    inner = max(1, min(100, 2_000_000 // size))

    def repeated(update: Callable[[], object]) -> Callable[[], object]:
        return lambda: [update() for _ in range(inner)]

    work = {name: repeated(update) for name, update in cases(size).items()}
    times = interleaved(work, rounds)
    return {
        name: {
            "ms": statistics.median(spent) / inner * 1e3,
            "ratio": ratio(times, name, RIVAL),
        }
        for name, spent in times.items()
    }


def run(
    sizes: Sequence[int] = (25_000_000, 1_000_000),
    sets: Sequence[str] = ("avx512vbmi", "avx512", "avx2"),
    rounds: int = 15,
) -> dict:
    """Measures all updates for each instruction set, each in a process of its own.

    Returns:
        ``{"rival": name, "goals": ..., "sets": {set: {size: {update: {"ms", "ratio"}}}}}``.
    """
    result: dict = {"rival": RIVAL, "goals": GOALS, "sets": {}}
    here = Path(__file__).resolve()
    for name in sets:
        environment = {**os.environ, "TF_LNS_CPU": name, "TF_CPP_MIN_LOG_LEVEL": "3"}
        paths = [str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        result["sets"][name] = {}
        for size in sizes:
            command = [sys.executable, str(here), "--worker", str(size), str(rounds)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            result["sets"][name][str(size)] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(result: dict) -> str:
    """The figures of `run` as a table."""
    lines = []
    for name, by_size in result["sets"].items():
        for size, figures in by_size.items():
            lines.append(f"{name}, {int(size):,} parameters")
            for update, figure in figures.items():
                goal = result["goals"].get(name, {}).get(update)
                note = f"  (goal {goal:.2f})" if goal and int(size) >= 10**7 else ""
                lines.append(
                    f"  {update:40s} {figure['ms']:8.3f} ms  {figure['ratio']:5.2f}x{note}"
                )
    return "\n".join(lines)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[25_000_000, 1_000_000])
    parser.add_argument("--sets", nargs="+", default=["avx512vbmi", "avx512", "avx2"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(*options.worker)))
        return
    result = run(options.sizes, options.sets, options.rounds)
    print(report(result))
    write_json(result, options.json)


if __name__ == "__main__":
    main()
