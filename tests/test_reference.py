"""The NumPy reference of formats and codec against values computed with mpmath."""

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tf_lns import reference
from tf_lns.formats import LNSFormat
from tf_lns.reference.codec import splitmix64

mpmath.mp.dps = 60
F32 = np.float32
FACTORS = [2**i for i in range(13)]
FORMATS = st.builds(LNSFormat, st.integers(2, 16), st.sampled_from(FACTORS))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LARGEST = F32(np.finfo(F32).max)


def power(numerator, denominator=1):
    """2**(numerator / denominator), exactly as far as anyone can tell."""
    return mpmath.power(2, mpmath.mpf(int(numerator)) / int(denominator))


def nearest_float32(x):
    """The float32 nearest to an mpmath number in the normal range, ties to even."""
    sign, mantissa, exponent, bits = x._mpf_
    drop = bits - 24
    if drop > 0:
        low, mantissa = mantissa & ((1 << drop) - 1), mantissa >> drop
        half = 1 << (drop - 1)
        mantissa += low > half or (low == half and mantissa & 1)
        exponent += drop
    return F32(np.ldexp(float(mantissa), exponent)) * (-1 if sign else 1)


def exact_code(x, scale, fmt, underflow="clamp"):
    """SPEC 1 word for word, on one float32."""
    x, scale = F32(x), F32(scale)
    if abs(x) < F32(2.0**-126):
        return 0
    with np.errstate(over="ignore", under="ignore"):
        ratio = abs(x) / scale  # the IEEE float32 quotient
    if underflow == "flush" and ratio < F32(0.5):
        return 0
    if np.isinf(ratio):
        exponent = fmt.max_exponent
    elif ratio == 0:
        exponent = 0
    else:
        logarithm = mpmath.log(mpmath.mpf(float(ratio)), 2) * fmt.base_factor
        exponent = int(mpmath.floor(logarithm + mpmath.mpf(1) / 2))
    code = min(max(exponent, 0), fmt.max_exponent) + 1
    return -code if x < 0 else code


# --- Tables ---------------------------------------------------------------------------


@pytest.mark.parametrize("factor", FACTORS)
def test_decode_table(factor):
    expected = [nearest_float32(power(r, factor)) for r in range(factor)]
    np.testing.assert_array_equal(reference.decode_table(factor), np.array(expected, F32))


@pytest.mark.parametrize("factor", FACTORS)
def test_thresholds_are_the_first_floats_above_each_boundary(factor):
    table = reference.threshold_table(factor)
    assert table.dtype == F32
    for r, threshold in enumerate(table):
        boundary = power(2 * r + 1, 2 * factor)
        assert mpmath.mpf(float(threshold)) > boundary
        assert mpmath.mpf(float(np.nextafter(threshold, F32(0)))) < boundary


def test_log2_is_near_and_monotone():
    mantissa = np.arange(0, 1 << 23, 4099)
    fixed = reference.log2_fixed(mantissa)
    exact = np.log2(1 + mantissa / 2.0**23)
    assert np.abs(fixed / 2.0**24 - exact).max() < 2.0**-22
    assert (np.diff(fixed) >= 0).all()
    assert reference.log2_fixed(np.array([0]))[0] == 0


def test_log2_segments():
    start, slope, square = reference.log2_segments()
    for i in (0, 1, 100, 255):
        a, m, b = (mpmath.log(1 + (i + mpmath.mpf(t)) / 256, 2) for t in (0, 0.5, 1))
        unit = 2**24
        assert start[i] == int(mpmath.nint(a * unit))
        assert square[i] == int(mpmath.nint(2 * (a + b - 2 * m) * unit))
        assert slope[i] == int(mpmath.nint((b - a - 2 * (a + b - 2 * m)) * unit))


# --- Random numbers ----------------------------------------------------------------------


def test_splitmix64_is_the_published_generator():
    # First outputs for seed 1234567 (Vigna's splitmix64.c; Rosetta Code).
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(splitmix64(state))
        state = (state + 0x9E3779B97F4A7C15) % (1 << 64)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_random_bits_depend_on_seed_and_index_alone():
    whole = reference.random_bits(9, 1000)
    parts = np.concatenate([reference.random_bits(9, 300), reference.random_bits(9, 700, 300)])
    np.testing.assert_array_equal(whole, parts)
    assert (reference.random_bits(10, 1000) != whole).mean() > 0.99
    np.testing.assert_array_equal(
        reference.random_bits(-1, 10), reference.random_bits((1 << 64) - 1, 10)
    )


