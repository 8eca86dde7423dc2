"""LNSVariable stands wherever a Keras variable does."""

import copy
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tf_lns import reference, variable
from tf_lns.formats import LNSFormat
from tf_lns.variable import LNSVariable, forward_reads, stored_reads

F32 = np.float32
STORAGES = [LNSFormat(16, 2048), LNSFormat(10, 32), LNSFormat(8, 8), LNSFormat(5, 1)]


@keras.saving.register_keras_serializable(package="test")
class Linear(keras.layers.Layer):
    """A dense layer whose weight is an LNSVariable."""

    def __init__(self, units, storage="lns16:2048", regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.units, self.storage = units, storage
        self.regularizer = keras.regularizers.get(regularizer)

    def build(self, input_shape):
        # The weight is drawn when Keras asks for it: the same seed, the same values.
        self.w = LNSVariable(
            keras.initializers.GlorotUniform(seed=3),
            shape=(input_shape[-1], self.units),
            name="w",
            format=self.storage,
        )
        self.w.regularizer = self.regularizer
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, x):
        return keras.ops.matmul(x, self.w) + self.bias

    def get_config(self):
        regularizer = keras.regularizers.serialize(self.regularizer)
        return {
            **super().get_config(),
            "units": self.units,
            "storage": self.storage,
            "regularizer": regularizer,
        }


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(F32)


def make(shape=(5, 3), seed=0, **kwargs):
    return LNSVariable(normal(*shape, seed=seed), **kwargs)


def data(n=64):
    x = normal(n, 6, seed=1)
    return x, (x @ normal(6, 2, seed=2)).astype(F32)


def model(optimizer="sgd", **kwargs):
    net = keras.Sequential([keras.Input((6,)), Linear(8), keras.layers.ReLU(), Linear(2)])
    net.compile(optimizer=optimizer, loss="mse", **kwargs)
    return net


def weights(net):
    return [v.numpy() for v in net.trainable_variables]


def all_codes(net):
    return [v.codes for v in net.trainable_variables if isinstance(v, LNSVariable)]


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


# --- Storage --------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_codes_scale_and_value_are_those_of_the_reference(storage):
    x = normal(40, 7, seed=5, scale=0.1)
    v = LNSVariable(x, format=storage)
    scale = reference.weight_scale(x, storage)
    assert v.scale == scale
    assert np.log2(v.scale) == np.rint(np.log2(v.scale))
    np.testing.assert_array_equal(v.codes, reference.encode(x, scale, storage))
    assert v.codes.dtype == storage.dtype
    np.testing.assert_array_equal(v.numpy(), reference.decode(v.codes, scale, storage))
    assert v.nbytes == x.size * storage.itemsize + 4
    assert v.dtype == "float32"
    assert v.shape == x.shape


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        F32,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    st.sampled_from(STORAGES),
)
def test_laws_of_storage(x, storage):
    v = LNSVariable(x, format=storage)
    assert v.scale == reference.weight_scale(x, storage)
    stored = v.numpy()
    assert np.isfinite(stored).all()
    # Nothing becomes zero but zeros and denormals, and no sign changes.
    big = np.abs(x) >= reference.MIN_NORMAL
    np.testing.assert_array_equal(np.sign(stored), np.where(big, np.sign(x), 0))
    # What was read can be assigned and is the same again, scale included.
    codes, scale = v.codes, v.scale
    v.assign(stored)
    np.testing.assert_array_equal(v.codes, codes)
    assert v.scale == scale


@pytest.mark.parametrize("value", [3.0, -0.0, np.float64(2), 7, True])
def test_python_numbers_are_scalars(value):
    v = LNSVariable(value)
    assert v.shape == ()
    assert float(v) == pytest.approx(float(value), rel=2e-4)


@pytest.mark.parametrize("size", [1e30, 1e-35, 2.0**-126, 2.0**127, 1e-3])
def test_huge_and_tiny_weights(size):
    x = normal(64, seed=1) * F32(size) if size < 1e38 else np.array([size, -size], F32)
    v = LNSVariable(x)
    assert np.isfinite(v.numpy()).all()
    normal_ones = np.abs(x) >= max(reference.MIN_NORMAL, size * 1e-2)
    np.testing.assert_allclose(v.numpy()[normal_ones], x[normal_ones], rtol=2e-4)


