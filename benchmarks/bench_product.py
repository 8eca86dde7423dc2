"""Products of codes on a datapath beside float32 tf.matmul, in the same run.

    python benchmarks/bench_product.py [--sets best avx2] [--threads 1 2] [--json FILE]
    python benchmarks/bench_product.py --peer-python PATH/TO/python

Both take turns on the same number of threads. A rate is that of the median round, in billions
of multiply-accumulates a second; a ratio is the median over the rounds of the rate over that of
tf.matmul, so larger is better. Each instruction set and number of threads runs in a process of
its own. tf.matmul uses the best that the CPU has; `--float-set AVX2` holds oneDNN to AVX2.

`--clock cpu` takes the time of the process in place of the wall's, for one thread on a machine
that others keep busy: being put off does not count then, though emptied caches still do.

xlns and xlnstorch (which simulate sums in LNS, on NumPy and PyTorch) need an environment of
their own, whose interpreter is `--peer-python`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import interleaved, machine, ratio, write_json

GOALS = {"best": 0.40, "avx2": 0.35}  # of tf.matmul's rate, 512 x 512 x 512 and up


def cube(side: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a product of square matrices."""
    return (side, side), (side, side)


# Shapes of a and b, format, datapath, other options.
CASES: dict[str, tuple] = {
    "512 x 512 x 512": (*cube(512), "lns8:8", {}, {}),
    "1024 x 1024 x 1024": (*cube(1024), "lns8:8", {}, {}),
    "2048 x 2048 x 2048": (*cube(2048), "lns8:8", {}, {}),
    "4096 x 512 x 512": ((4096, 512), (512, 512), "lns8:8", {}, {}),
    "512 x 4096 x 512": ((512, 4096), (4096, 512), "lns8:8", {}, {}),
    "512 x 512 x 4096": ((512, 512), (512, 4096), "lns8:8", {}, {}),
    "1 x 1024 x 1024": ((1, 1024), (1024, 1024), "lns8:8", {}, {}),
    "4 x 1024 x 1024": ((4, 1024), (1024, 1024), "lns8:8", {}, {}),
    "16 x 1024 x 1024": ((16, 1024), (1024, 1024), "lns8:8", {}, {}),
    "64 of 128 x 64 x 128, b transposed": (
        (64, 128, 64),
        (64, 128, 64),
        "lns8:8",
        {},
        {"transpose_b": True},
    ),
    "64 of 128 x 128 x 64": ((64, 128, 128), (64, 128, 64), "lns8:8", {}, {}),
    "512 cubed, a transposed": (*cube(512), "lns8:8", {}, {"transpose_a": True}),
    "512 cubed, 2-entry table": (*cube(512), "lns8:8", {"lut_bits": 1}, {}),
    "512 cubed, 16-bit accumulator": (*cube(512), "lns8:8", {"accumulator_bits": 16}, {}),
    "512 cubed, 32-bit accumulator": (*cube(512), "lns8:8", {"accumulator_bits": 32}, {}),
    "512 cubed, vectors of 1": (*cube(512), "lns8:8", {"vector_size": 1}, {}),
    "512 cubed, 8 bins": (*cube(512), "lns8:8", {"conversion": "bins"}, {}),
    "512 cubed, 16-bit codes": (*cube(512), "lns16:2048", {}, {}),
    "512 cubed, 16-bit codes, 2-entry table": (*cube(512), "lns16:2048", {"lut_bits": 1}, {}),
    "512 cubed, 16-bit codes, no table": (*cube(512), "lns16:2048", {"lut_bits": 0}, {}),
}


def macs(a: Sequence[int], b: Sequence[int], options: dict) -> int:
    """Multiply-accumulates of a product."""
    count = b[-2 if options.get("transpose_b") else -1]
    for size in a:
        count *= size
    return count


