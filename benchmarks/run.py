"""The speed table: every benchmark in one run, as ratios to a peer measured beside it.

    python benchmarks/run.py [--quick] [--output DIR] [--xlnstorch-python PATH]

Writes a Markdown report and the raw figures as JSON beside it. About 15 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import bench_codec
import bench_convert
import bench_energy
import bench_import
import bench_madam
import bench_memory
import bench_step
import bench_xlnstorch
from common import machine
from rich.console import Console

LARGE = 25_000_000

STEP_GOALS = {"conv_net": 1.05, "mlp_4m": 0.75, "transformer": 1.0, "lstm": 1.3, "gru": None}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: where its figure stands in the raw results, and its goal."""

    what: str
    peer: str
    path: tuple[str, ...]
    goal: float | None = None
    unit: str = "x"

    def value(self, results: dict[str, Any]) -> float | None:
        """The figure, or None where the machine could not measure it."""
        at: Any = results
        for key in self.path:
            if not isinstance(at, dict) or key not in at:
                return None
            at = at[key]
        return at


def madam_row(what: str, instruction_set: str, update: str, goal: float | None) -> Row:
    """A row of bench_madam."""
    path = ("madam", "sets", instruction_set, str(LARGE), update, "ratio")
    return Row(what, "ResourceApplyAdam", path, goal)


def codec_row(what: str, case: str, goal: float | None) -> Row:
    """A row of bench_codec."""
    path = ("codec", "sizes", str(LARGE), case, "ratio")
    return Row(what, "fake_quant_with_min_max_vars", path, goal)


def best_set(results: dict[str, Any]) -> str:
    """The widest instruction set that was measured."""
    return next(iter(results["madam"]["sets"]))


def rows(results: dict[str, Any]) -> list[Row]:
    """All lines of the table, in the order of the README."""
    best = best_set(results)
    table = [
        madam_row(f"update of 25 M integer weights, float32 v ({best})", best, "float v", 0.42),
        madam_row("update of 25 M integer weights, float32 v (avx2)", "avx2", "float v", 0.65),
        madam_row(f"update of 25 M integer weights, 1-byte v ({best})", best, "one-byte v", 0.32),
    ]
    table += [codec_row(case, case, bench_codec.GOALS.get(case)) for case in bench_codec.GOALS]
    for net, goal in STEP_GOALS.items():
        what = f"training step, {net}, W A E G in LNS"
        table.append(Row(what, "FP32, Keras Adam", ("step", net, "lns"), goal))
        if net in results["step_jit"]:
            peer = "the same under jit_compile"
            table.append(Row(f"{peer}, {net}", peer, ("step_jit", net, "lns")))
    table += [
        Row("quantize_model(ResNet50)", "", ("convert", "seconds"), 10, " s"),
        Row("first training step of ResNet50", "FP32, Keras Adam", ("convert", "tracing"), 1.5),
    ]
    for net, figures in results.get("energy", {}).items():
        what = f"fit of {net}, steps of {figures['step_ms']:.0f} ms, with EnergyCallback"
        table.append(Row(what, "without", ("energy", net, "ratio"), 1.01))
    for net in results.get("tfmot", {}):
        for rival, optimizer in (("lns_adam", "Adam"), ("lns_madam", "LNS-Madam")):
            what = f"tf_keras training step, {net}, LNSScheme with {optimizer}"
            table.append(Row(what, "tfmot 8 bit, Adam", ("tfmot", net, "to_tfmot", rival), 1.05))
    for rival in ("lns", "lns_1_byte_v"):
        for field in ("at_rest", "peak"):
            table.append(
                Row(
                    f"memory of 50 M parameters in training, {rival}, {field.replace('_', ' ')}",
                    "FP32, Keras Adam",
                    ("memory", rival, f"{field}_ratio"),
                )
            )
    for what in ("step", "update"):
        name = f"linear layer of 256x256, batch 32: {what}"
        row = Row(name, "xlnstorch 1.0", ("xlnstorch", what, "ratio"))
        if row.value(results) is not None:
            table.append(row)
    table.append(Row("import tf_lns over import keras", "", ("import", "over_keras_s"), 0.3, " s"))
    return table


def apart(script: str, *arguments: str) -> Any:
    """Runs a benchmark in a process of its own; tfmot changes `tf.keras` where it is imported."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "results.json"
        path = str(pathlib.Path(__file__).with_name(script))
        command = [sys.executable, path, *arguments, "--json", str(file)]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads(file.read_text())


def markdown(results: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = ["| what | peer | ratio | goal |", "|---|---|---:|---:|"]
    for row in rows(results):
        value = row.value(results)
        digits = 2 if value is None or value >= 0.1 else 4
        shown = "not measured" if value is None else f"{value:.{digits}f}{row.unit}"
        goal = "" if row.goal is None else f"{row.goal:.2f}"
        lines.append(f"| {row.what} | {row.peer} | {shown} | {goal} |")
    return "\n".join(lines)


def report(results: dict[str, Any]) -> str:
    """The whole Markdown report."""
    at = results["machine"]
    return f"""# Benchmarks

`python benchmarks/run.py` on {at["cpu"]}, {at["cores"]} cores, Python {at["python"]},
TensorFlow {at["tensorflow"]}, Keras {at["keras"]}, {results["date"]}. A ratio is the median over
rounds in which both rivals run in turn, so smaller is better. Goals are those the project set
itself. Raw figures: [results.json](results.json).

{markdown(results)}

Memory is the resident set beyond the process before the model: at rest between steps, and at its
peak, which holds the initial values or a step's gradient in float32. It was taken without oneDNN,
whose allocator keeps freed memory to itself.
"""


def main() -> None:
    """Runs everything, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, 5 M parameters")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--xlnstorch-python", help="see bench_xlnstorch.py")
    arguments = parser.parse_args()
    console = Console()
    rounds = 5 if arguments.quick else 15
    jobs = {
        "machine": machine,
        "madam": lambda: bench_madam.run(rounds=rounds),
        "codec": lambda: bench_codec.run(repeats=rounds),
        "step": lambda: bench_step.run(rounds=4 * rounds),
        "step_jit": lambda: bench_step.run(rounds, jit=True, nets=["conv_net", "mlp_4m"]),
        "tfmot": lambda: apart("bench_tfmot.py", "--rounds", str(4 * rounds)),
        "convert": lambda: bench_convert.run(1 if arguments.quick else 3),
        "energy": lambda: bench_energy.run(rounds),
        "memory": lambda: bench_memory.run(5_000_000 if arguments.quick else 50_000_000),
        "import": lambda: bench_import.run(3 if arguments.quick else 7),
    }
    if arguments.xlnstorch_python:
        jobs["xlnstorch"] = lambda: bench_xlnstorch.run(arguments.xlnstorch_python)
    results: dict[str, Any] = {"date": datetime.date.today().isoformat()}
    for name, job in jobs.items():
        with console.status(f"measuring: {name}"):
            results[name] = job()
        console.print(f"measured: {name}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (arguments.output / "RESULTS.md").write_text(report(results))
    console.print(markdown(results), markup=False)


if __name__ == "__main__":
    main()