def test_empty_and_all_zero():
    assert LNSVariable(np.zeros((0, 3), F32)).numpy().shape == (0, 3)
    v = LNSVariable(np.zeros((2, 3), F32))
    assert v.scale == 1
    assert not v.codes.any()
    v.assign(normal(2, 3, scale=1e-3))  # a range is chosen with the first values
    np.testing.assert_allclose(v.numpy(), normal(2, 3, scale=1e-3), rtol=2e-4)
    v.assign(np.zeros((2, 3), F32))
    assert not v.numpy().any()


def test_initializer_forms():
    by_name = LNSVariable("ones", shape=(3,))
    np.testing.assert_array_equal(by_name.numpy(), np.ones(3))
    assert LNSVariable(keras.initializers.Constant(0.5), shape=(2, 2)).numpy()[0, 0] == 0.5
    assert LNSVariable(tf.Variable(2.0)).numpy() == 2
    assert LNSVariable(keras.Variable([1.0, 2.0])).numpy().tolist() == [1, 2]
    assert LNSVariable([[1, 2]], dtype="float32").numpy().tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="shape"):
        LNSVariable("ones")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32", "bool"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="`dtype` must be"):
        LNSVariable(np.ones(2), dtype=dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_initial_values_must_be_finite(bad):
    with pytest.raises(ValueError, match="finite"):
        LNSVariable(np.array([1.0, bad], F32))
    with pytest.raises(ValueError, match="finite"):
        LNSVariable(lambda shape, dtype: tf.constant([bad]), shape=(1,))


def test_weight_scale_is_the_reference_in_pieces(monkeypatch):
    x = normal(3000, seed=4)
    assert variable.weight_scale(x, STORAGES[0]) == reference.weight_scale(x, STORAGES[0])
    eye = np.eye(100, dtype=F32)  # 10 RMS lies on a power of two
    assert variable.weight_scale(eye, STORAGES[0]) == reference.weight_scale(eye, STORAGES[0])


# --- Assignment -----------------------------------------------------------------------


def assigners(v):
    @tf.function(autograph=False)
    def in_function(value):
        v.assign(value)

    @tf.function(autograph=False)
    def cell_in_function(value):
        v.cell.assign(value)

    return {
        "eager": v.assign,
        "function": in_function,
        "cell": v.cell.assign,
        "cell in function": cell_in_function,
    }


@pytest.mark.parametrize("where", ["eager", "function", "cell", "cell in function"])
def test_nan_is_refused_and_the_weight_unchanged(where):
    v = make()
    codes, scale = v.codes, v.scale
    value = normal(5, 3)
    value[2, 1] = np.nan
    expected = r"finite" if where == "eager" else r"NaN.*flat index 7"
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=expected):
        assigners(v)[where](value)
    np.testing.assert_array_equal(v.codes, codes)
    assert v.scale == scale


@pytest.mark.parametrize("where", ["function", "cell", "cell in function"])
def test_infinity_saturates(where):
    v = make()
    value = normal(5, 3)
    value[2, 1] = -np.inf
    assigners(v)[where](value)
    assert v.codes[2, 1] == -v.format.max_code
    with pytest.raises(ValueError, match="finite"):
        v.assign(value)  # eager assignments choose the range


def test_wrong_shape_is_refused():
    v = make()
    with pytest.raises(ValueError, match="shape"):
        v.assign(np.ones((3, 5), F32))
    with pytest.raises(ValueError, match="shape"):
        v.assign(np.ones((), F32))


def test_an_assignment_that_does_not_fit_chooses_a_new_scale():
    v = make()
    v.assign(normal(5, 3) * F32(1e6))
    np.testing.assert_allclose(v.numpy(), normal(5, 3) * F32(1e6), rtol=2e-4)
    v.assign(normal(5, 3) * F32(1e-6))
    np.testing.assert_allclose(v.numpy(), normal(5, 3) * F32(1e-6), rtol=2e-4)


def test_an_assignment_that_fits_keeps_the_scale():
    v = make(shape=(50, 50))
    before = v.scale
    v.assign(np.full((50, 50), v.numpy().max()))  # ten RMS lie beyond the range
    assert v.scale == before


def test_inside_a_function_values_saturate():
    v = make()
    top = float(v.scale) * 2.0 ** (v.format.max_exponent / v.format.base_factor)

    @tf.function
    def assign(value):
        v.assign(value)

    before = v.scale
    assign(tf.fill((5, 3), 1e30))
    assert v.scale == before
    np.testing.assert_allclose(v.numpy(), top, rtol=1e-6)


