"""LNSQuantizer objects."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lns import LNSFormat, LNSQuantizer, quantizers, reference

F32 = np.float32
X = np.random.default_rng(0).normal(size=(4, 6)).astype(F32)

EACH = [
    ("lns8:8", {}),
    ("lns5:2", {"axis": -1}),
    ("lns5:2", {"axis": (0, -1), "underflow": "flush"}),
    ("lns4:1", {"axis": 1, "vector_size": 4, "power_of_two": True}),
    ("lns8:8", {"rounding": "stochastic", "seed": 7}),
]


@pytest.mark.parametrize(("format", "options"), EACH)
def test_forward_is_the_reference_and_backward_passes_through(format, options):
    quantizer = LNSQuantizer(format, **options)
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x)
    np.testing.assert_array_equal(y, reference.quantize(X, LNSFormat.parse(format), **options))
    np.testing.assert_array_equal(tape.gradient(y, x), np.ones_like(X))


@pytest.mark.parametrize(("format", "options"), EACH[:-1])
def test_error_is_the_identity_whose_gradient_is_quantized(format, options):
    quantizer = LNSQuantizer(format, **options)
    x = tf.constant(X)
    upstream = X[::-1].copy()
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer.error(x)
    np.testing.assert_array_equal(y, X)
    expected = reference.quantize(upstream, LNSFormat.parse(format), **options)
    np.testing.assert_array_equal(tape.gradient(y, x, upstream), expected)


@pytest.mark.parametrize("axis", [None, 1])
def test_a_fixed_scale_holds_for_every_channel(axis):
    quantizer = LNSQuantizer("lns8:8", scale=0.001, axis=axis)
    expected = reference.quantize(X, LNSFormat(8, 8), scale=F32(0.001))
    np.testing.assert_array_equal(quantizer(X), expected)
    traced = tf.function(quantizer, input_signature=[tf.TensorSpec(None, tf.float32)])
    np.testing.assert_array_equal(traced(X), expected)


@pytest.mark.parametrize(("format", "options"), EACH)
def test_round_trips(format, options):
    quantizer = LNSQuantizer(format, **options)
    assert LNSQuantizer.from_config(json.loads(json.dumps(quantizer.get_config()))) == quantizer
    assert quantizers.get(quantizer) is quantizer
    serialized = json.loads(json.dumps(quantizers.serialize(quantizer)))
    again = quantizers.get(serialized)
    assert again == quantizer
    np.testing.assert_array_equal(again(X), quantizer(X))
    assert eval(repr(quantizer)) == quantizer


def test_get_takes_formats_and_short_forms():
    for value in ("lns8:8", LNSFormat(8, 8), (8, 8), {"format": "lns8:8"}):
        assert quantizers.get(value) == LNSQuantizer("lns8:8")
    assert quantizers.get(None) is None
    assert quantizers.serialize(None) is None


@pytest.mark.parametrize(
    "value", [3, 1.5, object(), keras.saving.serialize_keras_object(keras.layers.ReLU())]
)
def test_get_refuses_anything_else(value):
    with pytest.raises(TypeError):
        quantizers.get(value)


def test_equality_and_hash():
    a, b = LNSQuantizer("lns8:8", axis=1), LNSQuantizer((8, 8), axis=np.int64(1))
    assert a == b
    assert len({a, b, LNSQuantizer("lns8:8")}) == 2
    assert a != "lns8:8"
