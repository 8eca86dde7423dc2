"""How good training in LNS is without tuning, against Adam and SGD with and without.

    python benchmarks/accuracy.py [--tasks digits,fashion] [--groups goal,tuned,variant]
                                  [--seeds 3] [--fashion DIR] [--report]

Every finished run is a line of --results, so an interrupted study goes on where it stopped. A
line counts only if task and recipe are still set up as they were: a changed default runs anew.
The table is made from that file and printed; --table FILE puts it between two marks there.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import accuracy_data as data
import keras
import numpy as np
import tensorflow as tf

import tf_lns

layers = keras.layers
HERE = pathlib.Path(__file__).parent


# --- Tasks -----------------------------------------------------------------------------------


def mlp(inputs: int, outputs: int) -> keras.Model:
    """Two hidden layers of 64."""
    return keras.Sequential(
        [
            layers.Input((inputs,)),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(outputs),
        ]
    )


def conv_net(batch_norm: bool = False) -> keras.Model:
    """Two convolutions and two dense layers: 54,410 parameters and those of BatchNorm."""

    def convolution(filters: int) -> list[keras.layers.Layer]:
        if not batch_norm:
            return [layers.Conv2D(filters, 3, activation="relu"), layers.MaxPooling2D()]
        return [
            layers.Conv2D(filters, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
        ]

    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            *convolution(16),
            *convolution(32),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def gru() -> keras.Model:
    """One GRU of 64 units over masked frames."""
    return keras.Sequential(
        [layers.Input((29, 12)), layers.Masking(), layers.GRU(64), layers.Dense(9)]
    )


@keras.saving.register_keras_serializable(package="accuracy")
class AddPositions(keras.layers.Layer):
    """Adds a learned vector to each position; zero at the start, so no LNS weight."""

    def build(self, shape: Any) -> None:
        """One vector a position."""
        self.supports_masking = True
        self.positions = self.add_weight(shape=shape[1:], initializer="zeros", name="positions")

    def call(self, x: Any) -> Any:
        """`x` and the positions."""
        return x + self.positions


def transformer(width: int = 64, heads: int = 4) -> keras.Model:
    """Two pre-norm blocks over words and positions, mean over the words."""
    words = layers.Input((data.TEXT_LENGTH,), dtype="int32")
    x = AddPositions()(layers.Embedding(data.VOCABULARY, width, mask_zero=True)(words))
    x = layers.Dropout(0.2)(x)
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(heads, width // heads, dropout=0.1)(h, h)
        h = layers.LayerNormalization()(x)
        h = layers.Dense(2 * width, activation="gelu")(h)
        x = x + layers.Dropout(0.1)(layers.Dense(width)(h))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(words, layers.Dense(2)(x))


@dataclasses.dataclass(frozen=True)
class Task:
    """A column of the table: data, net and budget."""

    title: str
    load: Callable[[], tuple[data.Split, data.Split]]
    build: Callable[[], keras.Model]
    epochs: int
    batch: int
    regression: bool = False


TASKS = {
    "digits": Task("digits, MLP", data.digits, lambda: mlp(64, 10), 30, 32),
    "mnist": Task("MNIST-5k, conv net", data.mnist_5k, conv_net, 8, 64),
    "fashion": Task("Fashion-MNIST, conv net", data.fashion_mnist, conv_net, 4, 64),
    "fashion_bn": Task(
        "the same, BatchNorm", data.fashion_mnist, lambda: conv_net(batch_norm=True), 4, 64
    ),
    "vowels": Task("JapaneseVowels, GRU", data.japanese_vowels, gru, 30, 16),
    "text": Task("movie snippets, Transformer", data.movie_snippets, transformer, 3, 64),
    "fashion_long": Task("Fashion-MNIST, 12 epochs", data.fashion_mnist, conv_net, 12, 64),
    "friedman": Task("Friedman 1, MLP", data.friedman, lambda: mlp(10, 1), 20, 32, True),
}


# --- Recipes ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A row of the table: an optimizer for so many steps, and formats or None for float32."""

    group: str
    optimizer: Callable[[int], keras.optimizers.Optimizer]
    config: tf_lns.LNSConfig | None = None


def linear(rate: float, steps: int) -> Any:
    """From `rate` in a straight line to zero."""
    return keras.optimizers.schedules.PolynomialDecay(rate, steps, end_learning_rate=0.0)


