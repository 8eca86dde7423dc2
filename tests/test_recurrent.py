"""Recurrent layers: against Keras where all is float, against NumPy where all is quantized."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns import LNSConfig, LNSFormat, LNSVariable, keras_hooks, layers, reference
from tf_lns.layers.tree import all_layers

K = keras.layers
F32 = np.float32
A = W = E = LNSFormat(8, 8)
FLOAT = LNSConfig(weights="lns16:2048", activations=None, errors=None, gradients=None)

BATCH, TIME, WIDTH, UNITS = 4, 5, 3, 2


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def close(actual, expected, tolerance=2e-6):
    """Equal but for the order of sums."""
    actual, expected = np.asarray(actual, F32), np.asarray(expected, F32)
    assert actual.shape == expected.shape
    bound = tolerance * max(np.abs(expected).max(initial=0), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


def seen(variable, format=W):
    """What a product sees of an integer weight, by the reference."""
    codes = reference.requantize(variable.codes, variable.format, format)
    scale = reference.requantize_scale(variable.scale, variable.format, format)
    return reference.decode(codes, scale, format)


def codes_of(model):
    return [w.codes for layer in all_layers(model) for w in getattr(layer, "lns_variables", [])]


# --- Against Keras, all arrows float --------------------------------------------------------------

KINDS = {
    "simple": ("SimpleRNN", {"units": UNITS}),
    "lstm": ("LSTM", {"units": UNITS}),
    "gru": ("GRU", {"units": UNITS}),
    "gru_before": ("GRU", {"units": UNITS, "reset_after": False}),
    "conv1d": ("ConvLSTM1D", {"filters": UNITS, "kernel_size": 3, "strides": 2}),
    "conv2d": ("ConvLSTM2D", {"filters": UNITS, "kernel_size": 2, "padding": "same"}),
    "conv3d": ("ConvLSTM3D", {"filters": UNITS, "kernel_size": 2, "dilation_rate": 2}),
    "conv2d_first": (
        "ConvLSTM2D",
        {"filters": UNITS, "kernel_size": 2, "data_format": "channels_first"},
    ),
}
SHAPES = {
    "conv1d": (BATCH, TIME, 7, WIDTH),
    "conv2d": (BATCH, TIME, 3, 4, WIDTH),
    "conv3d": (BATCH, TIME, 4, 3, 3, WIDTH),
    "conv2d_first": (BATCH, TIME, WIDTH, 4, 3),
}
OPTIONS = {
    "plain": {},
    "sequences": {"return_sequences": True},
    "states": {"return_state": True, "return_sequences": True},
    "last_and_states": {"return_state": True},
    "backwards": {"go_backwards": True},
    "backwards_sequences": {"go_backwards": True, "return_sequences": True},
    "no_bias": {"use_bias": False},
    "dropout": {"dropout": 0.4, "seed": 3},
    "both_dropouts": {"dropout": 0.4, "recurrent_dropout": 0.3, "seed": 3},
    "unroll": {"unroll": True},
    "unroll_sequences": {"unroll": True, "return_sequences": True},
    # Keras' own layer fails with these where it looks for cuDNN.
    "implementation_1": {"implementation": 1, "dropout": 0.4, "seed": 3, "use_cudnn": False},
    "relu": {"activation": "relu"},
    "linear": {"activation": None},
}
CALLS = ("plain", "masked", "masked_zero", "masked_unroll", "initial_state", "masked_backwards")


def lns_and_keras(kind, config=FLOAT, **options):
    """An LNS layer and the Keras layer with the values of its weights."""
    name, arguments = KINDS[kind]
    arguments = {**arguments, "bias_initializer": "uniform", **options}
    shape = SHAPES.get(kind, (BATCH, TIME, WIDTH))
    lns = getattr(layers, f"LNS{name}")(**arguments, lns_config=config)
    plain = getattr(K, name)(**arguments)
    lns.build(shape)
    plain.build(shape)
    plain.set_weights(lns.get_weights())
    return lns, plain, data(*shape)


def outputs_and_gradients(layer, x, mask=None, states=None, training=True):
    x = tf.constant(x)
    states = [tf.constant(s) for s in states or []]
    with tf.GradientTape() as tape:
        tape.watch([x, *states])
        y = layer(x, mask=mask, initial_state=states or None, training=training)
        loss = tf.add_n([tf.reduce_sum(tf.sin(3 * part)) for part in tf.nest.flatten(y)])
    variables = [v.value for v in layer.trainable_variables]
    return [*tf.nest.flatten(y), *tape.gradient(loss, [x, *states, *variables])]


FEW = [("plain", "plain"), ("both_dropouts", "masked"), ("backwards_sequences", "initial_state")]
MANY = [
    *((option, "plain") for option in OPTIONS if option != "plain"),
    *(("plain", call) for call in CALLS),
    ("sequences", "masked"),
    ("both_dropouts", "masked"),
]
CASES = [
    (kind, option, call)
    for kind in KINDS
    for option, call in (FEW if kind in SHAPES or kind == "gru_before" else MANY)
    if not (kind == "simple" and option == "implementation_1")
]


@pytest.mark.parametrize(("kind", "option", "call"), CASES)
def test_with_float_arrows_it_is_the_keras_layer_on_the_decoded_weights(kind, option, call):
    options = dict(OPTIONS[option])
    if "zero" in call:
        options |= {"return_sequences": True, "zero_output_for_mask": True}
    if "unroll" in call:
        options["unroll"] = True
    if "backwards" in call:
        options |= {"go_backwards": True, "return_sequences": True}
    lns, plain, x = lns_and_keras(kind, **options)
    mask = states = None
    if "masked" in call:
        mask = np.ones((BATCH, TIME), bool)
        mask[1, 3:] = mask[2, :2] = mask[3] = False
    if call == "initial_state":
        states = plain.get_initial_state(BATCH)
        states = [data(*s.shape, seed=i) for i, s in enumerate(states)]
    actual = outputs_and_gradients(lns, x, mask, states)
    expected = outputs_and_gradients(plain, x, mask, states)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        close(a, b, 1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_stateful_layer_goes_on_where_it_was(kind):
    lns, plain, _ = lns_and_keras(kind, return_sequences=True)
    whole = data(BATCH, 2 * TIME, WIDTH)
    expected = plain(whole)
    name, arguments = KINDS[kind]
    layer = getattr(layers, f"LNS{name}")(
        **arguments, return_sequences=True, stateful=True, lns_config=FLOAT
    )
    layer.build((BATCH, TIME, WIDTH))
    layer.set_weights(lns.get_weights())
    for _ in range(2):
        layer.reset_state()
        parts = [layer(part) for part in np.split(whole, 2, axis=1)]
        close(np.concatenate(parts, axis=1), expected)


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
def test_bidirectional_merges_as_in_keras(merge):
    x = data(BATCH, TIME, WIDTH)
    mask = np.array([[1] * TIME, [1, 1, 0, 0, 0], [0] * TIME, [1, 1, 1, 0, 0]], bool)
    inner = layers.LNSLSTM(UNITS, return_sequences=True, lns_config=FLOAT)
    lns = K.Bidirectional(inner, merge_mode=merge)
    plain = K.Bidirectional(K.LSTM(UNITS, return_sequences=True), merge_mode=merge)
    lns.build(x.shape)
    plain.build(x.shape)
    plain.set_weights(lns.get_weights())
    for m in (None, mask):
        actual, expected = (tf.nest.flatten(layer(x, mask=m)) for layer in (lns, plain))
        for a, b in zip(actual, expected, strict=True):
            close(a, b)
    assert isinstance(lns.backward_layer, layers.LNSLSTM)
    assert lns.forward_layer.use_cudnn is False


@pytest.mark.parametrize("traced", [False, True])
def test_second_derivatives_are_refused_or_those_of_keras(traced):
    def penalty_gradients(layer):
        x = tf.constant(data(BATCH, TIME, WIDTH))
        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
            penalty = tf.reduce_sum(tape.gradient(y, x) ** 2)
        return outer.gradient(penalty, variables)

    run = tf.function(penalty_gradients, autograph=False) if traced else penalty_gradients
    lns, plain, _ = lns_and_keras("lstm", unroll=True)
    for a, b in zip(run(lns), run(plain), strict=True):
        close(a, b, 1e-5)
    lns, _, _ = lns_and_keras("lstm")
    with pytest.raises(LookupError, match="unroll=True"):
        run(lns)


def test_an_encoder_hands_its_states_to_a_decoder():
    def net(kind):
        source, target = keras.Input((None, WIDTH)), keras.Input((None, WIDTH))
        _, *states = getattr(K, kind)(UNITS, return_state=True)(source)
        y = getattr(K, kind)(UNITS, return_sequences=True)(target, initial_state=states)
        return keras.Model([source, target], K.Dense(1)(y))

    x = [data(BATCH, TIME, WIDTH), data(BATCH, 3, WIDTH, seed=1)]
    for kind in ("SimpleRNN", "LSTM", "GRU"):
        lns = tf_lns.quantize_model(net(kind), FLOAT)
        close(lns(x), tf_lns.strip(lns)(x))


# --- Against NumPy, all arrows quantized ----------------------------------------------------------


def quantizer(recorded):
    """Q_A under the scale of x itself, or under that of a recorded range."""
    if recorded is None:
        return lambda x: reference.quantize(x, A)
    scale = reference.scale_from_abs_max(F32(recorded), A)
    return lambda x: reference.quantize(x, A, scale=scale)


def sigmoid(x):
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(F32)


def reference_lstm(cell, x, q):
    kernel, recurrent, bias = seen(cell.kernel), seen(cell.recurrent_kernel), cell.bias.numpy()
    projected = q[0](x) @ kernel + bias
    h = c = np.zeros((len(x), UNITS), F32)
    states = []
    for t in range(x.shape[1]):
        states.append(h)
        i, f, g, o = np.split(projected[:, t] + q[1](h) @ recurrent, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h, [x, np.stack(states)]


def reference_gru(cell, x, q):
    kernel, recurrent, bias = seen(cell.kernel), seen(cell.recurrent_kernel), cell.bias.numpy()
    input_bias, recurrent_bias = bias if cell.reset_after else (bias, 0)
    projected = q[0](x) @ kernel + input_bias
    h = np.zeros((len(x), UNITS), F32)
    states, resets = [], []
    for t in range(x.shape[1]):
        states.append(h)
        x_z, x_r, x_h = np.split(projected[:, t], 3, axis=-1)
        inner = q[1](h) @ recurrent + recurrent_bias
        i_z, i_r, i_h = np.split(inner, 3, axis=-1)
        z, r = sigmoid(x_z + i_z), sigmoid(x_r + i_r)
        if cell.reset_after:
            i_h = r * i_h
        else:
            resets.append(r * h)
            i_h = q[2](r * h) @ recurrent[:, 2 * UNITS :]
        h = z * h + (1 - z) * np.tanh(x_h + i_h)
    return h, [x, np.stack(states), *([] if cell.reset_after else [np.stack(resets)])]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru", "gru_before"])
def test_a_forward_pass_is_that_of_numpy_on_quantized_operands(kind, traced):
    layer, _, x = lns_and_keras(kind, config=LNSConfig())
    by_reference = reference_lstm if kind == "lstm" else reference_gru
    cell = layer.cell
    call = tf.function(layer) if traced else layer
    ranges = cell.input_ranges
    own = [quantizer(None)] * 3
    expected, activations = by_reference(cell, x, own)
    # The products are float32 on LNS values, whose sums may be in another order.
    close(call(x, training=False), expected)  # nothing is recorded yet
    assert [float(r) for r in ranges] == [0] * len(ranges)
    close(call(x, training=True), expected)
    close([r.numpy() for r in ranges], [np.abs(a).max() for a in activations])

    small = x[:1] / 8
    expected, _ = by_reference(cell, small, [quantizer(r.numpy()) for r in ranges])
    close(call(small, training=False), expected)
    alone, together = call(x[:1], training=False), call(x, training=False)[:1]
    close(alone, together)


def test_a_backward_pass_is_that_of_numpy_with_one_error_per_step():
    layer, _, x = lns_and_keras("simple", config=LNSConfig())
    cell = layer.cell
    kernel, recurrent = seen(cell.kernel), seen(cell.recurrent_kernel)
    upstream = data(BATCH, UNITS, seed=4)
    with tf.GradientTape() as tape:
        inputs = tf.constant(x)
        tape.watch(inputs)
        loss = tf.reduce_sum(layer(inputs, training=True) * upstream)
    actual = tape.gradient(loss, [inputs, *[v.value for v in cell.trainable_variables]])

    xq = reference.quantize(x, A)
    hq, h = [], np.zeros((BATCH, UNITS), F32)
    states = []
    for t in range(TIME):
        hq.append(reference.quantize(h, A))
        h = np.tanh(xq[:, t] @ kernel + cell.bias.numpy() + hq[t] @ recurrent)
        states.append(h)
    dh, dx, dw, du, db = upstream, np.zeros_like(x), 0, 0, 0
    for t in reversed(range(TIME)):
        error = reference.quantize(dh * (1 - states[t] ** 2), E)
        dx[:, t] = error @ kernel.T
        dw, du, db = dw + xq[:, t].T @ error, du + hq[t].T @ error, db + error.sum(0)
        dh = error @ recurrent.T
    for a, b in zip(actual, [dx, dw, du, db], strict=True):
        close(a, b)


def assert_on_one_grid(values, base_factor):
    values = np.asarray(values, np.float64).ravel()
    exponents = base_factor * np.log2(np.abs(values[values != 0]))
    steps = exponents - exponents[0]
    assert len(steps) > 3
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


@pytest.mark.parametrize("gate", range(4))
@pytest.mark.parametrize("kind", ["simple", "lstm"])
def test_the_error_of_the_recurrent_product_is_on_the_grid_of_e(kind, gate):
    """With the identity for one gate's recurrent kernel the state's gradient is the error."""
    gates = 4 if kind == "lstm" else 1
    gate %= gates
    config = LNSConfig(activations=None, errors="lns5:2")
    layer = getattr(layers, f"LNS{KINDS[kind][0]}")(5, lns_config=config)
    layer.build((BATCH, 1, WIDTH))
    layer.cell.recurrent_kernel.assign(np.eye(5, 5 * gates, 5 * gate, dtype=F32))
    states = [tf.constant(data(BATCH, 5, seed=i)) for i in range(layer.cell.state_count)]
    with tf.GradientTape() as tape:
        tape.watch(states)
        y = layer(data(BATCH, 1, WIDTH), initial_state=states, training=True)
    assert_on_one_grid(tape.gradient(y, states[0]), 2)


@pytest.mark.parametrize("kind", ["simple", "lstm", "gru", "gru_before"])
def test_the_errors_that_biases_sum_are_on_the_grid_of_e(kind):
    """Of one sample and one step a bias has the error of its product for a gradient."""
    config = LNSConfig(activations=None, errors="lns5:2")
    name, arguments = KINDS[kind]
    layer = getattr(layers, f"LNS{name}")(**{**arguments, "units": 6}, lns_config=config)
    layer.build((1, 1, WIDTH))
    states = [data(1, 6, seed=i) for i in range(layer.cell.state_count)]
    with tf.GradientTape() as tape:
        y = layer(data(1, 1, WIDTH), initial_state=states, training=True)
    gradient = np.atleast_2d(tape.gradient(y, layer.cell.bias.value))
    assert len(gradient) == (2 if kind == "gru" else 1)
    for errors in gradient:  # of the inputs' product and of the state's
        assert_on_one_grid(errors, 2)


# --- Reads ----------------------------------------------------------------------------------------


def stack():
    cells = [K.LSTMCell(UNITS), K.GRUCell(UNITS, reset_after=False), K.SimpleRNNCell(UNITS)]
    return K.RNN(cells)


NETS = {
    "simple": lambda: K.SimpleRNN(UNITS),
    "lstm": lambda: K.LSTM(UNITS),
    "lstm_dropout": lambda: K.LSTM(UNITS, dropout=0.2, recurrent_dropout=0.2),
    "gru": lambda: K.GRU(UNITS),
    "gru_before": lambda: K.GRU(UNITS, reset_after=False),
    "bidirectional_lstm": lambda: K.Bidirectional(K.LSTM(UNITS)),
    "bidirectional_gru": lambda: K.Bidirectional(K.GRU(UNITS), merge_mode="sum"),
    "stack": stack,
    "rnn_of_a_cell": lambda: K.RNN(K.GRUCell(UNITS)),
    "deep_stack": lambda: K.RNN(
        K.StackedRNNCells([K.StackedRNNCells([K.LSTMCell(3), K.LSTMCell(3)]), K.GRUCell(UNITS)])
    ),
    "stack_with_dropout": lambda: K.RNN(
        [K.LSTMCell(UNITS, dropout=0.2, recurrent_dropout=0.2), K.LSTMCell(UNITS, dropout=0.2)]
    ),
    "conv": lambda: K.ConvLSTM2D(UNITS, 2),
    "conv_dropout": lambda: K.ConvLSTM1D(UNITS, 2, dropout=0.2, recurrent_dropout=0.2),
}


def net_of(name):
    """A small model with the recurrent layer, and its input."""
    shape = {"conv": (TIME, 4, 4, WIDTH), "conv_dropout": (TIME, 4, WIDTH)}.get(name, (TIME, WIDTH))
    body = [NETS[name](), K.Flatten(), K.Dense(2)]
    return keras.Sequential([keras.Input(shape), *body]), data(8, *shape)


@pytest.mark.parametrize("name", NETS)
def test_weights_are_read_once_per_call_and_never_in_the_loop(name):
    model, x = net_of(name)
    lns = tf_lns.quantize_model(model)

    @tf.function(autograph=False)
    def gradients(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(lns(x, training=True))
        return tape.gradient(loss, [v.value for v in lns.trainable_variables])

    graph = gradients.get_concrete_function(tf.constant(x)).graph.as_graph_def()
    reads = [node for node in graph.node if node.op == "LnsReadVariable"]
    assert len(reads) == len(codes_of(lns))
    assert any(node.op in ("While", "StatelessWhile") for node in graph.node)
    ops = {node.op for function in graph.library.function for node in function.node_def}
    assert "LnsQuantizeDynamic" in ops
    assert "LnsReadVariable" not in ops


# --- As Keras layers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["bidirectional_lstm", "bidirectional_gru", "stack", "stack_with_dropout", "conv"],
)
def test_models_convert_and_train(name):
    model, x = net_of(name)
    lns = tf_lns.quantize_model(model)
    before = codes_of(lns)
    assert len(before) == len([w for w in model.weights if "kernel" in w.path])
    y = data(len(x), 2, seed=1)
    lns.compile(tf_lns.LNSMadam(), "mse")
    losses = lns.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    for a, b in zip(before, codes_of(lns), strict=True):
        assert (a != b).any()
    ranges = [r for layer in all_layers(lns) for r in getattr(layer, "input_ranges", [])]
    assert all(float(r) > 0 for r in ranges)
    together = lns.predict(x, verbose=0)
    alone = np.concatenate([lns.predict(x[i : i + 1], verbose=0) for i in range(2)])
    close(alone, together[:2], 1e-5)
    plain = tf_lns.strip(lns)
    assert not any(isinstance(layer, layers.LNSMixin) for layer in all_layers(plain))
    for a, b in zip(plain.get_weights(), lns.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["lstm", "gru_before"])
def test_compiled_with_xla_it_takes_the_same_steps(name):
    model, x = net_of(name)
    y = data(len(x), 2, seed=1)
    results = []
    for jit in (False, True):
        lns = tf_lns.quantize_model(model)
        assert all(layer.supports_jit for layer in all_layers(lns))
        lns.compile(tf_lns.LNSMadam(2.0**-6), "mse", jit_compile=jit)
        lns.fit(x, y, verbose=0)
        results.append(lns)
    for a, b in zip(*map(codes_of, results), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 40  # a sum's order moves some operands a code
    close(*[lns.predict(x, verbose=0) for lns in results], 0.02)


@pytest.mark.parametrize("eager", [False, True])
def test_time_distributed_around_it(eager):
    inputs = keras.Input((3, TIME, WIDTH))
    model = keras.Model(inputs, K.TimeDistributed(K.LSTM(UNITS))(inputs))
    lns = tf_lns.quantize_model(model)
    x = data(BATCH, 3, TIME, WIDTH)
    before = codes_of(lns)
    lns.compile(tf_lns.LNSMadam(), "mse", run_eagerly=eager)
    assert np.isfinite(lns.fit(x, data(BATCH, 3, UNITS), verbose=0).history["loss"]).all()
    assert (codes_of(lns)[0] != before[0]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_keras_own_layer_test(kind):
    from keras.src.testing import TestCase

    name, arguments = KINDS[kind]
    shape = SHAPES.get(kind, (BATCH, TIME, WIDTH))
    expected = getattr(K, name)(**arguments).compute_output_shape(shape)
    TestCase().run_layer_test(
        getattr(layers, f"LNS{name}"),
        init_kwargs=arguments,
        input_shape=shape,
        expected_output_shape=expected,
        expected_num_trainable_weights=3,
        expected_num_non_trainable_weights=0,
        expected_num_losses=0,
        supports_masking=True,
        # TensorFlow has float16 convolutions with channels first on some CPUs only.
        run_mixed_precision_check=kind != "conv2d_first",
    )


def test_keras_own_layer_test_of_options():
    from keras.src.testing import TestCase

    for cls in (layers.LNSSimpleRNN, layers.LNSLSTM, layers.LNSGRU):
        TestCase().run_layer_test(
            cls,
            init_kwargs={
                "units": 3,
                "dropout": 0.5,
                "recurrent_dropout": 0.5,
                "return_sequences": True,
                "bias_regularizer": "l1",
                "kernel_regularizer": "l2",
                "recurrent_regularizer": "l2",
            },
            call_kwargs={"training": True},
            input_shape=(3, 2, 4),
            expected_output_shape=(3, 2, 3),
            expected_num_trainable_weights=3,
            expected_num_losses=3,
            supports_masking=True,
        )


def test_keras_own_layer_test_of_rnn():
    from keras.src.testing import TestCase

    TestCase().run_layer_test(
        layers.LNSRNN,
        init_kwargs={"cell": layers.LNSGRUCell(5)},
        input_shape=(3, 2, 4),
        expected_output_shape=(3, 5),
        expected_num_trainable_weights=3,
        expected_num_non_trainable_weights=0,
        supports_masking=True,
    )


@pytest.mark.parametrize("kind", ["simple", "lstm", "gru", "conv2d"])
def test_configs_and_names_are_those_of_the_keras_layer(kind):
    name, arguments = KINDS[kind]
    config = LNSConfig(gradients="lns5:2", activation_scale=3)
    lns = getattr(layers, f"LNS{name}")(**arguments, name="mine", lns_config=config)
    plain = getattr(K, name)(**arguments, name="mine")
    for layer in (lns, plain):
        layer.build(SHAPES.get(kind, (BATCH, TIME, WIDTH)))
    assert [w.path for w in lns.weights] == [w.path for w in plain.weights]
    assert {**plain.get_config(), "lns_config": config.get_config()} == lns.get_config()
    copy = type(lns).from_config(lns.get_config())
    assert copy.lns_config == copy.cell.lns_config == config
    assert type(copy.cell) is type(lns.cell)


def test_a_cell_may_have_formats_of_its_own():
    inner = LNSConfig(gradients="lns5:2")
    model = keras.Sequential([keras.Input((TIME, WIDTH)), K.LSTM(UNITS, name="rnn"), K.Dense(1)])
    lns = tf_lns.quantize_model(model, overrides={"lstm_cell.*": inner})
    assert lns.layers[0].cell.lns_config == inner
    again = keras.Sequential.from_config(lns.get_config())
    assert again.layers[0].cell.lns_config == inner
    assert again.layers[0].lns_config == LNSConfig()


def test_a_cell_may_stay_float():
    model = keras.Sequential([keras.Input((TIME, WIDTH)), K.LSTM(UNITS, name="rnn"), K.Dense(1)])
    lns = tf_lns.quantize_model(model, overrides={"rnn": None})
    assert type(lns.layers[0].cell) is K.LSTMCell
    lns = tf_lns.quantize_model(model, overrides={"lstm_cell.*": None})
    assert type(lns.layers[0].cell) is K.LSTMCell
    x = data(BATCH, TIME, WIDTH)
    close(lns.layers[0](x), model.layers[0](x))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
def test_mixed_precision_computes_in_half_and_stores_integers(name, policy):
    layer = getattr(layers, f"LNS{name}")(UNITS, dtype=policy)
    x = data(BATCH, TIME, WIDTH)
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
    assert y.dtype == policy.removeprefix("mixed_")
    weights = layer.cell.lns_variables
    assert [w.codes.dtype for w in weights] == [np.int16] * 2
    for gradient in tape.gradient(loss, [w.value for w in weights]):
        assert gradient.dtype == tf.float32
        assert np.isfinite(gradient).all()
    full = getattr(layers, f"LNS{name}")(UNITS)
    full.build(x.shape)
    full.set_weights(layer.get_weights())
    close(tf.cast(y, tf.float32), full(x, training=True), 0.1)


# --- Cells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["simple", "lstm", "gru", "gru_before"])
def test_a_cell_alone_does_the_step_of_the_layer(kind):
    layer, _, x = lns_and_keras(kind, config=LNSConfig())
    cell = layer.cell
    states = [data(BATCH, UNITS, seed=i) for i in range(cell.state_count)]
    expected = layer(x[:, :1], initial_state=states)
    output, new = cell(x[:, 0], states)
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(new[0], expected)
    output, _ = cell(x[:, 0], states, training=True)
    assert [float(r) for r in cell.input_ranges[:2]] == [
        np.abs(x[:, 0]).max(),
        np.abs(states[0]).max(),
    ]
    if cell.state_count == 1:
        _, new = cell(x[:, 0], states[0])
        assert new.shape == (BATCH, UNITS)


def test_a_plain_rnn_takes_lns_cells():
    model = keras.Sequential(
        [keras.Input((TIME, WIDTH)), K.RNN([layers.LNSLSTMCell(3), layers.LNSGRUCell(UNITS)])]
    )
    assert type(model.layers[0]) is K.RNN
    x, before = data(BATCH, TIME, WIDTH), codes_of(model)
    model.compile(tf_lns.LNSMadam(), "mse")
    assert np.isfinite(model.fit(x, data(BATCH, UNITS), verbose=0).history["loss"]).all()
    for a, b in zip(before, codes_of(model), strict=True):
        assert (a != b).any()
    expected = model.predict(x, verbose=0)
    converted = tf_lns.quantize_model(model)
    assert type(converted.layers[0]) is layers.LNSRNN
    close(converted.predict(x, verbose=0), expected)


def test_one_cell_twice_in_a_stack():
    cell = layers.LNSGRUCell(WIDTH)
    layer = layers.LNSRNN([cell, cell])
    x = data(BATCH, TIME, WIDTH)
    plain = K.GRUCell(WIDTH)
    plain.build((None, WIDTH))
    layer(x, training=True)
    assert all(float(r) > 0 for r in cell.input_ranges)
    float_cell = layers.LNSGRUCell(WIDTH, lns_config=FLOAT)
    float_layer = layers.LNSRNN([float_cell, float_cell])
    float_layer.build(x.shape)
    plain.set_weights(float_cell.get_weights())
    close(float_layer(x), K.RNN([plain, plain])(x))


@keras.saving.register_keras_serializable(package="test_recurrent")
class Attenuated(keras.layers.LSTMCell):
    """A user's cell with a call of its own."""

    def call(self, inputs, states, training=False):
        output, states = super().call(inputs, states, training=training)
        return 0.5 * output, states


