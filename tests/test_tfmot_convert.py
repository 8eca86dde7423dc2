"""LNS models between tf_keras and Keras 3: the same integers, formats, ranges, predictions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tests.test_tfmot import functional, normal
from tests.tfmot_nets import layers, quantized, tf_keras, tfmot
from tf_lns import LNSConfig
from tf_lns.layers.container import lns_layers
from tf_lns.tfmot import LNSScheme, convert, hooks
from tf_lns.variable import LNSCell


@pytest.fixture(autouse=True)
def _seeded():
    tf_keras.utils.set_random_seed(1)


def cnn(x):
    for conv in (layers.Conv2D(4, 3, use_bias=False), layers.DepthwiseConv2D(3)):
        x = layers.ReLU(6.0)(layers.BatchNormalization()(conv(x)))
    x = layers.Dropout(0.2)(layers.MaxPooling2D()(layers.ZeroPadding2D()(x)))
    x = layers.Conv2D(4, 2, activation="elu", kernel_regularizer="l2")(x)
    return layers.LeakyReLU(0.1)(layers.Conv2DTranspose(3, 2, strides=2)(x))


def residual(x):
    a = layers.Dense(4, "relu")(x)
    a = layers.Add()([layers.Dense(4)(a), a])
    return layers.Concatenate()([layers.Dense(3)(a), layers.BatchNormalization()(a)])


def block(x):
    y = layers.MultiHeadAttention(2, 3, dropout=0.1)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    return layers.Dense(4, "gelu")(x)


def cross(x):
    short = layers.Cropping1D((1, 2))(layers.Dense(4)(x))
    return layers.MultiHeadAttention(2, 3, value_dim=2)(x, short, use_causal_mask=True)


def states(x):
    _, h, c = layers.LSTM(3, return_state=True)(x)
    return layers.LSTM(3, return_sequences=True)(x, initial_state=[h, c])


def shared(x):
    dense = layers.Dense(4)
    return dense(dense(x))


SEQUENCE = (6, 4)
NETS = {
    # Whether every quantized activation goes to products alone; shape; net
    "cnn": (True, (8, 8, 2), cnn),
    "residual": (False, (4,), residual),
    "separable": (True, (6, 6, 2), lambda x: layers.SeparableConv2D(3, 3, activation="relu")(x)),
    "conv1d": (True, SEQUENCE, lambda x: layers.Conv1D(4, 2, padding="causal", groups=2)(x)),
    "einsum": (True, SEQUENCE, lambda x: layers.EinsumDense("abc,cd->abd", (6, 3))(x)),
    "distributed": (True, SEQUENCE, lambda x: layers.TimeDistributed(layers.Dense(3, "elu"))(x)),
    "masked": (
        True,
        (6,),
        lambda x: layers.LSTM(3, dropout=0.1)(layers.Embedding(9, 4, mask_zero=True)(x)),
    ),
    "gru": (True, SEQUENCE, lambda x: layers.GRU(3, reset_after=False)(layers.Masking()(x))),
    "gru after": (True, SEQUENCE, lambda x: layers.GRU(3, go_backwards=True)(x)),
    "cell": (True, SEQUENCE, lambda x: layers.RNN(layers.SimpleRNNCell(3))(x)),
    "states": (True, SEQUENCE, states),
    "bidirectional": (True, SEQUENCE, lambda x: layers.Bidirectional(layers.LSTM(3))(x)),
    "block": (False, SEQUENCE, block),
    "cross": (True, SEQUENCE, cross),
    "shared": (False, (4,), shared),
}


FILED = ("cnn", "masked", "bidirectional", "block")


def lns_net(name, config=None):
    """A model under LNSScheme with codes, biases and ranges as training leaves them."""
    _, shape, build = NETS[name]
    model = functional(lambda x: layers.Dense(2)(layers.Flatten()(build(x))), shape)
    x = normal(8, *shape)
    if name == "masked":
        x = np.abs(x * 3).astype(np.int32) % 9
    model = quantized(model, LNSScheme(config))
    for weight in model.trainable_weights:
        weight.assign(weight + 0.1 * normal(*weight.shape))
    model(x, training=True)
    return model, x


def integers(model):
    """Codes, scale, formats and axis of each integer weight, whichever Keras it is of."""
    if isinstance(model, keras.Model):
        cells = [v.cell for layer in lns_layers(model) for v in layer.lns_variables]
    else:
        found = [v for part in hooks.inner_layers(model) for v in hooks.own_variables(part)]
        cells = list({id(v): v for v in found if isinstance(v, LNSCell)}.values())
    return [
        (
            *(cell.codes.numpy().tobytes(), cell.scale.numpy(), cell.storage, cell.seen),
            *(cell.gradient_format, cell.gradient_options),
        )
        for cell in cells
    ]


@pytest.mark.parametrize("name", NETS)
def test_there_and_back(name, tmp_path):
    lns, x = lns_net(name)
    new = convert(lns)
    assert type(new).__name__ == "LNSFunctional"
    assert len(integers(lns)) > 1
    assert integers(new) == integers(lns)
    stripped = [layer.name.removeprefix("quant_") for layer in lns.layers]
    assert sorted(layer.name for layer in new.layers) == sorted(stripped)

    ours, theirs = lns(x), new(x)
    if NETS[name][0]:
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    else:
        far = np.abs(theirs - ours).max() / np.abs(ours).max()
        assert 1e-6 < far < 0.1  # sums of values that are quantized in one of the two

    if name in FILED:
        new.save(tmp_path / "new.keras")
        new = keras.models.load_model(tmp_path / "new.keras")
        assert integers(new) == integers(lns)
        np.testing.assert_array_equal(new(x), theirs)

    back = convert(new)
    assert integers(back) == integers(lns)
    np.testing.assert_allclose(back(x), theirs, rtol=1e-4, atol=1e-5)
    assert [w.name for w in back.layers if hasattr(w, "lns_variables") and w.lns_variables] == [
        w.name for w in lns.layers if hasattr(w, "lns_variables") and w.lns_variables
    ]
    for wrapper in back.layers:
        ranges = [float(r) for r in getattr(wrapper, "input_ranges", [])]
        if "attention" in wrapper.name:  # has one for each of query, key and value
            assert ranges[0] > 0
            ranges = ranges[3:]
        assert all(r > 0 for r in ranges)


@pytest.mark.parametrize("name", ["residual", "block"])
def test_predictions_are_equal_where_activations_are_float(name):
    lns, x = lns_net(name, LNSConfig(activations=None))
    new = convert(lns)
    np.testing.assert_allclose(new(x), lns(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(convert(new)(x), lns(x), rtol=1e-5, atol=1e-6)


def test_a_model_of_keras_3_there_and_back():
    """Ranges are at the same places, so nothing changes at all, and training goes on alike."""
    inputs = keras.Input((6, 4), name="in")
    x = keras.layers.Conv1D(4, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Add()([x, keras.layers.BatchNormalization()(x)])
    x = keras.layers.MultiHeadAttention(2, 3)(x, x, x)
    x = keras.layers.Bidirectional(keras.layers.GRU(3))(x)
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "elu")], name="inner")
    model = keras.Model(inputs, keras.layers.Dense(2, name="end")(inner(x)), name="whole")
    config = LNSConfig(gradients="lns5:2", storage="lns14:512")
    lns = tf_lns.quantize_model(model, config, {"end": None})
    x = normal(8, 6, 4)
    tf_lns.calibrate(lns, x, verbose=0)
    old = convert(lns)
    assert (old.name, old.layers[0].name, old.get_layer("end").__class__.__name__) == (
        *("whole", "in", "Dense"),
    )
    assert integers(old) == integers(lns)
    np.testing.assert_allclose(old(x), lns(x), rtol=1e-4, atol=1e-5)
    back = convert(old)
    assert integers(back) == integers(lns)
    np.testing.assert_allclose(back(x), lns(x), rtol=1e-4, atol=1e-5)

    def gradients(model, variables):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) ** 2)
        return tape.gradient(loss, variables(model))

    mine = gradients(back, lambda m: [v.value for v in m.trainable_variables])
    for a, b in zip(
        mine, gradients(lns, lambda m: [v.value for v in m.trainable_variables]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_a_model_without_lns_is_converted_too():
    norm = layers.Normalization()
    norm.adapt(normal(32, 4) + 3)
    parts = [layers.Input((4,)), norm, layers.Dense(3, dtype="mixed_bfloat16")]
    model = tf_keras.Sequential([*parts, layers.ReLU(negative_slope=0.1)], name="plain")
    model.layers[1].trainable = False
    new = convert(model)
    assert type(new) is keras.Sequential
    assert [layer.name for layer in new.layers] == [layer.name for layer in model.layers]
    assert [layer.trainable for layer in new.layers] == [True, False, True]
    assert new.layers[1].compute_dtype == "bfloat16"
    x = normal(8, 4)
    np.testing.assert_allclose(new(x), model(x), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(convert(new)(x), model(x), rtol=0.02, atol=0.02)


# --- Kinds of weights, custom layers ----------------------------------------------------------


def test_kinds_of_weights_stay():
    """A kernel that was zero when the layer was wrapped is float; one that is zero now is not."""
    zeros = {"kernel_initializer": "zeros", "input_shape": (3,)}
    lns = quantized(tf_keras.Sequential([layers.Dense(3, **zeros), layers.Dense(2)]), LNSScheme())
    first, second = lns.layers
    first.layer.kernel.assign(normal(3, 3))
    second.lns_variables[0].assign(np.zeros((3, 2)))
    new = convert(lns)
    assert [len(layer.lns_variables) for layer in new.layers] == [0, 1]
    np.testing.assert_array_equal(new.layers[0].kernel, first.layer.kernel)
    back = convert(new)
    assert [len(w.lns_variables) for w in back.layers] == [0, 1]
    np.testing.assert_array_equal(back.layers[0].layer.kernel, first.layer.kernel)
    assert integers(back) == integers(lns)


def test_weights_without_a_format_in_products():
    """Q_W is off, and the weights are integers nonetheless."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    lns = tf_lns.quantize_model(model, LNSConfig(weights=None))
    assert integers(convert(lns)) == integers(lns)


