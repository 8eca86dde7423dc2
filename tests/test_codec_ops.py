"""The codec ops against tf_lns.reference, bit for bit, and what they refuse."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_lns import LNSFormat, reference
from tf_lns.ops import codec

# The reference multiplies a zero code by an infinite value and discards the result.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

BASE_FACTORS = [2**i for i in range(13)]
SCALES = [1.0, 2.0**-13, 1.234567, 2.0**-126, 2.0**127, 3.1e-37, 3.3e38]
EVERY_FORMAT = [LNSFormat(bits, factor) for bits in range(2, 17) for factor in BASE_FACTORS]
SOME_FORMATS = [
    LNSFormat(*pair)
    for pair in [(8, 8), (5, 1), (5, 2), (2, 1), (8, 16), (9, 1), (10, 32), (16, 2048), (16, 4096)]
]


def by_name(format):
    return f"{format.bits}:{format.base_factor}"


def bits_of(x):
    x = np.asarray(x)
    return x.view(np.uint32) if x.dtype == np.float32 else x


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    different = np.flatnonzero(bits_of(actual).reshape(-1) != bits_of(expected).reshape(-1))
    assert different.size == 0, (
        f"{different.size} of {actual.size} differ, the first at {different[0]}: "
        f"{actual.reshape(-1)[different[0]]!r}, expected {expected.reshape(-1)[different[0]]!r}"
    )


def all_codes(format):
    return np.arange(-format.max_code, format.max_code + 1).astype(format.dtype)


def around_boundaries(format, scale, most=64):
    """Floats just below, at and above decision boundaries (a sample for large base factors)."""
    thresholds = reference.threshold_table(format.base_factor).astype(np.float64)
    if len(thresholds) > most:
        thresholds = thresholds[:: len(thresholds) // most]
    octaves = np.unique(np.linspace(0, min(int(format.octaves), 30), 5).astype(int))
    exact = np.ravel(thresholds * np.float64(scale) * np.exp2(octaves)[:, None])
    x = exact[exact < 3e38].astype(np.float32)
    below, above = np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))
    around = np.concatenate([x, below, above, np.nextafter(below, np.float32(0))])
    return np.concatenate([around, -around])


NORMAL, HUGE = 2.0**-126, 3.4028235e38
SPECIAL = np.float32([0.0, 1e-45, 2.0**-127, NORMAL, 1.0, HUGE, np.inf])
SPECIAL = np.concatenate([SPECIAL, -SPECIAL])


# --- Codes --------------------------------------------------------------------------------


@pytest.mark.parametrize("format", EVERY_FORMAT, ids=by_name)
def test_decode_and_back(format):
    codes = all_codes(format)
    for scale in (1.0, 1.234567):
        values = codec.decode(codes, np.float32(scale), format)
        assert_same_bits(values, reference.decode(codes, scale, format))
    # Values beyond float32 are Inf and read back as the largest code.
    finite = np.isfinite(values)
    back = codec.encode(values, np.float32(scale), format).numpy()
    np.testing.assert_array_equal(back[finite], codes[finite])


@pytest.mark.parametrize("to_format", ["lns8:8", "lns5:1", "lns16:2048", "lns12:4096", "lns9:32"])
def test_requantize(to_format):
    for format in EVERY_FORMAT:
        codes = all_codes(format)
        assert_same_bits(
            codec.requantize(codes, format, to_format),
            reference.requantize(codes, format, to_format),
        )


@pytest.mark.parametrize("format", SOME_FORMATS, ids=by_name)
@pytest.mark.parametrize("op", ["decode", "requantize"])
def test_a_code_outside_the_format_is_refused(format, op):
    codes = np.zeros(100, format.dtype)
    if format.max_code < np.iinfo(format.dtype).max:
        codes[[37, 90]] = format.max_code + 1
    codes[73] = -format.max_code - 1
    first = np.flatnonzero(np.abs(codes.astype(int)) > format.max_code)[0]
    message = rf"codes must lie in -{format.max_code}..{format.max_code}.*flat index {first}$"
    use = {
        "decode": lambda: codec.decode(codes, 1.0, format),
        "requantize": lambda: codec.requantize(codes, format, "lns8:8"),
    }
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        use[op]()
    assert_message(error, message)


def assert_message(error, pattern):
    text = error.value.message.split(" [Op:")[0]
    text = re.sub(r"^\{\{.*?\}\} ", "", text)
    assert re.search(pattern, text), text


# --- Floats -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", EVERY_FORMAT, ids=by_name)
def test_floats_around_boundaries(format):
    for scale in SCALES if format in SOME_FORMATS else SCALES[1:3]:
        x = np.concatenate([around_boundaries(format, scale), SPECIAL])
        for underflow in ("clamp", "flush"):
            assert_same_bits(
                codec.encode(x, np.float32(scale), format, underflow=underflow),
                reference.encode(x, scale, format, underflow=underflow),
            )
            with_nan = np.append(x, np.float32(np.nan))
            assert_same_bits(
                codec.quantize(with_nan, format, np.float32(scale), underflow=underflow),
                reference.quantize(with_nan, format, scale, underflow=underflow),
            )


@pytest.mark.parametrize("format", SOME_FORMATS, ids=by_name)
def test_random_bit_patterns(format):
    bits = np.random.default_rng(0).integers(0, 2**32, 20000, np.uint32)
    x = bits.view(np.float32)
    numbers = np.where(np.isnan(x), np.float32(0), x)
    for scale in SCALES:
        assert_same_bits(
            codec.encode(numbers, np.float32(scale), format),
            reference.encode(numbers, scale, format),
        )
        assert_same_bits(
            codec.quantize(x, format, np.float32(scale)), reference.quantize(x, format, scale)
        )


@pytest.mark.parametrize("format", SOME_FORMATS, ids=by_name)
@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345])
def test_stochastic_rounding(format, seed):
    x = np.random.default_rng(1).normal(size=(37, 41)).astype(np.float32)
    x[0, : SPECIAL.size] = SPECIAL
    how = {"rounding": "stochastic", "seed": seed}
    for scale, axis in ((2.0**-10, None), (np.linspace(0.1, 0.3, 41, dtype=np.float32), 1)):
        scale = np.asarray(scale, np.float32)
        assert_same_bits(
            codec.encode(x, scale, format, axis=axis, **how),
            reference.encode(x, scale, format, axis=axis, **how),
        )
        assert_same_bits(
            codec.quantize(x, format, scale, axis=axis, **how),
            reference.quantize(x, format, scale, axis=axis, **how),
        )


def test_nan_is_refused_with_its_first_index():
    x = np.ones((100, 100), np.float32)
    x[71, 3] = x[20, 7] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        codec.encode(x, 1.0, "lns8:8")
    assert_message(error, "x must not hold NaN; the first one is at flat index 2007$")


# --- Scales -------------------------------------------------------------------------------

LAYOUTS = [
    ((4, 6, 10), None, None),
    ((4, 6, 10), 0, None),
    ((4, 6, 10), 1, None),
    ((4, 6, 10), -1, None),
    ((4, 6, 10), (1, 2), None),
    ((4, 6, 10), (0, 1, 2), None),
    ((4, 6, 10), 2, 4),
    ((4, 6, 10), 1, 4),
    ((4, 6, 10), 0, 99),
    ((3, 700), 1, None),
    ((3, 700), 1, 16),
    ((900, 3), 1, None),
    ((900, 7), 1, None),
    ((50000, 3), 1, None),
    ((3, 5, 600), 1, None),
    ((2, 1), 1, None),
    ((), None, None),
    ((0,), None, None),
    ((0, 5), 1, None),
    ((5, 0), 0, None),
    ((5, 0), 1, 4),
]


@pytest.mark.parametrize(("shape", "axis", "vector_size"), LAYOUTS)
@pytest.mark.parametrize("format", [LNSFormat(8, 8), LNSFormat(5, 2), LNSFormat(16, 2048)])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_scales_over_axes(shape, axis, vector_size, format, power_of_two):
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32) * np.float32(3)
    where = {"axis": axis, "vector_size": vector_size}
    scale = codec.scale_of(x, format, power_of_two=power_of_two, **where)
    assert_same_bits(scale, reference.scale_of(x, format, power_of_two=power_of_two, **where))
    y, same_scale = codec.quantize_with_scale(x, format, power_of_two=power_of_two, **where)
    assert_same_bits(same_scale, scale)
    assert_same_bits(y, reference.quantize(x, format, power_of_two=power_of_two, **where))
    assert_same_bits(codec.quantize(x, format, scale, **where), y)
    codes = codec.encode(x, scale, format, **where)
    assert_same_bits(codes, reference.encode(x, scale, format, **where))
    assert_same_bits(codec.decode(codes, scale, format, **where), y)


def test_a_tensor_larger_than_the_caches():
    # Its results are written past them, in rows that start with a cache line.
    rows, channels = 9000, 1000
    pattern = np.random.default_rng(3).normal(size=(9, channels)).astype(np.float32)
    x = np.tile(pattern, (rows // 9, 1))
    for format in (LNSFormat(8, 8), LNSFormat(16, 2048)):
        for axis in (None, 1):
            scale = reference.scale_of(pattern, format, axis)
            expected = np.tile(reference.quantize(pattern, format, scale, axis), (rows // 9, 1))
            assert_same_bits(codec.quantize(x, format, scale, axis), expected)
            codes = codec.encode(x, scale, format, axis=axis)
            assert_same_bits(codec.decode(codes, scale, format, axis), expected)


def test_scale_leaves_out_what_is_not_a_normal_number():
    x = np.array([[np.nan, np.inf, 1e-45, -2.0], [np.nan, -np.inf, 1e-45, 0.0]], np.float32)
    scale = codec.scale_of(x, "lns8:8", axis=0)
    assert_same_bits(scale, reference.scale_of(x, "lns8:8", axis=0))
    assert scale[1] == 1.0


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-40, np.inf, np.nan])
def test_a_scale_that_is_no_normal_number_is_refused(scale):
    scale = np.float32(scale)
    for use in (
        lambda: codec.encode([1.0], scale, "lns8:8"),
        lambda: codec.decode(np.ones(1, np.int8), scale, "lns8:8"),
        lambda: codec.quantize([1.0], "lns8:8", scale),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="finite and at least"):
            use()


@pytest.mark.parametrize("scale", [np.ones(2), np.ones(1), np.ones((3, 1)), np.ones(4)])
def test_a_scale_of_another_shape_is_refused(scale):
    scale = scale.astype(np.float32)
    x = np.ones((2, 3), np.float32)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match="scale"):
        codec.quantize(x, "lns8:8", scale, axis=1)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match="scale"):
        codec.encode(x, scale, "lns8:8")


# --- Graphs -------------------------------------------------------------------------------


def test_shapes_are_inferred():
    @tf.function(input_signature=[tf.TensorSpec([None, 6])])
    def quantize(x):
        y, scale = codec.quantize_with_scale(x, "lns8:8", axis=1)
        assert y.shape.as_list() == [None, 6]
        assert scale.shape.as_list() == [6]
        vectors = codec.scale_of(x, "lns8:8", axis=1, vector_size=4)
        assert vectors.shape.as_list() == [None, 2]
        return y

    assert quantize(np.ones((2, 6), np.float32)).shape == (2, 6)
    assert quantize(np.ones((0, 6), np.float32)).shape == (0, 6)


@pytest.mark.parametrize(
    "attributes",
    [
        {"bits": 1000, "base_factor": 8},
        {"bits": 1, "base_factor": 8},
        {"bits": -8, "base_factor": 8},
        {"bits": 8, "base_factor": 0},
        {"bits": 8, "base_factor": 3},
        {"bits": 8, "base_factor": 8192},
        {"bits": 8, "base_factor": 8, "axis": [7]},
        {"bits": 8, "base_factor": 8, "axis": [-1]},
        {"bits": 8, "base_factor": 8, "axis": [0, 0]},
        {"bits": 8, "base_factor": 8, "vector_size": -1, "axis": [0]},
        {"bits": 8, "base_factor": 8, "vector_size": 2},
        {"bits": 8, "base_factor": 8, "rounding": "up"},
    ],
    ids=str,
)
def test_attributes_out_of_range_are_refused(attributes):
    from tf_lns.ops import library

    ops = library.load()
    errors = (tf.errors.InvalidArgumentError, ValueError)
    x = tf.ones([2, 3])
    with pytest.raises(errors):
        ops.lns_quantize_dynamic(x, tf.constant(0, tf.int64), **attributes)
    with pytest.raises(errors), tf.Graph().as_default():
        ops.lns_quantize_dynamic(tf.ones([2, 3]), tf.constant(0, tf.int64), **attributes)


def test_a_seed_must_be_a_scalar():
    from tf_lns.ops import library

    ops = library.load()
    with pytest.raises(tf.errors.InvalidArgumentError, match="seed must be a scalar"):
        ops.lns_quantize(
            tf.ones([2]), tf.constant(1.0), tf.constant([], tf.int64), bits=8, base_factor=8
        )


# --- Laws ---------------------------------------------------------------------------------

formats = st.builds(LNSFormat, st.integers(2, 16), st.sampled_from(BASE_FACTORS))
floats = st.floats(width=32, allow_nan=False)
scales = st.floats(2.0**-100, 2.0**100, width=32)


def arrays(values):
    return st.lists(values, min_size=1, max_size=40).map(lambda x: np.array(x, np.float32))


def law(test):
    return settings(max_examples=150, deadline=None)(test)


@law
@given(formats, scales, st.data())
def test_law_round_trip(format, scale, data):
    codes = data.draw(st.lists(st.integers(-format.max_code, format.max_code), min_size=1))
    codes = np.array(codes, format.dtype)
    values = codec.decode(codes, np.float32(scale), format).numpy()
    # Encoding looks at the float32 quotient, which saturates where it overflows.
    with np.errstate(over="ignore"):
        kept = np.isfinite(values / np.float32(scale))
    back = codec.encode(values, np.float32(scale), format).numpy()
    np.testing.assert_array_equal(back[kept], codes[kept])


@law
@given(formats, scales, arrays(floats))
def test_law_monotone(format, scale, x):
    codes = codec.encode(np.sort(x), np.float32(scale), format).numpy()
    assert (np.diff(codes.astype(int)) >= 0).all()


@law
@given(formats, scales, arrays(floats))
def test_law_odd(format, scale, x):
    codes = codec.encode(x, np.float32(scale), format).numpy()
    np.testing.assert_array_equal(codec.encode(-x, np.float32(scale), format).numpy(), -codes)


@law
@given(formats, scales, arrays(floats), st.sampled_from(["clamp", "flush"]))
def test_law_idempotent(format, scale, x, underflow):
    once = codec.quantize(x, format, np.float32(scale), underflow=underflow)
    assert_same_bits(codec.quantize(once, format, np.float32(scale), underflow=underflow), once)


@law
@given(formats, scales, arrays(st.floats(-1.0, 1.0, width=32)), st.integers(-20, 20))
def test_law_powers_of_two_pass_through(format, scale, x, exponent):
    x = np.where(np.abs(x) < 2.0**-100, np.float32(0), x)
    factor = np.float32(2.0**exponent)
    np.testing.assert_array_equal(
        codec.encode(x * factor, np.float32(scale) * factor, format).numpy(),
        codec.encode(x, np.float32(scale), format).numpy(),
    )


@law
@given(formats, scales, arrays(floats), st.integers(-(2**63), 2**63 - 1))
def test_law_equals_the_reference(format, scale, x, seed):
    scale = np.float32(scale)
    for how in ({}, {"rounding": "stochastic", "seed": seed}):
        assert_same_bits(
            codec.encode(x, scale, format, **how), reference.encode(x, scale, format, **how)
        )