@keras.saving.register_keras_serializable(package="test_recurrent")
class Wrapped(keras.layers.Layer):
    """A user's cell around a cell."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.GRUCell(UNITS)
        self.state_size = self.output_size = UNITS

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs, states):
        return self.inner(inputs, states)


def test_a_cell_with_a_call_of_its_own_stays_as_it_is():
    """That call would run Keras' products and not those of the LNS cell."""
    model = keras.Sequential([keras.Input((TIME, WIDTH)), K.RNN(Attenuated(UNITS)), K.Dense(1)])
    with pytest.warns(UserWarning, match="Attenuated"):
        lns = tf_lns.quantize_model(model)
    assert type(lns.layers[0].cell) is Attenuated
    assert len(codes_of(lns)) == 1
    x = data(BATCH, TIME, WIDTH)
    lns.compile(tf_lns.LNSMadam(), "mse")
    assert np.isfinite(lns.fit(x, data(BATCH, 1), verbose=0).history["loss"]).all()


def test_a_layer_around_a_cell_converts_and_trains():
    model = keras.Sequential([keras.Input((TIME, WIDTH)), K.RNN(Wrapped()), K.Dense(1)])
    lns = tf_lns.quantize_model(model)
    before = codes_of(lns)
    assert len(before) == 3
    x = data(BATCH, TIME, WIDTH)
    close(lns(x), model(x), 0.5)
    lns.compile(tf_lns.LNSMadam(), "mse")
    assert np.isfinite(lns.fit(x, data(BATCH, 1), verbose=0).history["loss"]).all()
    for a, b in zip(before, codes_of(lns), strict=True):
        assert (a != b).any()