class Mine(keras.layers.Layer):
    """The layer of tests/test_tfmot.py for Keras 3."""

    def build(self, shape):
        self.table = self.add_weight(name="table", shape=(shape[-1], 4))
        self.offset = self.add_weight(name="my_bias", shape=(4,), initializer="zeros")

    def call(self, x):
        return tf.matmul(x, self.table) + self.offset


def test_custom_layers():
    from tests.test_tfmot import Mine as OldMine
    from tests.test_tfmot import with_mine
    from tf_lns.tfmot import LNSQuantizeConfig

    lns = quantized(with_mine(LNSQuantizeConfig()), LNSScheme())
    x = normal(8, 4)
    lns(x, training=True)
    with pytest.raises(ValueError, match=r"Layer 'mine' \(Mine\).*Keras 3(.|\n)*custom_objects"):
        convert(lns)
    new = convert(lns, {"Mine": Mine})
    assert integers(new) == integers(lns)
    np.testing.assert_allclose(new(x), lns(x), rtol=1e-4, atol=1e-5)
    back = convert(new, {"Mine": OldMine})
    assert integers(back) == integers(lns)
    np.testing.assert_allclose(back(x), lns(x), rtol=1e-4, atol=1e-5)


# --- Errors -----------------------------------------------------------------------------------


