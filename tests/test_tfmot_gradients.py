"""Q_G of integer weights under tfmot: always once, whatever the optimizer."""

import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tests.tfmot_nets import layers, quantized, tf_keras, tfmot
from tf_lns import ops
from tf_lns.tfmot import LNSMadam, LNSQuantizeConfig, LNSScheme
from tf_lns.tfmot.gradients import left_to_the_optimizer, quantize_weight_gradient

X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)


def net(config="lns5:2", **changes):
    tf_keras.utils.set_random_seed(3)
    model = tf_keras.Sequential([layers.Input((8,)), layers.Dense(6), layers.Dense(5)])
    return quantized(model, LNSScheme(tf_lns.LNSConfig(gradients=config, **changes)))


def gradients(model):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(X, training=True) - Y) ** 2)
    return tape.gradient(loss, model.layers[0].lns_variables[0])


@pytest.mark.parametrize("how", ["eager", "graph", "jit"])
def test_a_tape_sees_quantized_gradients(how):
    model = net()
    run = gradients if how == "eager" else tf.function(gradients, jit_compile=how == "jit")
    seen = run(model)
    with left_to_the_optimizer():
        plain = gradients(model)
    expected = ops.quantize(plain, "lns5:2", axis=1)
    assert np.any(plain != expected)
    if how == "jit":  # products differ in the last bit there
        np.testing.assert_allclose(seen, expected, rtol=1e-5)
    else:
        np.testing.assert_array_equal(seen, expected)


def test_without_a_format_they_are_float():
    model = net(None)
    seen = gradients(model)
    with left_to_the_optimizer():
        np.testing.assert_array_equal(seen, gradients(model))


def test_own_optimizers_take_them_as_they_are():
    model, taken = net(), []

    class Looking(LNSMadam):
        def apply_gradients(self, grads_and_vars, *args, **kwargs):
            taken.extend(g for g, _ in grads_and_vars)
            return super().apply_gradients(zip(taken, model.trainable_variables, strict=True))

    with left_to_the_optimizer():
        plain = gradients(model)
    model.compile(Looking(), "mse", run_eagerly=True)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(taken[0], plain, rtol=1e-6)


def test_stock_optimizers_take_quantized_ones():
    model, taken = net(), []

    class Looking(tf_keras.optimizers.SGD):
        def apply_gradients(self, grads_and_vars, *args, **kwargs):
            pairs = list(grads_and_vars)
            taken.extend(g for g, _ in pairs)
            return super().apply_gradients(pairs, *args, **kwargs)

    seen = gradients(model)
    model.compile(Looking(), "mse", run_eagerly=True)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(taken[0], seen, rtol=1e-6)


@pytest.mark.parametrize("in_graph", [False, True])
def test_an_overflow_stays_one(in_graph):
    """By it a LossScaleOptimizer knows to skip the step."""
    cell = net().layers[0].lns_variables[0]
    dy = np.ones((8, 6), np.float32)
    dy[2, 3] = -np.inf

    def run():
        with tf.GradientTape() as tape:
            y = quantize_weight_gradient(cell.read(cell.seen), cell)
        return tape.gradient(y, cell, output_gradients=tf.constant(dy))

    seen = (tf.function(run) if in_graph else run)().numpy()
    assert seen[2, 3] == -np.inf
    assert np.isinf(seen).sum() == 1


def test_two_formats_in_one_graph():
    model = tf_keras.Sequential([layers.Input((8,)), layers.Dense(6), layers.Dense(5)])
    annotated = [LNSQuantizeConfig(tf_lns.LNSConfig(gradients=f)) for f in ("lns5:1", None)]
    model = tf_keras.Sequential(
        [layers.Input((8,))]
        + [
            tfmot.quantize_annotate_layer(layer, config)
            for layer, config in zip(model.layers, annotated, strict=True)
        ]
    )
    model = tfmot.quantize_apply(model, scheme=LNSScheme())
    kernels = [layer.lns_variables[0] for layer in model.layers]

    @tf.function
    def both():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X, training=True) - Y) ** 2)
        return tape.gradient(loss, kernels)

    first, second = both()
    np.testing.assert_array_equal(first, ops.quantize(first, "lns5:1", axis=1))
    assert np.any(second != ops.quantize(second, "lns5:1", axis=1))


@pytest.mark.parametrize(
    "make", [lambda: tf_keras.optimizers.legacy.Adam(), lambda: tf.compat.v1.train.AdamOptimizer()]
)
def test_old_optimizers_are_refused_and_end_no_process(make):
    model = tf_keras.Sequential([layers.Dense(3, input_shape=(4,))])
    model = quantized(model, LNSScheme())
    x = np.ones((8, 4), np.float32)
    optimizer = make()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_weights)
    with pytest.raises(TypeError, match=r"integer weight.*tf_lns\.tfmot\.LNSMadam"):
        optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
    plain = tf_keras.Sequential([layers.Dense(3, input_shape=(4,))])
    plain.compile(tf_keras.optimizers.legacy.SGD(), "mse")
    plain.fit(x, np.ones((8, 3)), verbose=0)