# --- Ranges ---------------------------------------------------------------------------------------


def test_a_range_moves_once_per_call():
    layer, _, x = lns_and_keras("lstm", config=LNSConfig(), return_sequences=True)
    first = layer(x, training=True)
    largest = np.abs(first[:, :-1]).max()  # the states that the product has seen
    close([r.numpy() for r in layer.cell.input_ranges], [np.abs(x).max(), largest])
    second = np.abs(layer(3 * x, training=True)[:, :-1]).max()
    close(layer.cell.input_ranges[1].numpy(), 0.9 * largest + 0.1 * second)
    before = [r.numpy() for r in layer.cell.input_ranges]
    layer(5 * x)
    assert before == [r.numpy() for r in layer.cell.input_ranges]


@pytest.mark.parametrize("name", ["lstm", "gru_before", "stack", "conv"])
def test_calibration_records_the_largest(name):
    model, x = net_of(name)
    lns = tf_lns.quantize_model(model)
    tf_lns.calibrate(lns, x, batch_size=4, verbose=0)
    cells = [layer for layer in all_layers(lns) if hasattr(layer, "state_count")]
    ranges = [float(r) for cell in cells for r in cell.input_ranges]
    assert len(ranges) == sum(cell.recorded_ranges for cell in cells)
    assert ranges[0] == np.abs(x).max()
    assert all(r > 0 for r in ranges)
    tf_lns.calibrate(lns, np.concatenate([x, x[:3] / 2]), batch_size=1, verbose=0)
    close([float(r) for cell in cells for r in cell.input_ranges], ranges, 0.05)


