"""Whole nets through quantize_model; tools/check_nets.py runs all published ones."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns import LNSVariable, layers
from tf_lns.layers.tree import walk

K = keras.layers
CLASSES = 3


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def token_ids(batch=2, length=8, vocabulary=20):
    return np.random.default_rng(0).integers(1, vocabulary, (batch, length)).astype(np.int32)


# --- Nets of each kind: convert, train a step, strip ------------------------------------


def application(name, **settings):
    make = getattr(keras.applications, name)
    return make(weights=None, input_shape=(32, 32, 3), classes=CLASSES, **settings)


def mobile_net():
    return application("MobileNet", alpha=0.25), noise(2, 32, 32, 3)


def decoder():
    ids = keras.Input((8,), dtype="int32")
    table = K.ReversibleEmbedding(20, 16)
    x = table(ids) + K.Embedding(8, 16)(keras.ops.arange(8))
    h = K.LayerNormalization()(x)
    x += K.MultiHeadAttention(2, 8)(h, h, use_causal_mask=True)
    x += K.Dense(16)(K.Dense(32, activation="gelu")(K.LayerNormalization()(x)))
    return keras.Model(ids, table(x, reverse=True)), token_ids()


def u_net():
    image = keras.Input((8, 8, 2))
    down = K.Conv2D(4, 3, padding="same", activation="relu")(image)
    bottom = K.Conv2D(8, 3, padding="same", activation="relu")(K.MaxPooling2D()(down))
    up = K.Conv2DTranspose(4, 2, strides=2)(bottom)
    return keras.Model(image, K.Conv2D(2, 1)(K.Concatenate()([up, down]))), noise(2, 8, 8, 2)


def bert():
    hub = pytest.importorskip("keras_hub")
    body = hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=8,
    )
    model = keras.Model(body.input, K.Dense(CLASSES)(body(body.input)["pooled_output"]))
    ids = token_ids()
    mask = np.ones_like(ids)
    return model, {"token_ids": ids, "padding_mask": mask, "segment_ids": 0 * ids}


def convert(plain):
    with warnings.catch_warnings():  # of layers without an LNS layer, in keras-hub's models
        warnings.simplefilter("ignore")
        return tf_lns.quantize_model(plain)


@pytest.mark.parametrize("make", [mobile_net, decoder, u_net, bert])
def test_a_net_is_converted_trains_a_step_and_comes_back(make):
    plain, inputs = make()
    lns = convert(plain)
    assert [(place, layer.name) for place, layer in walk(lns)] == [
        (place, layer.name) for place, layer in walk(plain)
    ]
    assert [w.path for w in lns.weights] == [w.path for w in plain.weights]
    for a, b in zip(lns.weights, plain.weights, strict=True):
        if isinstance(a, LNSVariable):
            kept = np.abs(b.numpy()) > a.scale  # not raised to the bottom of the range
            ratio = a.numpy()[kept] / b.numpy()[kept]
            assert np.abs(np.log2(ratio)).max() <= 0.501 / a.format.base_factor, a.path
        else:
            np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    before = {w.path: w.codes for w in lns.weights if isinstance(w, LNSVariable)}
    assert before
    targets = noise(*plain(inputs).shape, seed=1)
    lns.compile(tf_lns.LNSMadam(), "mse")
    assert np.isfinite(lns.train_on_batch(inputs, targets))
    for w in lns.weights:
        if isinstance(w, LNSVariable):
            assert np.any(w.codes != before[w.path]), w.path
    for a, b in zip(tf_lns.strip(lns).weights, lns.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_two_optimizers_train_the_halves_of_a_gan():
    generator = convert(keras.Sequential([keras.Input((4,)), K.Dense(8, "relu"), K.Dense(6)]))
    judge = convert(keras.Sequential([keras.Input((6,)), K.Dense(8, "relu"), K.Dense(1)]))
    optimizers = [tf_lns.LNSMadam(), tf_lns.LNSMadam()]

    @tf.function
    def step(z, real):
        with tf.GradientTape() as g_tape, tf.GradientTape() as j_tape:
            of_fake = judge(generator(z, training=True), training=True)
            of_real = judge(real, training=True)
            losses = [-tf.reduce_mean(of_fake), tf.reduce_mean(of_fake - of_real)]
        tapes, models = [g_tape, j_tape], [generator, judge]
        for tape, loss, model, optimizer in zip(tapes, losses, models, optimizers, strict=True):
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
        return losses

    weights = [*generator.weights, *judge.weights]
    before = [w.numpy() for w in weights]
    assert np.all(np.isfinite(step(noise(8, 4), noise(8, 6))))
    step(noise(8, 4, seed=1), noise(8, 6, seed=2))
    assert [int(o.iterations) for o in optimizers] == [2, 2]
    for w, old in zip(weights, before, strict=True):
        if isinstance(w, LNSVariable):
            assert np.any(w.numpy() != old), w.path


# --- What these nets brought to light ---------------------------------------------------


def test_unnamed_and_optional_inputs_stay_what_they_are():
    inputs = [keras.Input((4,)), keras.Input((4,), optional=True), keras.Input((4,), name="c")]
    x = K.Dense(2)(inputs[0])
    plain = keras.Model(inputs, x + K.Dense(2)(inputs[2]))
    for model in (tf_lns.quantize_model(plain), tf_lns.strip(tf_lns.quantize_model(plain))):
        got = [i.get_config() for i in model.layers if isinstance(i, K.InputLayer)]
        assert got == [i.get_config() for i in plain.layers if isinstance(i, K.InputLayer)]


@keras.saving.register_keras_serializable("test_nets")
class Pair(keras.layers.Layer):
    """A layer of two layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = [K.Dense(4), K.Dense(4)]

    def call(self, x):
        return self.inner[1](self.inner[0](x))


@keras.saving.register_keras_serializable("test_nets")
class Trainer(keras.Model):
    """A functional model with a method of its own, as many a custom train_step has."""

    def train_step(self, data):
        return super().train_step(data)


def test_a_functional_subclass_with_composite_layers_comes_back_from_strip():
    x = keras.Input((3,))
    plain = Trainer(x, K.Dense(2)(Pair(name="pair")(x)))
    lns = tf_lns.quantize_model(plain)
    assert isinstance(lns.get_layer("pair").inner[0], layers.LNSDense)
    back = tf_lns.strip(lns)
    assert type(back) is Trainer
    assert type(back.get_layer("pair")) is Pair
    batch = noise(5, 3)
    once_more = tf_lns.quantize_model(lns)
    np.testing.assert_array_equal(lns(batch), once_more(batch))
    for a, b in zip(back.weights, lns.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@keras.saving.register_keras_serializable("test_nets")
class Late(keras.layers.Layer):
    """A layer that makes layers in `build`; TensorFlow's tracking has references to them too."""

    def build(self, shape):
        self._self_attention = K.Dense(4)  # a name in keras-hub, much like TensorFlow's own
        self.late = K.Dense(4)
        self._self_attention.build(shape)
        self.late.build(shape)

    def call(self, x):
        return self.late(self._self_attention(x))


def test_places_are_attributes_of_the_layer_and_not_of_tensorflows_tracking():
    x = keras.Input((3,))
    model = keras.Model(x, Late()(Pair()(x)))
    places = [place for place, _ in walk(tf_lns.quantize_model(model))]
    assert places == [
        "layers.0",
        "layers.0.inner.0",
        "layers.0.inner.1",
        "layers.1",
        "layers.1._self_attention",
        "layers.1.late",
    ]
