"""LNS layers against float products assembled from the NumPy reference."""

import dataclasses
import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns import LNSConfig, LNSFormat, LNSVariable, layers, reference

F32 = np.float32
A = W = E = LNSFormat(8, 8)


@dataclasses.dataclass
class Case:
    """A layer, its arguments and an input; `axis`: the output channels of its kernel."""

    lns: type
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    axis: tuple[int, ...] = (-1,)

    @property
    def keras(self):
        return getattr(keras.layers, self.lns.__name__.removeprefix("LNS"))


CASES = {
    "dense": Case(layers.LNSDense, {"units": 5}, (6, 7)),
    "dense_rank3": Case(layers.LNSDense, {"units": 5}, (2, 3, 7)),
    "einsum": Case(
        layers.LNSEinsumDense,
        {"equation": "abc,cde->abde", "output_shape": (4, 2, 3), "bias_axes": "de"},
        (2, 4, 5),
        (1, 2),
    ),
    "einsum_output": Case(
        layers.LNSEinsumDense,
        {"equation": "abcd,cde->abe", "output_shape": (4, 6)},
        (2, 4, 2, 3),
    ),
    "conv1d": Case(
        layers.LNSConv1D,
        {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        (2, 9, 3),
    ),
    "conv2d": Case(
        layers.LNSConv2D,
        {"filters": 4, "kernel_size": 3, "padding": "same", "strides": 2},
        (2, 7, 7, 3),
    ),
    "conv2d_groups": Case(
        layers.LNSConv2D, {"filters": 4, "kernel_size": 2, "groups": 2}, (2, 5, 5, 4)
    ),
    "conv2d_first": Case(
        layers.LNSConv2D,
        {"filters": 4, "kernel_size": 2, "data_format": "channels_first", "use_bias": False},
        (2, 3, 5, 5),
    ),
    "conv3d": Case(layers.LNSConv3D, {"filters": 3, "kernel_size": 2}, (2, 4, 4, 4, 2)),
    "depthwise1d": Case(
        layers.LNSDepthwiseConv1D, {"kernel_size": 3, "depth_multiplier": 2}, (2, 7, 3), (-2, -1)
    ),
    "depthwise2d": Case(
        layers.LNSDepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2, "dilation_rate": 2},
        (2, 7, 7, 3),
        (-2, -1),
    ),
    "transpose1d": Case(
        layers.LNSConv1DTranspose, {"filters": 4, "kernel_size": 3}, (2, 5, 3), (-2,)
    ),
    "transpose2d": Case(
        layers.LNSConv2DTranspose,
        {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"},
        (2, 4, 4, 3),
        (-2,),
    ),
    "transpose3d": Case(
        layers.LNSConv3DTranspose, {"filters": 2, "kernel_size": 2}, (2, 3, 3, 3, 2), (-2,)
    ),
}
SEPARABLE = {
    "separable1d": Case(
        layers.LNSSeparableConv1D,
        {"filters": 4, "kernel_size": 3, "depth_multiplier": 2, "padding": "same"},
        (2, 7, 3),
    ),
    "separable2d": Case(
        layers.LNSSeparableConv2D, {"filters": 4, "kernel_size": 3, "strides": 2}, (2, 7, 7, 3)
    ),
}
EMBEDDING = Case(layers.LNSEmbedding, {"input_dim": 11, "output_dim": 4}, (3, 5))
ALL = {**CASES, **SEPARABLE, "embedding": EMBEDDING}

each_case = pytest.mark.parametrize("name", CASES)
each_layer = pytest.mark.parametrize("name", ALL)


def inputs_of(case, seed=0):
    rng = np.random.default_rng(seed)
    if case is EMBEDDING:
        return rng.integers(0, 11, case.shape).astype("int32")
    return rng.normal(size=case.shape).astype(F32)


def quantized(x, format=A, **options):
    """Reference Q under the scale of x itself."""
    return reference.quantize(np.asarray(x), format, **options)


def seen(variable):
    """What a product sees of an integer weight, by the reference."""
    codes = reference.requantize(variable.codes, variable.format, W)
    scale = reference.requantize_scale(variable.scale, variable.format, W)
    return reference.decode(codes, scale, W)


def plain_product(case, kernels, shape):
    """The Keras layer without bias and activation on the given kernels, and its variables."""
    arguments = {k: v for k, v in case.arguments.items() if k != "bias_axes"}
    if case.keras is not keras.layers.EinsumDense:
        arguments["use_bias"] = False
    product = case.keras(**arguments)
    product.build(shape)
    product.set_weights(kernels)
    return product


def close(actual, expected, tolerance=2e-6):
    """Equal but for the order of sums."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    bound = tolerance * max(np.abs(expected).max(initial=0), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


def train_gradients(layer, x, upstream, variables):
    with tf.GradientTape() as tape:
        x = tf.constant(x)
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(y * upstream)
    return y, tape.gradient(loss, [x, *[v.value for v in variables]])


# --- Numerics ---------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("activation", ["tanh", None])
def test_forward_and_backward_are_the_float_products_of_quantized_operands(name, activation):
    case = CASES[name]
    layer = case.lns(**case.arguments, activation=activation, bias_initializer="uniform")
    x = inputs_of(case)
    layer.build(x.shape)
    upstream = np.random.default_rng(1).normal(size=layer(x).shape).astype(F32)
    y, (dx, dw, *_) = train_gradients(layer, x, upstream, layer.trainable_variables)

    product = plain_product(case, [seen(layer.kernel)], x.shape)
    xq = tf.constant(quantized(x))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(xq)
        z = product(xq)
        biased = z
        if layer.bias is not None:
            biased = z + layer.bias.value
        tape.watch(biased)
        expected = layer.activation(biased)
        loss = tf.reduce_sum(expected * upstream)
    close(y, expected)
    error = quantized(tape.gradient(loss, biased))  # inside the activation function
    close(dx, tape.gradient(z, xq, output_gradients=error))
    # Not quantized here: Q_G acts in the optimizer.
    close(dw, tape.gradient(z, product.trainable_variables[0].value, output_gradients=error))


@pytest.mark.parametrize("name", SEPARABLE)
def test_a_separable_convolution_quantizes_between_its_products(name):
    case = SEPARABLE[name]
    layer = case.lns(**case.arguments, activation="tanh")
    x = inputs_of(case)
    layer.build(x.shape)
    depthwise, pointwise, bias = layer.trainable_variables
    upstream = np.random.default_rng(1).normal(size=layer(x).shape).astype(F32)
    y, (dx, d_depthwise, d_pointwise, d_bias) = train_gradients(
        layer, x, upstream, layer.trainable_variables
    )

    rank = len(case.shape) - 2
    first = getattr(keras.layers, f"DepthwiseConv{rank}D")(
        3,
        depth_multiplier=layer.depth_multiplier,
        use_bias=False,
        strides=layer.strides[0],
        padding=layer.padding,
    )
    first.build(x.shape)
    first.set_weights([seen(depthwise)])
    second = getattr(keras.layers, f"Conv{rank}D")(layer.filters, 1, use_bias=False)
    xq = tf.constant(quantized(x))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(xq)
        between = first(xq)
        between_q = tf.constant(quantized(between))
        tape.watch(between_q)
        second.build(between.shape)
        second.set_weights([seen(pointwise)])
        z = second(between_q)
        tape.watch(z)
        expected = layer.activation(z + bias.value)
        loss = tf.reduce_sum(expected * upstream)
    close(y, expected)
    error = tf.constant(quantized(tape.gradient(loss, z)))
    close(d_pointwise, tape.gradient(z, second.kernel.value, output_gradients=error))
    close(d_bias, tf.reduce_sum(error, list(range(len(error.shape) - 1))))
    error = tf.constant(quantized(tape.gradient(z, between_q, output_gradients=error)))
    close(d_depthwise, tape.gradient(between, first.kernel.value, output_gradients=error))
    close(dx, tape.gradient(between, xq, output_gradients=error))


def test_an_embedding_reads_rows_of_the_quantized_table():
    layer = layers.LNSEmbedding(11, 4, mask_zero=True)
    ids = inputs_of(EMBEDDING)
    upstream = np.random.default_rng(1).normal(size=(*ids.shape, 4)).astype(F32)
    with tf.GradientTape() as tape:
        y = layer(ids, training=True)
        loss = tf.reduce_sum(y * upstream)
    table = seen(layer.embeddings)
    np.testing.assert_array_equal(y, table[ids])
    gradient = tf.convert_to_tensor(tape.gradient(loss, layer.embeddings.value))
    expected = np.zeros((11, 4), F32)
    np.add.at(expected, ids, quantized(upstream))
    close(gradient, expected)
    np.testing.assert_array_equal(layer.compute_mask(ids), ids != 0)


@each_layer
def test_the_optimizer_quantizes_a_gradient_per_output_channel(name):
    case = ALL[name]
    config = LNSConfig(gradients="lns5:2", gradient_underflow="flush")
    layer = case.lns(**case.arguments, lns_config=config)
    layer.build(case.shape)
    optimizer = tf_lns.LNSMadam(2.0**-5)
    weights = layer.lns_variables
    gradients = [np.random.default_rng(2).normal(size=w.shape).astype(F32) for w in weights]
    before = [(w.codes, w.scale) for w in weights]
    optimizer.build(weights)
    optimizer.apply(gradients, weights)
    for weight, gradient, (codes, scale) in zip(weights, gradients, before, strict=True):
        axis = case.axis
        if "depthwise" in weight.name:
            axis = (-2, -1)
        g = reference.quantize(gradient, config.gradients, axis=axis, underflow="flush")
        zeros = np.zeros(weight.shape, F32)
        expected, _, _ = reference.madam_step(codes, g, zeros, step=1, learning_rate=2.0**-5)
        np.testing.assert_array_equal(weight.codes, expected)
        assert (weight.codes != codes).any()
        assert weight.scale == scale


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights": None}, "w"),
        ({"activations": None}, "a"),
        ({"errors": None}, "e"),
        ({"activations": "lns4:1", "errors": "lns5:2", "weights": "lns6:2"}, ""),
        ({"power_of_two_scales": True}, ""),
        ({"activation_scale": "batch"}, ""),
        ({"activation_scale": 0.5}, ""),
        ({"error_underflow": "flush", "errors": "lns4:1"}, ""),
    ],
)
def test_every_option_of_a_config_reaches_the_products(change, field):
    config = LNSConfig(**change)
    layer = layers.LNSDense(5, lns_config=config)
    x = np.random.default_rng(0).normal(size=(6, 7)).astype(F32) * np.exp2(
        np.random.default_rng(1).uniform(-8, 0, (6, 7))
    ).astype(F32)
    layer.build(x.shape)
    upstream = np.exp2(np.random.default_rng(1).uniform(-30, 0, (6, 5))).astype(F32)
    y, (dx, dw, _) = train_gradients(layer, x, upstream, layer.trainable_variables)
    options = {"power_of_two": config.power_of_two_scales}
    kernel = layer.kernel.numpy()
    if config.weights is not None:
        codes = reference.requantize(layer.kernel.codes, config.storage, config.weights)
        scale = reference.requantize_scale(layer.kernel.scale, config.storage, config.weights)
        kernel = reference.decode(codes, scale, config.weights)
    xq, error = x, upstream
    if config.activation_scale == 0.5:
        scale = reference.scale_from_abs_max(F32(0.5), A)
        xq = reference.quantize(x, A, scale=scale)
        assert xq.max() <= 0.5 < x.max()
    elif config.activations is not None:
        xq = reference.quantize(x, config.activations, **options)
    if config.errors is not None:
        error = reference.quantize(
            upstream, config.errors, underflow=config.error_underflow, **options
        )
    close(y, xq @ kernel)
    close(dx, error @ kernel.T)
    close(dw, xq.T @ error)
    assert field != "w" or (kernel == layer.kernel.numpy()).all()


# --- As Keras layers --------------------------------------------------------------------


@each_layer
def test_shapes_configs_and_names_are_those_of_the_keras_layer(name):
    case = ALL[name]
    config = LNSConfig(gradients="lns5:2", activation_scale=3)
    layer = case.lns(**case.arguments, name="mine", lns_config=config)
    plain = case.keras(**case.arguments, name="mine")
    x = inputs_of(case)
    assert layer(x).shape == plain(x).shape == layer.compute_output_shape(x.shape)
    symbolic = keras.KerasTensor(case.shape, dtype=x.dtype.name)
    assert layer.compute_output_spec(symbolic).shape == plain(x).shape
    assert [w.path for w in layer.weights] == [w.path for w in plain.weights]
    assert [w.shape for w in layer.weights] == [w.shape for w in plain.weights]
    assert layer.count_params() == plain.count_params()

    settings = layer.get_config()
    assert {**plain.get_config(), "lns_config": config.get_config()} == settings
    copy = case.lns.from_config(settings)
    assert copy.lns_config == config
    assert copy.get_config() == settings
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is case.lns
    assert again.get_config() == settings


@each_layer
def test_keras_own_layer_test(name):
    from keras.src.testing import TestCase

    case = ALL[name]
    float_inputs = case is not EMBEDDING
    data = {} if float_inputs else {"input_dtype": "int32"}
    shape = case.keras(**case.arguments)(inputs_of(case)).shape
    built = case.lns(**case.arguments)
    built.build(case.shape)
    TestCase().run_layer_test(
        case.lns,
        init_kwargs=case.arguments,
        input_shape=case.shape,
        expected_output_shape=tuple(shape),
        expected_num_trainable_weights=len(built.trainable_weights),
        expected_num_non_trainable_weights=0,
        expected_num_seed_generators=0,
        expected_num_losses=0,
        supports_masking=built.supports_masking,
        # TensorFlow has float16 convolutions with channels first on some CPUs only.
        run_mixed_precision_check=float_inputs and name != "conv2d_first",
        **data,
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["dense", "conv2d", "separable2d", "embedding"])
def test_mixed_precision_computes_in_half_and_stores_integers(name, policy):
    case = ALL[name]
    layer = case.lns(**case.arguments, dtype=policy)
    x = inputs_of(case)
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
    assert y.dtype == policy.removeprefix("mixed_")
    weights = layer.lns_variables
    assert weights
    for w, g in zip(weights, tape.gradient(loss, [w.value for w in weights]), strict=True):
        assert w.codes.dtype == np.int16
        assert np.isfinite(tf.convert_to_tensor(g)).all()
    full = case.lns.from_config({**layer.get_config(), "dtype": "float32"})
    full.build(case.shape)
    full.set_weights(layer.get_weights())
    close(tf.cast(y, tf.float32), full(x, training=True), 0.1)  # some values round to another code


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_another_dtype_are_refused(dtype):
    layer = layers.LNSDense(3, dtype=dtype)
    with pytest.raises(ValueError, match=f"mixed_float16.*|{dtype}"):
        layer.build((1, 2))


@pytest.mark.parametrize("mode", ["graph", "eager", "jit"])
@pytest.mark.parametrize("name", ["dense", "conv2d", "separable2d", "embedding", "transpose2d"])
def test_fit_trains_in_each_mode(name, mode):
    case = ALL[name]
    x = inputs_of(case)
    model = keras.Sequential([case.lns(**case.arguments)])
    y = np.random.default_rng(3).normal(size=model(x).shape).astype(F32)
    codes = [w.codes for w in model.layers[0].lns_variables]
    model.compile(
        tf_lns.LNSMadam(2.0**-4), "mse", run_eagerly=mode == "eager", jit_compile=mode == "jit"
    )
    losses = model.fit(x, y, batch_size=len(x), epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for before, weight in zip(codes, model.layers[0].lns_variables, strict=True):
        assert (before != weight.codes).any()
    for recorded in model.layers[0].input_ranges:
        assert recorded.numpy() > 0


def test_graph_and_eager_training_take_the_same_steps():
    x = np.random.default_rng(0).normal(size=(16, 7)).astype(F32)
    results = []
    for eager in (False, True):
        keras.utils.set_random_seed(5)
        model = keras.Sequential(
            [keras.Input((7,)), layers.LNSDense(4, "relu"), layers.LNSDense(1)]
        )
        model.compile(tf_lns.LNSMadam(), "mse", run_eagerly=eager)
        model.fit(x, x[:, :1], epochs=3, batch_size=5, shuffle=False, verbose=0)
        results.append([w.codes for layer in model.layers for w in layer.lns_variables])
    for a, b in zip(*results, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1  # the order of sums


# --- Weights ------------------------------------------------------------------------------


def test_regularizers_read_the_stored_weight():
    layer = layers.LNSDense(
        5, kernel_regularizer="l2", activity_regularizer=keras.regularizers.L1(0.5)
    )
    y = layer(np.ones((2, 3), F32))
    # Releases of Keras differ in whether activity losses are divided by the batch size.
    passing = keras.layers.Activation("linear", activity_regularizer=keras.regularizers.L1(0.5))
    passing(y)
    expected = [*passing.losses, 0.01 * np.square(layer.kernel.numpy()).sum()]
    np.testing.assert_allclose(sorted(layer.losses), sorted(expected), rtol=1e-5)


@each_layer
def test_a_constraint_on_a_kernel_is_refused(name):
    case = ALL[name]
    keyword = {
        "embedding": "embeddings_constraint",
        "separable1d": "pointwise_constraint",
        "separable2d": "depthwise_constraint",
        "depthwise1d": "depthwise_constraint",
        "depthwise2d": "depthwise_constraint",
    }.get(name, "kernel_constraint")
    layer = case.lns(**case.arguments, **{keyword: "non_neg"})
    with pytest.raises(ValueError, match="constraint"):
        layer.build(case.shape)


def test_keras_lora_and_int8_are_refused():
    layer = layers.LNSDense(3)
    layer.build((1, 2))
    with pytest.raises(NotImplementedError, match="LoRA"):
        layer.enable_lora(2)
    with pytest.raises(NotImplementedError, match="strip"):
        layer.quantize("int8")
    with pytest.raises(NotImplementedError, match="LoRA"):
        layers.LNSDense(3, lora_rank=2).build((1, 2))
    with pytest.raises(ValueError, match="int8"):
        layers.LNSDense(3, dtype="int8_from_float32")
    np.testing.assert_array_equal(layer(np.ones((1, 2), F32)).shape, (1, 3))


def test_a_frozen_layer_keeps_its_codes():
    model = keras.Sequential([keras.Input((4,)), layers.LNSDense(3), layers.LNSDense(1)])
    frozen = model.layers[0]
    frozen.trainable = False
    assert len(model.trainable_variables) == 2
    before = [frozen.kernel.codes, model.layers[1].kernel.codes]
    model.compile(tf_lns.LNSMadam(), "mse")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(F32)
    model.fit(x, x[:, :1], epochs=3, verbose=0)
    np.testing.assert_array_equal(frozen.kernel.codes, before[0])
    assert (model.layers[1].kernel.codes != before[1]).any()


def test_a_kernel_of_zeros_stays_float_and_trains():
    model = keras.Sequential([keras.Input((4,)), layers.LNSDense(3, kernel_initializer="zeros")])
    assert not isinstance(model.layers[0].kernel, LNSVariable)
    model.compile(tf_lns.LNSMadam(), "mse")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(F32)
    model.fit(x, x[:, :3], epochs=2, verbose=0)
    assert np.abs(model.layers[0].kernel.numpy()).max() > 0


def test_a_shared_layer_has_one_weight_and_one_range():
    shared = layers.LNSDense(4)
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], [shared(a), shared(b)])
    assert len(model.weights) == 2
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(F32)
    model.compile(tf_lns.LNSMadam(), ["mse", "mse"])
    model.fit([x, 2 * x], [x, x], epochs=2, verbose=0)
    assert shared.input_ranges[0].numpy() > np.abs(x).max()


class TwoLayers(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.LNSDense(6, "relu")
        self.second = layers.LNSDense(2)

    def call(self, x, training=None):
        return self.second(self.first(x))


@pytest.mark.parametrize("kind", ["deferred", "subclassed", "time_distributed"])
def test_models_that_fit_builds(kind):
    x = np.random.default_rng(0).normal(size=(16, 3, 5)).astype(F32)
    if kind == "deferred":
        model = keras.Sequential([layers.LNSDense(6, "relu"), layers.LNSDense(2)])
    elif kind == "subclassed":
        model = TwoLayers()
    else:
        model = keras.Sequential([keras.layers.TimeDistributed(layers.LNSDense(2))])
    model.compile(tf_lns.LNSMadam(), "mse")
    losses = model.fit(x, x[..., :2], epochs=12, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    together = model.predict(x, verbose=0)
    alone = np.concatenate([model.predict(x[i : i + 1], verbose=0) for i in range(3)])
    np.testing.assert_allclose(together[:3], alone, rtol=0, atol=1e-6)


def test_masks_pass_through():
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    model = keras.Sequential([layers.LNSEmbedding(5, 4, mask_zero=True), layers.LNSDense(3)])
    np.testing.assert_array_equal(model(ids)._keras_mask, ids != 0)


def test_clone_model_makes_an_lns_model_with_new_weights():
    model = keras.Sequential([keras.Input((4,)), layers.LNSDense(3, lns_config={"errors": None})])
    clone = keras.models.clone_model(model)
    assert isinstance(clone.layers[0].kernel, LNSVariable)
    assert clone.layers[0].lns_config == LNSConfig(errors=None)
    assert (clone.layers[0].kernel.codes != model.layers[0].kernel.codes).any()
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone.layers[0].kernel.numpy(), model.layers[0].kernel.numpy())


def test_model_summary_counts_parameters_once(capsys):
    model = keras.Sequential([keras.Input((4,)), layers.LNSDense(3)])
    model.summary()
    text = capsys.readouterr().out
    assert "LNSDense" in text
    assert model.count_params() == 15


# --- Activations and their recorded range ---------------------------------------------------


def ranged(**config):
    layer = layers.LNSDense(3, lns_config=LNSConfig(**config))
    layer.build((None, 2))
    return layer


def test_the_range_is_a_moving_abs_max_that_starts_at_the_first_batch():
    layer = ranged()
    recorded = layer.input_ranges[0]
    layer(np.full((2, 2), 5, F32))
    assert recorded.numpy() == 0  # only training records
    layer(np.zeros((2, 2), F32), training=True)
    assert recorded.numpy() == 0  # zeros say nothing
    layer(np.array([[-4, 1]], F32), training=True)
    np.testing.assert_allclose(recorded.numpy(), 4, rtol=1e-6)
    layer(np.array([[2, 1]], F32), training=True)
    np.testing.assert_allclose(recorded.numpy(), 0.9 * 4 + 0.1 * 2, rtol=1e-6)
    layer(np.array([[np.nan, np.inf]], F32), training=True)
    np.testing.assert_allclose(recorded.numpy(), 3.8, rtol=1e-6)
    layer(np.zeros((0, 2), F32), training=True)
    np.testing.assert_allclose(recorded.numpy(), 3.8, rtol=1e-6)


@pytest.mark.parametrize(
    ("format", "largest", "power_of_two"),
    [("lns5:1", 2.0**14, False), ("lns8:8", 2.0**15.5, True)],
)
def test_a_batch_whose_scale_is_one_is_recorded(format, largest, power_of_two):
    layer = ranged(activations=format, power_of_two_scales=power_of_two)
    layer(np.array([[largest, 1]], F32), training=True)
    np.testing.assert_allclose(layer.input_ranges[0].numpy(), largest, rtol=1e-5)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_inference_uses_the_recorded_range(power_of_two):
    layer = ranged(power_of_two_scales=power_of_two)
    layer.input_ranges[0].assign(3.0)
    x = np.array([[7, 0.5], [1e-9, -2.2]], F32)
    scale = reference.scale_from_abs_max(F32(3), A, power_of_two)
    expected = reference.quantize(x, A, scale=scale) @ seen(layer.kernel)
    close(layer(x), expected)
    close(np.concatenate([layer(x[:1]), layer(x[1:])]), expected)


def test_before_anything_is_recorded_a_batch_has_its_own_scale():
    layer = ranged()
    x = np.array([[7, 0.5], [1e-9, -2.2]], F32)
    close(layer(x), quantized(x) @ seen(layer.kernel))


def test_training_may_be_a_tensor_and_inputs_a_keyword():
    layer = ranged()
    x = np.array([[7, 0.5], [1e-9, -2.2]], F32)
    call = tf.function(lambda training: layer(x, training=training))
    expected = quantized(x) @ seen(layer.kernel)
    close(call(tf.constant(False)), expected)
    assert layer.input_ranges[0].numpy() == 0
    close(call(tf.constant(True)), expected)
    np.testing.assert_allclose(layer.input_ranges[0].numpy(), 7, rtol=1e-6)
    close(layer(inputs=x), expected)
    close(layer.call(x, True), expected)


def test_two_threads_in_one_layer_leave_it_as_it_was():
    layer = layers.LNSDense(3, activation="tanh")
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(F32)
    expected, activation = layer(x), layer.activation
    results = []

    def work():
        for _ in range(20):
            results.append(layer(x).numpy())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    for result in results:
        np.testing.assert_array_equal(result, expected)
    assert layer.activation is activation
    assert layer.get_config()["activation"] == "tanh"


def test_an_activation_may_be_a_layer():
    layer = layers.LNSDense(3, activation=keras.layers.LeakyReLU())
    layer.build((4, 5))
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(F32)
    upstream = np.random.default_rng(1).normal(size=(4, 3)).astype(F32)
    y, (dx, _, _) = train_gradients(layer, x, upstream, layer.trainable_variables)
    slope = np.where(y.numpy() > 0, F32(1), F32(0.3))
    close(dx, quantized(upstream * slope) @ seen(layer.kernel).T)


def test_a_layer_that_does_not_call_its_activation_quantizes_errors_of_its_output():
    class Bare(layers.LNSMixin, keras.layers.Dense):
        def call(self, inputs):
            return keras.ops.matmul(inputs, self.kernel)

    layer = Bare(3)
    layer.build((4, 5))
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(F32)
    upstream = np.random.default_rng(1).normal(size=(4, 3)).astype(F32)
    y, (dx, _) = train_gradients(layer, x, upstream, layer.trainable_variables[:1])
    close(y, quantized(x) @ seen(layer.kernel))
    close(dx, quantized(upstream) @ seen(layer.kernel).T)


def test_a_custom_layer_on_the_mixin_gets_integer_weights():
    class Bilinear(layers.LNSMixin, keras.layers.Layer):
        quantized_inputs = 2
        recorded_ranges = 2

        def build(self, left_shape, right_shape):
            shape = (left_shape[-1], right_shape[-1])
            self.kernel = self.add_weight(name="kernel", shape=shape)
            self.bias = self.add_weight(name="bias", shape=(3, 3))
            self.counter = self.add_weight(
                name="steps", shape=(2, 2), dtype="int32", initializer="zeros", trainable=False
            )

        def call(self, left, right):
            return keras.ops.sum(keras.ops.matmul(left, self.kernel) * right, axis=-1)

    layer = Bilinear()
    a, b = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(F32)
    y = layer(a, b, training=True)
    assert isinstance(layer.kernel, LNSVariable)
    assert not isinstance(layer.bias, LNSVariable)
    close(y, (quantized(a) @ seen(layer.kernel) * quantized(b)).sum(-1), 1e-5)
    np.testing.assert_allclose(
        [r.numpy() for r in layer.input_ranges], [np.abs(a).max(), np.abs(b).max()], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("equation", "shape", "axis"),
    [
        ("ab,bc->ac", (3, 4), (1,)),
        ("ab,cb->ac", (4, 3), (0,)),
        ("...a,abc->...bc", (3, 4, 5), (1, 2)),
        ("abcd,cde->abe", (3, 4, 5), (2,)),
        ("nab,cnb->nac", (4, 2, 3), (0,)),
        ("ab,cbda->acd", (4, 3, 5, 6), (2,)),
        ("ab,ab->ab", (2, 3), ()),
    ],
)
def test_output_channels_of_an_einsum_are_the_axes_the_input_lacks(equation, shape, axis):
    layer = layers.LNSEinsumDense(equation, output_shape=(1,))
    assert layer.gradient_axis(np.zeros(shape)) == axis


@pytest.mark.parametrize(
    ("compile_options", "optimizer_options"),
    [
        ({"steps_per_execution": 2}, {}),
        ({"steps_per_execution": 2, "jit_compile": True}, {}),
        ({}, {"gradient_accumulation_steps": 2}),
        ({"jit_compile": True}, {}),
    ],
)
def test_the_range_is_recorded_however_fit_runs(compile_options, optimizer_options):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(F32)
    model = keras.Sequential([keras.Input((4,)), layers.LNSDense(2)])
    optimizer = tf_lns.LNSMadam(**optimizer_options)
    model.compile(optimizer, "mse", **{"jit_compile": False, **compile_options})
    model.fit(x, x[:, :2], batch_size=2, shuffle=False, epochs=1, verbose=0)
    expected = np.abs(x[:2]).max()
    for i in (2, 4, 6):
        expected = 0.9 * expected + 0.1 * np.abs(x[i : i + 2]).max()
    np.testing.assert_allclose(model.layers[0].input_ranges[0].numpy(), expected, rtol=1e-5)


MIRRORED = """
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import keras
    import numpy as np
    import tf_lns

    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    x[:8] *= 4  # the devices see different ranges
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), tf_lns.layers.LNSDense(3)])
        model.compile(tf_lns.LNSMadam(), "mse")
    losses = model.fit(x, x[:, :3], epochs=3, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    together = model.predict(x, verbose=0)
    np.testing.assert_array_equal(model.predict(x[:3], verbose=0), together[:3])
    model.save("model.keras")
    again = keras.saving.load_model("model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), together)
"""


def test_two_devices_share_one_range(run_python):
    run_python(MIRRORED)


def test_stateless_call_multiplies_with_the_given_weights():
    layer = tf_lns.layers.LNSDense(4)
    x = np.random.default_rng(0).standard_normal((3, 5)).astype("float32")
    y = layer(x)
    stored = [tf.convert_to_tensor(v.value) for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]
    same, _ = layer.stateless_call(stored, others, x)
    double, _ = layer.stateless_call([2 * v for v in stored], others, x)
    np.testing.assert_array_equal(same, y)
    np.testing.assert_array_equal(double, 2 * y)


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """Keras builds the layers of such a model in a StatelessScope when it is loaded."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.LNSDense(8), layers.LNSDense(4)

    def call(self, x, training=None):
        return self.second(self.first(x))


def test_a_subclassed_model_loads_its_weights(tmp_path):
    x = np.random.default_rng(0).standard_normal((16, 10)).astype("float32")
    model = Subclassed()
    expected = model(x)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), expected)