@pytest.mark.parametrize("scale", ["batch", 0.25])
def test_other_activation_scales(scale):
    layer, _, x = lns_and_keras("lstm", config=LNSConfig(activation_scale=scale))
    assert layer.cell.input_ranges == []
    q = [quantizer(None if scale == "batch" else scale)] * 2
    expected, _ = reference_lstm(layer.cell, x, q)
    close(layer(x), expected)
    close(layer(x, training=True), expected)


def test_training_may_be_a_tensor():
    layer, _, x = lns_and_keras("gru", config=LNSConfig())
    call = tf.function(layer)
    call(x, training=tf.constant(False))
    assert float(layer.cell.input_ranges[1]) == 0
    call(x, training=tf.constant(True))
    assert float(layer.cell.input_ranges[1]) > 0


def test_a_nan_passes_and_is_not_recorded():
    layer, _, x = lns_and_keras("lstm", config=LNSConfig())
    x[0, 2, 0] = np.nan
    y = layer(x, training=True)
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1:]).all()
    assert all(np.isfinite(r.numpy()) for r in layer.cell.input_ranges)


# --- Files ----------------------------------------------------------------------------------------

READ = """
    import numpy as np
    import tf_lns  # the classes register themselves: no custom_objects
    import keras

    x, y, predicted = np.load("data.npz").values()
    model = keras.saving.load_model("net.keras")
    np.testing.assert_array_equal(model.predict(x, verbose=0), predicted)
    other = keras.models.clone_model(model)
    other.load_weights("net.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), predicted)
    model.fit(x, y, epochs=2, shuffle=False, verbose=0)
    model.save("trained.keras")
"""


