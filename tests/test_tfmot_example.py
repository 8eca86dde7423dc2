"""examples/tfmot_qat.py runs, the docs show what it found, and the tab shows such runs."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest

from tests.tfmot_nets import layers, tf_keras, tfmot
from tf_lns.energy import events
from tf_lns.tfmot import EnergyCallback, LNSMadam, LNSScheme

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("mlxtend")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import tfmot_qat
    finally:
        sys.path.pop(0)
    return tfmot_qat


def test_it_runs(example, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(example, "RECIPES", [example.RECIPES[i] for i in (0, 1, 3)])
    monkeypatch.setattr(example, "conv_net", lambda net=example.conv_net: net((4,)))
    epochs = ["--epochs", "1", "2"]
    few = ["--seeds", "1", "--samples", "128", "--rounds", "2"]
    example.main([*epochs, *few, "--output", str(tmp_path)])
    report = json.loads((tmp_path / "tfmot_qat.json").read_text())
    names = [recipe.name for recipe in example.RECIPES]
    assert list(report["runs"]) == names
    for (run,), expected in zip(report["runs"].values(), (12, 12, 6), strict=True):
        assert [len(run[k]) for k in ("before", *example.EXPERIMENTS)] == [1, 2, 3]
        assert run["bytes_per_parameter"] == pytest.approx(expected, abs=0.2)
    assert set(report["steps"]["to_tfmot"]) == set(names)
    assert report["steps"]["to_float"][names[0]] == 1.0
    assert report["steps"]["to_tfmot"][names[1]] == 1.0
    assert (tmp_path / "tfmot_qat.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    for row in example.rows(report):
        assert row[0] in printed


def test_all_rows_begin_with_the_same_weights(example):
    def kernel(model):
        return next(np.asarray(v) for v in model.trainable_weights if "kernel" in v.name)

    start = example.conv_net((4,))
    compiled = []
    for recipe in example.RECIPES:
        model = example.conv_net((4,))
        model.set_weights(start.get_weights())
        compiled.append(recipe.compiled(model, 10, False))
    kernels = [kernel(model) for model in compiled]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    np.testing.assert_array_equal(kernels[2], kernels[3])
    np.testing.assert_allclose(kernels[2], kernels[0], rtol=2 ** (0.51 / 2048) - 1)
    kinds = [type(model.optimizer) for model in compiled]
    assert kinds == [tf_keras.optimizers.Adam] * 3 + [LNSMadam]


def test_the_table_of_the_docs_is_what_was_measured(example):
    page = (ROOT / "docs/tfmot.md").read_text()
    report = json.loads((ROOT / "docs/tfmot_qat.json").read_text())
    section = re.search(
        r"^## What it costs and gives: measured\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE
    )[1]
    assert report["command"] in section
    shown = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in section.splitlines()
        if line.startswith("|")
    ]
    assert shown[0] == example.HEAD
    assert shown[2:] == example.rows(report)


# --- The tab ------------------------------------------------------------------------------


def read(folder):
    """What the tab is given of a run: its counts and its numerics."""
    pytest.importorskip("tensorboard")
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer

    from tf_lns.tensorboard.data import EnergyData

    reader = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={events.PLUGIN_NAME: 0})
    reader.AddRunsFromDirectory(str(folder))
    reader.Reload()
    data = EnergyData(data_provider.MultiplexerDataProvider(reader, str(folder)))
    ctx = context.RequestContext()
    found = data.counts(ctx, "", "run"), data.numerics(ctx, "", "run", None)
    assert [part["problems"] for part in found] == [[], []]
    return found[0]["counts"], found[1]["tensors"]


@pytest.mark.parametrize("scheme", ["lns", "tfmot"])
def test_the_tab_knows_all_of_a_quantized_run(tmp_path, scheme):
    inputs = layers.Input((8, 8, 1))
    x = inputs
    for layer in (
        *(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()),
        *(layers.DepthwiseConv2D(3), layers.BatchNormalization(), layers.ReLU()),
        *(layers.MaxPooling2D(), layers.Flatten(), layers.Dense(3)),
    ):
        x = layer(x)
    model = tf_keras.Model(inputs, x)
    own = {"scheme": LNSScheme()} if scheme == "lns" else {}
    model = tfmot.quantize_apply(tfmot.quantize_annotate_model(model), **own)
    model.compile(LNSMadam() if scheme == "lns" else "adam", "mse")
    x = np.random.default_rng(0).random((24, 8, 8, 1)).astype("float32")
    y = np.zeros((24, 3), "float32")
    energy = EnergyCallback(tmp_path / "run", batch=(x, y))
    model.fit(x, y, verbose=0, callbacks=[energy], validation_data=(x, y))

    steps, numerics = read(tmp_path)
    training, validation = steps
    names = {layer.name for layer in model.layers}
    products = {n for n in names if "conv2d" in n or "dense" in n}
    assert len(products) == 3
    first = next(layer.name for layer in model.layers if layer.name in products)
    for step, own_passes in (
        (training, {"forward", "error", "gradient", "update"}),
        (validation, {"forward"}),
    ):
        assert step["unpriced"] == []
        rows = step["rows"]
        assert {row["layer"] for row in rows} <= names | {""}
        rest = [row for row in rows if not row["layer"]]
        assert {row["pass"] for row in rest} <= {"other", "update"}, "loss, and scalars"
        scalars = max((row["count"] for row in rest if row["pass"] == "update"), default=0)
        assert scalars <= 4 * len(model.trainable_variables), "learning rates and the like"
        for layer in products:
            own = [row for row in rows if row["layer"] == layer]
            macs = {row["pass"] for row in own if row["kind"] == "mac"}
            assert {row["pass"] for row in own} - {"error"} == own_passes - {"error"}
            assert macs == own_passes - {"update"} - ({"error"} if layer == first else set())
    for table in ("horowitz-45nm", "jouppi-7nm"):
        assert energy.ledger.combined().energy(table).unpriced == ()
    if scheme == "tfmot":
        assert numerics == []
        return
    assert {tensor["layer"] for tensor in numerics} <= names
    for role in ("weights", "gradients", "errors"):
        assert {t["layer"] for t in numerics if t["role"] == role} == products
    assert {t["tensor"].split("/")[-1] for t in numerics if t["role"] == "weights"} == {
        "kernel",
        "depthwise_kernel",
    }
