"""quantize_model, calibrate and strip."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns import LNSConfig, LNSVariable, layers, reference
from tf_lns.convert import all_layers

K = keras.layers
F32 = np.float32


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            K.Conv2D(4, 3, activation="relu", name="conv"),
            K.BatchNormalization(name="norm"),
            K.Flatten(),
            K.Dense(5, activation="relu", name="hidden"),
            K.LayerNormalization(),
            K.Dense(3, activation="softmax", name="head"),
        ]
    )


def lns_layers(model):
    return [layer for layer in all_layers(model) if isinstance(layer, layers.LNSMixin)]


def lns_variables(model):
    return [v for layer in lns_layers(model) for v in layer.lns_variables]


def assert_same_weights(lns, plain, tolerance=2.0 ** (0.5 / 2048) - 1 + 1e-6):
    """Each weight at the nearest value of the storage format; the others equal."""
    assert [w.path.split("/")[-2:] for w in lns.weights] == [
        w.path.split("/")[-2:] for w in plain.weights
    ]
    for a, b in zip(lns.weights, plain.weights, strict=True):
        rtol = tolerance if isinstance(a, LNSVariable) else 0
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=rtol, err_msg=a.path)


# --- Structure --------------------------------------------------------------------------


def test_a_sequential_model():
    plain = sequential()
    before = plain.get_weights()
    lns = tf_lns.quantize_model(plain)
    assert [type(layer).__name__.removeprefix("LNS") for layer in lns.layers] == [
        type(layer).__name__ for layer in plain.layers
    ]
    assert [layer.name for layer in lns.layers] == [layer.name for layer in plain.layers]
    assert_same_weights(lns, plain)
    assert len(lns_variables(lns)) == 3
    for a, b in zip(before, plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    lns.set_weights(before)
    assert_same_weights(lns, plain)


def test_what_stays_float_keeps_its_dtype_and_class():
    lns = tf_lns.quantize_model(sequential())
    assert type(lns.get_layer("norm")) is K.BatchNormalization
    for v in lns.weights:
        assert v.dtype == "float32"
        if not isinstance(v, LNSVariable):
            assert "kernel" not in v.name


def functional():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    shared = K.Dense(6, activation="relu", name="shared")
    inner = keras.Sequential([keras.Input((6,)), shared, K.Dense(4, name="inside")], name="inner")
    other = keras.Sequential([keras.Input((6,)), shared, K.Dense(4, name="within")], name="other")
    left, right = inner(a), other(shared(b))
    again = inner(b)
    joined = K.Concatenate()([left, right, again])
    outputs = {"x": K.Dense(2, name="x")(joined), "y": K.Dense(1, name="y")(joined)}
    return keras.Model({"a": a, "b": b}, outputs)


def test_nested_models_and_layers_shared_between_them():
    plain = functional()
    plain.get_layer("inner").trainable = False
    lns = tf_lns.quantize_model(plain)
    assert len(lns.weights) == len(plain.weights) == 10
    assert len(lns_variables(lns)) == 5
    inner, other = lns.get_layer("inner"), lns.get_layer("other")
    assert inner.layers[0] is other.layers[0] is lns.get_layer("shared")
    assert_same_weights(lns, plain)
    x = {"a": data(5, 6), "b": data(5, 6, seed=1)}
    expected, actual = plain(x), lns(x)
    assert set(actual) == {"x", "y"}
    for name in expected:
        assert actual[name].shape == expected[name].shape
        assert np.corrcoef(np.ravel(actual[name]), np.ravel(expected[name]))[0, 1] > 0.95
    assert [v.path for v in lns.trainable_variables] == [v.path for v in plain.trainable_variables]
    back = tf_lns.strip(lns)
    assert back.get_layer("inner").layers[0] is back.get_layer("shared")
    assert not lns_layers(back)


def test_layers_in_time_distributed():
    plain = keras.Sequential([keras.Input((3, 5)), K.TimeDistributed(K.Dense(4), name="steps")])
    lns = tf_lns.quantize_model(plain)
    assert type(lns.layers[0].layer) is layers.LNSDense
    assert_same_weights(lns, plain)
    assert isinstance(lns.layers[0].layer.kernel, LNSVariable)
    x = data(4, 3, 5)
    tf_lns.calibrate(lns, x, verbose=0)
    assert lns.layers[0].layer.input_ranges[0].numpy() == pytest.approx(np.abs(x).max())
    back = tf_lns.strip(lns)
    assert type(back.layers[0].layer) is K.Dense
    np.testing.assert_array_equal(back.get_weights()[0], lns.get_weights()[0])


def test_trainability_is_kept_layer_by_layer():
    plain = sequential()
    plain.get_layer("conv").trainable = False
    lns = tf_lns.quantize_model(plain)
    assert not lns.get_layer("conv").trainable
    assert [v.path for v in lns.trainable_variables] == [v.path for v in plain.trainable_variables]
    plain.trainable = False
    assert not tf_lns.quantize_model(plain).trainable_variables


def test_layers_with_state_of_their_own():
    norm = K.Normalization(name="adapted")
    norm.adapt(data(50, 6) * 3 + 1)
    plain = keras.Sequential(
        [
            keras.Input((6,)),
            norm,
            K.Lambda(lambda x: x * 2, name="double"),
            K.Dropout(0.5, seed=3),
            K.Dense(3),
        ]
    )
    lns = tf_lns.quantize_model(plain, LNSConfig(activations=None, weights=None))
    x = data(4, 6)
    np.testing.assert_allclose(lns(x), plain(x), rtol=1e-2, atol=1e-3)


def test_an_unbuilt_model_is_built_with_integer_weights():
    lns = tf_lns.quantize_model(keras.Sequential([K.Dense(4, "relu"), K.Dense(2)]))
    assert not lns.built
    lns(data(3, 5))
    assert len(lns_variables(lns)) == 2


class Unknown(keras.layers.Layer):
    """A product that tf_lns knows nothing of."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")

    def call(self, x):
        return x @ self.kernel


