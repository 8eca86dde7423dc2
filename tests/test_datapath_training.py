"""Training through a datapath: every layer, forward and backward, against float and by hand."""

import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns import Datapath, LNSConfig, layers, reference
from tf_lns.layers.contraction import Einsum, labels_of
from tf_lns.layers.registry import lns_layer_of
from tf_lns.layers.tree import all_layers

ROOT = Path(__file__).resolve().parent.parent
K = keras.layers
F32 = np.float32
FORMAT = "lns8:8"
WIDE = Datapath(lut_bits=3, fraction_bits=16, accumulator_bits=32, headroom_bits=4)
EXACT = LNSConfig(datapath=WIDE, activation_scale="batch")
NARROW = Datapath(lut_bits=1, accumulator_bits=16)


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def equal_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype == F32
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual.view(np.int32), expected.view(np.int32))


def codes_of(model):
    return [w.codes for layer in all_layers(model) for w in getattr(layer, "lns_variables", [])]


def seen(variable):
    """Codes and scale of Q_W, by the reference."""
    codes = reference.requantize(variable.codes, variable.format, FORMAT)
    return codes, reference.requantize_scale(variable.scale, variable.format, FORMAT)


def coded(x):
    """Codes and scale under the scale of x itself, by the reference."""
    scale = reference.scale_of(x, FORMAT)
    return reference.encode(x, scale, FORMAT), scale


def product(a, b, datapath, **transposed):
    """The reference product of pairs of codes and scale."""
    (a, a_scale), (b, b_scale) = a, b
    return reference.lns_matmul(
        a, b, FORMAT, a_scale=a_scale, b_scale=b_scale, datapath=datapath, **transposed
    )


def run(call, x, weights, dy, mode="eager"):
    """Output and derivatives by x and the weights."""

    def outputs_and_gradients(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x)
        values = [w.value if isinstance(w, keras.Variable) else w for w in weights]
        return [y, *tape.gradient(y, [x, *values], output_gradients=dy)]

    if mode != "eager":
        outputs_and_gradients = tf.function(outputs_and_gradients, jit_compile=mode == "jit")
    return [np.asarray(v) for v in outputs_and_gradients(tf.constant(x), tf.constant(dy))]


# --- Against float products -----------------------------------------------------------------------

DENSE = {
    "dense": ("Dense", {"units": 3}, (4, 5)),
    "dense_rank_4": ("Dense", {"units": 3}, (2, 3, 2, 5)),
    "dense_no_bias": ("Dense", {"units": 3, "use_bias": False}, (4, 5)),
    "einsum": (
        "EinsumDense",
        {"equation": "abc,bcd->ad", "output_shape": 3, "bias_axes": "d"},
        (2, 3, 4),
    ),
    "einsum_heads": (
        "EinsumDense",
        {"equation": "abc,hcd->abhd", "output_shape": (None, 2, 3), "bias_axes": "hd"},
        (2, 3, 4),
    ),
    "einsum_batched": (
        "EinsumDense",
        {"equation": "abc,bcd->abd", "output_shape": (3, 5), "bias_axes": "bd"},
        (2, 3, 4),
    ),
}


IMAGE = (2, 7, 8, 4)
CONV = {
    "causal": ("Conv1D", {"filters": 3, "padding": "causal", "dilation_rate": 2}, (2, 9, 4)),
    "strided_1d": ("Conv1D", {"filters": 3, "strides": 2, "padding": "same"}, (2, 10, 4)),
    "valid": ("Conv2D", {"filters": 6, "kernel_size": (3, 2)}, IMAGE),
    "groups": (
        "Conv2D",
        {"filters": 6, "strides": (2, 3), "padding": "same", "groups": 2},
        IMAGE,
    ),
    "unused_border": ("Conv2D", {"filters": 6, "strides": 2}, (2, 8, 8, 4)),
    "skipped": ("Conv2D", {"filters": 6, "kernel_size": 1, "strides": 3}, IMAGE),
    "channels_first": (
        "Conv2D",
        {
            "filters": 6,
            "padding": "same",
            "dilation_rate": 2,
            "data_format": "channels_first",
        },
        (2, 4, 7, 8),
    ),
    "three": ("Conv3D", {"filters": 2, "kernel_size": 2, "padding": "same"}, (2, 4, 5, 3, 2)),
    "depthwise": (
        "DepthwiseConv2D",
        {"strides": 2, "padding": "same", "depth_multiplier": 2},
        IMAGE,
    ),
    "depthwise_1d": ("DepthwiseConv1D", {"dilation_rate": 2}, (2, 7, 3)),
    "transposed": (
        "Conv2DTranspose",
        {"filters": 5, "strides": 2, "padding": "same"},
        (2, 4, 5, 3),
    ),
    "transposed_gaps": (
        "Conv2DTranspose",
        {"filters": 5, "kernel_size": 2, "strides": 3},
        (2, 4, 5, 3),
    ),
    "transposed_more": (
        "Conv2DTranspose",
        {"filters": 5, "strides": 2, "padding": "same", "output_padding": 1},
        (2, 4, 5, 3),
    ),
    "transposed_1d": (
        "Conv1DTranspose",
        {"filters": 5, "kernel_size": 4, "strides": 2},
        (2, 5, 3),
    ),
    "transposed_3d": (
        "Conv3DTranspose",
        {"filters": 2, "kernel_size": 2, "strides": 2},
        (2, 2, 3, 2, 2),
    ),
}


