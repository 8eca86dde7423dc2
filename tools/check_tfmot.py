"""Runs tfmot's own test models under its 8-bit scheme and under LNSScheme, in one process.

    python tools/check_tfmot.py                    every case; writes the table in docs/tfmot.md
    python tools/check_tfmot.py --only 'Conv2D'    some cases, to the terminal

A case is annotated, quantized, compiled with SGD, trained for two steps, asked for predictions,
saved as `.keras` and loaded again (and as H5 and so on where the test of tfmot does so). What
fails is named; what can be tried after it is tried.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_model_optimization  # noqa: E402
import tf_keras  # noqa: E402
from tf_keras.src.saving import serialization_lib  # noqa: E402

import tf_lns.tfmot  # noqa: E402
from tf_lns.tfmot.registry import row_of  # noqa: E402
from tools.tfmot_cases import Case, all_cases, tfmot  # noqa: E402

PAGE = ROOT / "docs" / "tfmot.md"
BEGIN, END = "<!-- begin cases -->", "<!-- end cases -->"
BATCH = 8
UNSAFE = "needs unsafe mode"

KNOWN = {
    "K": (
        r"`\.keras`: ValueError: Layer '\w+' expected",
        "`.keras`",
        "tfmot's wrapper does not load",
    ),
    "R": ("weights not quantized", "", "no weight quantizer before a ReLU layer"),
    "L": (UNSAFE, "", "a Lambda, or SeparableConv1D: `enable_unsafe_deserialization()` first"),
    "A": ("out of scope", "train", "an activity regularizer's tensor of another graph"),
    "S": ("unsupported", "", "no fault but a limit: the registry does not have the layer"),
    "C": (
        "A constraint moves",
        "apply",
        "an integer weight takes no constraint: the error says so",
    ),
    "F": (
        "fixed_range",
        "fix_input_output_range",
        "it sets ranges of 8-bit integers: LNS has none",
    ),
}
"""What is known to fail: a mark, a pattern of the outcome, words in its place, an explanation."""


# --- One case ---------------------------------------------------------------------------------


class StepError(Exception):
    """A step did not do what it should."""


def inputs_of(model: Any) -> Any:
    """A batch of noise for a model."""
    random = np.random.default_rng(0)

    def noise(tensor: Any) -> np.ndarray:
        shape = [tensor.shape[0] or BATCH, *tensor.shape[1:]]
        return random.normal(size=shape).astype(np.float32)

    return tf.nest.map_structure(noise, model.input)


def quantize(case: Case, scheme: Any) -> tuple[Any, set[str]]:
    """The case's model under a scheme, and the names of the layers that it was asked for."""
    model = case.build()
    with step("annotate"):
        if not any(_is_annotated(layer) for layer in getattr(model, "layers", ())):
            model = tfmot.quantize_annotate_model(model)
    asked = {
        layer.layer.name
        for layer in model.layers
        if _is_annotated(layer) and layer.quantize_config is None
    }
    with step("apply"):
        arguments = {} if scheme is None else {"scheme": scheme}
        return tfmot.quantize_apply(model, **arguments), asked


def _is_annotated(layer: Any) -> bool:
    return type(layer).__name__ == "QuantizeAnnotate"


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """A part of a case whose errors carry its name."""
    try:
        yield
    except StepError:
        raise
    except Exception as error:
        raise StepError(f"{name}: {_short(error)}") from error


def _short(error: Exception) -> str:
    """The error for a cell of the table."""
    text = " ".join(str(error).split())
    if "requested the deserialization of a Lambda" in text or "arbitrary code" in text:
        return UNSAFE
    layer = re.search(r"(\w+)'> is not supported|of class [\w.]*?(\w+) has no row", text)
    if layer:
        return f"{layer[1] or layer[2]} unsupported"
    return f"{type(error).__name__}: {text[:120]}"


def train(model: Any, inputs: Any) -> None:
    """Two steps towards noise; something must move."""
    model.compile(tf_keras.optimizers.SGD(0.05), "mse")
    if not model.trainable_weights:
        return
    before = model.get_weights()
    target = tf.nest.map_structure(
        lambda y: np.random.default_rng(1).normal(size=y.shape).astype(np.float32),
        model(inputs, training=False),
    )
    first = tf.nest.flatten(inputs)[0]
    losses = model.fit(
        inputs, target, batch_size=len(first), epochs=2, shuffle=False, verbose=0
    ).history["loss"]
    if not np.all(np.isfinite(losses)):
        raise StepError(f"train: losses {losses}")
    if all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)):
        raise StepError("train: no weight moved")


def not_quantized(model: Any, asked: set[str]) -> list[str]:
    """Layers that were to be quantized and have kernels that are not."""
    found = []
    for wrapper in model.layers:
        layer = getattr(wrapper, "layer", None)
        if layer is None or layer.name not in asked:
            continue
        row = row_of(layer)
        kernels = 0 if row is None else len(list(row.weights_of(layer)))
        have = getattr(wrapper, "lns_variables", None)
        if have is None:
            have = wrapper._weight_vars
        elif any(v.codes.dtype != tf.int16 for v in have):
            have = []
        if len(have) < kernels:
            found.append(type(layer).__name__)
    return found


def codes_of(model: Any) -> list[np.ndarray]:
    """The integer weights."""
    return [v.codes.numpy() for w in model.layers for v in getattr(w, "lns_variables", ())]