def test_layers_without_lns_stay_float_with_a_warning():
    inputs = keras.Input((5,))
    plain = keras.Model(inputs, K.Dense(2)(Unknown(name="own")(inputs)))
    with pytest.warns(UserWarning, match=r"own \(Unknown\)"):
        lns = tf_lns.quantize_model(plain)
    assert len(lns_variables(lns)) == 1
    assert_same_weights(lns, plain)
    lns.compile(tf_lns.LNSMadam(), "mse")
    lns.fit(data(6, 5), data(6, 2), verbose=0)
    assert_same_weights(tf_lns.strip(lns), lns, 0)


def test_a_meant_float_layer_does_not_warn(recwarn):
    plain = keras.Sequential([keras.Input((4,)), Unknown(name="own"), K.Dense(2)])
    tf_lns.quantize_model(plain, overrides={"own": None})
    tf_lns.quantize_model(plain, overrides=lambda layer: None)
    assert not [w for w in recwarn if "LNS layer" in str(w.message)]


def test_a_functional_model_of_a_class_of_its_own():
    class Mine(keras.Model):
        pass

    x = keras.Input((4,))
    plain = Mine(x, K.Dense(2)(x))
    assert isinstance(tf_lns.quantize_model(plain).layers[-1], layers.LNSDense)


# --- Configs ----------------------------------------------------------------------------


def test_overrides_by_pattern_and_by_function():
    narrow = LNSConfig(gradients="lns5:2")
    overrides = {"head|hidden": None, "conv": narrow.get_config()}
    by_pattern = tf_lns.quantize_model(sequential(), overrides=overrides)

    def choose(layer):
        return None if layer.name in ("head", "hidden") else narrow

    by_function = tf_lns.quantize_model(sequential(), overrides=choose)
    for model in (by_pattern, by_function):
        assert [layer.name for layer in lns_layers(model)] == ["conv"]
        assert model.get_layer("conv").lns_config == narrow
        assert type(model.get_layer("head")) is K.Dense