def check_against_float(name, arguments, shape, mode):
    """Each product is off by the table's error of each term and by a dropped bit of each."""
    keras.utils.set_random_seed(0)
    if "Conv" in name:
        arguments = {"kernel_size": 3, **arguments}
    arguments = {**arguments, "bias_initializer": "uniform"}
    lns = getattr(layers, f"LNS{name}")(**arguments, lns_config=EXACT)
    plain = getattr(K, name)(**arguments)
    lns.build((None, *shape[1:]))
    plain.build((None, *shape[1:]))
    (kernel,) = lns.lns_variables
    x = data(*shape)
    dy = data(*lns(x).shape, seed=1)
    actual = run(lambda x: lns(x, training=True), x, lns.trainable_variables, dy, mode)

    w, w_scale = seen(kernel)
    x_q, dy_q = (reference.decode(*coded(v), FORMAT) for v in (x, dy))
    scales = {"x": coded(x)[1], "w": w_scale, "dy": coded(dy)[1]}
    lsb = F32(2.0) ** WIDE.lsb(FORMAT)
    error = WIDE.max_relative_error(8, fraction_rounding=True)
    float_weights = [v.numpy() for v in lns.trainable_variables]

    def of(x, w, dy, bias):
        """Output and derivatives of the float layer."""
        is_kernel = [v is kernel for v in lns.trainable_variables]
        others = [v if bias else np.zeros_like(v) for v in float_weights]
        plain.set_weights([w if k else v for k, v in zip(is_kernel, others, strict=True)])
        # Compiled: without XLA some of TensorFlow's convolutions fail on a CPU.
        return run(plain, x, plain.trainable_variables, dy, "jit")

    w_q = reference.decode(w, w_scale, FORMAT)
    expected = of(x_q, w_q, dy_q, bias=True)
    magnitudes = of(np.abs(x_q), np.abs(w_q), np.abs(dy_q), bias=False)
    terms = of(np.ones_like(x), np.ones_like(w_q), np.ones_like(dy), bias=False)
    units = [scales["x"] * scales["w"], scales["dy"] * scales["w"], scales["x"] * scales["dy"]]
    assert len(actual) == len(expected) == 2 + len(float_weights)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        is_bias = i > 1 and lns.trainable_variables[i - 2] is not kernel
        rounding = (terms[i] + 4) * F32(2.0) ** -23 * (magnitudes[i] + np.abs(e))
        dropped = 0 if is_bias else terms[i] * lsb * units[min(i, 2)] + error * magnitudes[i]
        assert np.all(np.abs(a - e) <= dropped + rounding), (i, np.abs(a - e).max())
        assert np.abs(a).max() > 0


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("case", DENSE | CONV)
def test_a_wide_datapath_gives_the_float_products(case, mode):
    check_against_float(*(DENSE | CONV)[case], mode)


def test_a_convolution_of_images_of_unknown_size():
    """Pads that are known only when the graph runs."""
    for padding in ("same", "valid"):
        layer = layers.LNSConv2D(5, 3, strides=2, padding=padding, lns_config=EXACT)
        turned = layers.LNSConv2DTranspose(5, 3, strides=2, padding=padding, lns_config=EXACT)
        depthwise = layers.LNSDepthwiseConv2D(3, padding=padding, lns_config=EXACT)
        x = tf.constant(data(2, 7, 8, 3))
        for one in (layer, turned, depthwise):
            one.build(x.shape)

            def gradients(x, one=one):
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = one(x, training=True)
                    loss = tf.reduce_sum(tf.sin(y))
                return [y, *tape.gradient(loss, [x, one.kernel.value])]

            spec = [tf.TensorSpec([None, None, None, 3])]
            unknown = tf.function(gradients, input_signature=spec)
            for a, b in zip(unknown(x), gradients(x), strict=True):
                equal_bits(a, b)