@pytest.mark.parametrize("seed", [0, 1, 2**63, -5])
def test_random_bits_are_uniform(seed):
    bits = reference.random_bits(seed, 1 << 16)
    share = [(bits >> np.uint32(i) & np.uint32(1)).mean() for i in range(32)]
    np.testing.assert_allclose(share, 0.5, atol=0.012)
    u = bits / 2.0**32
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.015


# --- Encode -------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**40])
def test_boundaries_of_every_base_factor(factor, scale):
    """At, just below and just above each boundary of an octave; power-of-two scales."""
    fmt = LNSFormat(16, factor)
    r = np.arange(factor)
    if factor > 256:
        r = np.random.default_rng(0).choice(factor, 256, replace=False)
    k = r + factor * 3  # in the fourth octave, inside the range of any factor
    for e in k:
        boundary = power(2 * int(e) + 1, 2 * factor) * mpmath.mpf(scale)
        above = nearest_float32(boundary)
        if mpmath.mpf(float(above)) < boundary:
            above = np.nextafter(above, F32(np.inf))
        below = np.nextafter(above, F32(0))
        codes = reference.encode(np.array([below, above, -below, -above]), scale, fmt)
        np.testing.assert_array_equal(codes, [e + 1, e + 2, -e - 1, -e - 2])


@pytest.mark.parametrize("bits", range(2, 17))
def test_every_code_survives_decode_and_encode(bits):
    for factor in FACTORS:
        fmt = LNSFormat(bits, factor)
        scale = F32(2.0**-60)
        codes = np.arange(-fmt.max_code, fmt.max_code + 1)
        reach = 127 * factor  # beyond, the float32 quotient x / scale overflows
        codes = codes[np.abs(codes) <= reach]
        if codes.size > 4001:
            codes = codes[:: codes.size // 4001]
        values = reference.decode(codes, scale, fmt)
        np.testing.assert_array_equal(reference.encode(values, scale, fmt), codes)


@settings(max_examples=300, deadline=None)
@given(
    FLOATS,
    st.floats(2.0**-126, 2.0**126, width=32, allow_subnormal=False),
    FORMATS,
    st.sampled_from(["clamp", "flush"]),
)
def test_encode_is_the_definition(x, scale, fmt, underflow):
    got = reference.encode(np.array([x], F32), scale, fmt, underflow=underflow)
    assert got.dtype == fmt.dtype
    assert got[0] == exact_code(x, scale, fmt, underflow)


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0**-10, 2.0**10, width=32), FORMATS)
def test_encode_is_nearest_in_the_log_domain(x, fmt):
    assume(0 <= np.log2(x) <= fmt.octaves)
    code = int(reference.encode(np.array([x], F32), 1.0, fmt)[0])
    distance = abs(mpmath.log(mpmath.mpf(x), 2) * fmt.base_factor - (code - 1))
    assert distance <= mpmath.mpf(1) / 2


@settings(max_examples=100, deadline=None)
@given(st.lists(FLOATS, min_size=2, max_size=30), FORMATS)
def test_codes_order_like_values_and_are_odd(xs, fmt):
    x = np.sort(np.array(xs, F32))
    codes = reference.encode(x, 1.0, fmt).astype(int)
    assert (np.diff(codes) >= 0).all()
    np.testing.assert_array_equal(reference.encode(-x, 1.0, fmt), -codes)


def test_zeros_denormals_infinities_and_saturation():
    fmt = LNSFormat(8, 8)
    tiny = F32(2.0**-126)
    x = np.array([0.0, -0.0, 1e-45, np.nextafter(tiny, F32(0)), tiny, -tiny], F32)
    assert reference.encode(x, 1.0, fmt).tolist() == [0, 0, 0, 0, 1, -1]
    assert reference.encode(x, 1.0, fmt, underflow="flush").tolist() == [0] * 6
    x = np.array([np.inf, -np.inf, 3.4e38, 2.0**15.75], F32)
    assert reference.encode(x, 1.0, fmt).tolist() == [127, -127, 127, 127]
    assert reference.encode(x[:3], tiny, fmt).tolist() == [127, -127, 127]
    half = F32(0.5)
    x = np.array([half, np.nextafter(half, F32(0)), -half], F32)
    assert reference.encode(x, 1.0, fmt, underflow="flush").tolist() == [1, 0, -1]


@pytest.mark.parametrize("index", [0, 3, 5])
def test_nan_is_refused_with_its_place(index):
    x = np.ones((2, 3), F32)
    x.flat[index:] = np.nan
    with pytest.raises(ValueError, match=f"flat index {index}"):
        reference.encode(x, 1.0, "lns8:8")


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan, 2.0**-127, 1e-45])
@pytest.mark.parametrize("function", [reference.encode, reference.decode, reference.quantize])
def test_scales_must_be_finite_normal_numbers(function, scale):
    arguments = {"format": "lns8:8", "scale": scale}
    with pytest.raises(ValueError, match="`scale` must be finite"):
        function(np.ones(2, np.int8), **arguments)