def test_patterns_match_whole_names_and_must_match_something():
    with pytest.raises(ValueError, match=re.escape("matches no layer: 'hea'")):
        tf_lns.quantize_model(sequential(), overrides={"hea": None})
    with pytest.raises(ValueError, match="regular expression"):
        tf_lns.quantize_model(sequential(), overrides={"(": None})


def test_an_lns_model_takes_another_config_and_keeps_its_codes():
    lns = tf_lns.quantize_model(sequential())
    x = data(16, 8, 8, 2)
    lns.compile(tf_lns.LNSMadam(2.0**-2), "mse")
    lns.fit(x, data(16, 3), epochs=6, verbose=0)
    other = tf_lns.quantize_model(lns, LNSConfig(activations="lns6:4"))
    for a, b in zip(lns_variables(lns), lns_variables(other), strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        assert a.scale == b.scale
    for a, b in zip(lns_layers(lns), lns_layers(other), strict=True):
        assert a.input_ranges[0].numpy() == b.input_ranges[0].numpy() > 0
        assert str(b.lns_config.activations) == "lns6:4"
    assert lns_layers(tf_lns.quantize_model(lns))[0].lns_config == LNSConfig()

    stored = tf_lns.quantize_model(lns, LNSConfig(storage="lns12:128"))
    assert_same_weights(stored, lns, 2.0 ** (0.5 / 128) - 1 + 1e-6)
    mixed = tf_lns.quantize_model(lns, overrides={"head": None})
    assert type(mixed.get_layer("head")) is K.Dense


# --- Weights ----------------------------------------------------------------------------

PRETRAINED = {
    "identity": np.eye(6, dtype=F32),
    "outlier": np.where(np.eye(6) * np.arange(6) == 3, F32(1e6), data(6, 6) * F32(0.01)),
    "tiny": data(6, 6) * F32(1e-30),
    "constant": np.full((6, 6), 0.3, F32),
    "zeros": np.where(data(6, 6) > 0, data(6, 6), F32(0)),
    "huge": data(6, 6) * F32(1e37),
    "one": np.where(np.eye(6) * np.arange(6) == 3, F32(1), F32(0)),
}


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_weights_are_never_clipped(name):
    values = PRETRAINED[name]
    plain = keras.Sequential([keras.Input((6,)), K.Dense(6)])
    plain.set_weights([values, data(6)])
    lns = tf_lns.quantize_model(plain)
    kernel = lns.layers[0].kernel
    assert isinstance(kernel, LNSVariable)
    stored = kernel.numpy()
    np.testing.assert_array_equal(np.sign(stored), np.sign(values))
    top = np.abs(values) >= np.abs(values).max() * 2.0**-5
    np.testing.assert_allclose(stored[top], values[top], rtol=2e-4)
    np.testing.assert_array_equal(lns.layers[0].bias.numpy(), data(6))
    lns.set_weights(lns.get_weights())
    np.testing.assert_array_equal(kernel.numpy(), stored)


def test_an_all_zero_kernel_stays_float():
    plain = keras.Sequential([keras.Input((3,)), K.Dense(2, kernel_initializer="zeros")])
    lns = tf_lns.quantize_model(plain)
    assert not isinstance(lns.layers[0].kernel, LNSVariable)
    plain.set_weights([np.ones((3, 2)), np.zeros(2)])
    assert isinstance(tf_lns.quantize_model(plain).layers[0].kernel, LNSVariable)


def test_weights_that_are_not_finite_are_refused():
    plain = keras.Sequential([keras.Input((2,)), K.Dense(2)])
    plain.set_weights([np.array([[np.nan, 1], [1, 1]]), np.zeros(2)])
    with pytest.raises(ValueError, match="finite"):
        tf_lns.quantize_model(plain)


def test_a_constraint_is_refused():
    plain = keras.Sequential([keras.Input((2,)), K.Dense(2, kernel_constraint="non_neg")])
    with pytest.raises(ValueError, match="constraint"):
        tf_lns.quantize_model(plain)


# --- Compiled models ----------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sgd", tf_lns.LNSMadam, tf_lns.LNSAdamW])
def test_a_compiled_model_is_compiled_alike(optimizer):
    def own_loss(y, p):
        return keras.ops.mean(keras.ops.square(y - p), axis=-1)

    a = keras.Input((6,))
    plain = keras.Model(a, [K.Dense(2, name="x")(a), K.Dense(1, name="y")(a)])
    plain.compile(
        optimizer if isinstance(optimizer, str) else optimizer(),
        loss=[own_loss, "mae"],
        loss_weights=[1.0, 0.5],
        metrics=[["mse"], [keras.metrics.MeanAbsoluteError(name="distance")]],
    )
    x, y = data(8, 6), [data(8, 2), data(8, 1)]
    plain.fit(x, y, verbose=0)
    lns = tf_lns.quantize_model(plain)
    assert plain.compiled
    assert lns.optimizer is not plain.optimizer
    assert type(lns.optimizer) is type(plain.optimizer)
    before = [v.codes for v in lns_variables(lns)]
    lns.fit(x, y, epochs=2, verbose=0)
    assert set(lns.evaluate(x, y, return_dict=True, verbose=0)) == set(
        plain.evaluate(x, y, return_dict=True, verbose=0)
    )
    for codes, v in zip(before, lns_variables(lns), strict=True):
        assert (codes != v.codes).any()
    assert not tf_lns.strip(lns).compiled


def test_a_model_that_is_not_compiled_stays_so():
    assert not tf_lns.quantize_model(sequential()).compiled


# --- Predictions ----------------------------------------------------------------------------


def predictions(model, x):
    """The same inputs alone, in short batches and together."""
    return [model.predict(x, batch_size=size, verbose=0) for size in (1, 5, 32)]


@pytest.mark.parametrize("how", ["fit", "calibrate", "fixed"])
def test_predictions_do_not_depend_on_the_batch(how):
    config = LNSConfig(activation_scale=8.0 if how == "fixed" else "moving")
    lns = tf_lns.quantize_model(sequential(), config)
    x = data(17, 8, 8, 2) * np.linspace(0.1, 2, 17, dtype=F32)[:, None, None, None]
    if how == "fit":
        lns.compile(tf_lns.LNSMadam(), "mse")
        lns.fit(x, data(17, 3), epochs=2, batch_size=8, verbose=0)
    elif how == "calibrate":
        tf_lns.calibrate(lns, x, batch_size=5, verbose=0)
    alone, some, together = predictions(lns, x)
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)
    np.testing.assert_allclose(some, together, rtol=0, atol=1e-5)


