"""Convolutions of codes: the op equals the reference and explicit products, bit for bit."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tf_lns import Datapath, LNSFormat, ops, reference

LNS8 = "lns8:8"


def codes(rng, shape, format=LNS8, zeros=0.1):
    format = LNSFormat.get(format)
    x = rng.integers(-format.max_code, format.max_code + 1, shape)
    return np.where(rng.random(shape) < zeros, 0, x).astype(format.dtype)


def equal_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(actual.view(np.int32), expected.view(np.int32))


def compare(x, kernel, *formats, depthwise=False, **options):
    formats = formats or (LNS8,)
    if depthwise:
        expected = reference.lns_depthwise_conv(x, kernel, *formats, **options)
        actual = ops.lns_depthwise_conv(x, kernel, *formats, **options)
    else:
        expected = reference.lns_conv(x, kernel, *formats, **options)
        actual = ops.lns_conv(x, kernel, *formats, **options)
    equal_bits(actual, expected)
    return expected


# --- The reference against other definitions ------------------------------------------


def loop_patches(x, kernel, strides, pads, dilations, input_dilations):
    """Patches and sizes of a two-dimensional convolution, element by element."""
    n, *sizes, c = x.shape
    taps = kernel.shape[:2]
    dilated = [(s - 1) * d + 1 for s, d in zip(sizes, input_dilations, strict=True)]
    wide = np.zeros((n, *dilated, c), x.dtype)
    wide[:, :: input_dilations[0], :: input_dilations[1]] = x
    wide = np.pad(wide, [(0, 0), *pads, (0, 0)])
    outs = [
        (wide.shape[1 + i] - (taps[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(2)
    ]
    patches = np.zeros((n, *outs, *taps, c), x.dtype)
    for oh, ow, kh, kw in itertools.product(*map(range, (*outs, *taps))):
        row = oh * strides[0] + kh * dilations[0]
        column = ow * strides[1] + kw * dilations[1]
        patches[:, oh, ow, kh, kw] = wide[:, row, column]
    return patches


@pytest.mark.parametrize(
    ("strides", "dilations", "input_dilations"),
    [((1, 1), (1, 1), (1, 1)), ((2, 3), (1, 2), (1, 1)), ((1, 2), (2, 1), (3, 2))],
)
@pytest.mark.parametrize("groups", [1, 3])
def test_is_the_product_of_explicit_patches(strides, dilations, input_dilations, groups):
    rng = np.random.default_rng(1)
    x, kernel = codes(rng, (2, 7, 8, 6)), codes(rng, (3, 2, 6 // groups, 9))
    pads = ((2, 1), (0, 3))
    options = {"strides": strides, "dilations": dilations, "input_dilations": input_dilations}
    patches = loop_patches(x, kernel, strides, pads, dilations, input_dilations)
    products = []
    for g in range(groups):
        channels = slice(g * 6 // groups, (g + 1) * 6 // groups)
        filters = slice(g * 9 // groups, (g + 1) * 9 // groups)
        rows = patches[..., channels].reshape(-1, 36 // groups)
        columns = kernel[..., filters].reshape(36 // groups, -1)
        products.append(ops.lns_matmul(rows, columns, LNS8, a_scale=0.5, b_scale=3.0))
    expected = np.concatenate(products, -1).reshape(*patches.shape[:3], 9)
    actual = compare(
        x, kernel, padding=pads, groups=groups, x_scale=0.5, kernel_scale=3.0, **options
    )
    equal_bits(actual, expected)


def test_agrees_with_tensorflow_on_powers_of_two():
    """Base factor 1 and a wide accumulator: every product and sum is exact."""
    rng = np.random.default_rng(2)
    x = rng.integers(-4, 5, (2, 9, 10, 4)).astype(np.int8)
    kernel = rng.integers(-4, 5, (3, 2, 4, 5)).astype(np.int8)
    depthwise = rng.integers(-4, 5, (3, 2, 4, 2)).astype(np.int8)
    datapath = Datapath(accumulator_bits=30, headroom_bits=12)
    format = LNSFormat(4, 1)
    values = [ops.decode(c, 1.0, format) for c in (x, kernel, depthwise)]
    for padding, (strides, dilations) in itertools.product(
        ("valid", "same"), (((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 3)))
    ):
        options = {"strides": strides, "padding": padding, "dilations": dilations}
        expected = tf.nn.conv2d(values[0], values[1], strides, padding.upper(), None, dilations)
        equal_bits(compare(x, kernel, format, datapath=datapath, **options), expected)
        expected = tf.nn.depthwise_conv2d(
            values[0], values[2], (1, *strides, 1), padding.upper(), None, dilations
        )
        actual = compare(x, depthwise, format, datapath=datapath, depthwise=True, **options)
        equal_bits(actual, expected)


# --- The op against the reference -----------------------------------------------------


WINDOWS = [
    {},
    {"padding": "same"},
    {"strides": 2, "padding": "same"},
    {"strides": (3, 2), "padding": "same", "dilations": (1, 2)},
    {"dilations": (2, 3), "padding": "same"},
    {"input_dilations": 2, "padding": "same"},
    {"input_dilations": (2, 3), "padding": ((3, 1), (2, 4)), "strides": (1, 2)},
    {"padding": ((-1, 2), (1, -2))},
    {"padding": ((9, 9), (0, 0)), "dilations": 2, "input_dilations": 2},
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 10])
def test_windows(window, groups):
    rng = np.random.default_rng(3)
    x, kernel = codes(rng, (2, 9, 11, 10)), codes(rng, (3, 2, 10 // groups, 20))
    compare(x, kernel, groups=groups, x_scale=0.1, kernel_scale=0.2, **window)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("channels", "multiplier"), [(1, 1), (37, 1), (70, 1), (9, 3)])
def test_depthwise_windows(window, channels, multiplier):
    rng = np.random.default_rng(4)
    x, kernel = codes(rng, (2, 9, 11, channels)), codes(rng, (3, 2, channels, multiplier))
    scale = np.exp2(rng.normal(size=(channels, multiplier))).astype(np.float32)
    compare(x, kernel, depthwise=True, x_scale=0.1, kernel_scale=scale, **window)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_ranks(rank, padding):
    rng = np.random.default_rng(5)
    x, kernel = codes(rng, (3, *(8, 6, 7)[:rank], 5)), codes(rng, (*(3, 1, 2)[:rank], 5, 6))
    strides, dilations = (2, 1, 1)[:rank], (1, 1, 3)[:rank]
    options = {"strides": strides, "dilations": dilations, "padding": padding}
    compare(x, kernel, kernel_scale=np.arange(1, 7, dtype=np.float32), **options)
    compare(x, kernel, depthwise=True, **options)


DATAPATHS = [
    Datapath(),
    Datapath(lut_bits=1),
    Datapath(accumulator_bits=10, headroom_bits=0),
    Datapath(accumulator_bits=32, headroom_bits=0, fraction_bits=16),
    Datapath(vector_size=1, accumulator_bits=12),
    Datapath(vector_size=7),
    Datapath(vector_size=1000),
    Datapath(lut_bits=2, conversion="bins", accumulator_bits=12),
]


@pytest.mark.parametrize("datapath", DATAPATHS, ids=str)
@pytest.mark.parametrize("depthwise", [False, True])
def test_datapaths(datapath, depthwise):
    rng = np.random.default_rng(6)
    x, kernel = codes(rng, (2, 6, 5, 33)), codes(rng, (3, 3, 33, 2))
    compare(x, kernel, padding="same", datapath=datapath, depthwise=depthwise)


FORMATS = [
    ("lns8:8", "lns5:8"),
    ("lns8:1", "lns8:1"),
    ("lns4:2", "lns16:2"),
    ("lns16:2048", "lns16:2048"),
    ("lns16:64", "lns8:64"),
    ("lns4:4096", "lns10:4096"),
    ("lns12:8", "lns9:8"),
]


@pytest.mark.parametrize("formats", FORMATS, ids=str)
@pytest.mark.parametrize("depthwise", [False, True])
def test_formats(formats, depthwise):
    rng = np.random.default_rng(7)
    x, kernel = codes(rng, (2, 6, 5, 41), formats[0]), codes(rng, (3, 2, 41, 2), formats[1])
    for datapath in (Datapath(), Datapath(lut_bits=0), Datapath(lut_bits=0, conversion="bins")):
        options = {"x_scale": 2.0**-20, "kernel_scale": 2.0**-20, "datapath": datapath}
        compare(x, kernel, *formats, padding="same", depthwise=depthwise, **options)


@pytest.mark.parametrize("filters", [1, 63, 64, 130])
def test_pointwise_and_wide(filters):
    rng = np.random.default_rng(8)
    x = codes(rng, (3, 5, 7, 12))
    compare(x, codes(rng, (1, 1, 12, filters)))
    compare(x, codes(rng, (1, 1, 12, filters)), strides=2)
    compare(x, codes(rng, (1, 1, 6, 2 * filters)), groups=2)
    compare(x, codes(rng, (3, 3, 12, filters)), padding="same")


@pytest.mark.parametrize(
    ("x", "kernel", "options"),
    [
        ((0, 5, 5, 3), (2, 2, 3, 4), {}),
        ((2, 5, 5, 0), (2, 2, 0, 4), {}),
        ((2, 5, 5, 3), (2, 2, 3, 0), {}),
        ((2, 5, 5, 3), (6, 2, 3, 4), {}),
        ((2, 0, 5, 3), (2, 2, 3, 4), {"padding": "same"}),
        ((2, 0, 5, 3), (2, 2, 3, 4), {"padding": ((2, 1), (0, 0))}),
        ((2, 5, 5, 0), (2, 2, 0, 4), {"groups": 2}),
    ],
)
def test_empty(x, kernel, options):
    expected = compare(np.zeros(x, np.int8), np.zeros(kernel, np.int8), **options)
    assert not expected.any()


def test_many_rows_and_threads_agree():
    """More than one chunk of patches, and pieces for several threads."""
    rng = np.random.default_rng(9)
    x, kernel = codes(rng, (3, 40, 37, 20)), codes(rng, (3, 3, 20, 70))
    whole = ops.lns_conv(x, kernel, LNS8, padding="same")
    for i in range(3):
        equal_bits(ops.lns_conv(x[i : i + 1], kernel, LNS8, padding="same"), whole[i : i + 1])
    equal_bits(whole[:1, :2], reference.lns_conv(x[:1, :3], kernel, LNS8, padding="same")[:, :2])


ONE_THREAD = """
import sys
import numpy as np, tensorflow as tf
from tf_lns import ops
threads, where = int(sys.argv[1]), sys.argv[2]
tf.config.threading.set_intra_op_parallelism_threads(threads)
rng = np.random.default_rng(10)
codes = lambda *shape: rng.integers(-127, 128, shape).astype(np.int8)
x = codes(4, 20, 20, 96)
np.savez(
    where,
    conv=ops.lns_conv(x, codes(3, 3, 96, 200), "lns8:8", padding="same"),
    grouped=ops.lns_conv(x, codes(3, 3, 24, 96), "lns8:8", groups=4),
    depthwise=ops.lns_depthwise_conv2d(x, codes(3, 3, 96, 2), "lns8:8", strides=2),
    few=ops.lns_conv(x[:1, :3, :3], codes(3, 3, 96, 700), "lns8:8"),
)
"""


def test_same_bits_for_any_number_of_threads(run_python, tmp_path):
    for threads in (1, 5):
        run_python(ONE_THREAD, threads, tmp_path / f"{threads}.npz")
    one, many = (np.load(tmp_path / f"{threads}.npz") for threads in (1, 5))
    assert len(one.files) == 4
    for name in one.files:
        equal_bits(one[name], many[name])


@pytest.mark.parametrize("cpu", ["plain", "avx2"])
def test_same_bits_for_any_instruction_set(cpu, run_python, tmp_path):
    run_python(ONE_THREAD, 2, tmp_path / "best.npz")
    run_python(ONE_THREAD, 2, tmp_path / "cpu.npz", env={"TF_LNS_CPU": cpu})
    best, other = np.load(tmp_path / "best.npz"), np.load(tmp_path / "cpu.npz")
    for name in best.files:
        equal_bits(best[name], other[name])


# --- The three products of training ---------------------------------------------------


LAYERS = [
    ((9, 11), (3, 2), (1, 1), (1, 1), "valid"),
    ((9, 11), (3, 3), (1, 1), (1, 1), "same"),
    ((9, 12), (3, 3), (2, 2), (1, 1), "same"),
    ((10, 11), (3, 2), (2, 3), (1, 1), "valid"),
    ((9, 11), (2, 3), (1, 1), (2, 3), "same"),
    ((6, 6), (1, 1), (4, 4), (1, 1), "valid"),
    ((5, 5), (2, 2), (1, 1), (1, 1), ((3, 4), (2, 2))),
]


def pads_of(size, taps, stride, dilation, padding, axis):
    """Pads of the layer along an axis, and how many outputs it has."""
    window = reference.Window.of(2, stride, padding, dilation)
    outputs = window.positions(axis, size, taps).shape[0]
    return window.pads(axis, size, taps), outputs


@pytest.mark.parametrize(("sizes", "taps", "strides", "dilations", "padding"), LAYERS)
def test_error_and_gradient_passes(sizes, taps, strides, dilations, padding):
    """The convolutions that the docstring of `lns_conv` names, against explicit products."""
    rng = np.random.default_rng(11)
    channels, filters = 5, 6
    x, kernel = codes(rng, (3, *sizes, channels)), codes(rng, (*taps, channels, filters))
    window = reference.Window.of(2, strides, padding, dilations)
    patches = reference.conv_patches(x.astype(np.int64), taps, window).astype(np.int8)
    outputs = patches.shape[1:3]
    dy = codes(rng, (3, *outputs, filters))
    error_pads, gradient_pads = [], []
    for i in range(2):
        low, _ = window.pads(i, sizes[i], taps[i])
        reach, span = (taps[i] - 1) * dilations[i], (outputs[i] - 1) * strides[i]
        error_pads.append((reach - low, sizes[i] + low - 1 - span))
        gradient_pads.append((low, reach + span + 1 - sizes[i] - low))

    # dw[taps, c, o]: for a tap the sum over outputs, then images.
    columns = np.moveaxis(patches, 0, 4)  # [outputs, taps, N, C] with N before C
    rows = np.transpose(columns, (2, 3, 5, 0, 1, 4)).reshape(np.prod(taps) * channels, -1)
    errors = np.transpose(dy, (1, 2, 0, 3)).reshape(-1, filters)
    expected = np.asarray(ops.lns_matmul(rows, errors, LNS8)).reshape(kernel.shape)
    actual = ops.lns_conv(
        np.transpose(x, (3, 1, 2, 0)),
        np.transpose(dy, (1, 2, 0, 3)),
        LNS8,
        strides=dilations,
        dilations=strides,
        padding=gradient_pads,
    )
    equal_bits(np.transpose(actual, (1, 2, 0, 3)), expected)

    # dx: which dy each tap of the flipped filter meets, found by scattering y's index.
    flipped = np.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
    meets = np.zeros((3, *sizes, *taps, filters), np.int8)
    lows = [window.pads(i, sizes[i], taps[i])[0] for i in range(2)]
    for oh, ow, kh, kw in itertools.product(*map(range, (*outputs, *taps))):
        h = oh * strides[0] + kh * dilations[0] - lows[0]
        w = ow * strides[1] + kw * dilations[1] - lows[1]
        if 0 <= h < sizes[0] and 0 <= w < sizes[1]:
            meets[:, h, w, taps[0] - 1 - kh, taps[1] - 1 - kw] = dy[:, oh, ow]
    rows = meets.reshape(-1, np.prod(taps) * filters)
    expected = np.asarray(ops.lns_matmul(rows, flipped.reshape(-1, channels), LNS8))
    actual = ops.lns_conv(
        dy, flipped, LNS8, input_dilations=strides, dilations=dilations, padding=error_pads
    )
    equal_bits(actual, expected.reshape(x.shape))


def test_gradient_of_a_depthwise_filter():
    """It is a depthwise convolution over images, height and width."""
    rng = np.random.default_rng(12)
    x, dy = codes(rng, (3, 8, 9, 5)), codes(rng, (3, 3, 4, 5, 2))
    actual = ops.lns_depthwise_conv(x[None], dy, LNS8, strides=(1, 1, 2), dilations=(1, 2, 2))
    window = reference.Window.of(2, 2, "valid", (1, 2))
    patches = reference.conv_patches(x.astype(np.int64), (4, 2), window).astype(np.int8)
    assert patches.shape == (3, 3, 4, 4, 2, 5)
    expected = np.zeros((4, 2, 5, 2), np.float32)
    for c in range(5):
        rows = patches[..., c].reshape(-1, 8).T
        expected[:, :, c] = (
            ops.lns_matmul(rows, dy[..., c, :].reshape(-1, 2), LNS8).numpy().reshape(4, 2, 2)
        )
    equal_bits(np.reshape(actual, expected.shape), expected)


# --- Wrappers, shapes and errors ------------------------------------------------------


def test_two_dimensional_names():
    rng = np.random.default_rng(13)
    x, kernel = codes(rng, (1, 4, 5, 3)), codes(rng, (2, 2, 3, 2))
    equal_bits(ops.lns_conv2d(x, kernel, LNS8), ops.lns_conv(x, kernel, LNS8))
    equal_bits(
        ops.lns_depthwise_conv2d(x, kernel, LNS8, strides=2),
        ops.lns_depthwise_conv(x, kernel, LNS8, strides=2),
    )
    with pytest.raises(ValueError, match="rank 4"):
        ops.lns_conv2d(x[0], kernel[0], LNS8)


def test_shapes_in_a_graph():
    shapes = {}

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, 8, 4), tf.int8),
            tf.TensorSpec((3, 3, 4, 6), tf.int8),
        ]
    )
    def run(x, kernel):
        y = ops.lns_conv(x, kernel, LNS8, padding="same", strides=2)
        z = ops.lns_depthwise_conv(x, kernel, LNS8)
        shapes["y"], shapes["z"] = y.shape.as_list(), z.shape.as_list()
        return y, z

    rng = np.random.default_rng(14)
    x, kernel = codes(rng, (2, 7, 8, 4)), codes(rng, (3, 3, 4, 6))
    y, z = run(x, kernel)
    assert shapes == {"y": [None, None, 4, 6], "z": [None, None, 6, 24]}
    equal_bits(y, reference.lns_conv(x, kernel, LNS8, padding="same", strides=2))
    equal_bits(z, reference.lns_depthwise_conv(x, kernel, LNS8))


BAD_ARGUMENTS = [
    ({"strides": 0}, ValueError, "strides"),
    ({"strides": (1, 2, 3)}, ValueError, "strides"),
    ({"strides": 1.5}, TypeError, "strides"),
    ({"dilations": (1, 0)}, ValueError, "dilations"),
    ({"input_dilations": True}, TypeError, "input_dilations"),
    ({"padding": "causal"}, ValueError, "padding"),
    ({"padding": ((1, 1),)}, ValueError, "padding"),
    ({"padding": ((1, 1), (1, 0.5))}, TypeError, "padding"),
    ({"padding": 1}, ValueError, "padding"),
    ({"groups": 0}, ValueError, "groups"),
    ({"groups": 3}, ValueError, "groups"),
    ({"groups": 2}, ValueError, "channels"),
    ({"groups": 1.0}, TypeError, "groups"),
    ({"kernel_format": "lns8:4"}, ValueError, "requantize"),
    ({"datapath": 3}, TypeError, "datapath"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_ARGUMENTS, ids=str)
@pytest.mark.parametrize("where", [ops, reference])
def test_refuses_arguments(options, error, message, where):
    x, kernel = np.zeros((1, 5, 5, 4), np.int8), np.zeros((2, 2, 4, 4), np.int8)
    with pytest.raises(error, match=message):
        where.lns_conv(x, kernel, LNS8, **options)


def test_refuses_tensors():
    x, kernel = np.zeros((1, 5, 5, 4), np.int8), np.zeros((2, 2, 4, 4), np.int8)
    invalid = tf.errors.InvalidArgumentError
    bad_x, bad_kernel = x.copy(), kernel.copy()
    bad_x[0, 0, 1, 2] = bad_kernel[0, 1, 0, 1] = -128
    with pytest.raises(invalid, match=r"x must hold codes.*flat index 6"):
        ops.lns_conv(bad_x, kernel, LNS8)
    with pytest.raises(invalid, match=r"kernel must hold codes.*flat index 17"):
        ops.lns_conv(x, bad_kernel, LNS8)
    with pytest.raises(invalid, match=r"kernel must hold codes.*flat index 17"):
        ops.lns_depthwise_conv(x, bad_kernel, LNS8)
    with pytest.raises(invalid, match=r"kernel must hold codes.*flat index 17"):
        ops.lns_conv(x[:0], bad_kernel, LNS8)
    with pytest.raises(invalid, match="x_scale must be finite"):
        ops.lns_conv(x, kernel, LNS8, x_scale=0.0)
    with pytest.raises(invalid, match="kernel_scale must be finite"):
        ops.lns_conv(x, kernel, LNS8, kernel_scale=[1.0, np.inf, 1.0, 1.0])
    for scale in ([1.0, 1.0], [[1.0]]):
        with pytest.raises((invalid, ValueError), match=r"kernel_scale|rank at most 1"):
            ops.lns_conv(x, kernel, LNS8, kernel_scale=scale)
    with pytest.raises((invalid, ValueError), match=r"x_scale|rank 0"):
        ops.lns_conv(x, kernel, LNS8, x_scale=[1.0])
    with pytest.raises(ValueError, match="kernel_scale"):
        ops.lns_depthwise_conv(x, kernel, LNS8, kernel_scale=np.ones(4, np.float32))
    with pytest.raises(TypeError, match="`kernel` of lns8:8 must have dtype int8"):
        ops.lns_conv(x, kernel.astype(np.int16), LNS8)
    with pytest.raises(ValueError, match="`x` must be"):
        ops.lns_conv(x[0], kernel, LNS8)
    with pytest.raises(ValueError, match="tap on each axis"):
        ops.lns_conv(x, kernel[:0], LNS8)


def test_huge_results_are_refused():
    x, kernel = np.zeros((1, 5, 5, 4), np.int8), np.zeros((2, 2, 4, 4), np.int8)
    most = 2**31 - 1
    with pytest.raises((tf.errors.OpError, ValueError)):
        ops.lns_conv(x, kernel, LNS8, padding=((most, most), (most, most)))


def test_gradient_is_refused():
    x, kernel = tf.zeros((1, 5, 4), tf.int8), tf.zeros((2, 4, 4), tf.int8)
    scale = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch(scale)
        y = ops.lns_conv(x, kernel, LNS8, x_scale=scale)
    with pytest.raises(LookupError, match="no gradient"):
        tape.gradient(y, scale)