@pytest.mark.parametrize("x", [0.3, 1.0, 1.49, 5.0, 1e-6])
def test_stochastic_rounding_takes_the_neighbours_in_proportion(x):
    fmt, n = LNSFormat(8, 4), 20000
    codes = reference.encode(np.full(n, x, F32), 2.0**-6, fmt, rounding="stochastic", seed=3)
    exact = 4 * (np.log2(F32(x)) + 6)
    low = np.floor(exact)
    expected = np.clip([low, low + 1], 0, fmt.max_exponent) + 1
    assert set(np.unique(codes)) <= set(expected.astype(int))
    if exact > 0 and exact != low:
        assert abs((codes - 1).mean() - exact) < 0.02


def test_stochastic_rounding_is_seeded_and_reaches_each_extreme():
    fmt = LNSFormat(8, 8)
    x = np.random.default_rng(0).normal(size=500).astype(F32)
    first = reference.encode(x, 1.0, fmt, rounding="stochastic", seed=1)
    np.testing.assert_array_equal(
        first, reference.encode(x, 1.0, fmt, rounding="stochastic", seed=1)
    )
    with pytest.raises(ValueError, match="seed"):
        reference.encode(x, 1.0, fmt, rounding="stochastic")


@pytest.mark.parametrize("argument", [{"rounding": "up"}, {"underflow": "wrap"}])
def test_unknown_choices(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        reference.encode(np.ones(2, F32), 1.0, "lns8:8", **argument)


# --- Decode -------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(FORMATS, st.floats(2.0**-126, 2.0**20, width=32), st.data())
def test_decode_is_the_definition(fmt, scale, data):
    code = data.draw(st.integers(-fmt.max_code, fmt.max_code))
    value = reference.decode(np.array([code]), scale, fmt)[0]
    if code == 0:
        assert value == 0
        return
    octave, r = divmod(abs(code) - 1, fmt.base_factor)
    table = nearest_float32(power(r, fmt.base_factor))
    magnitude = mpmath.ldexp(mpmath.mpf(float(F32(scale) * table)), octave)
    expected = np.inf if magnitude > LARGEST else float(magnitude)
    assert value == np.sign(code) * expected


def test_decode_is_within_a_rounding_or_two_of_the_value():
    fmt = LNSFormat(16, 2048)
    codes = np.arange(1, fmt.max_code + 1, 97)
    values = reference.decode(codes, 2.0**-14, fmt)
    for code, value in zip(codes, values, strict=True):
        exact = power(code - 1, 2048) * mpmath.mpf(2) ** -14
        assert abs(mpmath.mpf(float(value)) / exact - 1) < 2.0**-24


@pytest.mark.parametrize("code", [128, -128, 1000])
def test_codes_outside_the_format_are_refused(code):
    with pytest.raises(ValueError, match=rf"-127\.\.127.*{code} at flat index 1"):
        reference.decode(np.array([1, code]), 1.0, "lns8:8")
    with pytest.raises(ValueError, match=str(code)):
        reference.requantize(np.array([1, code]), "lns8:8", "lns5:1")


# --- Quantize -----------------------------------------------------------------------------


def test_nan_passes_and_infinity_saturates():
    x = np.array([np.nan, np.inf, -np.inf, 1.0, 0.0], F32)
    y = reference.quantize(x, "lns8:8", scale=1.0)
    top = reference.decode([127], 1.0, "lns8:8")[0]
    np.testing.assert_array_equal(y, np.array([np.nan, top, -top, 1, 0], F32))
    assert reference.quantize(x, "lns8:8")[3] == 1  # its scale comes from the finite ones


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), FORMATS)
def test_quantize_is_idempotent(xs, fmt):
    assume(fmt.octaves < 60)
    x = np.array(xs, F32)
    scale = reference.scale_of(x, fmt)
    once = reference.quantize(x, fmt, scale)
    np.testing.assert_array_equal(reference.quantize(once, fmt, scale), once)


def test_relative_error_in_range():
    rng = np.random.default_rng(0)
    for fmt in (LNSFormat(8, 8), LNSFormat(16, 2048), LNSFormat(5, 1)):
        x = np.exp2(rng.uniform(-fmt.octaves + 0.1, 0, 3000)).astype(F32)
        y = reference.quantize(x, fmt, scale=F32(2.0**-fmt.octaves))
        assert np.abs(y / x - 1).max() <= fmt.max_relative_error * (1 + 1e-3) + 1e-6