def test_before_training_the_batch_decides():
    lns = tf_lns.quantize_model(sequential())
    x = data(17, 8, 8, 2) * np.linspace(0.01, 2, 17, dtype=F32)[:, None, None, None]
    alone, _, together = predictions(lns, x)
    assert np.abs(alone - together).max() > 0


# --- strip ------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["stored", "seen"])
def test_strip_gives_the_same_values_in_plain_keras(weights):
    config = LNSConfig(activations=None, weights="lns8:8" if weights == "seen" else None)
    lns = tf_lns.quantize_model(sequential(), config)
    lns.compile(tf_lns.LNSMadam(), "mse")
    x = data(9, 8, 8, 2)
    lns.fit(x, data(9, 3), epochs=2, verbose=0)
    plain = tf_lns.strip(lns, weights)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    assert "tf_lns" not in plain.to_json()
    np.testing.assert_array_equal(plain.predict(x, verbose=0), lns.predict(x, verbose=0))
    for a, b in zip(lns.weights, plain.weights, strict=True):
        values = b.numpy()
        if isinstance(a, LNSVariable) and weights == "seen":
            fmt = tf_lns.LNSFormat(8, 8)
            scale = reference.requantize_scale(a.scale, a.format, fmt)
            np.testing.assert_array_equal(reference.quantize(values, fmt, scale=scale), values)
        else:
            np.testing.assert_array_equal(values, a.numpy())


def test_strip_of_an_unregistered_layer_says_what_to_do():
    class Odd(layers.LNSMixin, K.Dense):
        pass

    with pytest.raises(ValueError, match="register_layer"):
        tf_lns.strip(keras.Sequential([keras.Input((2,)), Odd(2)]))