CHAINS = {
    "simple": ("SimpleRNN", {"units": 3, "return_sequences": True}, (2, 5, 4)),
    "lstm": ("LSTM", {"units": 3}, (2, 5, 4)),
    "lstm_unrolled": ("LSTM", {"units": 3, "unroll": True}, (2, 5, 4)),
    "lstm_dropout": ("LSTM", {"units": 3, "dropout": 0.4, "recurrent_dropout": 0.3}, (2, 5, 4)),
    "gru": ("GRU", {"units": 3}, (2, 5, 4)),
    "gru_before": ("GRU", {"units": 3, "reset_after": False, "go_backwards": True}, (2, 5, 4)),
    "separable": (
        "SeparableConv2D",
        {"filters": 5, "kernel_size": 3, "padding": "same"},
        (2, 7, 8, 3),
    ),
    "convlstm": (
        "ConvLSTM2D",
        {"filters": 2, "kernel_size": 2, "padding": "same"},
        (2, 3, 4, 3, 2),
    ),
    "convlstm_first": (
        "ConvLSTM1D",
        {"filters": 2, "kernel_size": 3, "strides": 2, "data_format": "channels_first"},
        (2, 3, 3, 7),
    ),
    "mha": ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}, (2, 5, 4)),
    "gqa": (
        "GroupQueryAttention",
        {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2},
        (2, 5, 4),
    ),
}


def check_chain(name, arguments, shape, mode):
    """With and without a datapath the same but for the errors of the products in a chain.

    A result may fall on another code where it is quantized again; with these seeds none does.
    """
    x, found = data(*shape), []
    for config in (EXACT, EXACT.replace(datapath=None)):
        keras.utils.set_random_seed(1)
        seeded = {"seed": 3} if "dropout" in arguments else {}
        layer = getattr(layers, f"LNS{name}")(
            **arguments, **seeded, bias_initializer="uniform", lns_config=config
        )
        inputs = 2 if "Attention" in name else 1
        dy = data(*layer(*[x] * inputs).shape, seed=1)

        def call(x, layer=layer, inputs=inputs):
            return layer(*[x] * inputs, training=True)

        found.append(run(call, x, layer.trainable_variables, dy, mode))
    bound = 16 * WIDE.max_relative_error(8, fraction_rounding=True)
    for a, b in zip(*found, strict=True):
        assert np.abs(a - b).max() <= bound * np.abs(b).max()
    assert not all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("case", CHAINS)
def test_layers_of_several_products(case, mode):
    check_chain(*CHAINS[case], mode)


# --- By hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
@pytest.mark.parametrize("datapath", [Datapath(), NARROW, Datapath(0, 14, conversion="bins")])
def test_dense_by_hand(datapath, mode):
    config = LNSConfig(datapath=datapath, activation_scale="batch")
    layer = layers.LNSDense(6, lns_config=config, bias_initializer="uniform")
    x, dy = data(5, 40), data(5, 6, seed=1)
    layer.build(x.shape)
    y, dx, dw, db = run(lambda x: layer(x), x, [layer.kernel, layer.bias], dy, mode)
    w, a, e = seen(layer.kernel), coded(x), coded(dy)
    equal_bits(y, product(a, w, datapath) + layer.bias.numpy())
    equal_bits(dx, product(e, w, datapath, transpose_b=True))
    equal_bits(dw, product(a, e, datapath, transpose_a=True))
    np.testing.assert_allclose(db, reference.decode(*e, FORMAT).sum(0), rtol=1e-6, atol=1e-6)