def test_assign_add_and_sub():
    v = LNSVariable([1.0, 2.0])
    v.assign_add([1.0, 2.0])
    assert v.numpy().tolist() == [2, 4]
    v.assign_sub([1.0, 2.0])
    assert v.numpy().tolist() == [1, 2]
    v.cell.assign_add([1.0, 2.0])
    v.cell.assign_sub([0.0, 2.0])
    assert v.numpy().tolist() == [2, 2]


def test_scatter_updates_of_the_cell():
    v = LNSVariable(np.ones((4, 2), F32))
    slices = tf.IndexedSlices(tf.constant([[1.0, 1.0], [3.0, 3.0]]), tf.constant([0, 2]), (4, 2))
    v.cell.scatter_add(slices)
    assert v.numpy()[:, 0].tolist() == [2, 1, 4, 1]
    v.cell.scatter_sub(slices)
    assert v.numpy()[:, 0].tolist() == [1, 1, 1, 1]
    v.cell.scatter_update(slices)
    assert v.numpy()[:, 0].tolist() == pytest.approx([1, 1, 3, 1], rel=2e-4)


def test_assign_codes():
    v = make(shape=(2,))
    v.assign_codes(np.array([-5, 7]), 0.25)
    assert v.codes.tolist() == [-5, 7]
    assert v.scale == 0.25
    for codes, scale, message in [
        ([1.0, 2.0], 1.0, "integers"),
        ([1], 1.0, "shape"),
        ([1, -32768], 1.0, "-32767"),
        ([1, 2], 0.0, "2\\*\\*-126"),
        ([1, 2], np.nan, "finite"),
        ([1, 2], [1.0], "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            v.assign_codes(np.array(codes), scale)
    assert v.codes.tolist() == [-5, 7]


def test_stochastic_assignment_is_unbiased_and_seeded():
    v = LNSVariable(np.ones(4000, F32), format=LNSFormat(8, 1))
    v.cell.assign_rounded(tf.fill((4000,), 2.0**0.25), "stochastic", 5)
    first = v.codes
    assert len(np.unique(first)) == 2
    assert abs(np.mean(first == first.max()) - 0.25) < 0.04
    v.cell.assign_rounded(tf.fill((4000,), 2.0**0.25), "stochastic", 5)
    np.testing.assert_array_equal(v.codes, first)


# --- Reading and differentiating --------------------------------------------------------


def test_behaves_as_a_tensor():
    v = LNSVariable([[1.0, 2.0], [4.0, 8.0]])
    assert (v + 1).numpy().tolist() == [[2, 3], [5, 9]]
    assert (1 / v).numpy()[0, 1] == 0.5
    assert (-v).numpy()[1, 1] == -8
    assert v[0].numpy().tolist() == [1, 2]
    assert (v @ v).shape == (2, 2)
    assert keras.ops.sum(v).numpy() == 15
    assert np.asarray(v).sum() == 15
    assert tf.convert_to_tensor(v).dtype == tf.float32
    assert tf.is_tensor(v)
    assert "LNSVariable" in repr(v)
    assert "LNSCell" in repr(v.cell)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
@pytest.mark.parametrize("taped", ["inside", "outside"])
def test_gradient_equals_that_of_a_float_variable(jit, taped):
    v, x = make(), normal(4, 5, seed=3)
    twin = tf.Variable(v.numpy())

    def loss(w):
        return tf.reduce_sum(tf.tanh(tf.matmul(x, tf.convert_to_tensor(w))) ** 2)

    def through(w):
        if taped == "outside":
            compiled = tf.function(lambda: loss(w), jit_compile=jit)
            with tf.GradientTape() as tape:
                value = compiled()
            return tape.gradient(value, w if isinstance(w, tf.Variable) else w.value)

        @tf.function(jit_compile=jit)
        def inside():
            with tf.GradientTape() as tape:
                value = loss(w)
            return tape.gradient(value, w if isinstance(w, tf.Variable) else w.value)

        return inside()

    np.testing.assert_allclose(through(v), through(twin), rtol=1e-5, atol=1e-6)


def test_second_order_and_jacobian():
    v = make(shape=(3,))
    twin = tf.Variable(v.numpy())

    def derivatives(w):
        with tf.GradientTape() as outer, tf.GradientTape() as inner:
            value = tf.reduce_sum(tf.convert_to_tensor(w) ** 3)
            gradient = inner.gradient(value, w)
        second = outer.gradient(gradient, w)
        with tf.GradientTape() as tape:
            vector = tf.sin(tf.convert_to_tensor(w)) * tf.reduce_sum(tf.convert_to_tensor(w))
        return gradient, second, tape.jacobian(vector, w)

    for ours, theirs in zip(derivatives(v.value), derivatives(twin), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_jacobian_of_a_function_that_reads_the_variable_per_row():
    v = make(shape=(3,))
    x = tf.constant(normal(4, 3))
    with tf.GradientTape() as tape:
        y = tf.vectorized_map(lambda row: tf.reduce_sum(row * v.value), x)
    np.testing.assert_allclose(tape.jacobian(y, v.value), x, rtol=1e-6)


def test_batch_jacobian_through_a_layer():
    layer = Linear(2)
    x = tf.constant(normal(4, 3))
    layer(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    jacobian = tape.batch_jacobian(y, x)
    np.testing.assert_allclose(jacobian[0], layer.w.numpy().T, rtol=1e-6)


def loop_tf(w, steps):
    return tf.while_loop(
        lambda i, y: i < steps,
        lambda i, y: (i + 1, y * tf.reduce_sum(w)),
        (0, tf.constant(1.0)),
        maximum_iterations=5,  # XLA wants a bound, to differentiate
    )[1]


def loop_keras(w, steps):
    return keras.ops.while_loop(
        lambda i, y: i < steps,
        lambda i, y: (i + 1, y * keras.ops.sum(w)),
        (0, keras.ops.convert_to_tensor(1.0)),
        maximum_iterations=5,
    )[1]


def branch_tf(w, steps):
    return tf.cond(tf.constant(steps) > 1, lambda: tf.reduce_sum(w), lambda: tf.constant(0.0))


def branch_keras(w, steps):
    return keras.ops.cond(
        steps > 1, lambda: keras.ops.sum(w), lambda: keras.ops.convert_to_tensor(0.0)
    )


def scan_keras(w, steps):
    return keras.ops.scan(
        lambda carry, x: (carry * x + keras.ops.sum(w), carry),
        keras.ops.convert_to_tensor(1.0),
        keras.ops.ones((3,)),
    )[0]


@pytest.mark.parametrize("read", [loop_tf, loop_keras, branch_tf, branch_keras, scan_keras])
@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
def test_reads_in_control_flow(read, mode):
    if (read, mode) == (scan_keras, "jit"):
        pytest.skip("Keras' scan has no bound that XLA could differentiate, for floats neither")
    v = LNSVariable([0.5, 1.0, 0.25])
    twin = tf.Variable(v.numpy())

    def run(w):
        def both():
            with tf.GradientTape() as tape:
                y = read(w, 3)
            return y, tape.gradient(y, w if isinstance(w, tf.Variable) else w.value)

        if mode == "eager":
            return both()
        return tf.function(both, jit_compile=mode == "jit")()

    for ours, theirs in zip(run(v), run(twin), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_reads_and_writes_in_a_function_keep_their_order():
    v = LNSVariable([1.0, 2.0])

    @tf.function
    def f():
        before = tf.convert_to_tensor(v)
        v.assign(before * 2)
        middle = tf.convert_to_tensor(v)
        v.assign_add(middle)
        return before, middle, tf.convert_to_tensor(v)

    before, middle, after = f()
    assert before.numpy().tolist() == [1, 2]
    assert middle.numpy().tolist() == [2, 4]
    assert after.numpy().tolist() == [4, 8]


def test_a_write_in_a_loop():
    v = LNSVariable([1.0])

    @tf.function
    def f():
        for _ in tf.range(3):
            v.assign(v.value * 2)

    f()
    assert v.numpy().tolist() == [8]


def test_gather_gives_sparse_gradients():
    v = make()
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(tf.gather(v.value, [1, 1, 3]))
    gradient = tf.convert_to_tensor(tape.gradient(y, v.value))
    assert gradient.numpy()[:, 0].tolist() == [0, 2, 0, 1, 0]
    np.testing.assert_array_equal(tf.gather_nd(v.value, [[0, 1]]), [v.numpy()[0, 1]])
    np.testing.assert_array_equal(tf.nn.embedding_lookup(v.value, [2]), v.numpy()[2:3])


def test_reads_as_another_format_in_the_forward_pass():
    v = make()
    v.cell.seen = LNSFormat(8, 8)
    codes = reference.requantize(v.codes, v.format, v.cell.seen)
    scale = reference.requantize_scale(v.scale, v.format, v.cell.seen)
    expected = reference.decode(codes, scale, v.cell.seen)
    stored = v.numpy()
    with forward_reads():
        np.testing.assert_array_equal(tf.convert_to_tensor(v), expected)
        with stored_reads():
            np.testing.assert_array_equal(tf.convert_to_tensor(v), stored)
        np.testing.assert_array_equal(tf.convert_to_tensor(v), expected)
    np.testing.assert_array_equal(tf.convert_to_tensor(v), stored)
    with tf.GradientTape() as tape, forward_reads():
        y = tf.reduce_sum(tf.convert_to_tensor(v) * 3)
    np.testing.assert_array_equal(tape.gradient(y, v.value), np.full((5, 3), 3.0))  # straight


def test_frozen_variables_are_not_watched():
    v = make(trainable=False)
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(v.value)
    assert tape.gradient(y, v.value) is None
    assert not v.cell.trainable


# --- In models --------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.02, momentum=0.9, weight_decay=1e-3),
    "adam": lambda: keras.optimizers.Adam(0.02),
    "adamw": lambda: keras.optimizers.AdamW(0.02),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stock_optimizers_train_it_unmodified(name):
    net = model(OPTIMIZERS[name]())
    history = net.fit(*data(), epochs=12, verbose=0)
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {}, {"jit_compile": True}, {"steps_per_execution": 3}],
    ids=["eager", "graph", "jit", "steps_per_execution"],
)
def test_every_way_of_fit_gives_the_same_weights(options):
    def trained(**how):
        net = model(keras.optimizers.SGD(0.05, momentum=0.5), **how)
        net.fit(*data(), epochs=3, batch_size=16, shuffle=False, verbose=0)
        return weights(net)

    for a, b in zip(trained(**options), trained(jit_compile=False), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"clipnorm": 0.1},
        {"global_clipnorm": 0.1},
        {"clipvalue": 0.01},
        {"use_ema": True, "ema_momentum": 0.5},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"loss_scale_factor": 128.0},
    ],
    ids=str,
)
def test_options_of_keras_optimizers(options):
    """Near the same float model trained with the same options."""
    net = model(keras.optimizers.SGD(0.05, **options))
    twin = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8), keras.layers.ReLU(), keras.layers.Dense(2)]
    )
    twin.compile(optimizer=keras.optimizers.SGD(0.05, **options), loss="mse")
    twin.set_weights(net.get_weights())
    for each in (net, twin):
        each.fit(*data(), epochs=2, batch_size=16, shuffle=False, verbose=0)
    for ours, theirs in zip(weights(net), weights(twin), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=2e-3)


