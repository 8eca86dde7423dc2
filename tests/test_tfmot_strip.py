"""Plain tf_keras models behind models in LNS: values, names, predictions."""

import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tests.test_tfmot import NETS, functional, normal, with_mine
from tests.tfmot_nets import layers, quantized, tf_keras, tfmot
from tf_lns import LNSConfig, LNSFormat, reference
from tf_lns.tfmot import LNSQuantizeConfig, LNSScheme, hooks, strip

annotate = tfmot.quantize_annotate_layer


@pytest.fixture(autouse=True)
def _seeded():
    tf_keras.utils.set_random_seed(1)


def data(name, shape):
    x = normal(8, *shape)
    return np.abs(x * 3).astype(np.int32) % 9 if name == "embedding lstm" else x


def net(name, config):
    shape, build = NETS[name]
    model = functional(lambda x: layers.Dense(2)(layers.Flatten()(build(x))), shape)
    return quantized(model, LNSScheme(config))


def moved(model):
    """Weights as training might leave them: biases are not zero."""
    for weight in model.trainable_weights:
        weight.assign(weight + 0.1 * normal(*weight.shape))


def traces_of(model):
    names = [type(part).__module__ for part in hooks.inner_layers(model)]
    return [name for name in names if name.startswith(("tf_lns", "tensorflow_model"))]


@pytest.mark.parametrize("name", NETS)
def test_every_row_is_the_float_computation_on_the_weights_that_were_seen(name):
    """Where no activation is quantized, the stripped model is the model."""
    x = data(name, NETS[name][0])
    model = net(name, LNSConfig(activations=None))
    moved(model)
    before = model.get_weights()
    plain = strip(model, weights="seen")
    assert not traces_of(plain)
    assert not plain._is_compiled
    assert [f"quant_{layer.name}" for layer in plain.layers[1:]] == [
        layer.name for layer in model.layers[1:]
    ]
    np.testing.assert_allclose(plain(x), model(x), rtol=1e-5, atol=2e-6)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["separable", "attention", "rnn of cell"])
def test_stored_values_are_the_decoded_integers(name):
    model = net(name, LNSConfig(storage="lns12:128"))
    plain = strip(model)
    cells = [cell for w in model.layers[1:] for cell in w.lns_variables]
    values = [w for w in plain.weights if len(w.shape) > 1 and "bias" not in w.name]
    assert len(cells) == len(values) > 2
    for cell in cells:
        decoded = reference.decode(cell.codes.numpy(), cell.scale.numpy(), "lns12:128")
        assert any(np.array_equal(decoded, value) for value in values)


def test_a_sequential_model_stays_one():
    model = tf_keras.Sequential(
        [layers.Dense(4, "relu", input_shape=(4,)), layers.BatchNormalization(), layers.Dense(2)],
        name="mine",
    )
    lns = quantized(model, LNSScheme(LNSConfig(activations=None)))
    lns.layers[0].trainable = False
    plain = strip(lns, "seen")
    assert type(plain) is tf_keras.Sequential
    assert (plain.name, [layer.name for layer in plain.layers]) == (
        lns.name,
        [layer.name for layer in model.layers],
    )
    assert [layer.trainable for layer in plain.layers] == [False, True, True]
    x = normal(8, 4)
    np.testing.assert_allclose(plain(x), lns(x), rtol=1e-6, atol=1e-6)


def test_a_shared_layer_stays_shared():
    inputs = layers.Input((4,))
    shared = layers.Dense(4, name="shared")
    model = tf_keras.Model(inputs, {"y": shared(layers.ReLU()(shared(inputs)))})
    lns = quantized(model, LNSScheme(LNSConfig(activations=None)))
    plain = strip(lns, "seen")
    assert len(plain.weights) == 2
    x = normal(8, 4)
    np.testing.assert_allclose(plain(x)["y"], lns(x)["y"], rtol=1e-5, atol=1e-6)


def test_what_was_left_float_comes_along():
    inner = tf_keras.Sequential([layers.Dense(4, input_shape=(4,), name="in")], name="inner")
    inputs = layers.Input((4,))
    x = layers.Lambda(lambda x: 2 * x)(inner(inputs)) + 1.0
    model = tf_keras.Model(inputs, layers.Dense(2, name="end")(x))
    scheme = LNSScheme(LNSConfig(activations=None), on_unsupported="skip")
    with pytest.warns(UserWarning, match="left float"):
        lns = tfmot.quantize_apply(scheme.annotate(model), scheme=scheme)
    plain = strip(lns, "seen")
    assert not traces_of(plain)
    x = normal(8, 4)
    np.testing.assert_allclose(plain(x), lns(x), rtol=1e-5, atol=1e-6)