def patches(x, taps, stride=1):
    """[samples, rows, columns, taps * channels] of an image, the last axis in the order of K."""
    height, width = ((n - taps) // stride + 1 for n in x.shape[1:3])
    parts = [
        x[:, i : i + stride * height : stride, j : j + stride * width : stride]
        for i, j in itertools.product(range(taps), repeat=2)
    ]
    return np.concatenate([p[:, :height, :width] for p in parts], axis=-1)


@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
def test_a_convolution_by_hand(mode):
    config = LNSConfig(datapath=NARROW, activation_scale="batch")
    layer = layers.LNSConv2D(4, 3, strides=2, use_bias=False, lns_config=config)
    x, dy = data(2, 7, 9, 3), data(2, 3, 4, 4, seed=1)
    layer.build(x.shape)
    y, dx, dw = run(lambda x: layer(x), x, [layer.kernel], dy, mode)
    (w, w_scale), (a, a_scale), (e, e_scale) = seen(layer.kernel), coded(x), coded(dy)
    columns = patches(a, 3, 2)  # [2, 3, 4, 27]
    flat = columns.reshape(24, 27), a_scale
    equal_bits(y, product(flat, (w.reshape(27, 4), w_scale), NARROW).reshape(2, 3, 4, 4))
    # dw: positions of dy, with the samples of each.
    by_position = columns.transpose(1, 2, 0, 3).reshape(24, 27), a_scale
    errors = e.transpose(1, 2, 0, 3).reshape(24, 4), e_scale
    expected = product(by_position, errors, NARROW, transpose_a=True)
    equal_bits(dw, expected.reshape(3, 3, 3, 4))
    # dx: dy with zeros in between and around, taps from the last to the first.
    spread = np.zeros((2, 9, 11, 4), np.int8)
    spread[:, 2:7:2, 2:9:2] = e
    kernel = w[::-1, ::-1].transpose(0, 1, 3, 2).reshape(36, 3), w_scale
    expected = product((patches(spread, 3).reshape(-1, 36), e_scale), kernel, NARROW)
    equal_bits(dx, expected.reshape(2, 7, 9, 3))


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_einsum_by_hand(mode):
    """K is in the order of the left operand: of x, of dy, of x."""
    config = LNSConfig(datapath=NARROW, activation_scale="batch")
    layer = layers.LNSEinsumDense("abc,cbd->ad", output_shape=3, lns_config=config)
    x = data(4, 5, 6)
    layer.build(x.shape)
    dy = data(4, 3, seed=1)
    y, dx, dw = run(lambda x: layer(x), x, [layer.kernel], dy, mode)
    (w, w_scale), (a, a_scale), (e, e_scale) = seen(layer.kernel), coded(x), coded(dy)
    a = a.reshape(4, 30), a_scale  # [a, bc]
    w = w.transpose(1, 0, 2).reshape(30, 3), w_scale  # [bc, d]
    e = e, e_scale  # [a, d]
    equal_bits(y, product(a, w, NARROW))
    equal_bits(dx, product(e, w, NARROW, transpose_b=True).reshape(4, 5, 6))
    expected = product(a, e, NARROW, transpose_a=True)
    equal_bits(dw, expected.reshape(5, 6, 3).transpose(1, 0, 2))


def test_a_product_of_attention_by_hand():
    """One head without projections: P V, of which both operands are activations."""
    config = LNSConfig(datapath=NARROW, activation_scale="batch")
    layer = layers.LNSMultiHeadAttention(2, 3, lns_config=config)
    x = data(2, 5, 4)
    layer(x, x)
    p, v, dy = data(2, 2, 5, 6), data(2, 6, 2, 3, seed=1), data(2, 5, 2, 3, seed=2)

    def call(p):
        operand = layer.quantize_activation(p, 2)
        return layer.einsum(layer._combine_equation, operand, quantized)

    values = tf.constant(v)
    with tf.GradientTape() as tape:
        tape.watch(values)
        quantized = layer.quantize_activation(values, 3)
        y = call(tf.constant(p))
    dv = tape.gradient(y, values, output_gradients=tf.constant(dy))
    dp = run(call, p, [], dy)[1]
    for sample, head in itertools.product(range(2), range(2)):
        (a, a_scale), (b, b_scale), (e, e_scale) = coded(p), coded(v), coded(dy)
        a = a[sample, head], a_scale
        b = b[sample, :, head], b_scale
        e = e[sample, :, head], e_scale
        equal_bits(y[sample, :, head], product(a, b, NARROW))
        equal_bits(dp[sample, head], product(e, b, NARROW, transpose_b=True))
        # The left operand is the one of the equation, with its order: rows of p.
        equal_bits(dv[sample, :, head], product(a, e, NARROW, transpose_a=True))


def test_reversible_embedding_by_hand():
    config = LNSConfig(datapath=NARROW, activation_scale="batch")
    for tied in (True, False):
        layer = lns_layer_of(keras.layers.ReversibleEmbedding)(
            7, 5, tie_weights=tied, lns_config=config
        )
        layer.build()
        ids = tf.constant([[1, 2, 3]])
        plain = keras.layers.ReversibleEmbedding.call(layer, ids)
        equal_bits(layer(ids), reference.decode(*seen(layer._embeddings), FORMAT)[[[1, 2, 3]]])
        assert plain.shape == (1, 3, 5)
        x = data(2, 3, 5)
        logits = layer(x, reverse=True)
        (a, a_scale) = coded(x)
        w = seen(layer._embeddings if tied else layer.reverse_embeddings)
        expected = product((a.reshape(6, 5), a_scale), w, NARROW, transpose_b=tied)
        equal_bits(logits, expected.reshape(2, 3, 7))


def test_the_error_of_each_step_has_its_own_scale():
    """A linear recurrent layer: the derivative by its kernel, step by step, by hand."""
    config = LNSConfig(datapath=NARROW, activation_scale="batch")
    layer = layers.LNSSimpleRNN(
        3, activation=None, use_bias=False, return_sequences=True, lns_config=config
    )
    x = data(2, 4, 5)
    layer.build(x.shape)
    dy = data(2, 4, 3, seed=1) * np.array([1, 1e-3, 1, 1e-2], F32)[:, None]
    y, dx, dw, du = run(lambda x: layer(x), x, layer.trainable_variables, dy)
    (a, a_scale), w, u = coded(x), seen(layer.cell.kernel), seen(layer.cell.recurrent_kernel)
    projected = product((a.transpose(1, 0, 2).reshape(8, 5), a_scale), w, NARROW).reshape(4, 2, 3)
    h, states = np.zeros((2, 3), F32), []
    for t in range(4):
        states.append(coded(h))
        h = projected[t] + product(states[-1], u, NARROW)
        equal_bits(y[:, t], h)
    dh, errors = np.zeros((2, 3), F32), []
    of_u = np.zeros((3, 3), F32)
    for t in reversed(range(4)):
        e = coded(dy[:, t] + dh)
        errors.insert(0, e)
        dh = product(e, u, NARROW, transpose_b=True)
        of_u = of_u + product(states[t], e, NARROW, transpose_a=True)
    of_w = np.zeros((5, 3), F32)
    for t, e in enumerate(errors):
        equal_bits(dx[:, t], product(e, w, NARROW, transpose_b=True))
        of_w = of_w + product((a[:, t], a_scale), e, NARROW, transpose_a=True)
    equal_bits(dw, of_w)
    np.testing.assert_allclose(du, of_u, rtol=1e-6, atol=1e-7)  # the loop's own order of sums


# --- Models ---------------------------------------------------------------------------------------


def dense_net(config, **compiled):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((12,)), K.Dense(16, activation="relu"), K.Dense(16, "tanh"), K.Dense(3)]
    )
    lns = tf_lns.quantize_model(model, config)
    lns.compile(tf_lns.LNSMadam(), "mse", **compiled)
    return lns


