"""Products of codes under XLA: the same bits as tf_lns.reference."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tf_lns import Datapath, LNSFormat, ops, reference
from tf_lns.ops.library import load
from tf_lns.ops.product import product_attributes

LNS8 = "lns8:8"


def codes(rng, shape, format=LNS8, zeros=0.1):
    format = LNSFormat.get(format)
    x = rng.integers(-format.max_code, format.max_code + 1, shape)
    return np.where(rng.random(shape) < zeros, 0, x).astype(format.dtype)


def equal_bits(actual, expected, context=""):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    bad = np.flatnonzero((actual.view(np.int32) != expected.view(np.int32)).ravel())
    assert bad.size == 0, (
        f"{context}: {bad.size} of {actual.size} differ, first at {bad[0]}: "
        f"{actual.ravel()[bad[:3]]} in place of {expected.ravel()[bad[:3]]}"
    )


def jit(function, *arguments):
    """Arguments are no constants: those might be folded by the CPU kernel before XLA."""
    return tf.function(function, jit_compile=True)(*map(tf.constant, arguments))


def compare(name, a, b, cases):
    """All cases, each formats and options, compiled as one function of the same operands."""

    def all_of_them(a, b):
        return [getattr(ops, name)(a, b, *formats, **options) for formats, options in cases]

    results = jit(all_of_them, a, b)
    for actual, (formats, options) in zip(results, cases, strict=True):
        expected = getattr(reference, name)(a, b, *formats, **options)
        equal_bits(actual, expected, f"{formats} {options}")


DATAPATHS = [
    Datapath(),
    Datapath(lut_bits=0),
    Datapath(lut_bits=2),
    Datapath(accumulator_bits=8),
    Datapath(accumulator_bits=16, headroom_bits=0),
    Datapath(accumulator_bits=32, headroom_bits=0, fraction_bits=0),
    Datapath(accumulator_bits=32, headroom_bits=0, fraction_bits=16),
    Datapath(headroom_bits=32, accumulator_bits=16),
    Datapath(vector_size=1, accumulator_bits=14, headroom_bits=1),
    Datapath(vector_size=5),
    Datapath(vector_size=32, accumulator_bits=12, headroom_bits=1),
    Datapath(vector_size=33, accumulator_bits=12, headroom_bits=1),
    Datapath(vector_size=1000),
    Datapath(lut_bits=0, conversion="bins"),
    Datapath(lut_bits=3, conversion="bins"),
    Datapath(lut_bits=2, conversion="bins", accumulator_bits=10, headroom_bits=0, vector_size=20),
    Datapath(lut_bits=1, conversion="bins", accumulator_bits=32, vector_size=40),
]


@pytest.mark.parametrize("k", [1, 75])
def test_matmul_on_any_datapath(k):
    rng = np.random.default_rng(k)
    a, b = codes(rng, (7, k)), codes(rng, (k, 19))
    scales = {"a_scale": 0.02, "b_scale": 0.3}
    cases = [((LNS8,), {**scales, "datapath": datapath}) for datapath in DATAPATHS]
    compare("lns_matmul", a, b, cases)


@pytest.mark.parametrize("datapath", DATAPATHS, ids=str)
def test_details(datapath):
    rng = np.random.default_rng(1)
    a, b = codes(rng, (2, 5, 75)), codes(rng, (75, 6))
    options = {"b_scale": 0.3, "datapath": datapath, "return_details": True}
    expected = reference.lns_matmul(a, b, LNS8, **options)
    actual = jit(lambda a, b: ops.lns_matmul(a, b, LNS8, **options), a, b)
    equal_bits(actual.values, expected.values)
    np.testing.assert_array_equal(actual.accumulators, expected.accumulators)
    assert actual.accumulators.dtype == tf.int32
    assert (int(actual.saturated), int(actual.truncated)) == (
        expected.saturated,
        expected.truncated,
    )


FORMATS = [
    ("lns8:8", "lns8:8"),
    ("lns5:2", "lns8:2"),
    ("lns8:1", "lns8:1"),
    ("lns2:1", "lns16:1"),
    ("lns8:16", "lns10:16"),
    ("lns16:64", "lns8:64"),
    ("lns16:2048", "lns16:2048"),
    ("lns4:4096", "lns10:4096"),
]


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_formats(formats):
    rng = np.random.default_rng(2)
    a, b = codes(rng, (5, 40), formats[0]), codes(rng, (40, 6), formats[1])
    datapaths = [Datapath(), Datapath(lut_bits=0), Datapath(lut_bits=0, conversion="bins")]
    datapaths.append(Datapath(accumulator_bits=32, fraction_bits=16, headroom_bits=0))
    if int(formats[0].split(":")[1]) >= 8:
        datapaths.append(Datapath(lut_bits=3))
        datapaths.append(Datapath(lut_bits=3, conversion="bins"))
    scales = {"a_scale": 2.0**-20, "b_scale": 2.0**-20}
    compare("lns_matmul", a, b, [(formats, {**scales, "datapath": d}) for d in datapaths])


def test_many_bins():
    rng = np.random.default_rng(3)
    a, b = codes(rng, (3, 40), "lns16:2048"), codes(rng, (40, 4), "lns16:2048")
    datapath = Datapath(conversion="bins", vector_size=16)
    compare("lns_matmul", a, b, [(("lns16:2048",), {"datapath": datapath})])


SHAPES = [
    ((3, 1, 5, 34), (2, 34, 9)),
    ((4, 7), (3, 7, 2)),
    ((2, 1, 7), (7, 1)),
    ((0, 7), (7, 3)),
    ((2, 0), (0, 3)),
]


@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
def test_transposed_and_batched(a_shape, b_shape):
    rng = np.random.default_rng(4)
    a, b = codes(rng, a_shape), codes(rng, b_shape)
    expected = reference.lns_matmul(a, b, LNS8)
    for transpose_a in (False, True):
        for transpose_b in (False, True):
            actual = jit(
                functools.partial(
                    ops.lns_matmul,
                    a_format=LNS8,
                    transpose_a=transpose_a,
                    transpose_b=transpose_b,
                ),
                np.swapaxes(a, -1, -2) if transpose_a else a,
                np.swapaxes(b, -1, -2) if transpose_b else b,
            )
            equal_bits(actual, expected)


SCALE_SHAPES = [
    ((), (1, 9)),
    ((5, 1), (1, 9)),
    ((2, 5, 1), ()),
    ((5, 3), (1, 9)),
    ((), (3, 9)),
    ((2, 1, 3), (3, 1)),
]


@pytest.mark.parametrize(("a_shape", "b_shape"), SCALE_SHAPES)
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_scales(a_shape, b_shape, spread):
    rng = np.random.default_rng(5)
    a, b = codes(rng, (2, 5, 40)), codes(rng, (40, 9))
    scales = [
        np.exp2(np.clip(spread * rng.normal(size=s), -126, 30)).astype(np.float32)
        for s in (a_shape, b_shape)
    ]
    for datapath in (Datapath(), Datapath(lut_bits=1, conversion="bins")):
        if datapath.conversion == "bins" and spread > 1:
            continue
        expected = reference.lns_matmul(
            a, b, LNS8, a_scale=scales[0], b_scale=scales[1], datapath=datapath
        )
        actual = jit(
            lambda a, b, sa, sb, d=datapath: ops.lns_matmul(
                a, b, LNS8, a_scale=sa, b_scale=sb, datapath=d
            ),
            a,
            b,
            *scales,
        )
        equal_bits(actual, expected)


def test_sums_of_denormals():
    """A scale for each vector, and results that XLA would flush to zero."""
    rng = np.random.default_rng(6)
    # Terms of a few of the accumulator's last bits, 2**13, and scales of products 2**-146.
    a, b = (rng.integers(45, 61, s) * rng.choice([-1, 1], s) for s in ((9, 40), (40, 9)))
    a, b = a.astype(np.int8), b.astype(np.int8)
    scales = [np.exp2(rng.integers(-75, -70, s)).astype(np.float32) for s in ((9, 3), (3, 9))]
    expected = reference.lns_matmul(a, b, LNS8, a_scale=scales[0], b_scale=scales[1])
    denormal = (np.abs(expected) < 2.0**-126) & (expected != 0)
    assert 10 < denormal.sum() < denormal.size
    actual = jit(
        lambda a, b, sa, sb: ops.lns_matmul(a, b, LNS8, a_scale=sa, b_scale=sb), a, b, *scales
    )
    equal_bits(actual, expected)
    equal_bits(ops.lns_matmul(a, b, LNS8, a_scale=scales[0], b_scale=scales[1]), expected)


@pytest.mark.parametrize("format", ["lns8:1", "lns8:8", "lns16:1"])
def test_results_beyond_float32(format):
    rng = np.random.default_rng(7)
    a, b = codes(rng, (9, 6), format, zeros=0.7), codes(rng, (6, 9), format, zeros=0.7)
    a[0] = 0
    a[1], b[:, 1] = LNSFormat.get(format).max_code, LNSFormat.get(format).max_code
    product = tf.function(
        lambda a, b, s: ops.lns_matmul(a, b, format, a_scale=s, b_scale=s), jit_compile=True
    )
    for scale in (2.0**-126, 2.0**-75, 2.0**-70, 1.0, 2.0**60, 2.0**127):
        expected = reference.lns_matmul(a, b, format, a_scale=scale, b_scale=scale)
        assert not np.isnan(expected).any()
        equal_bits(product(a, b, tf.constant(scale, tf.float32)), expected, scale)


def test_what_cannot_be_refused_has_a_harmless_result():
    rng = np.random.default_rng(8)
    a, b = codes(rng, (4, 40)), codes(rng, (40, 5))
    bad_a, bad_b, bad_scale = a.copy(), b.copy(), np.array([[1, 0, np.nan, np.inf, 2]], np.float32)
    bad_a[1, 3], bad_b[7, 2] = -128, -128
    a[1, 3], b[7, 2] = 0, 0
    scale = np.array([[1, 1, 1, 1, 2]], np.float32)
    actual = jit(lambda a, b, s: ops.lns_matmul(a, b, LNS8, b_scale=s), bad_a, bad_b, bad_scale)
    equal_bits(actual, reference.lns_matmul(a, b, LNS8, b_scale=scale))
    x, bad_x = a.reshape(1, 4, 4, 10), bad_a.reshape(1, 4, 4, 10)
    kernel, bad_kernel = b.reshape(2, 2, 10, 5), bad_b.reshape(2, 2, 10, 5)
    actual = jit(
        lambda x, k, s: ops.lns_conv(x, k, LNS8, kernel_scale=s), bad_x, bad_kernel, bad_scale[0]
    )
    equal_bits(actual, reference.lns_conv(x, kernel, LNS8, kernel_scale=scale[0]))


# --- Convolutions ---------------------------------------------------------------------


WINDOWS = [
    {},
    {"padding": "same", "strides": 2},
    {"padding": "same", "strides": (3, 2), "dilations": (1, 2)},
    {"padding": "same", "input_dilations": 2},
    {"padding": ((3, 1), (2, 4)), "input_dilations": (2, 3), "strides": (1, 2)},
    {"padding": ((-1, 2), (1, -2))},
    {"padding": ((9, 9), (0, 0)), "dilations": 2, "input_dilations": 2},
    {"dilations": 20},
]


@pytest.mark.parametrize("groups", [1, 2, 10])
def test_conv_windows(groups):
    rng = np.random.default_rng(9)
    x, kernel = codes(rng, (2, 9, 11, 10)), codes(rng, (3, 2, 10 // groups, 20))
    scale = np.exp2(rng.normal(size=20)).astype(np.float32)
    cases = [
        ((LNS8,), {"groups": groups, "x_scale": 0.1, "kernel_scale": scale, **w}) for w in WINDOWS
    ]
    compare("lns_conv", x, kernel, cases)


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_windows(multiplier):
    rng = np.random.default_rng(10)
    x, kernel = codes(rng, (2, 9, 11, 7)), codes(rng, (3, 2, 7, multiplier))
    scale = np.exp2(rng.normal(size=(7, multiplier))).astype(np.float32)
    cases = [((LNS8,), {"kernel_scale": scale, **w}) for w in WINDOWS]
    compare("lns_depthwise_conv", x, kernel, cases)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_ranks_datapaths_and_formats(rank):
    rng = np.random.default_rng(11)
    shapes = (3, *(8, 6, 7)[:rank], 5), (*(3, 1, 2)[:rank], 5, 6)
    for formats in ((LNS8,), ("lns16:64", "lns8:64")):
        x, kernel = codes(rng, shapes[0], formats[0]), codes(rng, shapes[1], formats[-1])
        cases = [
            (formats, {"padding": "same", "datapath": datapath})
            for datapath in (
                Datapath(accumulator_bits=16),
                Datapath(vector_size=7),
                Datapath(lut_bits=1, conversion="bins"),
            )
        ]
        compare("lns_conv", x, kernel, cases)


EMPTY = [
    ((0, 5, 5, 3), (2, 2, 3, 4)),
    ((2, 5, 5, 0), (2, 2, 0, 4)),
    ((2, 5, 5, 3), (2, 2, 3, 0)),
    ((2, 0, 5, 3), (2, 2, 3, 4)),
]


@pytest.mark.parametrize(("x", "kernel"), EMPTY)
def test_empty_convolutions(x, kernel):
    x, kernel = np.zeros(x, np.int8), np.zeros(kernel, np.int8)
    compare("lns_conv", x, kernel, [((LNS8,), {}), ((LNS8,), {"padding": "same"})])


# --- Shapes that do not fit, other ways in --------------------------------------------


def test_refuses_shapes():
    """With shapes that only the compiler learns."""
    a = np.zeros((3, 4), np.int8)
    raw = functools.partial(
        load().lns_matmul,
        **product_attributes(Datapath(), LNSFormat.get(LNS8), LNSFormat.get(LNS8)),
    )

    def unknown(*arrays):
        specs = [tf.TensorSpec(None, tf.as_dtype(x.dtype)) for x in arrays]
        return tf.function(raw, jit_compile=True, input_signature=specs)(*arrays)

    one = np.float32(1)
    invalid = tf.errors.InvalidArgumentError
    with pytest.raises(invalid, match="do not fit"):
        unknown(a, a, one, one)
    with pytest.raises(invalid, match="rank 2"):
        unknown(a, a[0], one, one)
    with pytest.raises(invalid, match="a_scale must"):
        unknown(a, a.T, np.ones((3, 2), np.float32), one)
    with pytest.raises(invalid, match="b_scale must"):
        unknown(a, a.T, one, np.ones(3, np.float32))


EACH_OP = """
import numpy as np
from tf_lns import ops, reference
rng = np.random.default_rng(12)
codes = lambda *shape: rng.integers(-127, 128, shape).astype(np.int8)
a, b, x, kernel = codes(5, 40), codes(40, 6), codes(2, 6, 7, 4), codes(3, 3, 4, 2)
for name, left, right in (
    ("lns_matmul", a, b), ("lns_conv", x, kernel), ("lns_depthwise_conv", x, kernel)
):
    y = np.asarray(getattr(ops, name)(left, right, "lns8:8"))
    z = getattr(reference, name)(left, right, "lns8:8")
    np.testing.assert_array_equal(y.view(np.int32), z.view(np.int32))
details = ops.lns_matmul(a, b, "lns8:8", return_details=True)
assert int(details.truncated) == 30
bad = a.copy()
bad[0, 0] = -128  # refused by the CPU kernel, 0 under XLA: so this went through it
a[0, 0] = 0
expected = reference.lns_matmul(a, b, "lns8:8")
np.testing.assert_array_equal(ops.lns_matmul(bad, b, "lns8:8"), expected)
"""


def test_each_op_compiled_on_its_own(run_python):
    run_python(EACH_OP, env={"TF_LNS_JIT_OPS": "1"})


def test_memory_is_bounded():
    """The terms of all outputs would take 200 * 3000 * 200 * 4 bytes, 480 MB."""
    rng = np.random.default_rng(13)
    a, b = codes(rng, (200, 3000)), codes(rng, (3000, 200))
    product = tf.function(lambda a, b: ops.lns_matmul(a, b, LNS8), jit_compile=True)
    text = product.experimental_get_compiler_ir(a, b)(stage="optimized_hlo")
    assert "200,3000,200" not in text
    assert "200,200,3000" not in text
    equal_bits(product(a, b), ops.lns_matmul(a, b, LNS8))