def test_regularizer_reads_the_stored_value():
    layer = Linear(3, regularizer=keras.regularizers.L2(0.5))
    layer(normal(2, 4))
    layer.w.cell.seen = LNSFormat(5, 1)
    with forward_reads(), stored_reads():
        loss = layer.losses[0]
    np.testing.assert_allclose(loss, 0.5 * np.sum(layer.w.numpy() ** 2), rtol=1e-5)
    np.testing.assert_allclose(layer.losses[0], loss, rtol=1e-6)


def test_freeze_and_thaw():
    net = model()
    frozen = net.layers[0].w
    net.layers[0].trainable = False
    net.compile(optimizer="sgd", loss="mse")
    before = frozen.codes
    net.fit(*data(), verbose=0)
    np.testing.assert_array_equal(frozen.codes, before)
    assert len(net.trainable_variables) == 2
    net.layers[0].trainable = True
    net.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    net.fit(*data(), verbose=0)
    assert (frozen.codes != before).any()


def test_tied_weights_are_one_variable():
    @keras.saving.register_keras_serializable(package="test")
    class Autoencoder(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.encoder = Linear(3)

        def call(self, x):
            code = self.encoder(x)
            return keras.ops.matmul(code, keras.ops.transpose(self.encoder.w))

    net = Autoencoder()
    net.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse")
    x, _ = data()
    history = net.fit(x, x, epochs=10, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert len(net.trainable_variables) == 2


def test_get_and_set_weights_are_exact_after_training():
    net = model(keras.optimizers.Adam(0.3))  # far, so that RMS and range part
    net.fit(*data(), epochs=20, verbose=0)
    codes = all_codes(net)
    scales = [layer.w.scale for layer in (net.layers[0], net.layers[2])]
    values = net.get_weights()
    net.set_weights(values)
    assert_equal(all_codes(net), codes)
    assert [layer.w.scale for layer in (net.layers[0], net.layers[2])] == scales
    other = model()
    other.set_weights(values)
    assert_equal(other.get_weights(), values)


def test_counts():
    net = model()
    net.build((None, 6))
    assert net.count_params() == 6 * 8 + 8 + 8 * 2 + 2
    assert sum(w.nbytes for w in (net.layers[0].w, net.layers[2].w)) == 2 * (48 + 16) + 8
    lines = []
    net.summary(print_fn=lines.append)
    assert "74" in "".join(lines)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
def test_mixed_precision(policy, jit):
    net = keras.Sequential([keras.Input((6,)), Linear(8, dtype=policy), Linear(2, dtype=policy)])
    optimizer = keras.optimizers.SGD(0.05)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**10)
    net.compile(optimizer=optimizer, loss="mse", jit_compile=jit)
    assert net.layers[0](normal(2, 6)).dtype == policy.removeprefix("mixed_")
    assert net.layers[0].w.dtype == "float32"
    history = net.fit(*data(), epochs=8, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_overflow_under_loss_scaling_skips_the_step():
    net = keras.Sequential([keras.Input((6,)), Linear(2, dtype="mixed_float16")])
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**120)
    net.compile(optimizer=scaled, loss="mse", jit_compile=False)
    before = all_codes(net)
    net.fit(*data(), epochs=1, verbose=0)
    assert_equal(all_codes(net), before)
    assert float(scaled.dynamic_scale) < 2.0**120


@pytest.mark.parametrize("autocast", [True, False])
def test_autocast(autocast):
    v = make(autocast=autocast)
    with keras.src.backend.common.variables.AutocastScope("float16"):
        assert tf.convert_to_tensor(v).dtype == ("float16" if autocast else "float32")


def test_a_constraint_raises():
    v = make()
    with pytest.raises(ValueError, match=r"constraint.*grid"):
        v.constraint = keras.constraints.NonNeg()
    v.constraint = None

    def flip(w):
        return -w

    flip.keeps_lns_grid = True
    v.constraint = flip
    assert v.constraint is flip


def test_custom_loop_with_accumulated_gradients():
    net = model()
    optimizer = keras.optimizers.SGD(0.05)
    x, y = data()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(x) - y) ** 2)
        return loss, tape.gradient(loss, net.trainable_variables)

    losses = []
    for _ in range(20):
        total = None
        for part in range(2):
            loss, gradients = step(x[part::2], y[part::2])
            pairs = zip(total or gradients, gradients, strict=True)
            total = [a + b for a, b in pairs] if total else gradients
        optimizer.apply(total, net.trainable_variables)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_as_a_loop_variable_of_tf_optimizers_api():
    v = make()
    optimizer = keras.optimizers.SGD(1.0)
    before = v.numpy()
    optimizer.apply_gradients([(tf.ones((5, 3)), v)])
    np.testing.assert_allclose(v.numpy(), before - 1, rtol=2e-4, atol=2e-4)
    raw = tf.keras.optimizers.SGD(1.0)
    raw.apply([tf.ones((5, 3))], [v.cell])
    np.testing.assert_allclose(v.numpy(), before - 2, rtol=4e-4, atol=4e-4)