def conv_net(config, **compiled):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            K.Conv2D(4, 3, activation="relu"),
            K.DepthwiseConv2D(3, strides=2),
            K.Flatten(),
            K.Dense(3),
        ]
    )
    lns = tf_lns.quantize_model(model, config)
    lns.compile(tf_lns.LNSMadam(), "mse", **compiled)
    return lns


def rnn_net(config, **compiled):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((5, 12)), K.LSTM(6), K.Dense(3)])
    lns = tf_lns.quantize_model(model, config)
    lns.compile(tf_lns.LNSMadam(), "mse", **compiled)
    return lns


def attention_net(config, **compiled):
    keras.utils.set_random_seed(2)
    x = keras.Input((5, 12))
    y = K.MultiHeadAttention(2, 4)(x, x)
    model = keras.Model(x, K.Dense(3)(K.Flatten()(y)))
    lns = tf_lns.quantize_model(model, config)
    lns.compile(tf_lns.LNSMadam(), "mse", **compiled)
    return lns


NETS = {
    "dense": (dense_net, (32, 12)),
    "conv": (conv_net, (16, 8, 8, 2)),
    "rnn": (rnn_net, (16, 5, 12)),
    "mha": (attention_net, (16, 5, 12)),
}
CONFIG = LNSConfig(datapath=NARROW)


def target(x):
    return np.stack([x.reshape(len(x), -1)[:, i : i + 4].sum(1) for i in range(3)], 1)


