"""Quantization-aware training with tfmot: what is quantized where, and that it trains."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tests.tfmot_nets import layers, quantized, tf_keras, tfmot
from tf_lns import ops, reference
from tf_lns.tfmot import LNSQuantizeConfig, LNSQuantizer, LNSScheme
from tf_lns.tfmot.gradients import left_to_the_optimizer
from tf_lns.tfmot.registry import row_of

annotate = tfmot.quantize_annotate_layer
SIGNED = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
    tf_keras.utils.set_random_seed(1)


def normal(*shape):
    return SIGNED.normal(size=shape).astype(np.float32)


def functional(build, shape):
    inputs = layers.Input(shape)
    return tf_keras.Model(inputs, build(inputs))


def weight_of(wrapper, name="kernel"):
    return getattr(wrapper.layer, name)


def at_range(x, wrapper, index):
    """Q_A under one of a wrapper's recorded ranges."""
    scale = reference.scale_of(wrapper.input_ranges[index].numpy(), "lns8:8")
    return reference.quantize(np.asarray(x), "lns8:8", scale=scale)


# --- A group ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "activation"),
    [
        (lambda: layers.Conv2D(6, 3, use_bias=False), lambda: layers.ReLU(6.0)),
        (lambda: layers.DepthwiseConv2D(3), lambda: layers.ReLU()),
        (lambda: layers.Dense(5), lambda: layers.Activation("relu")),
    ],
    ids=["conv", "depthwise", "dense"],
)
def test_a_group_is_the_float_computation_on_quantized_values(first, activation):
    x = normal(16, 6, 6, 3)
    model = tf_keras.Sequential(
        [
            layers.Input((6, 6, 3)),
            first(),
            layers.BatchNormalization(),
            activation(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model = quantized(model, LNSScheme())
    model.compile("sgd", "mse")
    model.fit(x, normal(16, 3), epochs=2, verbose=0)
    product, norm, act, _, dense = model.layers
    assert [(w.quantize_inputs, w.quantize_outputs) for w in model.layers] == [
        (True, False),
        (False, False),
        (False, True),
        (False, False),
        (False, False),
    ]

    (kernel,) = product.lns_variables
    plain = type(product.layer).from_config(product.layer.get_config())
    plain.build(x.shape)
    others = [w for w in product.layer.weights if w is not kernel]
    plain.set_weights([kernel.read(kernel.seen), *(w.numpy() for w in others)])
    z = plain(at_range(x, product, 0))
    y = act.layer(norm.layer(z, training=False))
    y = at_range(y, act, 0)
    group = tf_keras.Model(model.inputs, act.output)
    np.testing.assert_allclose(group(x), y, rtol=1e-5)
    end = y.reshape(16, -1) @ weight_of(dense).read(weight_of(dense).seen) + dense.layer.bias
    np.testing.assert_allclose(model(x), end, rtol=1e-4, atol=1e-5)


def both_nets(name):
    """The same net in tf_keras and in Keras 3: (tf_keras model, Keras 3 model, inputs)."""

    def chain(k, *parts):
        return k.Sequential([k.layers.Input(shapes[name]), *parts])

    shapes = {"conv": (8, 8, 2), "embedding": (6,)}
    shapes = {
        **dict.fromkeys(("lstm", "gru", "rnn", "bidirectional", "attention"), (6, 5)),
        **shapes,
    }

    def make(k):
        la = k.layers
        if name == "conv":
            return chain(
                k,
                la.Conv2D(4, 3, activation="elu"),
                la.DepthwiseConv2D(3),
                la.BatchNormalization(),
                la.ReLU(),
                la.SeparableConv2D(4, 3),
                la.Flatten(),
                la.Dense(3),
            )
        if name == "embedding":
            return chain(k, la.Embedding(9, 4), la.LayerNormalization(), la.Flatten(), la.Dense(3))
        if name == "attention":
            inputs = la.Input(shapes[name])
            x = la.MultiHeadAttention(2, 3)(inputs, inputs)
            return k.Model(inputs, la.Dense(3)(la.Flatten()(x)))
        layer = {
            "lstm": lambda: la.LSTM(4),
            "gru": lambda: la.GRU(4),
            "rnn": lambda: la.SimpleRNN(4, activation="relu"),
            "bidirectional": lambda: la.Bidirectional(la.GRU(4, reset_after=False)),
        }[name]()
        return chain(k, layer, la.Dense(3))

    old, new = make(tf_keras), make(keras)
    x = normal(12, *shapes[name])
    if name == "embedding":
        x = np.abs(x * 3).astype(np.int32) % 9
    order = [*old.trainable_weights, *old.non_trainable_weights]
    values = [w.numpy() for w in order]
    for variable, value in zip(
        [
            *new.trainable_variables,
            *(v for v in new.non_trainable_variables if "seed" not in v.path),
        ],
        values,
        strict=True,
    ):
        variable.assign(np.reshape(value, variable.shape))
    return old, new, x


@pytest.mark.parametrize(
    "name", ["conv", "embedding", "lstm", "gru", "rnn", "bidirectional", "attention"]
)
def test_the_same_step_as_the_layers_of_keras_3(name):
    """Outputs in training, and every gradient: one arithmetic, two Keras."""
    old, new, x = both_nets(name)
    old, new = quantized(old, LNSScheme()), tf_lns.quantize_model(new)
    with tf.GradientTape() as tape:
        y = old(x, training=True)
        loss = tf.reduce_sum(y**2)
    with left_to_the_optimizer():
        gradients = tape.gradient(loss, old.trainable_weights)
    with tf.GradientTape() as tape:
        y3 = new(x, training=True)
        loss3 = tf.reduce_sum(y3**2)
    gradients3 = tape.gradient(loss3, [v.value for v in new.trainable_variables])
    np.testing.assert_allclose(y, y3, rtol=1e-4, atol=1e-5)
    for mine, theirs, variable in zip(gradients, gradients3, new.trainable_variables, strict=True):
        mine = np.reshape(tf.convert_to_tensor(mine), variable.shape)
        theirs = tf.convert_to_tensor(theirs)
        scale = np.abs(theirs).max()
        far = np.abs(mine - theirs) > 1e-4 * scale
        # A value beside a threshold of the format may fall on its other side.
        assert far.mean() < 0.03, variable.path
        np.testing.assert_allclose(mine, theirs, atol=0.1 * scale, err_msg=variable.path)


def test_codes_are_the_weights():
    model = quantized(tf_keras.Sequential([layers.Dense(4, input_shape=(5,))]), LNSScheme())
    (wrapper,) = model.layers
    kernel = wrapper.layer.kernel
    assert kernel.codes.dtype == tf.int16
    assert any(kernel is weight for weight in model.trainable_weights)
    assert any(kernel is weight for weight in wrapper.layer._trainable_weights)
    floats = [w for w in wrapper.weights if w.shape == (5, 4) and w is not kernel]
    assert not floats
    assert kernel.role.gradient_format == tf_lns.LNSFormat(8, 8)
    assert kernel.role.gradient_options["axis"] == (1,)


# --- Where quantizers are ---------------------------------------------------------------------


def places(model):
    return {
        w.layer.name: (w.quantize_inputs, w.quantize_outputs)
        for w in model.layers
        if hasattr(w, "quantize_inputs")
    }


def test_a_product_before_a_relu_layer_keeps_its_weight_quantizer():
    """Stock tfmot takes it away: LayerReLUQuantize gives the layer a NoOpQuantizeConfig."""
    model = tf_keras.Sequential(
        [
            layers.Conv2D(4, 3, input_shape=(6, 6, 1), name="c"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3, name="d"),
            layers.ReLU(),
        ]
    )
    stock = tfmot.quantize_apply(tfmot.quantize_annotate_model(model))
    assert [len(w._weight_vars) for w in stock.layers if w.name in ("quant_c", "quant_d")] == [0, 0]
    ours = quantized(model, LNSScheme())
    assert [len(w.lns_variables) for w in ours.layers] == [1, 0, 0, 1, 0]


def test_one_quantizer_behind_a_concatenation():
    def build(x):
        a = layers.Dense(4, name="a")(x)
        b = layers.Dense(4, "relu", name="b")(x)
        return layers.Dense(2, name="end")(layers.Concatenate(name="both")([a, b]))

    found = places(quantized(functional(build, (3,)), LNSScheme()))
    assert found == {
        "a": (True, False),
        "b": (True, False),
        "both": (False, True),
        "end": (False, False),
    }


def test_what_two_layers_read_is_quantized_where_it_is_made():
    def build(x):
        a = layers.Dense(4, name="a")(x)
        b = layers.BatchNormalization(name="norm")(a)
        return layers.Dense(2, name="end")(layers.Add(name="sum")([a, b]))

    found = places(quantized(functional(build, (3,)), LNSScheme()))
    assert found == {
        "a": (True, True),
        "norm": (False, True),
        "sum": (False, True),
        "end": (False, False),
    }


def test_layers_that_move_values_keep_them_quantized():
    parts = [
        layers.Dense(4, "relu", input_shape=(4,), name="a"),
        layers.Dropout(0.5),
        layers.Reshape((2, 2)),
        layers.Permute((2, 1)),
        layers.Dense(2, name="b"),
    ]
    found = places(quantized(tf_keras.Sequential(parts), LNSScheme()))
    assert found["a"] == (True, True)
    assert found["b"] == (False, False)
    assert not any(any(found[part.name]) for part in parts[1:-1])


@pytest.mark.parametrize("asked", [False, True])
def test_outputs_of_the_model_are_quantized_when_asked(asked):
    model = tf_keras.Sequential([layers.Dense(4, input_shape=(4,)), layers.Reshape((2, 2))])
    model = quantized(model, LNSScheme(quantize_outputs=asked))
    assert places(model)[model.layers[0].layer.name] == (True, asked)
    values = np.unique(np.abs(model(normal(64, 4))))
    assert (len(values) <= 127) == asked


def test_token_ids_are_never_quantized():
    """Not even as floats, which tf_keras makes of them: stock tfmot quantizes them."""
    model = tf_keras.Sequential(
        [layers.Embedding(400, 3, input_length=4), layers.Flatten(), layers.Dense(2)]
    )
    ids = np.array([[1, 200, 399, 350]], np.float32)
    table = model.layers[0].embeddings.numpy()
    model = quantized(model, LNSScheme(tf_lns.LNSConfig(weights="lns16:2048")))
    rows = tf_keras.Model(model.inputs, model.layers[0].output)(ids)
    np.testing.assert_allclose(rows[0], table[ids[0].astype(int)], rtol=0.05)


def test_predictions_do_not_depend_on_the_batch():
    x = normal(32, 5)
    model = tf_keras.Sequential([layers.Dense(8, "relu", input_shape=(5,)), layers.Dense(2)])
    model = quantized(model, LNSScheme())
    model.compile("adam", "mse")
    model.fit(x, normal(32, 2), verbose=0)
    assert [float(r) > 0 for w in model.layers for r in w.input_ranges] == [True, True]
    np.testing.assert_array_equal(model.predict(x, verbose=0)[:3], model.predict(x[:3], verbose=0))


# --- Every row --------------------------------------------------------------------------------

SEQUENCE = (6, 4)
NETS = {
    "conv1d": (SEQUENCE, lambda x: layers.Conv1D(4, 3, activation=tf.nn.relu6)(x)),
    "conv3d": ((4, 4, 4, 1), lambda x: layers.Conv3D(2, 2)(x)),
    "conv transpose": ((4, 4, 2), lambda x: layers.Conv2DTranspose(2, 3)(x)),
    "separable": ((6, 6, 2), lambda x: layers.SeparableConv2D(3, 3)(x)),
    "separable causal": (SEQUENCE, lambda x: layers.SeparableConv1D(3, 2, padding="causal")(x)),
    "einsum": (SEQUENCE, lambda x: layers.EinsumDense("abc,cd->abd", (None, 3))(x)),
    "embedding lstm": ((6,), lambda x: layers.LSTM(3)(layers.Embedding(9, 4, mask_zero=True)(x))),
    "masking gru": (SEQUENCE, lambda x: layers.GRU(3, return_sequences=True)(layers.Masking()(x))),
    "dropout": (SEQUENCE, lambda x: layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2)(x)),
    "dropout gru": (
        SEQUENCE,
        lambda x: layers.GRU(3, dropout=0.2, recurrent_dropout=0.2, reset_after=False)(x),
    ),
    "simple rnn": (SEQUENCE, lambda x: layers.SimpleRNN(3, go_backwards=True)(x)),
    "rnn of cell": (SEQUENCE, lambda x: layers.RNN(layers.LSTMCell(3), unroll=True)(x)),
    "states": (SEQUENCE, lambda x: layers.LSTM(3, return_state=True)(x)[1]),
    "initial state": (
        SEQUENCE,
        lambda x: layers.GRU(3)(x, initial_state=layers.Dense(3)(layers.Flatten()(x))),
    ),
    "bidirectional": (SEQUENCE, lambda x: layers.Bidirectional(layers.LSTM(3))(x)),
    "time distributed": (SEQUENCE, lambda x: layers.TimeDistributed(layers.Dense(3, "elu"))(x)),
    "attention": (SEQUENCE, lambda x: layers.Add()([x, layers.MultiHeadAttention(2, 3)(x, x)])),
    "norms": ((6,), lambda x: layers.BatchNormalization()(layers.LayerNormalization()(x))),
    "multiply": ((6,), lambda x: layers.Multiply()([layers.Dense(4)(x), layers.Dense(4)(x)])),
    "dot": ((6,), lambda x: layers.Dot(1)([layers.Dense(4)(x), layers.Dense(4)(x)])),
    "rescaling": ((6,), lambda x: layers.Rescaling(0.5)(x)),
    "activations": ((6,), lambda x: layers.Softmax()(layers.PReLU()(layers.ELU()(x)))),
    "pooling": (
        (6, 6, 2),
        lambda x: layers.UpSampling2D()(layers.AveragePooling2D()(layers.MaxPooling2D()(x))),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_every_row_trains_and_comes_back_from_a_file(name, tmp_path):
    shape, build = NETS[name]
    model = functional(lambda x: layers.Dense(2)(layers.Flatten()(build(x))), shape)
    x = normal(8, *shape)
    if name == "embedding lstm":
        x = np.abs(x * 3).astype(np.int32) % 9
    plain = model.predict(x, verbose=0)
    model = quantized(model, LNSScheme())
    assert np.abs(model.predict(x, verbose=0) - plain).max() < 0.25 * np.abs(plain).max()
    model.compile("adam", "mse")
    model.fit(x, normal(8, 2), epochs=2, verbose=0)
    assert all(
        weight.codes.dtype == tf.int16 for w in model.layers[1:] for weight in w.lns_variables
    )
    before = model.predict(x, verbose=0)
    np.testing.assert_allclose(before[:3], model.predict(x[:3], verbose=0), rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), before)


@pytest.mark.parametrize("name", ["separable", "attention", "embedding lstm", "masking gru"])
def test_rows_compile_with_jit(name):
    shape, build = NETS[name]
    model = functional(lambda x: layers.Dense(2)(layers.Flatten()(build(x))), shape)
    x, y = normal(8, *shape), normal(8, 2)
    if name == "embedding lstm":
        x = np.abs(x * 3).astype(np.int32) % 9
    losses = []
    for jit in (False, True):
        trained = quantized(model, LNSScheme())
        trained.compile(tf_keras.optimizers.SGD(0.01), "mse", jit_compile=jit)
        losses.append(trained.fit(x, y, epochs=3, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)


def test_everything_that_stock_supports_has_a_row():
    registry = tfmot.default_8bit.Default8BitQuantizeScheme().get_quantize_registry()
    ours = tf_lns.tfmot.registry._ROWS
    missing = [c.__name__ for c in registry._layer_quantize_map if c not in ours]
    assert not missing


def test_mixed_precision_keeps_integer_weights():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = tf_keras.Sequential(
            [
                layers.Conv2D(4, 3, input_shape=(6, 6, 1)),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Flatten(),
                layers.Dense(2, dtype="float32"),
            ]
        )
        model = quantized(model, LNSScheme())
        model.compile("adam", "mse")
        model.fit(normal(8, 6, 6, 1), normal(8, 2), verbose=0)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert [len(w.lns_variables) for w in model.layers] == [1, 0, 0, 0, 1]
    assert model.layers[0].compute_dtype == "bfloat16"


def test_regularizers_follow_the_weight():
    model = tf_keras.Sequential(
        [layers.Dense(3, input_shape=(4,), kernel_regularizer="l2", activity_regularizer="l1")]
    )
    model = quantized(model, LNSScheme())
    kernel = model.layers[0].layer.kernel
    with tf.GradientTape() as tape:
        model(normal(2, 4), training=True)
        losses = sorted(model.losses, key=lambda x: abs(x - 0.01 * np.sum(kernel.numpy() ** 2)))
    penalty, activity = losses
    assert activity > 0
    gradient = tape.gradient(penalty, kernel)
    np.testing.assert_allclose(gradient, 0.02 * kernel.numpy(), rtol=1e-5)


def test_a_constraint_is_refused():
    model = tf_keras.Sequential(
        [layers.Dense(3, input_shape=(4,), kernel_constraint="max_norm", name="held")]
    )
    with pytest.raises(ValueError, match=r"constraint=.*'held'.*drop the constraint"):
        quantized(model, LNSScheme())


# --- What is not supported --------------------------------------------------------------------


@tf_keras.utils.register_keras_serializable("test_tfmot")
class Mine(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight("table", shape=(shape[-1], 4))
        self.offset = self.add_weight("my_bias", shape=(4,), initializer="zeros")

    def call(self, x):
        return tf.matmul(x, self.table) + self.offset


def with_mine(config=None):
    mine = Mine(name="mine") if config is None else annotate(Mine(name="mine"), config)
    return tf_keras.Sequential([layers.Dense(4, input_shape=(4,)), mine, layers.Dense(2)])


def test_an_unknown_layer_is_an_error_with_ways_out():
    with pytest.raises(ValueError, match=r"'mine' of class .*Mine.*LNSQuantizeConfig.*skip"):
        quantized(with_mine(), LNSScheme())


def test_an_unknown_layer_can_be_skipped():
    with pytest.warns(UserWarning, match="'mine' of class Mine is left float"):
        model = quantized(with_mine(), LNSScheme(on_unsupported="skip"))
    assert [type(layer).__name__ for layer in model.layers][1] == "Mine"
    assert model.layers[2].quantize_inputs


def test_an_unknown_layer_with_a_config_is_quantized():
    model = quantized(with_mine(LNSQuantizeConfig()), LNSScheme())
    wrapper = model.layers[1]
    assert [v.name.split("/")[-1] for v in wrapper.lns_variables] == ["table:0"]
    model.compile("adam", "mse")
    model.fit(normal(8, 4), normal(8, 2), verbose=0)


def operations():
    inputs = layers.Input((4,))
    return tf_keras.Model(inputs, layers.Dense(2)(layers.Dense(4)(inputs) + 1.0))


def nested():
    inner = tf_keras.Sequential([layers.Dense(4, input_shape=(4,))], name="inner")
    return tf_keras.Sequential([inner, layers.Dense(2)])


@pytest.mark.parametrize(
    ("make", "match"),
    [(operations, "'tf.__operators__.add.*write it as a layer"), (nested, "'inner' is a model")],
)
def test_what_tfmot_cannot_carry_is_named_or_skipped(make, match):
    with pytest.raises(ValueError, match=match):
        LNSScheme().annotate(make())
    scheme = LNSScheme(on_unsupported="skip")
    with pytest.warns(UserWarning, match="left float"):
        model = tfmot.quantize_apply(scheme.annotate(make()), scheme=scheme)
    assert len(model.layers[-1].lns_variables) == 1
    model.compile("adam", "mse")
    model.fit(normal(8, 4), normal(8, 2), verbose=0)


def test_layers_that_are_not_annotated_stay_float():
    model = tf_keras.Sequential([layers.Dense(4, input_shape=(4,)), annotate(layers.Dense(2))])
    model = tfmot.quantize_apply(model, scheme=LNSScheme())
    assert isinstance(model.layers[0], layers.Dense)
    assert model.layers[1].quantize_inputs


# --- Other schemes, and configs ---------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "elu", "softmax", "linear"])
def test_a_config_under_the_stock_scheme(activation, tmp_path):
    config = LNSQuantizeConfig(tf_lns.LNSConfig(gradients="lns5:2"))
    model = tf_keras.Sequential(
        [annotate(layers.Dense(6, activation, input_shape=(4,)), config), annotate(layers.Dense(2))]
    )
    model = tfmot.quantize_apply(model)
    x, y = normal(16, 4), normal(16, 2)
    model.compile("adam", "mse")
    model.fit(x, y, epochs=2, verbose=0)
    wrapper = model.layers[1]
    hidden = tf_keras.Model(model.inputs, wrapper.output)(x)
    assert len(np.unique(np.abs(hidden))) <= 128
    before = model.predict(x, verbose=0)
    model.save(tmp_path / "model.h5")
    with tfmot.quantize_scope():
        loaded = tf_keras.models.load_model(tmp_path / "model.h5")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), before)


def test_a_config_under_the_stock_scheme_quantizes_gradients():
    config = LNSQuantizeConfig(tf_lns.LNSConfig(gradients="lns2:1", errors="lns2:1"))
    model = tfmot.quantize_apply(
        tf_keras.Sequential([annotate(layers.Dense(3, input_shape=(4,)), config)])
    )
    kernel = model.trainable_weights[0]
    assert kernel.dtype == tf.float32
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(normal(8, 4), training=True) ** 2)
    gradient = np.abs(tape.gradient(loss, kernel))
    for channel in gradient.T:  # one magnitude
        assert len(np.unique(channel)) == 1


class OwnConfig(tfmot.QuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, LNSQuantizer("lns8:8"))]

    def get_activations_and_quantizers(self, layer):
        return [(layer.activation, LNSQuantizer("lns8:8"))]

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer, quantize_activations):
        layer.activation = quantize_activations[0]

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