def test_a_custom_layer_and_adapted_values():
    norm = layers.Normalization()
    norm.adapt(normal(32, 4) + 3)
    model = tf_keras.Sequential([layers.Input((4,)), norm, *with_mine(LNSQuantizeConfig()).layers])
    lns = tfmot.quantize_apply(
        tfmot.quantize_annotate_model(model), scheme=LNSScheme(LNSConfig(activations=None))
    )
    plain = strip(lns, "seen")
    x = normal(8, 4)
    np.testing.assert_allclose(plain(x), lns(x), rtol=1e-5, atol=1e-6)


def test_mixed_precision_stays():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = tf_keras.Sequential([layers.Dense(4, input_shape=(4,)), layers.Dense(2)])
        plain = strip(quantized(model, LNSScheme()))
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert plain.layers[0].compute_dtype == "bfloat16"
    assert plain.layers[0].kernel.dtype == tf.float32


# --- tfmot's own wrapper ----------------------------------------------------------------------


def mixed():
    """A model under the stock scheme with some layers in LNS."""
    config = LNSQuantizeConfig(LNSConfig(activations=None, errors=None))
    model = tf_keras.Sequential(
        [
            annotate(layers.Dense(4, "relu", input_shape=(6, 4), name="a"), config),
            annotate(layers.LSTM(3, return_sequences=True, name="b"), config),
            annotate(layers.Dense(3, "elu", name="c"), config),
            annotate(layers.Flatten()),
            annotate(layers.Dense(2, name="d")),
        ]
    )
    return tfmot.quantize_apply(model)


@pytest.mark.parametrize("asked", ["stored", "seen"])
def test_layers_in_the_wrapper_of_tfmot(asked):
    lns = mixed()
    lns(normal(8, 6, 4))
    moved(lns)
    plain = strip(lns, asked)
    assert not traces_of(plain)
    assert [layer.name for layer in plain.layers][:3] == ["a", "b", "c"]
    trained = {w.layer.name: w.trainable_weights for w in lns.layers if hasattr(w, "layer")}
    for name in "abc":
        for new in plain.get_layer(name).weights:
            end = new.name.split("/")[-1]
            (old,) = {id(w): w for w in trained[name] if w.name.endswith("/" + end)}.values()
            value = old.numpy()
            if "bias" not in end:
                format = "lns16:2048" if asked == "stored" else "lns8:8"
                if asked == "stored":
                    scale = reference.weight_scale(value, LNSFormat.get(format))
                else:
                    scale = reference.scale_of(np.abs(value).max(), format)
                value = reference.quantize(value, format, scale=scale)
            np.testing.assert_array_equal(new, value)
    if asked == "stored":
        (kernel,) = [w for w in trained["d"] if "kernel" in w.name][:1]
        np.testing.assert_array_equal(plain.get_layer("d").kernel, kernel)


def test_the_stock_scheme_alone():
    model = tf_keras.Sequential(
        [
            layers.Conv2D(4, 3, input_shape=(6, 6, 1)),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(2, "relu"),
        ]
    )
    stock = tfmot.quantize_apply(tfmot.quantize_annotate_model(model))
    x = normal(8, 6, 6, 1)
    stock(x)
    np.testing.assert_allclose(strip(stock)(x), model(x), rtol=1e-5, atol=1e-6)


# --- Nothing to strip, and errors -------------------------------------------------------------


def test_a_plain_model_is_copied():
    model = tf_keras.Sequential([layers.Dense(2, input_shape=(4,))])
    plain = strip(model)
    assert plain is not model
    np.testing.assert_array_equal(plain.layers[0].kernel, model.layers[0].kernel)


def test_wrong_arguments():
    import keras

    model = tf_keras.Sequential([layers.Dense(2, input_shape=(4,))])
    with pytest.raises(ValueError, match=r"`weights` must be .*Received: weights='8-bit'"):
        strip(model, weights="8-bit")
    with pytest.raises(TypeError, match=r"`model` must be a tf_keras\.Model"):
        strip(keras.Sequential())

    class Subclassed(tf_keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="neither Sequential nor functional"):
        strip(Subclassed())
    with pytest.raises(ValueError, match="is not built"):
        strip(tf_keras.Sequential([layers.Dense(2)]))
    assert tf_lns.tfmot.strip is strip
