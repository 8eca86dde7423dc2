#!/usr/bin/env python3
"""Times the codec ops against fake_quant_with_min_max_vars in the same run.

    python benchmarks/bench_codec.py
    python benchmarks/bench_codec.py --sizes 25000000 --json codec.json

The rival does the same job in plain TensorFlow (float to the nearest of 256 values, as float).
All ops take turns, repeat after repeat, so that a slow moment of the machine hits each of
them; a figure is the median of the ratios within a repeat. TF_LNS_CPU=avx2 (or plain) times
another instruction set.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

from common import write_json

GOALS = {  # ratios at 25 million elements on 2 cores (AVX-512)
    "quantize 8 bit, given scale": 0.9,
    "quantize 8 bit, abs-max scale": 1.4,
    "encode 16 bit": 1.0,
    "decode 16 bit": 1.0,
}
RIVAL = "fake_quant_with_min_max_vars"
CHANNELS = 1000


def cases(size: int) -> dict[str, Callable[[], object]]:
    """Calls to time, by name; all on the same `size` normal floats."""
    import tensorflow as tf

    from tf_lns.ops import library

    ops = library.load()
    x = tf.random.stateless_normal([size // CHANNELS, CHANNELS], seed=(1, 2))
    seed = tf.constant(0, tf.int64)
    scale = tf.constant(1e-4)  # not a power of two: a division, where one is needed
    scales = tf.fill([CHANNELS], 1e-4)
    top = tf.constant(2.0**-12)  # 16 octaves up to 16, the scale of a weight
    small = {"bits": 8, "base_factor": 8}
    wide = {"bits": 16, "base_factor": 2048}
    codes = ops.lns_encode(x, top, seed, Tcode=tf.int16, **wide)
    to_small = {
        "from_bits": 16,
        "from_base_factor": 2048,
        "to_bits": 8,
        "to_base_factor": 8,
        "Tto": tf.int8,
    }
    low, high = tf.constant(-6.0), tf.constant(6.0)
    five = {"bits": 5, "base_factor": 2, "rounding": "stochastic"}
    return {
        RIVAL: lambda: tf.quantization.fake_quant_with_min_max_vars(x, low, high),
        "quantize 8 bit, given scale": lambda: ops.lns_quantize(x, scale, seed, **small),
        "quantize 8 bit, abs-max scale": lambda: ops.lns_quantize_dynamic(x, seed, **small),
        "quantize 8 bit, given scale per channel": lambda: ops.lns_quantize(
            x, scales, seed, axis=[1], **small
        ),
        "quantize 8 bit, abs-max scale per channel": lambda: ops.lns_quantize_dynamic(
            x, seed, axis=[1], **small
        ),
        "quantize 5 bit, stochastic": lambda: ops.lns_quantize(x, scale, seed, **five),
        "abs-max scale": lambda: ops.lns_scale(x, **small),
        "encode 8 bit": lambda: ops.lns_encode(x, scale, seed, Tcode=tf.int8, **small),
        "encode 16 bit": lambda: ops.lns_encode(x, top, seed, Tcode=tf.int16, **wide),
        "encode 16 bit, any scale": lambda: ops.lns_encode(x, scale, seed, Tcode=tf.int16, **wide),
        "decode 16 bit": lambda: ops.lns_decode(codes, top, **wide),
        "requantize 16 to 8 bit": lambda: ops.lns_requantize(codes, **to_small),
    }


def measure(calls: dict[str, Callable[[], object]], size: int, repeats: int) -> dict[str, dict]:
    """Milliseconds and ratio to the rival of each call."""
    inner = max(1, min(200, 4_000_000 // size))
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(inner):
                result = call()
            times[name].append((time.perf_counter() - start) / inner * 1e3)
            del result
    return {
        name: {
            "ms": statistics.median(spent),
            "ratio": statistics.median(
                mine / rival for mine, rival in zip(spent, times[RIVAL], strict=True)
            ),
        }
        for name, spent in times.items()
    }


def run(sizes: Sequence[int] = (25_000_000, 64_000), repeats: int = 15) -> dict:
    """Measures all cases.

    Returns:
        ``{"rival": name, "cpu": TF_LNS_CPU or "best", "goals": {case: ratio},
        "sizes": {size: {case: {"ms": ..., "ratio": ...}}}}``.
    """
    return {
        "rival": RIVAL,
        "cpu": os.environ.get("TF_LNS_CPU", "best"),
        "goals": GOALS,
        "sizes": {str(size): measure(cases(size), size, repeats) for size in sizes},
    }


def report(result: dict) -> str:
    """The figures of `run` as a table."""
    lines = []
    for size, figures in result["sizes"].items():
        lines.append(f"{int(size):,} elements, instruction set: {result['cpu']}")
        for name, figure in figures.items():
            goal = result["goals"].get(name) if int(size) >= 25_000_000 else None
            lines.append(
                f"  {name:<42} {figure['ms']:9.3f} ms  {figure['ratio']:6.2f}x"
                + (f"  (goal {goal}x)" if goal else "")
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[25_000_000, 64_000])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(arguments)
    if min(options.sizes) < CHANNELS or options.repeats < 1:
        parser.error(f"sizes start at {CHANNELS}, repeats at 1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    result = run(options.sizes, options.repeats)
    print(report(result))
    write_json(result, options.json)


if __name__ == "__main__":
    main()