def measure(threads: int, rounds: int, clock: str) -> dict[str, dict[str, float]]:
    """Rates of all cases and their ratios to tf.matmul, in this process."""
    import numpy as np
    import tensorflow as tf

    import tf_lns

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    rng = np.random.default_rng(0)
    figures = {}
    for name, (a_shape, b_shape, text, arguments, options) in CASES.items():
        format = tf_lns.LNSFormat.get(text)
        top = format.max_code
        a, b = (
            tf.constant(rng.integers(-top, top + 1, shape).astype(format.dtype))
            for shape in (a_shape, b_shape)
        )
        x, y = (tf.random.stateless_normal(shape, (0, 1)) for shape in (a_shape, b_shape))
        datapath = tf_lns.Datapath(**arguments)
        ours = tf.function(
            lambda a=a, b=b, text=text, datapath=datapath, options=options: tf_lns.ops.lns_matmul(
                a, b, text, datapath=datapath, **options
            )
        )
        floats = tf.function(lambda x=x, y=y, options=options: tf.matmul(x, y, **options))
        count = macs(a_shape, b_shape, options)
        inner = max(1, min(50, 50_000_000 // count))
        # Rounds enough for a median, but no minute for one case.
        few = rounds if count < 10**9 else max(3, rounds // 3)
        times = interleaved(
            {
                "tf_lns": lambda ours=ours, inner=inner: [ours() for _ in range(inner)],
                "tf": lambda floats=floats, inner=inner: [floats() for _ in range(inner)],
            },
            few,
            warmup=1,
            clock=time.process_time if clock == "cpu" else time.perf_counter,
        )
        figures[name] = {
            "rate": count * inner / statistics.median(times["tf_lns"]) / 1e9,
            "tf_rate": count * inner / statistics.median(times["tf"]) / 1e9,
            "ratio": 1 / ratio(times, "tf_lns", "tf"),
        }
    return figures


def measure_peers(side: int = 128) -> dict[str, dict[str, float]]:
    """Rates of xlns and xlnstorch, in an interpreter that has them."""
    import numpy as np

    count = side**3
    x = np.random.default_rng(0).standard_normal((side, side))
    work = {}
    try:
        import xlns

        xlns.xlnssetF(3)
        a = xlns.xlnsnp(x)
        work["xlns (NumPy)"] = lambda: a @ a
    except ImportError:
        pass
    try:
        import torch
        import xlnstorch

        t = xlnstorch.lnstensor(torch.from_numpy(x), f=3)
        work["xlnstorch (PyTorch)"] = lambda: t @ t
    except ImportError:
        pass
    figures = {}
    for name, run in work.items():
        run()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        figures[name] = {"rate": count / statistics.median(times) / 1e9, "side": side}
    return figures


def worker(python: str, arguments: Sequence[str], **variables: str) -> dict:
    """What this file prints in a process of its own."""
    here = Path(__file__).resolve()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variables}
    paths = [str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    done = subprocess.run(
        [python, str(here), *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def run(
    sets: Sequence[str] = ("best", "avx2"),
    threads: Sequence[int] = (1, 2),
    rounds: int = 9,
    float_set: str | None = None,
    peer_python: str | None = None,
    clock: str = "wall",
) -> dict:
    """Measures all cases for each instruction set and number of threads.

    Returns:
        ``{"machine": ..., "goals": ..., "float_set": ..., "peers": {name: {"rate"}},
        "sets": {set: {threads: {case: {"rate", "tf_rate", "ratio"}}}}}``.
    """
    result: dict = {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "goals": GOALS,
        "float_set": float_set or "best",
        "clock": clock,
        "sets": {},
    }
    variables = {"ONEDNN_MAX_CPU_ISA": float_set} if float_set else {}
    for name in sets:
        chosen = {} if name == "best" else {"TF_LNS_CPU": name}
        result["sets"][name] = {
            str(n): worker(
                sys.executable, ["--worker", str(n), str(rounds), clock], **variables, **chosen
            )
            for n in threads
        }
    if peer_python:
        result["peers"] = worker(peer_python, ["--peers"])
    return result


def report(result: dict) -> str:
    """The figures of `run` as tables in Markdown."""
    at = result["machine"]
    lines = [
        f"{at['cpu']}, {at['cores']} cores, TensorFlow {at['tensorflow']}; load at the start "
        f"{result['load']:.1f}; clock: {result['clock']}; tf.matmul on: {result['float_set']}.",
    ]
    for name, by_threads in result["sets"].items():
        for threads, figures in by_threads.items():
            lines += [
                "",
                f"Instruction set: {name}, threads: {threads}",
                "",
                "| product | GMAC/s | tf.matmul | ratio |",
                "|---|---:|---:|---:|",
            ]
            for case, figure in figures.items():
                cubic = case in list(CASES)[:3]
                goal = f" (goal {result['goals'][name]:.2f})" if cubic and name in GOALS else ""
                lines.append(
                    f"| {case} | {figure['rate']:.2f} | {figure['tf_rate']:.2f} | "
                    f"{figure['ratio']:.2f}{goal} |"
                )
    if result.get("peers"):
        lines += ["", "| peer | GMAC/s |", "|---|---:|"]
        for name, figure in result["peers"].items():
            lines.append(f"| {name}, {figure['side']} cubed | {figure['rate']:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["best", "avx2"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--float-set", help="the most that oneDNN may use, such as AVX2")
    parser.add_argument("--peer-python", help="interpreter of an environment with xlns, xlnstorch")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--peers", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peers:
        print(json.dumps(measure_peers()))
        return
    if options.worker:
        threads, rounds, clock = options.worker
        print(json.dumps(measure(int(threads), int(rounds), clock)))
        return
    result = run(
        options.sets,
        options.threads,
        options.rounds,
        options.float_set,
        options.peer_python,
        options.clock,
    )
    print(report(result))
    write_json(result, options.json)


if __name__ == "__main__":
    main()