def same_after(kind: str, case: Case, scheme: Any, model: Any, inputs: Any, before: Any) -> None:
    """Saves and loads a model; predictions, and codes if there are any, must be the same."""
    with tempfile.TemporaryDirectory() as folder, step(f"`{kind}`"):
        path = str(Path(folder) / "model") + (kind if kind.startswith(".") else "")
        if kind in (".weights.h5", "checkpoint"):
            model.save_weights(path)
            loaded, _ = quantize(case, scheme)
            loaded.load_weights(path)
        else:
            model.save(path, **({} if kind.startswith(".") else {"save_format": "tf"}))
            # Lambda layers load in no other way, under no scheme.
            options = {"safe_mode": False} if kind == ".keras" else {}
            loaded = tf_keras.models.load_model(path, **options)
        after = loaded.predict(inputs, verbose=0)
        for a, b in zip(tf.nest.flatten(before), tf.nest.flatten(after), strict=True):
            if not np.array_equal(a, b):
                raise StepError(f"`{kind}`: predictions differ by up to {np.abs(a - b).max():.2g}")
        if kind != "SavedModel" and any(
            not np.array_equal(a, b) for a, b in zip(codes_of(model), codes_of(loaded), strict=True)
        ):
            raise StepError(f"`{kind}`: codes differ")


def run(case: Case, scheme: Any) -> list[str]:
    """What fails of a case under a scheme (None: tfmot's own); nothing where all is well."""
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(0)
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tfmot.quantize_scope(case.scope), warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")
        try:
            model, asked = quantize(case, scheme)
            if case.after is not None:
                with step(case.after.__name__.strip("_")):
                    model = case.after(model)
            with step("train"):
                inputs = inputs_of(model)
                train(model, inputs)
            with step("predict"):
                before = model.predict(inputs, verbose=0)
        except StepError as failure:
            return [str(failure)]
        found = []
        unquantized = not_quantized(model, asked)
        if unquantized:
            found.append(f"weights not quantized: {', '.join(unquantized)}")
        for kind in (".keras", *case.files):
            try:
                same_after(kind, case, scheme, model, inputs, before)
            except StepError as failure:
                found.append(str(failure))
    return found


def outcome(case: Case, scheme: Any) -> str:
    """A cell of the table."""
    found = run(case, scheme)
    if case.error_at:
        wanted = bool(found) and found[0].startswith(f"{case.error_at}:")
        return "error, as the test wants" if wanted else f"no error at {case.error_at}: {found}"
    if found and UNSAFE in found[0]:
        with serialization_lib.SafeModeScope(safe_mode=False):
            found = [UNSAFE, *run(case, scheme)]
    return "; ".join(_marked(text) for text in found) or "ok"


def _marked(text: str) -> str:
    for mark, (pattern, words, _) in KNOWN.items():
        if re.search(pattern, text):
            return f"{words or text} [{mark}]"
    return text.replace("|", "/")


# --- The table --------------------------------------------------------------------------------


def row(case: Case, stock: str, lns: str) -> str:
    """A line of the table."""
    origin = f"`{case.origin.split('/')[-1]}`{' °' if case.inactive else ''}"
    return f"| {case.name} | {origin} | {stock} | {lns} |"


def table(rows: list[tuple[Case, str, str]]) -> str:
    """All that stands between the markers."""
    columns = [[r[i] for r in rows] for i in (1, 2)]
    cells = " ".join(cell for column in columns for cell in column)
    fine = ("ok", "error, as the test wants")
    good = [sum(cell in fine for cell in column) for column in columns]
    but_files = sum(cell == "`.keras` [K]" for cell in columns[0])
    return "\n".join(
        [
            BEGIN,
            "",
            f"{len(rows)} cases, tfmot {tensorflow_model_optimization.__version__}, tf_keras "
            f"{tf_keras.__version__}. 8-bit: {good[0]} without a failure, {but_files} that fail at "
            f"`.keras` alone, {len(rows) - good[0] - but_files} others. LNS: {good[1]} without a "
            f"failure, {len(rows) - good[1]} others.",
            "",
            *(f"- [{mark}] {why}" for mark, (_, _, why) in KNOWN.items() if f"[{mark}]" in cells),
            "- ° the test, or its row, is switched off in tfmot's repository",
            "",
            "| case | test file | 8-bit | LNS |",
            "| --- | --- | --- | --- |",
            *(row(*r) for r in rows),
            "",
            END,
        ]
    )


def read_table() -> dict[str, tuple[str, str]]:
    """The cells of the table in the page, by case."""
    text = PAGE.read_text()
    lines = text[text.index(BEGIN) : text.index(END)].splitlines()
    cells = [re.split(r" *\| *", line.strip("| ")) for line in lines if line.startswith("| ")]
    return {name: (stock, lns) for name, _, stock, lns in cells[2:]}


def write_table(rows: list[tuple[Case, str, str]]) -> None:
    """Puts the table into the page, in the place of the one that is there."""
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    PAGE.write_text(before + table(rows) + after)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="regular expression of names")
    arguments = parser.parse_args()
    begun, rows = time.perf_counter(), []
    for case in all_cases():
        if arguments.only and not re.search(arguments.only, case.name):
            continue
        rows.append((case, outcome(case, None), outcome(case, tf_lns.tfmot.LNSScheme())))
        print(row(*rows[-1]), flush=True)
    print(f"{time.perf_counter() - begun:.0f} s")
    if not arguments.only:
        write_table(rows)


if __name__ == "__main__":
    main()