# --- Copies and files -------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies(duplicate):
    v = make(name="w", trainable=False, autocast=False)
    v.regularizer = keras.regularizers.L2(0.1)
    v.cell.seen = LNSFormat(8, 8)
    v.cell.gradient_format = LNSFormat(5, 1)
    v.cell.gradient_options = {"axis": (1,)}
    v.assign_codes(np.full((5, 3), 7), 2.0**-20)
    w = duplicate(v)
    np.testing.assert_array_equal(w.codes, v.codes)
    assert w.scale == v.scale
    assert (w.name, w.path, w.trainable, w._autocast) == ("w", v.path, False, False)
    assert w.regularizer.l2 == pytest.approx(0.1)
    assert w.cell.seen == LNSFormat(8, 8)
    assert (w.cell.gradient_format, w.cell.gradient_options) == (LNSFormat(5, 1), {"axis": (1,)})
    w.assign(np.ones((5, 3), F32))
    assert v.codes[0, 0] == 7


def test_deepcopy_keeps_sharing():
    v = make()
    a, b = copy.deepcopy([v, v])
    assert a is b
    assert a is not v


@pytest.mark.parametrize("name", ["net.keras", "net.weights.h5"])
def test_keras_files(tmp_path, name):
    net = model(keras.optimizers.Adam(0.05))
    net.fit(*data(), epochs=3, verbose=0)
    if name.endswith(".keras"):
        net.save(tmp_path / name)
        back = keras.saving.load_model(tmp_path / name)
    else:
        net.save_weights(tmp_path / name)
        back = model()
        back.load_weights(tmp_path / name)
    assert_equal(weights(back), weights(net))
    np.testing.assert_array_equal(
        back.predict(data()[0], verbose=0), net.predict(data()[0], verbose=0)
    )
    if name.endswith(".keras"):
        for each in (net, back):
            each.fit(*data(), epochs=2, shuffle=False, verbose=0)
        assert_equal(weights(back), weights(net))