def test_a_new_process_reads_every_layer_and_trains_on(tmp_path, run_python):
    x, y = data(8, TIME, WIDTH), data(8, UNITS)
    inside = [K.Bidirectional(K.LSTM(UNITS, return_sequences=True)), stack()]
    lns = tf_lns.quantize_model(keras.Sequential([keras.Input(x.shape[1:]), *inside]))
    lns.compile(tf_lns.LNSMadam(), "mse")
    lns.fit(x, y, verbose=0)
    lns.save(tmp_path / "net.keras")
    lns.save_weights(tmp_path / "net.weights.h5")
    np.savez(tmp_path / "data.npz", x=x, y=y, predicted=lns.predict(x, verbose=0))
    run_python(READ)
    lns.fit(x, y, epochs=2, shuffle=False, verbose=0)
    trained = keras.saving.load_model(tmp_path / "trained.keras")
    assert [type(a) for a in all_layers(trained)] == [type(a) for a in all_layers(lns)]
    for a, b in zip(codes_of(lns), codes_of(trained), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(lns.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# --- Hooks ----------------------------------------------------------------------------------------


def test_the_loop_of_keras_may_have_time_first():
    x = data(TIME, BATCH, WIDTH)

    def step(x, states):
        return x + states[0], [x + states[0]]

    last, outputs, states = keras_hooks.rnn(
        step, tf.constant(x), [tf.zeros((BATCH, WIDTH))], time_major=True, input_length=TIME
    )
    close(outputs, np.cumsum(x, 0))
    close(last, x.sum(0))
    close(states[0], x.sum(0))


def test_the_convolutional_cell_is_the_one_that_keras_makes():
    assert type(K.ConvLSTM2D(1, 1).cell) is keras_hooks.ConvLSTMCell


def test_kernels_of_zeros_stay_float():
    layer = layers.LNSLSTM(UNITS, recurrent_initializer="zeros")
    layer.build((BATCH, TIME, WIDTH))
    assert isinstance(layer.cell.kernel, LNSVariable)
    assert not isinstance(layer.cell.recurrent_kernel, LNSVariable)
    assert np.isfinite(layer(data(BATCH, TIME, WIDTH), training=True)).all()
