"""Weight files between plain and LNS models; what is damaged changes nothing."""

import json
import zipfile

import keras
import numpy as np
import pytest

import tf_lns
from tf_lns import LNSConfig
from tf_lns.layers import mixin
from tf_lns.layers.tree import all_layers

K = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sequential():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            K.Conv2D(4, 3, activation="relu"),
            K.BatchNormalization(),
            K.Flatten(),
            K.Dense(3),
        ]
    )


def functional():
    x = keras.Input((6, 6, 1))
    y = K.Reshape((6, 6))(x)
    y = K.MultiHeadAttention(2, 3)(y, y) + y
    return keras.Model(x, K.Dense(3)(K.Flatten()(y)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [K.Flatten(), K.Dense(4), K.BatchNormalization(), K.Dense(3)]

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def subclassed():
    model = Subclassed()
    model(data(2, 6, 6, 1))
    return model


MODELS = pytest.mark.parametrize("make", [sequential, functional, subclassed])


def trained(make):
    model = tf_lns.quantize_model(make())
    model.compile(tf_lns.LNSMadam(), LOSS)
    model.fit(data(8, 6, 6, 1), np.arange(8) % 3, verbose=0)
    return model


def ranges(model):
    return [r.numpy() for x in all_layers(model) for r in getattr(x, "input_ranges", [])]


def everything(model):
    state = [v.numpy() for v in model.optimizer.variables]
    return [*model.get_weights(), *ranges(model), *state]


@MODELS
def test_a_plain_file_loads_into_an_lns_model(make, tmp_path):
    plain, lns = make(), trained(make)
    values = plain.get_weights()
    values[0] = 100 * values[0]  # beyond the range of what is there: a new scale, no clipping
    plain.set_weights(values)
    plain.save_weights(tmp_path / "plain.weights.h5")
    assert any(r > 0 for r in ranges(lns))
    lns.load_weights(tmp_path / "plain.weights.h5")
    for a, b in zip(lns.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4)
    assert not any(ranges(lns))  # they were of other weights


@MODELS
def test_an_lns_file_loads_into_a_plain_model(make, tmp_path):
    plain, lns = make(), trained(make)
    lns.save_weights(tmp_path / "lns.weights.h5")
    tf_lns.load_weights(plain, tmp_path / "lns.weights.h5")
    for a, b in zip(plain.get_weights(), lns.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@MODELS
def test_an_lns_file_loads_into_an_lns_model(make, tmp_path):
    other, lns = tf_lns.quantize_model(make()), trained(make)
    lns.save_weights(tmp_path / "lns.weights.h5")
    other.load_weights(tmp_path / "lns.weights.h5")
    for a, b in zip(other.get_weights(), lns.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert ranges(other) == ranges(lns)


def test_a_keras_file_serves_as_a_weight_file(tmp_path):
    lns, other = trained(sequential), tf_lns.quantize_model(sequential())
    lns.save(tmp_path / "m.keras")
    other.load_weights(tmp_path / "m.keras")
    for a, b in zip(other.get_weights(), lns.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
@MODELS
def test_a_damaged_file_changes_nothing(make, damage, tmp_path):
    lns = trained(make)
    lns.save_weights(tmp_path / "good.weights.h5")
    good = (tmp_path / "good.weights.h5").read_bytes()
    bad = tmp_path / "bad.weights.h5"
    other = trained(make)
    other.fit(data(8, 6, 6, 1, seed=3), np.arange(8) % 3, verbose=0)
    before = everything(other)
    rng = np.random.default_rng(0)
    for _ in range(8):
        content = bytearray(good)
        if damage == "truncated":
            content = content[: rng.integers(1, len(content))]
        elif damage == "flipped":
            for at in rng.integers(0, len(content), 20):
                content[at] ^= 0xFF
        else:
            content = b"" if damage == "empty" else b"no weights here"
        bad.write_bytes(content)
        message = ""
        try:
            other.load_weights(bad)
        except ValueError as error:
            message = str(error)
        if message:
            assert "model is as it was" in message
            for a, b in zip(before, everything(other), strict=True):
                np.testing.assert_array_equal(a, b)
        else:  # the flipped bytes were none of the data
            assert damage == "flipped"
            for a, b in zip(other.get_weights(), lns.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)
            before = everything(other)


def test_flipped_codes_are_noticed(tmp_path):
    import h5py

    lns = trained(sequential)
    path = tmp_path / "m.weights.h5"
    lns.save_weights(path)
    with h5py.File(path, "r+") as file:
        codes = file["layers/lns_dense/vars/0"]
        codes[0, 0] = codes[0, 0] ^ 1
    with pytest.raises(ValueError, match=r"damaged.*lns_dense|damaged: the data of layer"):
        lns.load_weights(path)


def test_a_file_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    lns = trained(sequential)
    monkeypatch.setattr(mixin, "FILE_VERSION", mixin.FILE_VERSION + 1)
    lns.save_weights(tmp_path / "new.weights.h5")
    lns.save(tmp_path / "new.keras")
    monkeypatch.undo()
    before = lns.get_weights()
    with pytest.raises(ValueError, match="newer version of tf_lns"):
        lns.load_weights(tmp_path / "new.weights.h5")
    for a, b in zip(lns.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="newer version of tf_lns"):
        keras.models.load_model(tmp_path / "new.keras")


def test_a_setting_of_a_newer_version_is_named(tmp_path):
    trained(sequential).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    for layer in config["config"]["layers"]:
        if "lns_config" in layer["config"]:
            layer["config"]["lns_config"]["rounding_of_tomorrow"] = 1
    files["config.json"] = json.dumps(config)
    with zipfile.ZipFile(tmp_path / "new.keras", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises((ValueError, TypeError), match="rounding_of_tomorrow"):
        keras.models.load_model(tmp_path / "new.keras")


def test_a_file_of_another_model_is_refused(tmp_path):
    functional().save_weights(tmp_path / "other.weights.h5")
    lns = trained(sequential)
    before = lns.get_weights()
    with pytest.raises(ValueError, match="Read as a file of its plain counterpart"):
        lns.load_weights(tmp_path / "other.weights.h5")
    for a, b in zip(lns.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrong_arguments(tmp_path):
    with pytest.raises(TypeError, match="model"):
        tf_lns.load_weights("model", tmp_path / "x.weights.h5")
    with pytest.raises(FileNotFoundError, match=r"x\.weights\.h5"):
        trained(sequential).load_weights(tmp_path / "x.weights.h5")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    lns = trained(sequential)
    names = ["m.keras", "m.weights.h5"]
    lns.save(tmp_path / names[0])
    lns.save_weights(tmp_path / names[1])
    old = {name: (tmp_path / name).read_bytes() for name in names}

    def fail(self, store):
        raise OSError("disk full")

    monkeypatch.setattr(mixin.LNSMixin, "save_own_variables", fail)
    for save, name in zip([lns.save, lns.save_weights], names, strict=True):
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path / name)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


@MODELS
def test_quantized_again_from_the_file(make, tmp_path):
    lns = trained(make)
    lns.save_weights(tmp_path / "m.weights.h5")
    narrow = tf_lns.quantize_model(make(), LNSConfig(storage="lns12:128"))
    narrow.load_weights(tmp_path / "m.weights.h5")
    for a, b in zip(narrow.get_weights(), lns.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-3)
