"""Gradients of the ops, and ops that run through their own compiled functions."""

import numpy as np
import pytest
import tensorflow as tf

from tf_lns import LNSFormat, LNSVariable, ops, reference

F32 = np.float32
FMT = LNSFormat(8, 8)
X = np.random.default_rng(0).normal(size=(4, 6)).astype(F32)
UP = np.random.default_rng(1).normal(size=(4, 6)).astype(F32)


def gradient(function, x, upstream, traced=False):
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x, upstream)

    return (tf.function(run) if traced else run)(tf.constant(x))


each_way = pytest.mark.parametrize("traced", [False, True])


@each_way
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": F32(0.01)}, {"axis": 1}, {"rounding": "stochastic"}, {"underflow": "flush"}],
)
def test_quantize_is_straight_through(options, traced):
    x = np.concatenate([X, [[0, 1e-30, -1e9, 1e-40, np.inf, np.nan]]]).astype(F32)
    up = np.concatenate([UP, UP[:1]])
    dx = gradient(lambda x: ops.quantize(x, FMT, **options), x, up, traced)
    np.testing.assert_array_equal(dx, up)


@each_way
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"axis": 0},
        {"axis": (0, 1)},
        {"axis": 1, "vector_size": 4},
        {"underflow": "flush"},
        {"power_of_two": True},
    ],
)
def test_quantize_gradient_quantizes_what_comes_back(options, traced):
    up = UP * np.exp2(-20 * np.abs(X))
    dx = gradient(lambda x: ops.quantize_gradient(x, "lns5:2", **options), X, up, traced)
    np.testing.assert_array_equal(dx, reference.quantize(up, LNSFormat(5, 2), **options))


def test_stochastic_errors_land_on_a_neighbour():
    up = np.full((1000,), 1.3, F32)
    up[0] = 16.0
    dx = gradient(
        lambda x: ops.quantize_gradient(x, "lns5:1", rounding="stochastic"), up, up
    ).numpy()
    assert set(dx[1:]) == {1.0, 2.0}
    assert 0.25 < np.mean(dx[1:] == 2) < 0.5  # log2(1.3) = 0.38


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types_keep_their_dtype(dtype):
    x = tf.cast(X, dtype)
    for function in (ops.quantize, ops.quantize_gradient):
        y = function(x, FMT)
        assert y.dtype == x.dtype
        dx = gradient(lambda x, f=function: f(x, FMT), x, tf.cast(UP, dtype))
        assert dx.dtype == x.dtype
    expected = reference.quantize(tf.cast(tf.cast(UP, dtype), tf.float32).numpy(), FMT)
    np.testing.assert_array_equal(dx, tf.cast(expected, dtype))


def test_second_order_goes_straight_through_too():
    x = tf.constant(X)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(ops.quantize(x, FMT) ** 3)
        first = inner.gradient(y, x)
    q = reference.quantize(X, FMT)
    np.testing.assert_allclose(first, 3 * q**2, rtol=1e-6)
    np.testing.assert_allclose(outer.gradient(first, x), 6 * q, rtol=1e-6)


@pytest.mark.parametrize("name", ["quantize", "quantize_gradient"])
def test_jacobians_and_vectorized_maps(name):
    function = getattr(ops, name)
    x = tf.constant(X[0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x, FMT)
    np.testing.assert_array_equal(tape.jacobian(y, x), np.eye(6, dtype=F32))
    # A scale for each row, as a loop would take it.
    mapped = tf.vectorized_map(lambda row: function(row, FMT), X)
    rows = [reference.quantize(row, FMT) if name == "quantize" else row for row in X]
    np.testing.assert_array_equal(mapped, np.stack(rows))


def test_integers_have_no_gradient():
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = ops.decode(ops.encode(x, 0.01, FMT), 0.01, FMT)
    assert tape.gradient(y, x) is None


@each_way
def test_the_gradient_of_a_read_is_that_of_the_value(traced):
    variable = LNSVariable(X)

    def run():
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(variable.value * UP)
        return tape.gradient(y, variable.value)

    np.testing.assert_array_equal((tf.function(run) if traced else run)(), UP)


COMPILED = """
    import keras
    import numpy as np
    import tensorflow as tf
    import tf_lns
    from tf_lns import LNSFormat, ops, reference
    from tf_lns.ops.call import _compile_each_op

    assert _compile_each_op()
    F = LNSFormat(8, 8)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    scale = np.float32(1e-3)
    codes = reference.encode(x, scale, F)
    same = np.testing.assert_array_equal

    def check():
        same(ops.encode(x, scale, F), codes)
        same(ops.encode(x, scale, F, "stochastic", seed=3),
             reference.encode(x, scale, F, "stochastic", seed=3))
        same(ops.decode(codes, scale, F), reference.decode(codes, scale, F))
        same(ops.requantize(codes, F, "lns5:2"), reference.requantize(codes, F, LNSFormat(5, 2)))
        same(ops.scale_of(x, F, axis=1), reference.scale_of(x, F, axis=1))
        same(ops.quantize(x, F), reference.quantize(x, F))
        same(ops.quantize(x, F, axis=0), reference.quantize(x, F, axis=0))
        with tf.GradientTape() as tape:
            t = tf.constant(x)
            tape.watch(t)
            y = ops.quantize_gradient(ops.quantize(t, F), "lns5:2")
        same(tape.gradient(y, t, x), reference.quantize(x, LNSFormat(5, 2)))

    check()
    for seed in (0, 1):  # eager and traced training, each op in its compiled function
        keras.utils.set_random_seed(4)
        model = tf_lns.quantize_model(keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]))
        model.compile(tf_lns.LNSMadam(second_moment="lns8:4" if seed else None), "mse",
                      run_eagerly=not seed)
        before = [l.kernel.codes for l in model.layers]
        loss = model.fit(x, x[:, :1], epochs=20, batch_size=5, verbose=0).history["loss"]
        assert loss[-1] < 0.5 * loss[0], loss
        for l, c in zip(model.layers, before):
            assert (l.kernel.codes != c).any()
            l.kernel.assign(l.kernel.numpy())
        print(loss[-1])
"""


def test_each_op_in_its_own_compiled_function(run_python):
    run_python(COMPILED, env={"TF_LNS_JIT_OPS": "1"})