@pytest.mark.parametrize("net", NETS)
def test_fit_gives_equal_codes_however_it_is_run(net):
    make, shape = NETS[net]
    x = data(*shape)
    found = []
    for options in ({"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}):
        model = make(CONFIG, **options)
        losses = model.fit(x, target(x), epochs=3, batch_size=8, shuffle=False, verbose=0)
        assert losses.history["loss"][-1] < losses.history["loss"][0]
        found.append(codes_of(model))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("net", NETS)
def test_it_is_saved(net, tmp_path):
    make, shape = NETS[net]
    x = data(*shape)
    model = make(CONFIG)
    model.fit(x, target(x), epochs=1, verbose=0)
    model.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    for layer in all_layers(loaded):
        if hasattr(layer, "lns_config"):
            assert layer.lns_config.datapath == NARROW
    equal_bits(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    for m in (model, loaded):
        m.fit(x, target(x), epochs=1, shuffle=False, verbose=0)
    for a, b in zip(codes_of(model), codes_of(loaded), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("net", NETS)
def test_predictions_do_not_depend_on_the_batch(net):
    make, shape = NETS[net]
    x = data(*shape)
    model = make(CONFIG)
    model.fit(x, target(x), epochs=1, verbose=0)
    whole = model.predict(x, verbose=0)
    equal_bits(
        np.concatenate([model.predict(x[i : i + 3], verbose=0) for i in range(0, 9, 3)]), whole[:9]
    )


def test_a_narrow_accumulator_changes_results():
    x = data(*NETS["dense"][1])
    outputs = []
    for bits in (32, 24, 12):
        config = LNSConfig(datapath=Datapath(lut_bits=3, accumulator_bits=bits))
        outputs.append(dense_net(config).predict(x, verbose=0))
    scale = np.abs(outputs[0]).max()
    assert np.abs(outputs[1] - outputs[0]).max() < 1e-3 * scale
    assert np.abs(outputs[2] - outputs[0]).max() > 1e-2 * scale


def test_strip_takes_the_datapath_away():
    model = dense_net(CONFIG)
    plain = tf_lns.strip(model)
    assert not any(hasattr(layer, "lns_config") for layer in plain.layers)
    x = data(4, 12)
    exact = LNSConfig(weights="lns8:8", activations=None, errors=None)
    expected = tf_lns.quantize_model(plain, exact).predict(x, verbose=0)
    equal_bits(tf_lns.strip(model, weights="seen").predict(x, verbose=0), expected)


def test_a_config_changes_with_and_without_a_datapath():
    model = dense_net(CONFIG)
    without = tf_lns.quantize_model(model, CONFIG.replace(datapath=None))
    again = tf_lns.quantize_model(without, CONFIG)
    x = data(4, 12)
    assert not np.array_equal(without.predict(x, verbose=0), model.predict(x, verbose=0))
    equal_bits(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_shared_layer_adds_the_gradients_of_its_uses():
    layer = layers.LNSDense(4, use_bias=False, lns_config=CONFIG.replace(activation_scale="batch"))
    a, b = keras.Input((6,)), keras.Input((6,))
    model = keras.Model([a, b], keras.layers.Add()([layer(a), layer(b)]))
    x, z, dy = data(5, 6), data(5, 6, seed=1), data(5, 4, seed=2)
    with tf.GradientTape() as tape:
        y = model([x, z], training=True)
    dw = tape.gradient(y, layer.kernel.value, output_gradients=tf.constant(dy))
    w, e = seen(layer.kernel), coded(dy)
    equal_bits(y, product(coded(x), w, NARROW) + product(coded(z), w, NARROW))
    parts = [product(coded(v), e, NARROW, transpose_a=True) for v in (x, z)]
    equal_bits(dw, parts[0] + parts[1])


def test_a_subclass_without_a_call_of_its_own():
    class Mine(keras.layers.Dense):
        pass

    model = keras.Sequential([keras.Input((12,)), Mine(3)])
    lns = tf_lns.quantize_model(model, CONFIG)
    (layer,) = lns.layers
    a, w = coded(data(4, 12)), seen(layer.kernel)
    equal_bits(lns(data(4, 12)), product(a, w, NARROW))


def test_a_kernel_that_starts_at_zero_is_quantized():
    layer = layers.LNSDense(3, kernel_initializer="zeros", lns_config=CONFIG)
    layer.build((None, 5))
    assert not layer.lns_variables
    x = data(4, 5)
    layer.kernel.assign(data(5, 3, seed=1))
    equal_bits(layer(x), product(coded(x), coded(data(5, 3, seed=1)), NARROW))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_a_cast_of_the_result(policy):
    half = keras.dtype_policies.get(policy).compute_dtype
    x, found = tf.cast(tf.cast(data(4, 5), half), tf.float32), []
    for dtype in ("float32", policy):
        keras.utils.set_random_seed(3)
        layer = layers.LNSDense(3, dtype=dtype, use_bias=False, lns_config=CONFIG)
        found.append(layer(x))
    assert found[1].dtype == half
    np.testing.assert_array_equal(tf.cast(found[0], half), found[1])


def test_an_overflow_of_half_precision_stays_one():
    layer = layers.LNSDense(3, dtype="mixed_float16", lns_config=CONFIG)
    x = tf.constant(data(4, 5))
    with tf.GradientTape() as tape:
        y = tf.cast(layer(x), tf.float32)
    dy = np.ones((4, 3), F32)
    dy[1, 2] = 1e30
    dw = tape.gradient(y, layer.kernel.value, output_gradients=tf.constant(dy))
    assert np.isfinite(np.asarray(dw)[:, :2]).all()
    assert not np.isfinite(np.asarray(dw)[:, 2]).any()


# --- NaN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
def test_nan_reaches_what_a_float_product_would_give_it_to(mode):
    layer = layers.LNSDense(3, lns_config=CONFIG)
    x, dy = data(4, 5), data(4, 3, seed=1)
    layer.build(x.shape)
    x[1, 2] = np.nan
    y, _, dw, _ = run(lambda x: layer(x, training=True), x, [layer.kernel, layer.bias], dy, mode)
    np.testing.assert_array_equal(np.isnan(y), np.arange(4)[:, None] == np.ones(3))
    np.testing.assert_array_equal(np.isnan(dw), np.arange(5)[:, None] == np.full(3, 2))


def test_terminate_on_nan_works():
    x = data(32, 12)
    x[5] = np.nan
    model = dense_net(CONFIG)
    history = model.fit(
        x, target(x), epochs=5, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()]
    )
    assert len(history.epoch) == 1


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"datapath": "wide"}, TypeError, "`datapath`.*wide"),
        ({"datapath": {"lut": 3}}, ValueError, "`datapath`.*lut"),
        ({"datapath": {"lut_bits": 4}}, ValueError, "`datapath`.*at most.*3"),
        ({"activations": None}, ValueError, "activations=None.*datapath=None"),
        ({"weights": None, "errors": None}, ValueError, "weights=None, errors=None"),
        ({"errors": "lns5:2"}, ValueError, "one base factor.*errors=lns5:2"),
    ],
)
def test_a_config_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        LNSConfig(**{"datapath": Datapath(), **arguments})