def test_tensorflow_checkpoint(tmp_path):
    v = make()
    v.assign_codes(np.arange(15).reshape(5, 3) - 7, 2.0**-9)
    path = tf.train.Checkpoint(v=v).save(str(tmp_path / "ckpt"))
    w = make(seed=9)
    tf.train.Checkpoint(v=w).restore(path).assert_consumed()
    np.testing.assert_array_equal(w.codes, v.codes)
    assert w.scale == v.scale
    stored = dict(tf.train.list_variables(path))
    assert [5, 3] in stored.values()


def test_tensorflow_checkpoint_of_a_model_resumes_exactly(tmp_path):
    net = model(keras.optimizers.Adam(0.05))
    net.fit(*data(), epochs=2, shuffle=False, verbose=0)
    path = tf.train.Checkpoint(model=net).save(str(tmp_path / "ckpt"))
    net.fit(*data(), epochs=2, shuffle=False, verbose=0)
    wanted = weights(net)
    other = model(keras.optimizers.Adam(0.05))
    other.optimizer.build(other.trainable_variables)
    tf.train.Checkpoint(model=other).restore(path)
    other.fit(*data(), epochs=2, shuffle=False, verbose=0)
    assert_equal(weights(other), wanted)


def test_backup_and_restore(tmp_path):
    def train(net, epochs, **kwargs):
        net.fit(*data(), epochs=epochs, shuffle=False, verbose=0, **kwargs)
        return weights(net)

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("interrupted")

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(RuntimeError, match="interrupted"):
        train(model(keras.optimizers.Adam(0.05)), 5, callbacks=[backup, Interrupt()])
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    resumed = train(model(keras.optimizers.Adam(0.05)), 5, callbacks=[backup])
    assert_equal(resumed, train(model(keras.optimizers.Adam(0.05)), 5))