# --- Scales -------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.floats(2.0**-126, 2.0**127, width=32, allow_subnormal=False), FORMATS)
def test_scale_puts_the_largest_at_the_top(largest, fmt):
    scale = reference.scale_from_abs_max(largest, fmt)
    factor = (
        nearest_float32(power(-fmt.max_exponent, fmt.base_factor)) if fmt.octaves < 126 else None
    )
    if factor is not None:
        with np.errstate(under="ignore"):
            assert scale == max(F32(largest) * factor, reference.MIN_NORMAL)
    assert scale >= reference.MIN_NORMAL
    if scale > reference.MIN_NORMAL:
        assert reference.encode(np.array([largest], F32), scale, fmt)[0] == fmt.max_code
    rounded = reference.scale_from_abs_max(largest, fmt, power_of_two=True)
    mantissa, _ = np.frexp(rounded)
    assert mantissa == 0.5
    assert scale <= rounded < 2 * scale


def test_scale_of_nothing_is_one():
    for x in (np.zeros(3), np.zeros(0), [1e-45], [np.nan], [np.inf]):
        assert reference.scale_of(np.array(x, F32), "lns8:8") == 1


def test_abs_max_leaves_out_what_is_not_finite_or_denormal():
    x = np.array([[1, -3, np.nan], [np.inf, 1e-45, 0]], F32)
    assert reference.abs_max(x) == 3
    np.testing.assert_array_equal(reference.abs_max(x, axis=0), [3, 0])
    np.testing.assert_array_equal(reference.abs_max(x, axis=1), [1, 3, 0])


@pytest.mark.parametrize(
    ("shape", "axis", "vector", "expected"),
    [
        ((4, 6), None, None, ()),
        ((4, 6), 0, None, (4,)),
        ((4, 6), -1, None, (6,)),
        ((2, 3, 5), (1, 2), None, (3, 5)),
        ((2, 3, 5), (2, 1), None, (3, 5)),
        ((4, 6), 1, 4, (4, 2)),
        ((4, 6), 0, 3, (2, 6)),
        ((0, 6), 0, 3, (0, 6)),
    ],
)
def test_scale_shapes(shape, axis, vector, expected):
    assert reference.scale_shape(shape, axis, vector) == expected
    x = np.random.default_rng(0).normal(size=shape).astype(F32)
    scale = reference.scale_of(x, "lns8:8", axis, vector)
    assert scale.shape == expected
    wide = reference.expand_scale(scale, shape, axis, vector)
    assert wide.shape == shape
    y = reference.quantize(x, "lns8:8", axis=axis, vector_size=vector)
    for index in np.ndindex(*shape):
        assert y[index] == reference.quantize(x[index], "lns8:8", scale=wide[index])


@pytest.mark.parametrize(
    ("shape", "axis", "vector", "message"),
    [
        ((4,), 1, None, "out of range"),
        ((4,), -2, None, "out of range"),
        ((2, 3, 4), (0, 2), None, "neighbouring"),
        ((2, 3), None, 2, "exactly one axis"),
        ((2, 3), (0, 1), 2, "exactly one axis"),
    ],
)
def test_wrong_scale_layouts(shape, axis, vector, message):
    with pytest.raises(ValueError, match=message):
        reference.scale_shape(shape, axis, vector)


def test_scale_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        reference.encode(np.ones((2, 3), F32), np.ones(2), "lns8:8", axis=1)


# --- Scale of a weight ---------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.floats(-(2.0**90), 2.0**90, width=32, allow_subnormal=False), min_size=1, max_size=8
    ),
    FORMATS,
)
def test_weight_scale_is_the_rule(weights, fmt):
    w = np.array(weights, F32)
    assume(np.abs(w).max() >= 2.0**-90)
    squares = mpmath.fsum(mpmath.mpf(float(x)) ** 2 for x in w) / len(w)
    wanted = max(10 * mpmath.sqrt(squares), mpmath.mpf(float(np.abs(w).max())))
    assume(abs(mpmath.log(wanted, 2) - mpmath.nint(mpmath.log(wanted, 2))) > 1e-12 or len(w) == 1)
    top = int(mpmath.ceil(mpmath.log(wanted, 2)))
    exponent = max(top - int(np.ceil(fmt.octaves)), -126)
    scale = reference.weight_scale(w, fmt)
    log2 = int(np.log2(scale))
    assert scale == 2.0**log2
    # The range goes up an octave exactly where the largest weight would be clipped.
    position = mpmath.log(mpmath.mpf(float(np.abs(w).max())), 2) - exponent
    clipped = mpmath.nint(position * fmt.base_factor) > fmt.max_exponent
    assert log2 == min(exponent + int(clipped), 127)