def operation():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs + 1.0))


def time_major():
    return tf_keras.Sequential([layers.Input((6, 4)), layers.LSTM(3, time_major=True)])


def only_here():
    return keras.Sequential([keras.Input((6, 4)), keras.layers.RMSNormalization(name="rms")])


def by_tfmot():
    model = tf_keras.Sequential([layers.Dense(2, input_shape=(4,), name="d")])
    return tfmot.quantize_apply(tfmot.quantize_annotate_model(model))


def mixed_formats():
    inputs = keras.Input((6, 4))
    outputs = keras.layers.MultiHeadAttention(2, 3, name="mixed")(inputs, inputs)
    lns = keras.Model(inputs, outputs)
    return tf_lns.quantize_model(lns, overrides={"query": LNSConfig(errors=None)})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (operation, "'add.*' in model .* is an operation on tensors"),
        (time_major, r"'lstm.*' .*no argument `time_major`\. Received: time_major=True"),
        (only_here, "Layer 'rms' .*has no counterpart in tf_keras.*no class RMSNormalization"),
        (by_tfmot, "Layer '.*' is in tfmot's own wrapper"),
        (mixed_formats, "Layer 'mixed' has layers of different formats inside"),
    ],
)
def test_what_cannot_be_converted_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        convert(make())


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"`model` must be a tf_keras\.Model or a keras\.Model"):
        convert(layers.Dense(2))
    with pytest.raises(TypeError, match="`custom_objects` must be a dict or None"):
        convert(time_major(), [Mine])

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="neither Sequential nor functional"):
        convert(Subclassed())