def madam(rate: Any = None, decay: bool = False, **kwargs: Any) -> Callable[[int], Any]:
    """LNS-Madam with a rate, or with a linear decay from it."""
    return lambda steps: tf_lns.LNSMadam(linear(rate, steps) if decay else rate, **kwargs)


def rival(rule: Callable[..., Any], rate: float, decay: bool) -> Recipe:
    """A stock optimizer with a rate, or with a linear decay from it."""
    return Recipe("tuned", lambda steps: rule(linear(rate, steps) if decay else rate))


def tuned() -> Iterable[tuple[str, Recipe]]:
    """The grid of rivals: Adam and SGD with momentum, constant and decayed."""
    sgd = functools.partial(keras.optimizers.SGD, momentum=0.9)
    for rule, name, rates in (
        (keras.optimizers.Adam, "Adam", (3e-4, 1e-3, 3e-3, 1e-2)),
        (sgd, "SGD", (1e-2, 3e-2, 1e-1)),
    ):
        for rate in rates:
            yield f"{name}({rate:g})", rival(rule, rate, False)
            yield f"{name}({rate:g}), linear decay", rival(rule, rate, True)


LNS = tf_lns.LNSConfig()
BASELINE = "Adam(0.001)"
DEFAULT = "LNSMadam(), W A E G 8 bits"
RECIPES = {
    BASELINE: Recipe("goal", lambda steps: keras.optimizers.Adam(1e-3)),
    DEFAULT: Recipe("goal", madam(), LNS),
    "LNSMadam(), G lns5:2": Recipe("goal", madam(), LNS.replace(gradients="lns5:2")),
    "LNSMadam(), G lns5:1": Recipe("goal", madam(), LNS.replace(gradients="lns5:1")),
    "LNSMadam, linear decay from 2^-3": Recipe("goal", madam(2**-3, decay=True), LNS),
    "LNSMadam, linear decay from 2^-4": Recipe("goal", madam(2**-4, decay=True), LNS),
    "LNSMadam, linear decay from 2^-5": Recipe("goal", madam(2**-5, decay=True), LNS),
    **{name: recipe for name, recipe in tuned() if name != BASELINE},
    "float32 products": Recipe("variant", madam()),
    "first default, 2^-4 / sqrt(1 + t/200)": Recipe(
        "variant", madam(tf_lns.InverseSqrtDecay(2**-4, 200)), LNS
    ),
    **{
        f"additive rate {factor} x": Recipe(
            "variant",
            madam(additive_learning_rate=tf_lns.InverseSqrtDecay(factor * 2**-3, 20)),
            LNS,
        )
        for factor in (0.03, 0.01)
    },
    "sign_crossing": Recipe("variant", madam(sign_crossing=True), LNS),
    "p_scale=3": Recipe("variant", madam(p_scale=3), LNS),
    'second_moment="lns8:4"': Recipe("variant", madam(second_moment="lns8:4"), LNS),
    "constant 2^-5": Recipe("variant", madam(2**-5), LNS),
    "constant 2^-7": Recipe("variant", madam(2**-7), LNS),
    "stochastic rounding": Recipe("variant", madam(rounding="stochastic"), LNS),
    "storage lns12:128": Recipe("variant", madam(), LNS.replace(storage="lns12:128")),
    "storage lns10:32": Recipe("variant", madam(), LNS.replace(storage="lns10:32")),
    "storage lns10:32, stochastic": Recipe(
        "variant", madam(rounding="stochastic"), LNS.replace(storage="lns10:32")
    ),
}
RIVALS = [BASELINE, *(name for name, recipe in RECIPES.items() if recipe.group == "tuned")]


# --- One run ---------------------------------------------------------------------------------


@functools.cache
def lns_weights(build: Callable[[], keras.Model]) -> int:
    """How many weights of a net quantize_model turns into integers."""
    weights = tf_lns.quantize_model(build()).trainable_variables
    return sum(isinstance(weight, tf_lns.LNSVariable) for weight in weights)