def test_a_config_round_trips():
    config = LNSConfig(datapath={"lut_bits": 1, "accumulator_bits": 16}, errors="lns5:8")
    assert config.datapath == Datapath(1, 16)
    settings = json.loads(json.dumps(config.get_config()))
    assert LNSConfig.from_config(settings) == config == LNSConfig.get(settings)
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(config)))
    assert LNSConfig.get(serialized) == config
    assert "2-entry table" in repr(config)
    assert hash(config) == hash(LNSConfig.from_config(settings))


class Scaled(keras.layers.Dense):
    def call(self, inputs):
        return keras.ops.matmul(inputs, self.kernel) * 2


def test_a_call_of_its_own_is_refused_before_anything_changes():
    model = keras.Sequential([keras.Input((4,)), K.Dense(3), Scaled(2, name="scaled")])
    with pytest.raises(ValueError, match=r"'scaled'.*call.*datapath=None"):
        tf_lns.quantize_model(model, CONFIG, in_place=True)
    assert type(model.layers[0]) is K.Dense
    lns = tf_lns.quantize_model(model, CONFIG, {"scaled": CONFIG.replace(datapath=None)})
    assert lns.layers[0].lns_config.datapath == NARROW
    assert lns.layers[1].lns_config.datapath is None
    lns(data(2, 4))
    with pytest.raises(ValueError, match="call"):
        layers.LNSWrapper(K.Dense(3), CONFIG)

    class Own(layers.LNSDense):
        def call(self, inputs):
            return super().call(inputs) + 1

    with pytest.raises(ValueError, match="call"):
        Own(3, lns_config=CONFIG)


class Doubled(keras.layers.MultiHeadAttention):
    """Its products are in methods that the call still uses."""

    def call(self, query, value, key=None, **named):
        return 2 * super().call(query, value, key, **named)


class Projected(keras.layers.MultiHeadAttention):
    """One product more, which is float."""

    def call(self, query, value, key=None, **named):
        y = super().call(query, value, key, **named)
        return tf.einsum("abc,cd->abd", y, tf.eye(y.shape[-1]))


def test_a_call_around_products_in_methods_is_watched():
    x = keras.Input((5, 4))
    keras.utils.set_random_seed(0)
    model = keras.Model(x, Doubled(2, 3)(x, x))
    plain = keras.Model(x, K.MultiHeadAttention(2, 3)(x, x))
    plain.set_weights(model.get_weights())
    inputs = data(2, 5, 4)
    lns = tf_lns.quantize_model(model, CONFIG)
    assert lns.layers[1].lns_config.datapath == NARROW
    equal_bits(lns(inputs), 2 * tf_lns.quantize_model(plain, CONFIG)(inputs))
    with pytest.raises(ValueError, match=r"float product \(Einsum\).*`LNSMixin.einsum`"):
        tf_lns.quantize_model(keras.Model(x, Projected(2, 3)(x, x)), CONFIG)(inputs)


def test_products_outside_of_lns_layers_are_listed():
    a = keras.Input((3, 4))
    b = K.Dense(4)(a)
    y = K.Attention(name="plain_attention")([a, b])
    y = keras.ops.matmul(y, keras.ops.transpose(b, (0, 2, 1)))
    model = keras.Model(a, y)
    with pytest.warns(UserWarning, match="float32: .*plain_attention.*Matmul"):
        tf_lns.quantize_model(model, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tf_lns.quantize_model(model)


def test_an_operand_off_the_grid_is_refused():
    layer = layers.LNSDense(3, lns_config=CONFIG)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="quantize_activation"):
        layer.einsum("ab,bc->ac", tf.constant(data(2, 4)), layer.kernel)