def test_export_serves_in_a_process_without_tf_lns(tmp_path):
    net = model()
    net.fit(*data(), verbose=0)
    x, _ = data()
    net.export(tmp_path / "saved", verbose=False)
    np.save(tmp_path / "x.npy", x)
    program = (
        "import sys, numpy as np, tensorflow as tf\n"
        "tf.load_op_library(sys.argv[2])\n"
        "served = tf.saved_model.load(sys.argv[1] + '/saved')\n"
        "np.save(sys.argv[1] + '/y.npy', served.serve(np.load(sys.argv[1] + '/x.npy')))\n"
        "assert 'tf_lns' not in sys.modules\n"
    )
    from tf_lns.ops.library import _LIBRARY

    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(_LIBRARY)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"TF_CPP_MIN_LOG_LEVEL": "2", "PATH": ""},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), net.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )
    values = dict(tf.train.list_variables(str(tmp_path / "saved" / "variables" / "variables")))
    reader = tf.train.load_checkpoint(str(tmp_path / "saved" / "variables" / "variables"))
    dtypes = [reader.get_tensor(k).dtype for k in values if "VARIABLE_VALUE" in k]
    assert np.dtype("int16") in dtypes


def test_saved_model_of_a_keras_model(tmp_path):
    net = model()
    net.fit(*data(), verbose=0)
    x, _ = data()
    net(x)
    tf.saved_model.save(net, str(tmp_path))
    back = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(
        back.signatures["serving_default"](tf.constant(x))["output_0"], net(x), rtol=1e-5, atol=1e-6
    )