def test_a_layer_without_build_may_hold_lns_layers():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = layers.LNSDense(8)

        def call(self, x):
            return self.inner(x)

    inputs = keras.Input((10,))
    model = keras.Model(inputs, Block()(inputs))
    kernel = model.layers[1].inner.kernel
    assert isinstance(kernel, LNSVariable)
    assert kernel.cell.seen == LNSFormat(8, 8)


def test_integer_inputs_are_quantized_like_floats():
    integers = np.arange(20).reshape(2, 10)
    layer = layers.LNSDense(4)
    np.testing.assert_array_equal(
        layer(integers, training=True), layer(integers.astype("float32"), training=True)
    )


def test_half_precision_overflow_stays_visible_behind_the_error_quantizer():
    x = tf.constant([1.0, 2.0], tf.float16)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf_lns.ops.quantize_gradient(x, "lns8:8")
    upstream = tf.constant([np.inf, 1.0], tf.float16)
    np.testing.assert_array_equal(tape.gradient(y, x, upstream), [np.inf, 1.0])


def test_formats_too_wide_for_float32_are_refused():
    for name, format in (("weights", "lns8:1"), ("activations", "lns9:2"), ("storage", "lns9:1")):
        with pytest.raises(ValueError, match=f"`{name}` may span at most"):
            LNSConfig(**{name: format})


def test_a_step_reads_an_embedding_table_once():
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layers.LNSEmbedding(11, 4)])
    step = tf.function(lambda ids: model(ids, training=True))
    graph = step.get_concrete_function(tf.TensorSpec((5, 3), tf.int32)).graph
    reads = [op for op in graph.get_operations() if op.type == "LnsReadVariable"]
    assert len(reads) == 1