@pytest.mark.parametrize("scheme", [None, LNSScheme()])
def test_a_quantizer_in_a_config_of_ones_own(scheme, tmp_path):
    model = tf_keras.Sequential(
        [
            annotate(layers.Dense(6, "relu", input_shape=(4,)), OwnConfig()),
            annotate(layers.Dense(2)),
        ]
    )
    x = normal(16, 4)
    with tfmot.quantize_scope({"OwnConfig": OwnConfig}):
        model = tfmot.quantize_apply(model, **({"scheme": scheme} if scheme else {}))
        model.compile("adam", "mse")
        model.fit(x, normal(16, 2), verbose=0)
        model.save(tmp_path / "model.h5")
        loaded = tf_keras.models.load_model(tmp_path / "model.h5")
    before = model.predict(x, verbose=0)
    np.testing.assert_array_equal(before[:3], model.predict(x[:3], verbose=0))
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), before)


def test_a_layers_own_config_goes_before_the_schemes():
    own = LNSQuantizeConfig(tf_lns.LNSConfig(weights="lns4:1"), quantize_output=True)
    model = tf_keras.Sequential(
        [annotate(layers.Dense(4, input_shape=(4,)), own), annotate(layers.Dense(2))]
    )
    model = tfmot.quantize_apply(model, scheme=LNSScheme(tf_lns.LNSConfig(weights="lns6:2")))
    assert [str(w.lns_variables[0].seen) for w in model.layers] == ["lns4:1", "lns6:2"]


