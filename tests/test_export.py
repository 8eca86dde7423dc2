"""Hand-over to hardware: what is read back has the model's bits, and no damage goes unseen."""

import json
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns import keras_hooks, reference
from tf_lns.cli import main
from tf_lns.export.folder import MANIFEST, VERSION, _own_checksum
from tf_lns.export.inputs import random_samples
from tf_lns.export.words import digits_of, hex_text, raw_bits, words_of
from tf_lns.layers.tree import all_layers
from tf_lns.ops.recording import listening

ROOT = pathlib.Path(__file__).parent.parent

DATAPATH = tf_lns.Datapath(lut_bits=1, accumulator_bits=20)


def dense():
    layers = [keras.Input((6,)), keras.layers.Dense(5, "relu", name="hidden")]
    return keras.Sequential([*layers, keras.layers.Dense(3, name="head")], name="mlp")


def conv():
    x = inputs = keras.Input((8, 8, 2), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", strides=2, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name="convnet")


def attention():
    ids = keras.Input((7,), dtype="int32", name="ids")
    x = keras.layers.Embedding(11, 8, name="embedding")(ids)
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.LayerNormalization(name="norm")(keras.layers.Add(name="add")([x, y]))
    return keras.Model(ids, keras.layers.Dense(3, name="head")(x), name="transformer")


def lstm():
    layers = [keras.Input((5, 3)), keras.layers.LSTM(4, name="lstm")]
    return keras.Sequential([*layers, keras.layers.Dense(2, name="head")], name="recurrent")


NETS = {net.__name__: net for net in (dense, conv, attention, lstm)}


def convs():
    """Every kind of convolution."""
    sizes = {"name": "grouped", "groups": 2, "dilation_rate": 2, "padding": "same"}
    x = inputs = keras.Input((6, 7, 2))
    x = keras.layers.Conv2D(4, (3, 2), **sizes)(x)
    x = keras.layers.SeparableConv2D(3, 3, strides=2, depth_multiplier=2, name="separable")(x)
    x = keras.layers.Conv2DTranspose(2, 3, strides=2, padding="same", name="transposed")(x)
    x = keras.layers.Reshape((-1, 2))(x)
    x = keras.layers.Conv1D(3, 3, padding="causal", name="causal")(x)
    x = keras.layers.Reshape((2, 2, -1, 3))(x)
    x = keras.layers.Flatten()(keras.layers.Conv3D(2, 2, name="volume")(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


NETS["convs"] = convs
VECTOR_NETS = list(NETS)


def lns(net, **config):
    model = tf_lns.quantize_model(net(), tf_lns.LNSConfig(**config))
    for layer in all_layers(model):  # values that are not all 0 or 1
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign([0.1, -0.2, 0.3, 1e-30])
    return model


@pytest.fixture(scope="module")
def model():
    return lns(dense)


@pytest.fixture
def exported(model, tmp_path):
    tf_lns.export_model(model, tmp_path / "out", datapath=DATAPATH)
    return tmp_path / "out"


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# --- Words ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 5, 8, 12, 13, 16, 20, 32, 64])
def test_words_round_trip(bits):
    rng = np.random.default_rng(bits)
    top = 1 << (bits - 1)
    values = np.append(rng.integers(-top, top, 50, dtype=np.int64), [0, -1, 1 - top, top - 1])
    text = hex_text(values, bits)
    lines = text.decode().splitlines()
    assert {len(line) for line in lines} == {digits_of(bits)}
    assert [int(line, 16) for line in lines] == [int(v) & ((1 << bits) - 1) for v in values]
    np.testing.assert_array_equal(words_of(text, bits), values)


def test_words_by_hand():
    assert hex_text(np.array([[0, 1], [-1, -127]]), 8) == b"00\n01\nff\n81\n"
    assert hex_text(np.array([-1]), 5) == b"1f\n"
    assert hex_text(raw_bits(np.array([1.0, -2.0], np.float32)), 32) == b"3f800000\nc0000000\n"
    assert hex_text(np.zeros((0, 3), np.int8), 8) == b""
    assert words_of(b"", 8).shape == (0,)


@pytest.mark.parametrize("text", [b"0", b"00", b"0g\n", b"000\n", b"3f\n", b"00 01\n"])
def test_what_is_no_word_is_refused(text):
    with pytest.raises(ValueError, match="not words of 5 bits"):
        words_of(text, 5)


# --- Weights -------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("storage", ["lns16:2048", "lns10:32"])
def test_every_variable_comes_back_to_the_bit(net, storage, tmp_path):
    model = lns(NETS[net], storage=storage)
    written = tf_lns.export_model(model, tmp_path / "out")
    for export in (written, tf_lns.load_export(tmp_path / "out")):
        found = {**export.weights, **export.variables}
        assert len(found) == len(model.weights)
        weights = iter(export.weights.values())
        variables = iter(export.variables.values())
        layers = [model, *all_layers(model)]
        own = [v for layer in layers for v in keras_hooks.own_variables(layer)]
        for variable in own:
            if not isinstance(variable, tf_lns.LNSVariable):
                value = next(variables)
                expected = np.asarray(variable)
                assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
                assert value.tobytes() == expected.tobytes()
                continue
            weight = next(weights)
            assert weight.name.endswith(variable.name)
            assert weight.format == variable.format
            np.testing.assert_array_equal(weight.codes, variable.codes)
            assert weight.codes.dtype == variable.codes.dtype
            assert weight.scale == variable.scale
            np.testing.assert_array_equal(weight.values(), variable.numpy())
            seen = np.asarray(variable.cell.read(variable.cell.seen))
            np.testing.assert_array_equal(weight.values(forward=True), seen)
            assert weight.forward_format == tf_lns.LNSFormat(8, 8)
            with pytest.raises(ValueError, match="read-only"):
                weight.codes[...] = 0


@pytest.mark.parametrize("net", NETS)
def test_readmemh_files_hold_the_words(net, tmp_path):
    export = tf_lns.export_model(lns(NETS[net]), tmp_path / "out")
    for name, weight in export.weights.items():
        entry = export.manifest["weights"][name]
        assert entry["shape"] == list(weight.codes.shape)
        for kind, codes, bits in (
            ("stored", weight.codes, 16),
            ("forward", weight.forward_codes, 8),
        ):
            lines = (tmp_path / "out" / entry[kind]["file"]).read_text().splitlines()
            assert lines == [f"{int(c) & (2**bits - 1):0{bits // 4}x}" for c in codes.reshape(-1)]
    for name, value in export.variables.items():
        entry = export.manifest["variables"][name]
        if value.dtype == np.float32:
            lines = (tmp_path / "out" / entry["file"]).read_text().splitlines()
            words = np.array([int(line, 16) for line in lines], np.uint32)
            assert words.tobytes() == value.tobytes()


def test_a_weight_without_q_w_is_seen_as_it_is_stored(tmp_path):
    export = tf_lns.export_model(lns(dense, weights=None), tmp_path / "out")
    weight = export.weights["hidden/kernel"]
    assert weight.forward_format == weight.format
    np.testing.assert_array_equal(weight.codes, weight.forward_codes)


# --- Manifest ------------------------------------------------------------------------


def test_manifest_describes_the_graph(tmp_path):
    model = lns(attention)
    manifest = tf_lns.export_model(model, tmp_path / "out").manifest
    layers = {layer["path"]: layer for layer in manifest["layers"]}
    assert layers["embedding"]["inputs"] == ["ids"]
    assert layers["attention"]["inputs"] == ["embedding"]
    assert layers["add"]["inputs"] == ["embedding", "attention"]
    assert layers["attention/query"]["inputs"] is None
    assert layers["attention/query"]["class"] == "LNSEinsumDense"
    assert layers["head"]["lns"] == model.get_layer("head").lns_config.get_config()
    assert "lns" not in layers["norm"]
    assert manifest["model"]["inputs"] == [{"name": "ids", "shape": [None, 7], "dtype": "int32"}]
    again = keras.saving.deserialize_keras_object(manifest["model"]["keras"])
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]


def test_manifest_of_a_sequential_model_and_recorded_ranges(tmp_path):
    model = lns(dense)
    tf_lns.calibrate(model, np.ones((4, 6), "float32"), verbose=0)
    layers = tf_lns.export_model(model, tmp_path / "out").manifest["layers"]
    assert [layer["inputs"] for layer in layers] == [[model.inputs[0].name], ["hidden"]]
    assert layers[0]["activations"] == [
        {"range": 1.0, "scale": float(reference.scale_of(np.float32(1), "lns8:8"))}
    ]


@pytest.mark.parametrize(("scale", "largest"), [("batch", None), (2.0, 2.0), ("moving", None)])
def test_ranges_that_are_fixed_or_not_known(tmp_path, scale, largest):
    model = lns(dense, activation_scale=scale)
    layers = tf_lns.export_model(model, tmp_path / "out").manifest["layers"]
    assert layers[0]["activations"][0]["range"] == largest


def test_constants_of_the_datapath(exported):
    export = tf_lns.load_export(exported)
    (unit,) = export.manifest["units"]
    assert export.datapath == DATAPATH
    assert unit["table"] == list(DATAPATH.table(8))
    assert unit["lsb"] == DATAPATH.lsb("lns8:8")
    assert unit["layers"] == ["hidden", "head"]
    text = (exported / "datapath.svh").read_text()
    assert "localparam int ACC_BITS = 20;" in text
    assert f"localparam int LSB = {unit['lsb']};" in text
    assert f"20'h{256 + (362 << 10):x};" in text
    # A term by the constants alone is the reference's.
    for p, term in enumerate(reference.product.term_table(DATAPATH, "lns8:8")):
        q, r = divmod(p, 8)
        n = unit["table"][r >> 2] * (8 + (r & 3))
        shift = q + unit["term_shift"]
        assert term == (n << shift if shift >= 0 else n >> -shift)


def test_formats_of_layers_have_a_header_each(tmp_path):
    overrides = {"head": tf_lns.LNSConfig(activations="lns6:8")}
    model = tf_lns.quantize_model(dense(), overrides=overrides)
    export = tf_lns.export_model(model, tmp_path / "out", datapath={"conversion": "bins"})
    assert [unit["layers"] for unit in export.manifest["units"]] == [["hidden"], ["head"]]
    assert "A_BITS = 6;" in (tmp_path / "out" / "datapath_2.svh").read_text()
    assert "BINS = 1;" in (tmp_path / "out" / "datapath.svh").read_text()


def test_names_are_files_on_any_system(tmp_path):
    layers = [keras.layers.Dense(2, name=name) for name in ("a:b", "a_b", "A_B", "..")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    export = tf_lns.export_model(tf_lns.quantize_model(model), tmp_path / "out")
    names = [p.name for p in (tmp_path / "out" / "weights").iterdir()]
    assert len({name.lower() for name in names}) == 4 * 3
    assert {w.layer for w in export.weights.values()} == {"a_b", "a_b_2", "A_B_3", "__"}


def test_repr(exported):
    assert repr(tf_lns.load_export(exported)).startswith(
        f"<Export of 'mlp' in {str(exported)!r}: 2 weights with 45 codes, "
        "2 float variables, 0 products; 2-entry"
    )


# --- Damage --------------------------------------------------------------------------


def test_damage_is_seen_in_every_file(exported):
    for name, data in tree(exported).items():
        for broken in (data[:-2], data[:9] + bytes([data[9] ^ 1]) + data[10:], b""):
            (exported / name).write_bytes(broken)
            with pytest.raises(ValueError, match=r"damaged|no manifest") as error:
                tf_lns.load_export(exported)
            assert str(exported / name) in str(error.value)
        (exported / name).unlink()
        with pytest.raises(ValueError, match=name.split("/")[-1]):
            tf_lns.load_export(exported)
        (exported / name).write_bytes(data)
    tf_lns.load_export(exported)


def change(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    manifest["sha256"] = _own_checksum(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return manifest


def test_newer_versions_and_other_folders_are_refused(exported, tmp_path):
    change(exported, version=VERSION + 1)
    with pytest.raises(ValueError, match="newer version of tf_lns"):
        tf_lns.load_export(exported)
    change(exported, version=VERSION, kind="cake")
    with pytest.raises(ValueError, match="no manifest of an export"):
        tf_lns.load_export(exported)
    with pytest.raises(ValueError, match="no export of tf_lns"):
        tf_lns.load_export(tmp_path)
    with pytest.raises(FileNotFoundError, match="names no folder"):
        tf_lns.load_export(tmp_path / "nothing")


def test_words_that_are_not_those_of_the_arrays_are_refused(exported):
    """Also where every checksum is right."""
    import hashlib

    path = exported / "weights" / "head.kernel.hex"
    path.write_bytes(b"00\n" + path.read_bytes()[3:])
    files = json.loads((exported / MANIFEST).read_text())["files"]
    files["weights/head.kernel.hex"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    change(exported, files=files)
    with pytest.raises(ValueError, match=r"head\.kernel\.hex' does not hold the words"):
        tf_lns.load_export(exported)


def test_files_outside_of_the_folder_are_not_read(exported, tmp_path):
    (tmp_path / "secret").write_text("x")
    files = json.loads((exported / MANIFEST).read_text())["files"]
    change(exported, files={**files, "../secret": {"sha256": "", "bytes": 1}})
    with pytest.raises(ValueError, match="names no file"):
        tf_lns.load_export(exported)


# --- Writing -------------------------------------------------------------------------


def test_an_export_is_replaced_only_if_told_to(model, exported):
    before = tree(exported)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        tf_lns.export_model(model, exported)
    assert tree(exported) == before
    tf_lns.export_model(model, exported, overwrite=True)
    assert tf_lns.load_export(exported).datapath is None
    assert not (exported / "datapath.svh").exists()
    assert [p.name for p in exported.parent.iterdir()] == ["out"]


def test_the_same_model_gives_the_same_bytes(model, exported, tmp_path):
    tf_lns.export_model(model, tmp_path / "again", datapath=DATAPATH)
    assert tree(tmp_path / "again") == tree(exported)


def test_what_is_no_export_is_left(model, exported, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    for name in ("file", "other"):
        with pytest.raises(FileExistsError, match="no export of tf_lns"):
            tf_lns.export_model(model, tmp_path / name, overwrite=True)
    (exported / "notes.txt").write_text("x")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        tf_lns.export_model(model, exported, overwrite=True)
    assert (tmp_path / "file").read_text() == "x"
    assert (tmp_path / "other" / "thesis.txt").exists()
    assert (exported / "notes.txt").exists()
    (tmp_path / "empty").mkdir()
    tf_lns.export_model(model, tmp_path / "empty")


@pytest.mark.parametrize("place", ["describe_layers", "load_export", "write_weights"])
def test_a_failed_export_leaves_the_old_one(model, exported, monkeypatch, place):
    def fail(*args, **kwargs):
        raise RuntimeError("no space")

    before = tree(exported)
    monkeypatch.setattr(f"tf_lns.export.writing.{place}", fail)
    with pytest.raises(RuntimeError, match="no space"):
        tf_lns.export_model(model, exported, overwrite=True)
    assert tree(exported) == before
    assert [p.name for p in exported.parent.iterdir()] == ["out"]


def test_a_rename_that_fails_leaves_the_old_one(model, exported, monkeypatch):
    rename = pathlib.Path.rename

    def fail(self, target):
        if self.name.endswith("-partial"):
            raise OSError("no such luck")
        return rename(self, target)

    before = tree(exported)
    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises(OSError, match="no such luck"):
        tf_lns.export_model(model, exported, overwrite=True)
    assert tree(exported) == before
    assert [p.name for p in exported.parent.iterdir()] == ["out"]


def test_wrong_arguments(model, tmp_path):
    with pytest.raises(TypeError, match=r"must be a keras\.Model"):
        tf_lns.export_model("model", tmp_path / "out")
    foreign = type("Sequential", (), {"__module__": "tf_keras.src.engine.sequential"})()
    with pytest.raises(TypeError, match=r"tf_lns\.tfmot\.convert"):
        tf_lns.export_model(foreign, tmp_path / "out")
    with pytest.raises(ValueError, match="no LNS layer"):
        tf_lns.export_model(dense(), tmp_path / "out")
    unbuilt = tf_lns.quantize_model(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="no variables yet"):
        tf_lns.export_model(unbuilt, tmp_path / "out")
    with pytest.raises(TypeError, match="A datapath must be"):
        tf_lns.export_model(model, tmp_path / "out", datapath=3)
    with pytest.raises(ValueError, match="lut_bits"):
        tf_lns.export_model(model, tmp_path / "out", datapath={"lut_bits": 5})
    assert list(tmp_path.iterdir()) == []


# --- Test vectors --------------------------------------------------------------------


def on_unit(net, **changes):
    return lns(NETS[net], datapath=DATAPATH.replace(**changes))


def values_of(product):
    return reference.lns_matmul(
        product.a,
        product.b,
        product.a_format,
        product.b_format,
        product.a_scale,
        product.b_scale,
        datapath=product.datapath,
    )


@pytest.mark.parametrize("changes", [{}, {"conversion": "bins", "vector_size": 4}], ids=str)
@pytest.mark.parametrize("net", VECTOR_NETS)
def test_vectors_are_what_the_model_computes(net, changes, tmp_path):
    model = on_unit(net, **changes)
    export = tf_lns.export_model(model, tmp_path / "out", vectors=3)
    assert export.check() == sum(p.accumulators.size for p in export.vectors.values()) > 0
    assert export.manifest["vectors"]["left_out"] == []
    assert "random" in export.manifest["vectors"]["data"]
    bins = (2,) if changes else ()
    for product in export.vectors.values():
        assert product.accumulators.shape == (*product.outputs.shape, *bins)
        assert product.datapath == model.layers[-1].lns_config.datapath
        codes = reference.encode(values_of(product), product.output_scale, "lns8:8")
        np.testing.assert_array_equal(product.outputs, codes)
    # What the last layer's vectors give is what the model gives.
    head = export.vectors["head"]
    assert head.record["weight"] == "head/kernel"
    y = np.asarray(model(random_samples(model, 3), training=False))
    expected = values_of(head) + export.variables["head/bias"]
    np.testing.assert_array_equal(expected.reshape(y.shape), y)


def test_operands_are_codes_of_the_samples_and_of_the_weights(tmp_path):
    model = on_unit("dense")
    data = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    tf_lns.calibrate(model, data, verbose=0)
    export = tf_lns.export_model(model, tmp_path / "out", vectors=4, data=data)
    product = export.vectors["hidden"]
    (activation,) = export.manifest["layers"][0]["activations"]
    assert activation["scale"] == product.a_scale
    np.testing.assert_array_equal(product.a, reference.encode(data[:4], product.a_scale, "lns8:8"))
    weight = export.weights["hidden/kernel"]
    np.testing.assert_array_equal(product.b, weight.forward_codes)
    assert product.b_scale == weight.forward_scale
    assert product.output_scale == reference.scale_of(values_of(product), "lns8:8")
    assert export.manifest["vectors"]["data"] == "given"


def test_weights_of_products_are_named(tmp_path):
    named = {}
    for net in ("attention", "lstm"):
        export = tf_lns.export_model(on_unit(net), tmp_path / net, vectors=1)
        named |= {name: product.record["weight"] for name, product in export.vectors.items()}
    assert named["attention/query"] == "attention/query/kernel"
    assert named["attention/attention_output"] == "attention/attention_output/kernel"
    assert named["attention/0"] is None
    assert named["lstm/0"] == "lstm/lstm_cell/kernel"
    assert named["lstm/1"] == "lstm/lstm_cell/recurrent_kernel"


def test_loops_show_each_step_once(tmp_path):
    export = tf_lns.export_model(on_unit("lstm"), tmp_path / "out", vectors=2)
    steps = [name for name in export.vectors if name.startswith("lstm/")]
    assert len(steps) == 1 + 5
    assert not np.any(export.vectors["lstm/1"].a)


def test_a_model_without_a_datapath_is_computed_on_the_given_one(model, tmp_path):
    x = np.random.default_rng(1).normal(size=(3, 6)).astype("float32")
    before = np.asarray(model(x))
    configs = [layer.lns_config for layer in model.layers]
    export = tf_lns.export_model(model, tmp_path / "out", vectors=3, data=x, datapath=DATAPATH)
    assert export.vectors["head"].datapath == DATAPATH
    assert export.check() > 0
    assert [layer.lns_config for layer in model.layers] == configs
    np.testing.assert_array_equal(np.asarray(model(x)), before)
    twin = tf_lns.quantize_model(tf_lns.strip(model), tf_lns.LNSConfig(datapath=DATAPATH))
    other = tf_lns.export_model(twin, tmp_path / "twin", vectors=3, data=x)
    for name, product in export.vectors.items():
        np.testing.assert_array_equal(product.accumulators, other.vectors[name].accumulators)


def test_another_datapath_than_the_model_was_trained_for(tmp_path):
    other = tf_lns.Datapath(accumulator_bits=12)
    export = tf_lns.export_model(on_unit("dense"), tmp_path / "out", vectors=2, datapath=other)
    assert {product.datapath for product in export.vectors.values()} == {other}
    assert export.datapath == other
    assert export.check() > 0


def test_long_products_and_many_of_a_kind_are_chosen_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("tf_lns.export.vectors.ROWS", 3)
    monkeypatch.setattr("tf_lns.export.vectors.REPEATS", 2)
    export = tf_lns.export_model(on_unit("attention"), tmp_path / "out", vectors=5)
    head = export.vectors["head"].record
    assert head["rows"] == [0, 17, 34]
    assert head["row_shape"] == [35]
    mine = [p.record["batch"] for p in export.vectors.values() if p.layer == "attention"]
    assert mine == [[0], [9], [0], [9]]
    left = export.manifest["vectors"]["left_out"]
    assert left == [{"layer": "attention", "reason": "8 of 10 products of one kind"}] * 2
    assert export.check() > 0


def test_scales_of_rows_and_columns(tmp_path):
    """No layer has such scales today; the ops take them."""
    rng = np.random.default_rng(0)
    a = rng.integers(-127, 128, (2, 4, 6)).astype("int8")
    b = rng.integers(-127, 128, (5, 6)).astype("int8")
    a_scale = rng.random((2, 4, 1)).astype("float32")
    b_scale = rng.random((1, 5)).astype("float32")

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = tf_lns.layers.LNSDense(1, lns_config=tf_lns.LNSConfig(datapath=DATAPATH))

        def call(self, x):
            options = {"transpose_b": True, "datapath": DATAPATH}
            tf_lns.ops.lns_matmul(a, b, "lns8:8", None, a_scale, b_scale, **options)
            scales = np.ones((4, 1), "float32"), np.ones((1, 5), "float32")
            tf_lns.ops.lns_matmul(a, np.stack([b.T, b.T]), "lns8:8", None, *scales)
            per_vector = np.ones((2, 4, 1), "float32"), np.ones((2, 5), "float32")
            tf_lns.ops.lns_matmul(
                a, b, "lns8:8", None, *per_vector, transpose_b=True, datapath={"vector_size": 4}
            )
            return self.dense(x)

    net = Net()
    net(np.ones((2, 3), "float32"))
    export = tf_lns.export_model(net, tmp_path / "out", 2, np.ones((2, 3), "float32"))
    assert export.check() == 40 + 2 * 20 + 2
    assert export.vectors["0"].a_scale.shape == (8, 1)
    assert export.vectors["0"].b_scale.shape == (1, 5)
    assert [export.vectors[n].record["batch"] for n in ("1", "2")] == [[0], [1]]
    (left,) = export.manifest["vectors"]["left_out"]
    assert "a scale for each vector" in left["reason"]


class Halved(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

    def call(self, x):
        return keras.ops.matmul(x, self.kernel) / 2


def test_layers_that_compute_elsewhere_are_named(tmp_path):
    layers = [keras.Input((6,)), keras.layers.Dense(4, name="dense")]
    layers.append(tf_lns.layers.LNSWrapper(Halved(name="own"), name="wrapper"))
    layers.append(keras.layers.Dense(2, name="none"))
    overrides = {"none": tf_lns.LNSConfig(errors=None)}
    model = tf_lns.quantize_model(keras.Sequential(layers), overrides=overrides)
    export = tf_lns.export_model(model, tmp_path / "out", vectors=2, datapath=DATAPATH)
    assert list(export.vectors) == ["dense"]
    reasons = {left["layer"]: left["reason"] for left in export.manifest["vectors"]["left_out"]}
    assert set(reasons) == {"none", "wrapper"}
    assert "errors=None" in reasons["none"]
    assert "a `call` of its own" in reasons["wrapper"]


def test_products_of_other_threads_are_not_the_models(tmp_path):
    import threading

    found, other = [], []
    codes = np.ones((2, 2), "int8")

    def multiply():
        return tf_lns.ops.lns_matmul(codes, codes, "lns8:8")

    with listening(found.append):
        thread = threading.Thread(target=multiply)
        thread.start()
        thread.join()
        assert found == []
        with listening(other.append):
            multiply()
        multiply()
        tf.function(multiply)()
    multiply()
    assert (len(found), len(other)) == (1, 1)


def test_what_the_reference_does_not_compute_is_seen(tmp_path):
    import hashlib

    folder = tmp_path / "out"
    tf_lns.export_model(on_unit("dense"), folder, vectors=2)
    path = folder / "vectors" / "head" / "acc.hex"
    path.write_bytes(b"00001\n" + path.read_bytes()[6:])
    files = json.loads((folder / MANIFEST).read_text())["files"]
    files["vectors/head/acc.hex"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    change(folder, files=files)
    with pytest.raises(ValueError, match="1 accumulators and outputs of the product 'head'"):
        tf_lns.load_export(folder).check()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"vectors": 2}, ValueError, "trained for none"),
        ({"vectors": -1}, ValueError, "0 or more"),
        ({"vectors": 1.5}, TypeError, "vectors"),
        ({"data": np.ones((4, 6))}, ValueError, "vectors=N"),
        ({"vectors": 5, "data": np.ones((4, 6)), "datapath": {}}, ValueError, "hold 5 samples"),
        ({"vectors": 5, "data": [], "datapath": {}}, ValueError, "hold 5 samples"),
        ({"vectors": 5, "data": "x", "datapath": {}}, TypeError, "`data`"),
    ],
)
def test_wrong_requests_for_vectors(model, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        tf_lns.export_model(model, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_samples_that_cannot_be_made_up_are_asked_for(tmp_path):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    own = tf_lns.quantize_model(Net(), in_place=True)
    own(np.ones((1, 3), "float32"))
    with pytest.raises(ValueError, match="`data` is needed for a model of your own class"):
        tf_lns.export_model(own, tmp_path / "out", 2, datapath={})
    open_size = keras.Sequential([keras.Input((None, 3)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"`data` is needed.*no fixed size"):
        tf_lns.export_model(tf_lns.quantize_model(open_size), tmp_path / "out", 2, datapath={})


def test_random_samples_fit_the_inputs():
    inputs = {
        "ids": keras.Input((7,), name="ids"),
        "mask": keras.Input((7,), dtype="int32", name="mask"),
        "x": keras.Input((7, 4), name="x"),
    }
    rows = keras.layers.Embedding(3, 4)(inputs["ids"])
    out = rows * keras.ops.cast(inputs["mask"][..., None], "float32") + inputs["x"]
    samples = random_samples(keras.Model(inputs, out), 50)
    assert {name: x.shape for name, x in samples.items()} == {
        "ids": (50, 7),
        "mask": (50, 7),
        "x": (50, 7, 4),
    }
    assert set(samples["ids"].reshape(-1)) == {0.0, 1.0, 2.0}
    assert samples["mask"].dtype == np.int32
    assert abs(samples["x"].std() - 1) < 0.1


@pytest.mark.parametrize("net", VECTOR_NETS)
@pytest.mark.parametrize("conversion", ["table", "bins"])
def test_the_rtl_agrees_with_every_vector(net, conversion, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "rtl"))
    import simulate

    if not simulate.available():
        pytest.skip("no Verilog simulator is installed")
    monkeypatch.setattr("tf_lns.export.vectors.ROWS", 8)
    monkeypatch.setattr("tf_lns.export.vectors.REPEATS", 2)
    model = on_unit(net, conversion=conversion)
    export = tf_lns.export_model(model, tmp_path / "out", vectors=2)
    for name, product in export.vectors.items():
        result = simulate.simulate(tmp_path / "out" / "vectors" / name, simulate.available()[0])
        assert result.passed, result.log
        assert result.words == product.accumulators.size


VECTORS = ["mlp.keras", "--to", "out", "--datapath", "{}", "--vectors", "2"]


def test_rows_of_a_convolution_are_its_patches(tmp_path):
    export = tf_lns.export_model(on_unit("conv"), tmp_path / "out", vectors=2)
    product = export.vectors["conv"]
    assert product.record["row_shape"] == [2, 4, 4]
    assert product.record["weight"] == "conv/kernel"
    # "same" with strides of 2 on 8 pads at the end alone.
    image = product.a.reshape(2, 4, 4, 3, 3, 2)
    np.testing.assert_array_equal(image[:, :-1, :, 2], image[:, 1:, :, 0])
    np.testing.assert_array_equal(image[:, -1, :, 2], 0)
    np.testing.assert_array_equal(image[:, :, -1, :, 2], 0)
    channels = [export.vectors[f"depthwise/{c}"] for c in range(4)]
    kernel = export.weights["depthwise/kernel"].forward_codes
    for c, product in enumerate(channels):
        np.testing.assert_array_equal(product.b[:, 0], kernel[:, :, c, 0].reshape(-1))


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "datapath.md").read_text()
    first, *_ = blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (mine,) = (code for code in blocks if "export_model" in code)
    names: dict = {}
    for code in (first, mine):
        exec(compile(code, "docs/datapath.md", "exec"), names)
    printed = capsys.readouterr().out
    for line in re.findall(r"<Exported.*>", text):
        assert line in printed


# --- Command line --------------------------------------------------------------------


@pytest.fixture
def saved(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("mlp.keras")
    return tmp_path


def test_command(model, saved, capsys):
    arguments = ["export", "mlp.keras", "--to", "out", "--datapath", '{"lut_bits": 1}']
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "mlp: 2 weights with 45 codes, 2 float variables" in captured.out
    assert "2-entry table" in captured.out
    assert "Wrote out: " in captured.out
    export = tf_lns.load_export(saved / "out")
    np.testing.assert_array_equal(
        export.weights["head/kernel"].codes, model.layers[-1].kernel.codes
    )
    assert main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["units"] == export.manifest["units"]
    assert found["files"].keys() == export.manifest["files"].keys()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_command_with_vectors(saved, capsys, suffix):
    data = np.random.default_rng(2).normal(size=(8, 6)).astype("float32")
    np.save("data.npy", data)
    np.savez("data.npz", x=data)
    arguments = ["export", "mlp.keras", "--to", "out", "--datapath", "{}"]
    assert main([*arguments, "--vectors", "3", "--data", f"data.{suffix}"]) == 0
    assert "2 products of 3 samples (given) with 24 accumulators" in capsys.readouterr().out
    product = tf_lns.load_export("out").vectors["hidden"]
    np.testing.assert_array_equal(product.a, reference.encode(data[:3], product.a_scale, "lns8:8"))
    assert main([*arguments, "--vectors", "3", "--overwrite", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["vectors"]
    assert [entry["name"] for entry in found["products"]] == ["hidden", "head"]
    assert "seed 0" in found["data"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["mlp.keras"], 2, "--to"),
        (["none.keras", "--to", "out"], 1, "no such file"),
        (["plain.keras", "--to", "out"], 1, "no LNS layer"),
        (["mlp.keras", "--to", "mlp.keras"], 1, "mlp.keras is there and is no export"),
        (["mlp.keras", "--to", "out", "--vectors", "2"], 1, "trained for none"),
        (["mlp.keras", "--to", "out", "--vectors", "-1"], 2, "--vectors"),
        (["mlp.keras", "--to", "out", "--data", "x.npy"], 1, "--vectors N"),
        ([*VECTORS, "--data", "none.npy"], 1, "none.npy: no .npy or .npz file"),
        ([*VECTORS, "--data", "mlp.keras"], 1, "--data mlp.keras"),
        ([*VECTORS, "--data", "two.npz"], 1, "an array for each input"),
        ([*VECTORS, "--data", "small.npy"], 1, "must hold 2 samples"),
        ([*VECTORS, "--data", "wide.npy"], 1, "cannot be exported"),
        (["mlp.keras", "--to", "out", "--datapath", "{"], 2, "--datapath"),
        (["mlp.keras", "--to", "out", "--datapath", '{"bits": 1}'], 2, "Unknown argument"),
        (["mlp.keras", "--to", "out", "--datapath", '{"lut_bits": 9}'], 1, "lut_bits"),
    ],
)
def test_wrong_commands_are_one_line(saved, capsys, arguments, code, message):
    dense().save("plain.keras")
    np.savez("two.npz", a=np.ones((2, 6)), b=np.ones((2, 6)))
    np.save("small.npy", np.ones((1, 6)))
    np.save("wide.npy", np.ones((2, 9)))
    assert main(["export", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert code == 2 or captured.err.count("\n") == 1
    assert not (saved / "out").exists()
    shutil.rmtree(saved / "out", ignore_errors=True)


def test_numbers_that_are_none_make_no_vectors(tmp_path):
    data = np.zeros((4, 6), np.float32)
    data[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"`data` must hold no NaN.*flat index 8"):
        tf_lns.export_model(lns(dense, datapath=DATAPATH), tmp_path / "x", 4, data)
    with pytest.raises(TypeError, match="`overwrite` must be True or False"):
        tf_lns.export_model(lns(dense), tmp_path / "x", overwrite="no")