def settings(task: Task, recipe: Recipe) -> dict[str, Any]:
    """What a result depends on beside the names; a line with other settings does not count."""
    optimizer = recipe.optimizer(1)  # the number of steps follows from the rest
    found: dict[str, Any] = {"epochs": task.epochs, "batch": task.batch}
    for name in ("learning_rate", "additive_learning_rate"):
        rate = optimizer.get_config().get(name)
        if isinstance(rate, dict):
            rate = {k: v for k, v in rate["config"].items() if k != "name"}
        if rate is not None:
            found[name] = rate
    if recipe.config is not None:
        arrows = ("weights", "storage", "activations", "errors", "gradients")
        found["formats"] = " ".join(str(getattr(recipe.config, arrow)) for arrow in arrows)
        # Differs once a layer that stayed float has an LNS class.
        found["lns_weights"] = lns_weights(task.build)
    return found


def train(task: Task, recipe: Recipe, seed: int, split: tuple[data.Split, data.Split]) -> float:
    """Trains once; the test accuracy, or R² of a regression, in percent."""
    (x, y), (x_test, y_test) = split
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = task.build()
    if recipe.config is not None:
        model = tf_lns.quantize_model(model, recipe.config)
    loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer=recipe.optimizer(task.epochs * -(-len(x) // task.batch)),
        loss=keras.losses.MeanSquaredError() if task.regression else loss,
    )
    model.fit(x, y, task.batch, task.epochs, verbose=0)
    output = model.predict(x_test, 500, verbose=0)
    if task.regression:
        return 100 * float(1 - np.mean((output - y_test) ** 2) / np.var(y_test))
    return 100 * float(np.mean(output.argmax(-1) == y_test))


# --- Results ---------------------------------------------------------------------------------


Results = dict[tuple[str, str], dict[int, float]]


def read(path: pathlib.Path, wanted: dict[tuple[str, str], dict[str, Any]]) -> Results:
    """Scores by task, recipe and seed, of lines whose settings are the wanted ones."""
    found: Results = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        run = json.loads(line)
        key = run["task"], run["recipe"]
        if key in wanted and run["settings"] == wanted[key]:
            found.setdefault(key, {})[run["seed"]] = run["score"]
    return found


def ranking(results: Results, task: str, decayed: bool, seeds: Iterable[int]) -> list[str]:
    """The rivals, constant or decayed, that have a run of every seed, the best first."""
    means = {
        name: statistics.mean(results[task, name][seed] for seed in seeds)
        for name in RIVALS
        if ("decay" in name) == decayed and {*seeds} <= {*results.get((task, name), ())}
    }
    return sorted(means, key=lambda name: -means[name])


def excused(results: Results, seed: int, task: str, name: str) -> bool:
    """Whether a run is not worth its time.

    With the first seed the whole grid of rivals runs; of the constant and of the decayed ones
    the two that did best go on to the other seeds.
    """
    if seed == 0 or name not in RIVALS or name == BASELINE:
        return False
    return name not in ranking(results, task, "decay" in name, [0])[:2]


def best(results: Results, task: str, decayed: bool) -> str | None:
    """The best rival among those that ran with every seed of the baseline."""
    names = ranking(results, task, decayed, results.get((task, BASELINE), {0: 0}))
    return names[0] if names else None


def cell(runs: dict[int, float] | None) -> str:
    """Mean and standard deviation."""
    if not runs:
        return ""
    values = list(runs.values())
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def difference(a: dict[int, float] | None, b: dict[int, float] | None) -> str:
    """Mean of a - b over common seeds, and the standard error of that mean."""
    deltas = [a[seed] - b[seed] for seed in a if seed in b] if a and b else []
    if not deltas:
        return ""
    error = f" ± {statistics.stdev(deltas) / len(deltas) ** 0.5:.2f}" if len(deltas) > 1 else ""
    return f"{statistics.mean(deltas):+.2f}{error}"


def table(results: Results, tasks: list[str]) -> str:
    """Everything as Markdown."""
    budget = [f"{TASKS[t].epochs} x {TASKS[t].batch}" for t in tasks]
    seeds = [
        str(max((len(r) for (t, _), r in results.items() if t == task), default=0))
        for task in tasks
    ]
    head = [
        ["", *(TASKS[t].title for t in tasks)],
        ["---", *("---:" for _ in tasks)],
        ["epochs x batch", *budget],
        ["seeds (at most)", *seeds],
    ]

    def lines(rows: list[list[str]]) -> str:
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def scores(group: str) -> list[list[str]]:
        names = [name for name, recipe in RECIPES.items() if recipe.group == group]
        return [[name, *(cell(results.get((t, name))) for t in tasks)] for name in names]

    def champion(title: str, decayed: bool) -> list[str]:
        names = [best(results, task, decayed) for task in tasks]
        cells = [
            "" if name is None else f"{cell(results[task, name])} {name.split(',')[0]}"
            for task, name in zip(tasks, names, strict=True)
        ]
        return [title, *cells]

    def against(group: str, other: Callable[[str], str | None]) -> list[list[str]]:
        return [
            [
                name,
                *(
                    difference(results.get((t, name)), results.get((t, other(t) or "")))
                    for t in tasks
                ),
            ]
            for name, recipe in RECIPES.items()
            if recipe.group == group and name != BASELINE
        ]

    def best_of_all(task: str) -> str | None:
        names = [n for n in (best(results, task, d) for d in (False, True)) if n]
        return max(names, key=lambda n: statistics.mean(results[task, n].values()), default=None)

    return "\n\n".join(
        [
            "Test accuracy in percent (R² in percent for Friedman): mean ± standard deviation.",
            lines(
                head
                + scores("goal")
                + [
                    champion("best constant Adam, SGD", False),
                    champion("best decayed Adam, SGD", True),
                ]
            ),
            f"Minus {BASELINE}, paired by seed: mean ± standard error.",
            lines(head[:2] + against("goal", lambda task: BASELINE)),
            "Minus the best of all tuned Adam and SGD:",
            lines(head[:2] + against("goal", best_of_all)),
            f"Variants, minus {DEFAULT}:",
            lines(head[:2] + against("variant", lambda task: DEFAULT)),
            "The grid of rivals:",
            lines(head[:2] + scores("tuned")),
        ]
    )


def study(
    runs: list[tuple[int, str, str]], wanted: dict, path: pathlib.Path, fashion: pathlib.Path
):
    """Makes the runs that the file of results lacks and appends each to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read(path, wanted)
    missing = [run for run in runs if run[0] not in done.get(run[1:], {})]
    splits: dict[Any, Any] = {}
    for number, (seed, task, name) in enumerate(missing, 1):
        if excused(done, seed, task, name):
            continue
        load = TASKS[task].load
        if load not in splits:
            splits[load] = load(fashion) if load is data.fashion_mnist else load()
        start = time.perf_counter()
        score = train(TASKS[task], RECIPES[name], seed, splits[load])
        run = {
            "task": task,
            "recipe": name,
            "seed": seed,
            "score": round(score, 3),
            "seconds": round(time.perf_counter() - start, 1),
            "settings": wanted[task, name],
        }
        with path.open("a") as file:
            file.write(json.dumps(run) + "\n")
        done.setdefault((task, name), {})[seed] = run["score"]
        print(
            f"{number}/{len(missing)} {task}, {name}, seed {seed}: {score:.2f} "
            f"in {run['seconds']} s",
            file=sys.stderr,
        )


MARKS = ("<!-- accuracy.py: begin -->", "<!-- accuracy.py: end -->")


def put(text: str, path: pathlib.Path) -> None:
    """Replaces what stands between the marks of a file."""
    old = path.read_text()
    before, _, rest = old.partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise SystemExit(f"{path} must hold the lines {MARKS[0]} and {MARKS[1]}")
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--groups", default="goal,tuned,variant")
    parser.add_argument(
        "--recipes", default="", help="only names that this regular expression finds"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fashion", type=pathlib.Path, default=data.FASHION)
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results" / "accuracy.jsonl")
    parser.add_argument("--table", type=pathlib.Path, help="Markdown file with the two marks")
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    tasks, groups = arguments.tasks.split(","), arguments.groups.split(",")
    unknown = {*tasks} - {*TASKS} | {*groups} - {recipe.group for recipe in RECIPES.values()}
    if unknown:
        parser.error(f"no such tasks or groups: {', '.join(sorted(unknown))}")
    wanted = {
        (t, r): settings(task, recipe) for t, task in TASKS.items() for r, recipe in RECIPES.items()
    }
    if not arguments.report:
        runs = [
            (seed, task, name)
            for seed in range(arguments.seeds)  # outermost: a study cut short is a whole one
            for task in tasks
            for name, recipe in RECIPES.items()
            if recipe.group in groups and re.search(arguments.recipes, name)
        ]
        study(runs, wanted, arguments.results, arguments.fashion)
    text = table(read(arguments.results, wanted), list(TASKS))
    if arguments.table is not None:
        put(text, arguments.table)
    print(text)


if __name__ == "__main__":
    main()