@pytest.mark.parametrize(
    ("equation", "ranks", "text"),
    [
        ("ab,bc", (2, 2), "two operands"),
        ("ab,bc,cd->ad", (2, 2), "two operands"),
        ("aab,bc->ac", (3, 2), "stands once"),
        ("ab,bc->aa", (2, 2), "stands once"),
        ("abx,bc->ac", (3, 2), "both operands"),
        ("ab,bc->acd", (2, 2), "both operands"),
        ("ab,bc->ac", (3, 2), "rank 3"),
    ],
)
def test_other_equations_are_refused(equation, ranks, text):
    with pytest.raises(ValueError, match=text):
        labels_of(equation, *ranks)


@pytest.mark.parametrize(
    ("equation", "a", "b"),
    [
        ("ab,bc->ac", (3, 4), (4, 5)),
        ("ab,bc->ca", (3, 4), (4, 5)),
        ("ba,bc->ac", (4, 3), (4, 5)),
        ("a,a->", (6,), (6,)),
        ("a,b->ab", (3,), (4,)),
        ("ab,ab->ab", (3, 4), (3, 4)),
        ("...k,kn->...n", (2, 3, 4), (4, 5)),
        ("...ab,...bc->...ac", (2, 3, 4, 5), (2, 3, 5, 2)),
        ("bqhd,bkhd->bhqk", (2, 3, 2, 4), (2, 5, 2, 4)),
        ("dbca,cxda->xab", (2, 3, 4, 5), (4, 3, 2, 5)),
    ],
)
def test_contractions_are_einsums(equation, a, b):
    """On a datapath that is wide enough to be exact but for the table's rounding."""
    layer = layers.LNSDense(1, lns_config=EXACT)
    layer.build((None, 1))
    x, w = (layer.quantize_activation(tf.constant(data(*s, seed=i))) for i, s in enumerate((a, b)))
    expected = np.einsum(equation, x.numpy(), w.numpy())
    magnitude = np.einsum(equation, np.abs(x.numpy()), np.abs(w.numpy()))
    actual = layer.multiply(Einsum(equation), x, w)
    assert actual.shape == expected.shape
    assert np.all(np.abs(actual - expected) <= 2e-5 * magnitude)


def test_second_derivatives_are_refused():
    layer = layers.LNSDense(3, lns_config=CONFIG)
    x = tf.constant(data(2, 4))
    layer(x)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            y = tf.reduce_sum(layer(x) ** 2)
        dw = inner.gradient(y, layer.kernel.value)
    with pytest.raises(LookupError, match="second derivatives"):
        outer.gradient(dw, x)


# --- The example ----------------------------------------------------------------------------------


def test_the_sweep_runs_and_goes_on(tmp_path):
    path = ROOT / "examples" / "datapath_sweep.py"

    def sweep(*more):
        command = [sys.executable, str(path), "--output", str(tmp_path), "--tables", "1,8"]
        command += ["--epochs", "1", "--train", "128", "--seeds", "1", *more]
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr[-2000:]
        return found.stdout

    assert "3 runs, 3 of them left" in sweep("--accumulators", "24")
    report = json.loads((tmp_path / "datapath_sweep.json").read_text())
    assert set(report["runs"]) == {
        "float32 products",
        "table 1, accumulator 24",
        "table 8, accumulator 24",
    }
    assert (tmp_path / "datapath_sweep.png").stat().st_size > 10_000
    assert "5 runs, 2 of them left" in sweep("--accumulators", "24,16")
    again = json.loads((tmp_path / "datapath_sweep.json").read_text())
    assert report["runs"].items() <= again["runs"].items()


# --- Energy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_the_energy_account_counts_the_same_products(net):
    make, shape = NETS[net]
    x = data(*shape)
    with_, without = (
        tf_lns.energy.tally(make(config), (x, target(x)))
        for config in (CONFIG, CONFIG.replace(datapath=None))
    )
    assert not with_.unpriced
    for pass_ in ("forward", "error", "gradient"):
        assert with_.macs(pass_) == without.macs(pass_) > 0
    products = [r for r in with_.records if r.kind == "mac"]
    assert {r.op for r in products} <= {"LnsMatmul", "LnsConv"}
    assert {r.formats for r in products} == {(FORMAT, FORMAT)}
    ratio = with_.energy("horowitz-45nm").total_pj / without.energy("horowitz-45nm").total_pj
    assert 0.9 < ratio < 1.1
