"""`LNSQuantizer` in a config of the user's own, under tfmot's stock scheme: what is quantized."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tfmot_nets import layers, tf_keras, tfmot
from tf_lns import reference
from tf_lns.tfmot import LNSQuantizer

X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)


class Own(tfmot.QuantizeConfig):
    """The kernel through one quantizer, the output through another."""

    def __init__(self, kernel, output=None):
        self.kernel, self.output = kernel, output

    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, self.kernel)]

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer, quantize_activations):
        return

    def get_output_quantizers(self, layer):
        return [] if self.output is None else [self.output]

    def get_config(self):
        return {"kernel": self.kernel, "output": self.output}


def wrapped(**quantizers):
    """A dense layer in tfmot's own wrapper, and its kernel."""
    tf_keras.utils.set_random_seed(1)
    dense = layers.Dense(3, input_shape=(4,), name="d")
    model = tf_keras.Sequential([tfmot.quantize_annotate_layer(dense, Own(**quantizers))])
    with tfmot.quantize_scope({"Own": Own}):
        wrapper = tfmot.quantize_apply(model).get_layer("quant_d")
    return wrapper, wrapper.trainable_weights[0]


@pytest.mark.parametrize("training", [False, True])
def test_a_weight_is_rounded_and_its_gradient_passes_straight_through(training):
    wrapper, kernel = wrapped(kernel=LNSQuantizer("lns6:2"))
    assert kernel.dtype == tf.float32  # and so it is stored
    with tf.GradientTape() as tape:
        y = wrapper(X, training=training)
        loss = tf.reduce_sum(y**2)
    rounded = reference.quantize(kernel.numpy(), "lns6:2")
    np.testing.assert_allclose(y, X @ rounded, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, kernel), X.T @ (2 * y), rtol=1e-5, atol=1e-5)
    assert np.abs(rounded - kernel.numpy()).max() > 0


def test_a_gradient_is_quantized_when_asked():
    quantizer = LNSQuantizer("lns6:2", gradient_format="lns5:1", gradient_axis=1)
    wrapper, kernel = wrapped(kernel=quantizer)
    with tf.GradientTape() as tape:
        y = wrapper(X, training=True)
        loss = tf.reduce_sum(y**2)
    gradient, dw = tape.gradient(loss, kernel).numpy(), X.T @ (2 * y.numpy())
    for mine, plain in zip(gradient.T, dw.T, strict=True):
        octaves = np.log2(np.abs(mine) / np.abs(mine).max())
        np.testing.assert_allclose(octaves, np.round(octaves), atol=1e-4)  # lns5:1, by channel
        np.testing.assert_allclose(mine, plain, rtol=2**0.5 - 1 + 1e-3)


def test_an_activation_has_a_recorded_range_outside_of_training():
    wrapper, kernel = wrapped(
        kernel=LNSQuantizer("lns8:8"), output=LNSQuantizer("lns6:2", kind="activation")
    )
    product = X @ reference.quantize(kernel.numpy(), "lns8:8")
    y = wrapper(X, training=True).numpy()
    np.testing.assert_allclose(y, reference.quantize(product, "lns6:2"), rtol=1e-5)
    (recorded,) = (v for v in wrapper.weights if "range" in v.name)
    np.testing.assert_allclose(recorded, np.abs(product).max(), rtol=1e-5)
    np.testing.assert_array_equal(wrapper(X[:3]), wrapper(X)[:3])
