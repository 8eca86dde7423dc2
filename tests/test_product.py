"""The product of codes: kernel and XLA lowering equal the reference, bit for bit."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tf_lns
from tf_lns import Datapath, LNSFormat, ops, reference


def codes(rng, shape, format, zeros=0.1):
    format = LNSFormat.get(format)
    x = rng.integers(-format.max_code, format.max_code + 1, shape)
    return np.where(rng.random(shape) < zeros, 0, x).astype(format.dtype)


def equal_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(actual.view(np.int32), expected.view(np.int32))


@pytest.fixture(params=["kernel", "jit"])
def matmul(request):
    """`ops.lns_matmul`, plain or compiled by XLA."""
    if request.param == "kernel":
        return ops.lns_matmul

    def compiled(a, b, *formats, **options):
        run = tf.function(lambda a, b: ops.lns_matmul(a, b, *formats, **options), jit_compile=True)
        return run(tf.constant(a), tf.constant(b))

    return compiled


DATAPATHS = [
    Datapath(),
    *(Datapath(lut_bits=m) for m in (0, 1, 2, 3)),
    *(Datapath(accumulator_bits=a) for a in (8, 12, 16, 20, 32)),
    Datapath(accumulator_bits=16, headroom_bits=0),
    Datapath(accumulator_bits=32, headroom_bits=0, fraction_bits=0),
    Datapath(vector_size=1, accumulator_bits=14, headroom_bits=1),
    Datapath(vector_size=5),
    Datapath(vector_size=1000),
    *(Datapath(lut_bits=m, conversion="bins") for m in (0, 1, 3)),
    Datapath(lut_bits=2, conversion="bins", accumulator_bits=10, headroom_bits=0),
]


@pytest.mark.parametrize("datapath", DATAPATHS, ids=str)
def test_equals_reference(matmul, datapath):
    rng = np.random.default_rng(1)
    a, b = codes(rng, (7, 53), "lns8:8"), codes(rng, (53, 19), "lns8:8")
    expected = reference.lns_matmul(
        a, b, "lns8:8", a_scale=0.02, b_scale=0.3, datapath=datapath, return_details=True
    )
    options = {"a_scale": 0.02, "b_scale": 0.3, "datapath": datapath}
    equal_bits(matmul(a, b, "lns8:8", **options), expected.values)
    actual = matmul(a, b, "lns8:8", **options, return_details=True)
    equal_bits(actual.values, expected.values)
    np.testing.assert_array_equal(actual.accumulators, expected.accumulators)
    assert int(actual.saturated) == expected.saturated
    assert int(actual.truncated) == expected.truncated


FORMATS = [
    ("lns8:8", "lns8:8"),
    ("lns5:2", "lns8:2"),
    ("lns8:1", "lns8:1"),
    ("lns2:1", "lns16:1"),
    ("lns16:2048", "lns16:2048"),
    ("lns16:64", "lns8:64"),
    ("lns4:4096", "lns10:4096"),
]


@pytest.mark.parametrize(("a_format", "b_format"), FORMATS)
def test_formats(matmul, a_format, b_format):
    rng = np.random.default_rng(2)
    a, b = codes(rng, (5, 40), a_format), codes(rng, (40, 6), b_format)
    for datapath in (Datapath(), Datapath(lut_bits=0), Datapath(lut_bits=0, conversion="bins")):
        options = {"a_scale": 2.0**-20, "b_scale": 2.0**-20, "datapath": datapath}
        expected = reference.lns_matmul(a, b, a_format, b_format, **options)
        equal_bits(matmul(a, b, a_format, b_format, **options), expected)


@pytest.mark.parametrize(
    ("transpose_a", "transpose_b"), list(itertools.product((False, True), repeat=2))
)
def test_transposed_and_batched(matmul, transpose_a, transpose_b):
    rng = np.random.default_rng(3)
    a, b = codes(rng, (3, 1, 5, 34), "lns8:8"), codes(rng, (2, 34, 9), "lns8:8")
    expected = reference.lns_matmul(a, b, "lns8:8")
    assert expected.shape == (3, 2, 5, 9)
    a = np.swapaxes(a, -1, -2) if transpose_a else a
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    options = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    equal_bits(matmul(a, b, "lns8:8", **options), expected)
    equal_bits(reference.lns_matmul(a, b, "lns8:8", **options), expected)


SCALE_SHAPES = [
    ((), (1, 9)),
    ((5, 1), (1, 9)),
    ((2, 5, 1), ()),
    ((5, 3), (1, 9)),
    ((), (3, 9)),
    ((2, 1, 3), (3, 1)),
]


@pytest.mark.parametrize(("a_shape", "b_shape"), SCALE_SHAPES)
def test_scales(matmul, a_shape, b_shape):
    rng = np.random.default_rng(4)
    a, b = codes(rng, (2, 5, 40), "lns8:8"), codes(rng, (40, 9), "lns8:8")
    options = {
        "a_scale": np.exp2(rng.normal(size=a_shape)).astype(np.float32),
        "b_scale": np.exp2(rng.normal(size=b_shape)).astype(np.float32),
    }
    expected = reference.lns_matmul(a, b, "lns8:8", **options)
    equal_bits(matmul(a, b, "lns8:8", **options), expected)


@pytest.mark.parametrize("scale", [2.0**-126, 2.0**-70, 1.0, 2.0**60, 2.0**127])
@pytest.mark.parametrize("format", ["lns8:1", "lns8:8", "lns16:1"])
def test_results_beyond_float32(matmul, format, scale):
    rng = np.random.default_rng(5)
    a, b = codes(rng, (9, 6), format, zeros=0.7), codes(rng, (6, 9), format, zeros=0.7)
    a[0] = 0
    a[1], b[:, 1] = LNSFormat.get(format).max_code, LNSFormat.get(format).max_code
    options = {"a_scale": scale, "b_scale": scale}
    expected = reference.lns_matmul(a, b, format, **options)
    assert not np.isnan(expected).any()
    assert not expected[0].any()
    equal_bits(matmul(a, b, format, **options), expected)


@pytest.mark.parametrize("datapath", DATAPATHS, ids=str)
def test_all_pairs_of_codes(datapath):
    every = np.arange(-127, 128, dtype=np.int8)
    a, b = every[:, None], every[None, :]
    expected = reference.lns_matmul(a, b, "lns8:8", datapath=datapath)
    equal_bits(ops.lns_matmul(a, b, "lns8:8", datapath=datapath), expected)
    # Each with each in a sum of 255 terms, too.
    turned = np.stack([np.roll(every, i) for i in range(255)])
    expected = reference.lns_matmul(every[None], turned, "lns8:8", datapath=datapath)
    equal_bits(ops.lns_matmul(every[None], turned, "lns8:8", datapath=datapath), expected)


def any_datapath():
    return st.builds(
        Datapath,
        lut_bits=st.none() | st.integers(0, 3),
        accumulator_bits=st.integers(8, 32),
        headroom_bits=st.integers(0, 8),
        fraction_bits=st.integers(0, 16),
        vector_size=st.sampled_from([1, 2, 3, 4, 7, 16, 33, 64]),
        conversion=st.sampled_from(["table", "bins"]),
    )


@settings(max_examples=60, deadline=None)
@given(any_datapath(), st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(0, 40))
def test_laws(datapath, seed, rows, k):
    rng = np.random.default_rng(seed)
    a, b = codes(rng, (rows, k), "lns8:8"), codes(rng, (k, 18), "lns8:8")

    def multiply(a, b, **options):
        return np.asarray(ops.lns_matmul(a, b, "lns8:8", datapath=datapath, **options))

    product = multiply(a, b)
    # Truncation is towards zero and the clamp symmetric, so signs come out of a sum;
    # 0 + x keeps -0 out of it.
    equal_bits(0 + multiply(-a, b), 0 - product)
    # Both operands take the same way through the datapath.
    equal_bits(multiply(b.T, a.T).T, product)
    # A code of 0 adds nothing, wherever a vector ends.
    equal_bits(multiply(np.pad(a, ((0, 0), (0, 9))), np.pad(b, ((0, 9), (0, 0)))), product)
    # The order within a vector is of no account.
    within = np.arange(k)
    for begin in range(0, k, datapath.vector_size):
        rng.shuffle(within[begin : begin + datapath.vector_size])
    equal_bits(multiply(a[:, within], b[within]), product)
    # A power of two comes out of a scale.
    equal_bits(multiply(a, b, a_scale=2.0**5, b_scale=2.0**-9), product * np.float32(2.0**-4))


def test_empty(matmul):
    a, b = np.zeros((3, 0), np.int8), np.zeros((0, 4), np.int8)
    np.testing.assert_array_equal(matmul(a, b, "lns8:8"), np.zeros((3, 4)))
    assert matmul(a[:0], b, "lns8:8").shape == (0, 4)


def test_refuses():
    a = np.zeros((3, 4), np.int8)
    with pytest.raises(ValueError, match="requantize"):
        ops.lns_matmul(a, a.T, "lns8:8", "lns8:4")
    with pytest.raises(TypeError, match="`b` of lns8:8 must have dtype int8"):
        ops.lns_matmul(a, a.T.astype(np.int16), "lns8:8")
    with pytest.raises(ValueError, match="lut_bits"):
        ops.lns_matmul(a, a.T, "lns8:2", datapath=Datapath(lut_bits=3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="K"):
        ops.lns_matmul(a, a, "lns8:8")
    with pytest.raises(tf.errors.InvalidArgumentError, match="a_scale"):
        ops.lns_matmul(a, a.T, "lns8:8", a_scale=0.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a_scale"):
        ops.lns_matmul(a, a.T, "lns8:8", a_scale=np.ones((3, 2), np.float32))
    with pytest.raises(TypeError, match="`b_scale` must be a number"):
        ops.lns_matmul(a, a.T, "lns8:8", b_scale="x")
    bad = a.copy()
    bad[1, 2] = -128
    with pytest.raises(tf.errors.InvalidArgumentError, match="flat index 6"):
        ops.lns_matmul(bad, a.T, "lns8:8")
    with pytest.raises(TypeError, match="datapath"):
        ops.lns_matmul(a, a.T, "lns8:8", datapath="24 bits")


def test_gradient_is_refused():
    a = tf.zeros((3, 4), tf.int8)
    scale = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch(scale)
        y = tf_lns.ops.lns_matmul(a, tf.transpose(a), "lns8:8", a_scale=scale)
    with pytest.raises(LookupError, match="no gradient"):
        tape.gradient(y, scale)


def test_under_jit_bad_codes_count_as_zero_and_bad_scales_as_one():
    a = np.array([[-128, 5]], np.int8)
    b = np.array([[7], [9]], np.int8)
    run = tf.function(lambda scale: ops.lns_matmul(a, b, "lns8:8", a_scale=scale), jit_compile=True)
    expected = reference.lns_matmul([[0, 5]], b, "lns8:8")
    equal_bits(run(tf.constant(0.0)), expected)
    equal_bits(run(tf.constant(1.0)), expected)
