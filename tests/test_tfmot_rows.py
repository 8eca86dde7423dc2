"""Stacked recurrent cells, convolutional LSTMs and locally connected layers under tfmot."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tests.tfmot_nets import layers, quantized, tf_keras
from tf_lns.tfmot import LNSScheme
from tf_lns.tfmot.gradients import left_to_the_optimizer

RANDOM = np.random.default_rng(0)
WEIGHTS_ALONE = tf_lns.LNSConfig(
    weights="lns16:2048", activations=None, errors=None, gradients=None
)


@pytest.fixture(autouse=True)
def _seeded():
    tf_keras.utils.set_random_seed(1)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def net(build, shape):
    inputs = layers.Input(shape)
    return tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(build(inputs))))


def cells():
    return [layers.LSTMCell(3), layers.GRUCell(4, reset_after=False)]


def with_states(x):
    found = layers.RNN(cells(), return_sequences=True, return_state=True)(x)
    return layers.Concatenate()([layers.Flatten()(y) for y in tf.nest.flatten(found)])


SERIES, FILM = (5, 3), (3, 5, 5, 2)
NETS = {
    "stack": (SERIES, lambda x: layers.RNN([*cells(), layers.SimpleRNNCell(2)])(x)),
    "stack with states": (SERIES, with_states),
    "stack backwards": (
        SERIES,
        lambda x: layers.RNN(cells(), go_backwards=True)(layers.Masking()(x)),
    ),
    "stack of both directions": (SERIES, lambda x: layers.Bidirectional(layers.RNN(cells()))(x)),
    "conv lstm 1d": (
        FILM[:-1],
        lambda x: layers.ConvLSTM1D(3, 2, padding="same", return_sequences=True)(x),
    ),
    "conv lstm 2d": (
        FILM,
        lambda x: layers.ConvLSTM2D(2, 3, strides=2, go_backwards=True, use_bias=False)(x),
    ),
    "local 1d": (SERIES, lambda x: layers.LocallyConnected1D(3, 2)(x)),
    "local 1d, dense": (SERIES, lambda x: layers.LocallyConnected1D(3, 2, implementation=2)(x)),
    "local 2d, sparse": (
        FILM[1:],
        lambda x: layers.LocallyConnected2D(3, 2, implementation=3, activation="relu")(x),
    ),
}


def loss_and_gradients(model, x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True) ** 2)
    return loss, [tf.convert_to_tensor(g) for g in tape.gradient(loss, model.trainable_weights)]


@pytest.mark.parametrize("name", NETS)
def test_with_quantized_weights_alone_it_is_the_float_layer(name):
    shape, build = NETS[name]
    plain, x = net(build, shape), normal(4, *shape)
    x[1, -2:] = x[2, 1] = 0.0  # where there is a mask
    model = quantized(plain, LNSScheme(WEIGHTS_ALONE))
    integers = [w for w in model.trainable_weights if hasattr(w, "codes")]
    assert len(integers) == sum("kernel" in w.name for w in plain.trainable_weights)
    for mine, theirs in zip(model.trainable_weights, plain.trainable_weights, strict=True):
        theirs.assign(tf.reshape(tf.convert_to_tensor(mine), theirs.shape))
    loss, gradients = loss_and_gradients(model, x)
    wanted, expected = loss_and_gradients(plain, x)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_stack_is_a_chain_of_layers():
    """The products, the errors and the scales are those of one layer after the other."""
    inputs = layers.Input(SERIES)
    first, second = (
        layers.RNN(layers.LSTMCell(3), return_sequences=True),
        layers.RNN(layers.GRUCell(4)),
    )
    chain = tf_keras.Model(inputs, second(first(inputs)))
    stacked = layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)])
    stack = tf_keras.Model(inputs, stacked(inputs))
    stack.set_weights(chain.get_weights())
    chain, stack = quantized(chain, LNSScheme()), quantized(stack, LNSScheme())
    x = normal(6, *SERIES)
    loss, gradients = loss_and_gradients(stack, x)
    wanted, expected = loss_and_gradients(chain, x)
    assert loss == wanted
    for mine, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(stack(x), chain(x))  # under the ranges that were recorded


def test_a_conv_lstm_takes_the_step_of_the_layer_of_keras_3():
    def make(k):
        inputs = k.layers.Input(FILM)
        x = k.layers.ConvLSTM2D(2, 3, recurrent_activation="sigmoid")(inputs)
        return k.Model(inputs, k.layers.Dense(2)(k.layers.Flatten()(x)))

    old, new, x = make(tf_keras), make(keras), normal(4, *FILM)
    for variable, value in zip(new.trainable_variables, old.get_weights(), strict=True):
        variable.assign(value)
    old, new = quantized(old, LNSScheme()), tf_lns.quantize_model(new)
    with left_to_the_optimizer():
        loss, gradients = loss_and_gradients(old, x)
    with tf.GradientTape() as tape:
        wanted = tf.reduce_sum(new(x, training=True) ** 2)
    expected = tape.gradient(wanted, [v.value for v in new.trainable_variables])
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        theirs = tf.convert_to_tensor(theirs)
        far = np.abs(mine - theirs) > 1e-4 * np.abs(theirs).max()
        assert np.mean(far) < 0.03  # a value beside a threshold may fall on its other side


@pytest.mark.parametrize("name", ["stack backwards", "conv lstm 2d", "local 2d, sparse"])
def test_it_trains_and_comes_back_from_a_file(name, tmp_path):
    shape, build = NETS[name]
    model = quantized(net(build, shape), LNSScheme())
    x, y = normal(8, *shape), normal(8, 2)
    model.compile(tf_lns.tfmot.LNSMadam(), "mse")
    losses = model.fit(x, y, epochs=4, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(float(r) > 0 for w in model.layers[1:] for r in w.input_ranges)
    before = model(x)
    np.testing.assert_allclose(before[:3], model(x[:3]), rtol=1e-5, atol=1e-6)
    for file in ("model.keras", "model.h5"):
        model.save(tmp_path / file)
        loaded = tf_keras.models.load_model(tmp_path / file)
        np.testing.assert_array_equal(loaded(x), before)
        for mine, theirs in zip(model.layers[1:], loaded.layers[1:], strict=True):
            for a, b in zip(mine.lns_variables, theirs.lns_variables, strict=True):
                np.testing.assert_array_equal(a.codes.numpy(), b.codes.numpy())


class OwnCell(layers.SimpleRNNCell):
    """A cell that no view knows."""


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layers.RNN([layers.GRUCell(2), OwnCell(2)], name="r"), "'r'.*GRUCell, OwnCell"),
        (lambda: layers.RNN(OwnCell(2), name="r"), "'r'.*: OwnCell"),
        (
            lambda: layers.RNN(
                layers.StackedRNNCells([layers.GRUCell(3)], reverse_state_order=True), name="r"
            ),
            "'r'.*natural order",
        ),
    ],
)
def test_other_cells_are_refused_by_name(make, match):
    with pytest.raises(ValueError, match=match):
        LNSScheme().annotate(net(lambda x: make()(x), SERIES))


@pytest.mark.parametrize("kind", [layers.Attention, layers.AdditiveAttention])
def test_attention_without_projections_is_refused_by_name(kind):
    """Keras 3 models leave these layers float; here that is said."""
    with pytest.raises(ValueError, match=f"'a' of class .*{kind.__name__} has no row"):
        LNSScheme().annotate(net(lambda x: kind(name="a")([x, x]), SERIES))


def test_dropout_of_stacked_cells_is_new_in_each_call():
    stacked = [layers.LSTMCell(3), layers.GRUCell(64, dropout=0.5, recurrent_dropout=0.5)]
    model = quantized(net(lambda x: layers.RNN(stacked)(x), SERIES), LNSScheme())
    x = normal(2, *SERIES)
    seen = [model(x, training=True).numpy() for _ in range(3)]
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])