@pytest.mark.parametrize(
    "thing",
    [
        LNSScheme(tf_lns.LNSConfig(gradients="lns5:2"), on_unsupported="skip", name_prefix="lns_"),
        LNSQuantizeConfig(tf_lns.LNSConfig(activations=None), quantize_output=False),
        LNSQuantizer("lns6:4", kind="weight", gradient_format="lns5:2", gradient_axis=[0, 1]),
    ],
)
def test_configs_go_round(thing):
    again = type(thing).from_config(thing.get_config())
    assert again.get_config() == thing.get_config()
    saved = tf_keras.saving.serialize_keras_object(thing)
    assert tf_keras.saving.deserialize_keras_object(saved).get_config() == thing.get_config()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LNSScheme(on_unsupported="ignore"), "on_unsupported='ignore'"),
        (lambda: LNSScheme(quantize_outputs=1), "quantize_outputs=1"),
        (lambda: LNSQuantizeConfig(quantize_output="yes"), "quantize_output='yes'"),
        (lambda: LNSQuantizer(kind="bias"), "kind='bias'"),
        (lambda: LNSQuantizer("int8"), "int8"),
    ],
)
def test_bad_arguments_are_named(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


def test_the_registry_answers_tfmot():
    registry = LNSScheme(tf_lns.LNSConfig(weights="lns6:2")).get_quantize_registry()
    assert registry.supports(layers.Dense(2))
    assert not registry.supports(Mine())
    assert str(registry.get_quantize_config(layers.Dense(2)).config.weights) == "lns6:2"
    with pytest.raises(ValueError, match="no row"):
        registry.get_quantize_config(Mine())
    assert row_of(layers.TimeDistributed(Mine())) is None
    assert ops is tf_lns.ops


# --- Several devices --------------------------------------------------------------------------


def test_two_devices_keep_equal_codes(run_python):
    run_python(
        """
        import numpy as np, tensorflow as tf
        cpu, part = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration
        tf.config.set_logical_device_configuration(cpu, [part(), part()])
        import tf_keras, tf_lns.tfmot
        import tensorflow_model_optimization as tfmot
        q, layers = tfmot.quantization.keras, tf_keras.layers
        x, y = np.random.randn(32, 6, 4).astype("f"), np.random.randn(32, 2).astype("f")

        def trained(strategy):
            with strategy.scope():
                tf_keras.utils.set_random_seed(0)
                model = tf_keras.Sequential([
                    layers.Conv1D(4, 2, activation="relu", input_shape=(6, 4)),
                    layers.LayerNormalization(), layers.GRU(4), layers.Dense(2)])
                model = q.quantize_apply(
                    q.quantize_annotate_model(model), scheme=tf_lns.tfmot.LNSScheme())
                model.compile(tf_keras.optimizers.SGD(0.01), "mse")
            losses = model.fit(x, y, epochs=2, shuffle=False, verbose=0).history["loss"]
            return model, losses

        two, losses = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
        _, alone = trained(tf.distribute.get_strategy())
        np.testing.assert_allclose(losses, alone, rtol=0.05)
        kernels = [w for w in two.trainable_weights if hasattr(w.values[0], "codes")]
        assert len(kernels) == 4
        for kernel in kernels:
            first, second = kernel.values
            np.testing.assert_array_equal(first.codes.numpy(), second.codes.numpy())
        before = two.predict(x, verbose=0)
        np.testing.assert_array_equal(before[:5], two.predict(x[:5], verbose=0))
        two.save("model.keras")
        loaded = tf_keras.models.load_model("model.keras")
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), before)
        """
    )