def test_strip_leaves_the_model_as_it_is():
    lns = tf_lns.quantize_model(sequential())
    before = [v.codes for v in lns_variables(lns)]
    plain = tf_lns.strip(lns)
    plain.set_weights([np.zeros(w.shape) for w in plain.weights])
    for codes, v in zip(before, lns_variables(lns), strict=True):
        np.testing.assert_array_equal(codes, v.codes)


# --- calibrate --------------------------------------------------------------------------


def one_layer(inputs=1):
    tensors = [keras.Input((4,), name=f"in{i}") for i in range(inputs)]
    joined = tensors[0] if inputs == 1 else K.Concatenate()(tensors)
    return tf_lns.quantize_model(keras.Model(tensors, K.Dense(2, name="head")(joined)))


X = data(21, 4)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[7 * i : 7 * i + 7], X[:7]


@pytest.mark.parametrize(
    "given",
    [
        X,
        tf.constant(X),
        [X],
        {"in0": X},
        tf.data.Dataset.from_tensor_slices((X, X)).batch(4),
        tf.data.Dataset.from_tensor_slices(X).batch(4),
        (X[i : i + 2] for i in range(0, 21, 2)),
        Batches(),
    ],
    ids=["array", "tensor", "list", "dict", "pairs", "dataset", "generator", "pydataset"],
)
def test_calibrate_records_the_abs_max(given):
    lns = one_layer()
    recorded = lns.get_layer("head").input_ranges[0]
    recorded.assign(1e9)
    assert tf_lns.calibrate(lns, given, verbose=0) is lns
    assert recorded.numpy() == pytest.approx(np.abs(X).max())


def test_calibrate_takes_several_inputs_and_a_number_of_steps(capsys):
    lns = one_layer(2)
    tf_lns.calibrate(lns, (X, 3 * X), batch_size=4, steps=2)
    recorded = lns.get_layer("head").input_ranges[0].numpy()
    assert recorded == pytest.approx(3 * np.abs(X[:8]).max())
    assert "2/2" in capsys.readouterr().out


def test_a_failed_calibration_changes_nothing():
    lns = one_layer()
    tf_lns.calibrate(lns, X, verbose=0)
    before = lns.get_layer("head").input_ranges[0].numpy()
    for bad in ([], iter(()), X[:0]):
        with pytest.raises(ValueError, match="no batch"):
            tf_lns.calibrate(lns, bad, verbose=0)

    def broken():
        yield X * 100
        raise RuntimeError("broken pipe")

    with pytest.raises(RuntimeError, match="broken pipe"):
        tf_lns.calibrate(lns, broken(), verbose=0)
    assert lns.get_layer("head").input_ranges[0].numpy() == before


def test_calibrate_builds_models_and_reaches_into_subclassed_ones():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.LNSDense(2)

        def call(self, x):
            return self.dense(x)

    model = tf_lns.calibrate(Net(), X, verbose=0)
    assert model.dense.input_ranges[0].numpy() == pytest.approx(np.abs(X).max())


def test_a_model_without_ranges_cannot_be_calibrated():
    plain = keras.Sequential([keras.Input((4,)), K.Dense(2)])
    for model in (plain, tf_lns.quantize_model(plain, LNSConfig(activations=None))):
        with pytest.raises(ValueError, match="no layer that records"):
            tf_lns.calibrate(model, X)


def test_a_functional_model_with_operators_converts():
    inputs = keras.Input((10,))
    model = keras.Model(inputs, keras.layers.Dense(10)(inputs) * 2 + inputs)
    lns = tf_lns.quantize_model(model)
    x = np.random.default_rng(0).standard_normal((4, 10)).astype("float32")
    np.testing.assert_allclose(lns(x), model(x), rtol=0.2, atol=0.5)


def test_calibrate_says_when_nothing_was_recorded():
    lns = tf_lns.quantize_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="No layer recorded a range"):
        tf_lns.calibrate(lns, np.full((4, 3), np.nan, "float32"), verbose=0)