def test_recurrent_arguments_that_only_one_keras_names():
    """Bidirectional sets `zero_output_for_mask`, which tf_keras takes without naming it."""
    inner = layers.LSTM(3, return_sequences=True)
    model = tf_keras.Sequential([tf_keras.Input((5, 2)), layers.Bidirectional(inner)])
    lns = quantized(model, LNSScheme())
    x = normal(4, 5, 2)
    new = convert(lns)
    back = convert(new)
    assert back.layers[0].layer.forward_layer.zero_output_for_mask
    np.testing.assert_allclose(back(x), lns(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new(x), lns(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keras_", [tf_keras, keras])
def test_a_function_that_differs_between_the_two_is_an_error(keras_):
    gru = keras_.layers.GRU(3, recurrent_activation="hard_sigmoid")
    model = keras_.Sequential([keras_.Input((5, 2)), gru])
    lns = quantized(model, LNSScheme()) if keras_ is tf_keras else tf_lns.quantize_model(model)
    with pytest.raises(ValueError, match=r"another function by the name.*hard_sigmoid"):
        convert(lns)


def test_states_are_reset_through_the_wrapper():
    inputs = tf_keras.Input(batch_shape=(2, 4, 3))
    lns = quantized(
        tf_keras.Model(inputs, layers.LSTM(3, stateful=True)(inputs)),
        LNSScheme(LNSConfig(activations=None)),
    )
    x = normal(2, 4, 3)
    first, second = lns(x).numpy(), lns(x).numpy()
    lns.reset_states()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(lns(x), first)


def test_stacked_cells_there_and_back():
    cells = [keras.layers.LSTMCell(2), keras.layers.GRUCell(3, reset_after=False)]
    new = tf_lns.quantize_model(
        keras.Sequential([keras.Input((6, 4)), keras.layers.RNN(cells, name="stack")])
    )
    x = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)
    tf_lns.calibrate(new, x, verbose=0)
    old = convert(new)
    np.testing.assert_allclose(old(x), new(x), rtol=1e-4, atol=1e-5)
    back = convert(old)
    np.testing.assert_allclose(back(x), new(x), rtol=1e-4, atol=1e-5)
    recorded = [
        [float(r) for cell in model.get_layer("stack").cell.cells for r in cell.input_ranges]
        for model in (new, back)
    ]
    assert recorded[0] == recorded[1]
    assert all(recorded[0])