def test_saved_model_of_a_module(tmp_path):
    class Module(tf.Module):
        def __init__(self):
            self.v = make()

        @tf.function(input_signature=[tf.TensorSpec((None, 5))])
        def __call__(self, x):
            return tf.matmul(x, self.v)

    module = Module()
    tf.saved_model.save(module, str(tmp_path))
    back = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(back(normal(2, 5)), module(normal(2, 5)), rtol=1e-6)


def test_at_rest_there_are_only_codes():
    program = """
import keras, tensorflow as tf
from tf_lns.variable import LNSVariable
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

n = 10_000_000
made = []
for _ in range(6):
    made.append(LNSVariable(lambda shape, dtype: tf.ones(shape), shape=(n // 10, 10)))
    if len(made) == 2:
        start = resident()  # with the memory that each construction needs and lets go
print((resident() - start) / n / 4)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 2.6


# --- Several devices ----------------------------------------------------------------------

TWO_DEVICES = """
import sys
import keras
import numpy as np
import tensorflow as tf

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from tf_lns import LNSSGD, LNSMadam, LNSVariable


class Linear(keras.layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, shape):
        initializer = keras.initializers.GlorotUniform(seed=3)
        self.w = LNSVariable(initializer, shape=(shape[-1], self.units), name="w")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, x):
        return keras.ops.matmul(x, self.w) + self.bias


def trained(strategy, optimizer, epochs=2):
    with strategy.scope():
        net = keras.Sequential([keras.Input((6,)), Linear(8), keras.layers.ReLU(), Linear(1)])
        net.compile(optimizer=optimizer(), loss="mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    net.fit(x, x[:, :1], epochs=epochs, batch_size=16, shuffle=False, verbose=0)
    return net


two, one = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.distribute.get_strategy()
"""


def test_two_devices_train_as_one(run_python):
    run_python(
        TWO_DEVICES
        + """
choices = [
    lambda: LNSMadam(0.02, rounding="stochastic", p_scale=3.0),
    lambda: LNSMadam(0.02, second_moment="lns8:4"),
    lambda: LNSSGD(0.05, momentum=0.5, rounding="stochastic"),
    lambda: keras.optimizers.Adam(0.01),
]
for optimizer in choices:
    many, single = trained(two, optimizer), trained(one, optimizer)
    for a, b in zip(many.trainable_variables, single.trainable_variables, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=3e-3, atol=1e-4)
    w = many.layers[0].w
    first, second = w.cells
    assert first.device != second.device
    np.testing.assert_array_equal(first.codes.numpy(), second.codes.numpy())
    w.assign(np.ones((6, 8), np.float32) * 100)
    np.testing.assert_array_equal(second.numpy(), first.numpy())
    assert first.scale.numpy() == second.scale.numpy()
assert LNSMadam().nonfinite_gradients == 0
"""
    )


def test_checkpoints_pass_between_one_device_and_two(run_python, tmp_path):
    run_python(
        TWO_DEVICES
        + f"""
many, single = trained(two, LNSMadam), trained(one, LNSMadam, epochs=1)
path = tf.train.Checkpoint(model=many).save("{tmp_path}/many")
tf.train.Checkpoint(model=single).restore(path)
for a, b in zip(many.trainable_variables, single.trainable_variables, strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
single = trained(one, LNSMadam, epochs=3)
path = tf.train.Checkpoint(model=single).save("{tmp_path}/single")
tf.train.Checkpoint(model=many).restore(path)
for cell in many.layers[0].w.cells:
    np.testing.assert_array_equal(cell.numpy(), single.layers[0].w.numpy())
many.save_weights("{tmp_path}/w.weights.h5")
single = trained(one, LNSMadam, epochs=1)
single.load_weights("{tmp_path}/w.weights.h5")
np.testing.assert_array_equal(many.layers[0].w.numpy(), single.layers[0].w.numpy())
"""
    )


def test_other_strategies_are_refused(run_python):
    run_python(
        TWO_DEVICES
        + """
with tf.distribute.experimental.CentralStorageStrategy(["CPU:0", "CPU:1"]).scope():
    try:
        LNSVariable(np.ones(3, np.float32))
    except ValueError as error:
        assert "MirroredStrategy" in str(error)
    else:
        sys.exit("no error")
"""
    )


def test_a_variable_may_be_assigned():
    v = LNSVariable(np.ones((2, 2), np.float32))
    for other in (tf.Variable([[1.0, 2.0], [4.0, 0.5]]), keras.Variable([[8.0, 2.0], [1.0, 0.25]])):
        v.assign(other)
        np.testing.assert_array_equal(v.numpy(), other.numpy())