@pytest.mark.parametrize("exponent", [-20, -3, 0, 7])
@pytest.mark.parametrize("fmt", ["lns16:2048", "lns10:32", "lns8:8"])
def test_no_weight_is_clipped_at_powers_of_two(exponent, fmt):
    fmt = LNSFormat.parse(fmt)
    for nudge in (-1, 0, 1):
        x = F32(2.0**exponent)
        if nudge:
            x = np.nextafter(x, F32(np.inf if nudge > 0 else 0))
        w = np.zeros(400, F32)  # ten RMS is x / 2
        w[0] = x
        scale = reference.weight_scale(w, fmt)
        exact = np.log2(np.float64(x) / scale) * fmt.base_factor
        assert exact < fmt.max_exponent + 0.5
        assert reference.encode(w, scale, fmt)[0] == np.rint(exact) + 1


def test_weight_scale_at_the_limits():
    assert reference.weight_scale(np.zeros(3)) == 1
    assert reference.weight_scale(np.zeros(0)) == 1
    assert reference.weight_scale(np.array([1e-45], F32)) == 1
    assert reference.weight_scale(np.array([2.0**-126])) == 2.0**-126
    assert np.isfinite(reference.weight_scale(np.array([LARGEST])))
    assert reference.weight_scale(np.ones(4)) == 2.0 ** (4 - 16)  # ten RMS, rounded up
    assert reference.weight_scale(np.array([1.0] + [0.0] * 10**4)) == 2.0 ** (1 - 16)


# --- Requantize -----------------------------------------------------------------------------


def exact_requantize(code, old, new):
    if code == 0:
        return 0
    below = mpmath.mpf(old.max_exponent - (abs(code) - 1)) * new.base_factor / old.base_factor
    below = int(mpmath.floor(below + mpmath.mpf(1) / 2))  # ties away from the top
    magnitude = max(0, new.max_exponent - below) + 1
    return int(np.sign(code)) * magnitude


@settings(max_examples=300, deadline=None)
@given(FORMATS, FORMATS, st.data())
def test_requantize_is_the_definition(old, new, data):
    codes = data.draw(st.lists(st.integers(-old.max_code, old.max_code), max_size=8))
    got = reference.requantize(np.array(codes, int), old, new)
    assert got.dtype == new.dtype
    assert got.tolist() == [exact_requantize(c, old, new) for c in codes]


def test_ties_of_requantize_go_away_from_the_top():
    old, new = LNSFormat(8, 8), LNSFormat(8, 4)
    top = [127, 126, 125, 124, 123]  # 0, 1/2, 1, 3/2, 2 steps of the new format below the top
    assert reference.requantize(top, old, new).tolist() == [127, 126, 126, 125, 125]
    assert reference.requantize([-126], old, new).tolist() == [-126]
    assert reference.requantize([1], LNSFormat(16, 2048), old).tolist() == [1]


@given(FORMATS, FORMATS)
def test_requantize_keeps_the_top_and_zero(old, new):
    codes = [-old.max_code, 0, old.max_code]
    assert reference.requantize(codes, old, new).tolist() == [-new.max_code, 0, new.max_code]


@settings(max_examples=100, deadline=None)
@given(FORMATS, st.data())
def test_requantize_to_the_same_or_a_finer_base_and_back(fmt, data):
    codes = np.array(data.draw(st.lists(st.integers(-fmt.max_code, fmt.max_code), max_size=8)), int)
    np.testing.assert_array_equal(reference.requantize(codes, fmt, fmt), codes)


def test_the_forward_view_of_a_stored_weight():
    """Q_W: 16 bits at 2048 to 8 bits at 8, value by value within half a step."""
    old, new = LNSFormat(16, 2048), LNSFormat(8, 8)
    codes = np.arange(200, old.max_code + 1, 61)
    scale = reference.requantize_scale(1.0, old, new)
    assert scale == F32(2.0 ** (old.octaves - new.octaves))
    seen = reference.decode(reference.requantize(codes, old, new), scale, new)
    stored = reference.decode(codes, 1.0, old)
    inside = stored >= scale
    assert np.abs(np.log2(seen / stored))[inside].max() <= 1 / 16 + 1e-6


def test_scale_of_a_requantized_tensor_stays_normal():
    scale = reference.requantize_scale(2.0**-126, LNSFormat(5, 1), LNSFormat(16, 2048))
    assert scale == reference.MIN_NORMAL
