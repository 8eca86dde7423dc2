"""XLA lowerings: the same bits as tf_lns.reference under tf.function(jit_compile=True)."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf

from tf_lns import reference
from tf_lns.formats import LNSFormat
from tf_lns.ops.library import load

F32 = np.float32
FACTORS = [2**i for i in range(13)]
WIDTHS = [2, 5, 8, 9, 12, 16]

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 2.0**-127, 2.0**-126, -(2.0**-126), 2.0**127, 1.0, -1.0]
SPECIAL += [2.0 - 2.0**-23, 3.4028235e38, -3.4028235e38, np.inf, -np.inf]
SPECIAL = np.array(SPECIAL, F32)
NANS = np.array([0x7FC00000, 0xFFC00001, 0x7FFFFFFF], np.uint32).view(F32)


@functools.cache
def ops():
    return load()


def jit(function, *args):
    result = tf.function(function, jit_compile=True)(*args)
    return tf.nest.map_structure(lambda t: None if t is None else t.numpy(), result)


def attributes(fmt):
    return {"bits": fmt.bits, "base_factor": fmt.base_factor}


def assert_same(actual, expected, context=""):
    """Equal bit for bit, the sign of zero included."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype == F32:
        actual, expected = (np.atleast_1d(a).view(np.uint32) for a in (actual, expected))
    bad = np.flatnonzero(np.ravel(actual != expected))
    assert bad.size == 0, (
        f"{context}: {bad.size} differ, first at {bad[0]}: "
        f"{actual.ravel()[bad[:3]]} in place of {expected.ravel()[bad[:3]]}"
    )


def random_floats(n, seed=0):
    """Finite floats of random bits: every sign, octave and denormal."""
    bits = np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32)
    x = bits.view(F32)
    return np.where(np.isfinite(x), x, F32(1.5))


def boundaries(fmt, scale, limit=3000):
    """Floats at, just below and just above every decision boundary (or `limit` of them)."""
    k = np.arange(-1, fmt.max_exponent + 2)
    if k.size > limit and fmt.base_factor > 64:
        k = np.random.default_rng(1).choice(k, limit, replace=False)
    octave, within = np.divmod(k, fmt.base_factor)
    keep = np.abs(octave) < 120
    octave, within = octave[keep], within[keep]
    with np.errstate(over="ignore"):
        middle = np.ldexp(reference.threshold_table(fmt.base_factor)[within], octave)
        middle = (middle * F32(scale)).astype(F32)
    near = [middle]
    for _ in range(2):
        near = [np.nextafter(near[0], F32(0)), *near, np.nextafter(near[-1], F32(np.inf))]
    x = np.concatenate(near)
    return np.concatenate([x, -x])


# --- Codec ----------------------------------------------------------------------------


@pytest.mark.parametrize("base_factor", FACTORS)
def test_encode_and_quantize_at_the_boundaries_of_every_format(base_factor):
    formats = [LNSFormat(bits, base_factor) for bits in WIDTHS]
    x = np.concatenate(
        [boundaries(f, s) for f in formats for s in (1.0, 0.7)] + [random_floats(5000), SPECIAL]
    )
    plans = [("nearest", "clamp"), ("nearest", "flush"), ("stochastic", "clamp")]

    def all_of_them(x, scale, seed):
        results = {}
        for fmt in formats:
            for rounding, underflow in plans:
                kw = attributes(fmt) | {"rounding": rounding, "underflow": underflow}
                results[fmt, rounding, underflow] = (
                    ops().lns_encode(x, scale, seed, Tcode=fmt.dtype, **kw),
                    ops().lns_quantize(x, scale, seed, **kw),
                )
        return list(results.values())

    compiled = tf.function(all_of_them, jit_compile=True)
    for scale, seed in ((1.0, 0), (0.7, -5), (2.0**-126, 2**62), (2.0**120, 7)):
        scale = F32(scale)
        results = iter(compiled(x, scale, tf.constant(seed, tf.int64)))
        for fmt in formats:
            for rounding, underflow in plans:
                codes, values = next(results)
                context = f"{fmt} scale {scale} {rounding} {underflow}"
                kw = {"rounding": rounding, "underflow": underflow, "seed": seed}
                expected = reference.encode(x, scale, fmt, **kw)
                assert_same(codes, expected, context)
                assert_same(values, reference.decode(expected, scale, fmt), context)


def test_a_constant_scale_divides_like_a_variable_one():
    x = random_floats(20000, 3)
    formats = [LNSFormat(8, 8), LNSFormat(16, 2048)]
    scales = [F32(0.1), F32(3.0), F32(1e-30), F32(7e30)]

    def constant(x):
        seed = tf.constant(0, tf.int64)
        return [
            ops().lns_encode(x, tf.constant(s), seed, Tcode=f.dtype, **attributes(f))
            for f in formats
            for s in scales
        ]

    results = iter(jit(constant, x))
    for fmt in formats:
        for scale in scales:
            assert_same(next(results), reference.encode(x, scale, fmt), f"{fmt} {scale}")


@pytest.mark.parametrize("base_factor", FACTORS)
def test_decode_every_code(base_factor):
    formats = [LNSFormat(bits, base_factor) for bits in range(2, 17)]
    codes = [np.arange(-f.max_code, f.max_code + 1).astype(f.dtype) for f in formats]

    def all_of_them(codes, scale):
        return [
            ops().lns_decode(c, scale, **attributes(f)) for c, f in zip(codes, formats, strict=True)
        ]

    compiled = tf.function(all_of_them, jit_compile=True)
    for scale in (F32(1), F32(0.7), F32(2.0**-126), F32(3e38)):
        for value, c, fmt in zip(compiled(codes, scale), codes, formats, strict=True):
            assert_same(value, reference.decode(c, scale, fmt), f"{fmt} {scale}")


def test_requantize_every_code():
    pairs = [((16, 2048), (8, 8)), ((16, 2048), (12, 128)), ((8, 8), (16, 2048))]
    pairs += [((8, 8), (5, 1)), ((16, 1), (2, 4096)), ((16, 4096), (16, 1))]
    pairs += [((10, 32), (8, 16)), ((9, 4), (9, 4)), ((7, 2), (16, 4096))]
    pairs = [(LNSFormat(*a), LNSFormat(*b)) for a, b in pairs]
    codes = [np.arange(-a.max_code, a.max_code + 1).astype(a.dtype) for a, _ in pairs]

    def all_of_them(codes):
        return [
            ops().lns_requantize(
                c,
                Tto=b.dtype,
                from_bits=a.bits,
                from_base_factor=a.base_factor,
                to_bits=b.bits,
                to_base_factor=b.base_factor,
            )
            for c, (a, b) in zip(codes, pairs, strict=True)
        ]

    for result, c, (a, b) in zip(jit(all_of_them, codes), codes, pairs, strict=True):
        assert_same(result, reference.requantize(c, a, b), f"{a} to {b}")


LAYOUTS = [
    ([], 0),
    ([0], 0),
    ([1], 0),
    ([2], 0),
    ([0, 1], 0),
    ([1, 2], 0),
    ([0, 1, 2], 0),
    ([0], 2),
    ([1], 3),
    ([1], 5),
    ([2], 1),
    ([2], 4),
    ([2], 1000),
]


@pytest.mark.parametrize("power_of_two", [False, True])
def test_scale_layouts(power_of_two):
    fmt = LNSFormat(8, 8)
    rng = np.random.default_rng(0)
    shapes = [(3, 10, 7), (1, 1, 1), (2, 0, 3)]
    tensors = [rng.standard_normal(s).astype(F32) for s in shapes]
    tensors[0][1] = 0  # an all-zero channel
    tensors[0][2, :5, 0] = SPECIAL[-5:]
    tensors[0][0, 0, :3] = NANS

    def all_of_them(tensors):
        results = []
        for x in tensors:
            for axis, vector_size in LAYOUTS:
                kw = attributes(fmt) | {"axis": axis, "vector_size": vector_size}
                seed = tf.constant(5, tf.int64)
                scale = ops().lns_scale(x, power_of_two=power_of_two, **kw)
                codes = ops().lns_encode(x, scale, seed, Tcode="int8", underflow="flush", **kw)
                results.append(
                    (
                        scale,
                        ops().lns_quantize_dynamic(x, seed, power_of_two=power_of_two, **kw),
                        ops().lns_quantize(x, scale, seed, rounding="stochastic", **kw),
                        codes,
                        ops().lns_decode(codes, scale, **kw),
                    )
                )
        return results

    results = iter(jit(all_of_them, tensors))
    for x in tensors:
        for axis, vector_size in LAYOUTS:
            scale, (quantized, dynamic), stochastic, codes, decoded = next(results)
            how = {"axis": axis or None, "vector_size": vector_size or None}
            context = f"{x.shape} {how}"
            expected = reference.scale_of(x, fmt, power_of_two=power_of_two, **how)
            assert_same(scale, expected, context)
            assert_same(dynamic, expected, context)
            expected = reference.quantize(x, fmt, power_of_two=power_of_two, **how)
            assert_same(quantized, expected, context)
            expected = reference.quantize(x, fmt, scale, rounding="stochastic", seed=5, **how)
            assert_same(stochastic, expected, context)
            zeroed = np.where(np.isnan(x), F32(0), x)  # what NaN encodes to
            expected = reference.encode(zeroed, scale, fmt, underflow="flush", **how)
            assert_same(codes, expected, context)
            assert_same(decoded, reference.decode(codes, scale, fmt, **how), context)


def test_scale_of_every_size():
    """Ranges wider than the exponents of float32 too."""
    formats = [LNSFormat(b, g) for b in (2, 8, 9, 16) for g in (1, 2, 8, 256, 4096)]
    x = np.concatenate([random_floats(3000, 5), SPECIAL, NANS]).reshape(-1, 1)

    def all_of_them(x):
        return [ops().lns_scale(x, axis=[0], **attributes(f)) for f in formats]

    for scale, fmt in zip(jit(all_of_them, x), formats, strict=True):
        assert_same(scale, reference.scale_of(x, fmt, axis=0), str(fmt))


def test_large_tensors():
    """Reductions over many elements fold slices first; sizes with and without a rest."""
    fmt = LNSFormat(8, 8)
    shapes = [(70001,), (8, 65536), (3, 257, 300), (1, 131072, 1)]
    tensors = [random_floats(np.prod(s), 11).reshape(s) * F32(2.0**-8) for s in shapes]
    axes = [[], [0], [2], []]
    codes = [tf.Variable(np.full(s, 100, np.int8)) for s in shapes]
    moments = [tf.Variable(np.zeros(s, np.int8)) for s in shapes]
    exponents = [tf.Variable(np.int32(-(2**31))) for _ in shapes]
    for x in tensors:
        x.flat[:: x.size // 9] = np.nan
        x.flat[-1] = np.inf

    def all_of_them(tensors):
        results = []
        for x, axis, c, v, e in zip(tensors, axes, codes, moments, exponents, strict=True):
            scale = ops().lns_scale(x, axis=axis, **attributes(fmt))
            results.append((scale, apply_madam(c, 1.0, v, e, x, 1, fmt, learning_rate=0.5)))
        return results

    results = jit(all_of_them, tensors)
    for i, (scale, count) in enumerate(results):
        x = tensors[i]
        assert_same(scale, reference.scale_of(x, fmt, axes[i] or None), f"{x.shape}")
        expected, state, nonfinite = reference.madam_step(
            np.full(x.shape, 100, np.int8),
            x,
            reference.CompactMoment(np.zeros(x.shape, np.int8), None),
            step=1,
            learning_rate=0.5,
            format=fmt,
        )
        assert count == nonfinite
        assert_same(codes[i].numpy(), expected, f"{x.shape}")
        assert_same(moments[i].numpy(), state.k, f"{x.shape}")
        assert exponents[i].numpy() == state.exponent


def test_what_xla_cannot_refuse_has_the_documented_result():
    fmt = LNSFormat(7, 8)
    x = np.concatenate([NANS, SPECIAL])
    out = np.array([-128, -64, 64, 127, -63, 63, 0], np.int8)
    bad_scales = np.array([0, -1, 1e-40, np.inf, np.nan, 2], F32)
    one = np.ones(6, F32)

    def all_of_them():
        kw = attributes(fmt)
        seed = tf.constant(0, tf.int64)
        return (
            ops().lns_encode(x, 1.0, seed, Tcode="int8", **kw),
            ops().lns_encode(x, 1.0, seed, Tcode="int8", rounding="stochastic", **kw),
            ops().lns_quantize(x, 1.0, seed, **kw),
            ops().lns_decode(out, 1.0, **kw),
            ops().lns_requantize(
                out, Tto="int8", from_bits=7, from_base_factor=8, to_bits=8, to_base_factor=8
            ),
            ops().lns_encode(one, bad_scales, seed, Tcode="int8", axis=[0], **kw),
            ops().lns_decode(np.ones(6, np.int8), bad_scales, axis=[0], **kw),
        )

    nearest, stochastic, quantized, decoded, moved, codes, values = jit(all_of_them)
    n = NANS.size
    assert_same(nearest[:n], np.zeros(n, np.int8))
    assert_same(stochastic[:n], np.zeros(n, np.int8))
    assert_same(nearest[n:], reference.encode(SPECIAL, 1, fmt))
    assert_same(quantized, reference.quantize(x, fmt, 1))
    inside = np.where(np.abs(out.astype(int)) > fmt.max_code, 0, out)
    assert_same(decoded, reference.decode(inside, 1, fmt))
    assert_same(moved, reference.requantize(inside, fmt, LNSFormat(8, 8)))
    assert_same(codes, np.array([1] * 6, np.int8))
    assert_same(values, np.array([1] * 5 + [2], F32))


def test_quantize_gradient_is_the_identity():
    for dtype in (tf.float16, tf.bfloat16, tf.float32):
        x = tf.constant([1.7, -0.3, 0.0], dtype)
        y = jit(lambda x: ops().lns_quantize_gradient(x, bits=8, base_factor=8), x)
        np.testing.assert_array_equal(y, x.numpy())


def test_neighbours_do_not_change_the_bits():
    """Fused with other float operations, where XLA and LLVM look for shortcuts."""
    fmt = LNSFormat(8, 8)
    x, y = random_floats(20000, 8) * F32(1e-3), random_floats(20000, 9) * F32(1e-3)
    x, y = (np.where(np.abs(a) < 1e-30, F32(0.1), a) for a in (x, y))
    x, y = (np.where(np.abs(a) > 1e30, F32(3), a) for a in (x, y))

    def step(x, y):
        seed = tf.constant(0, tf.int64)
        scale = ops().lns_scale(x, **attributes(fmt))
        q = ops().lns_quantize(x, scale * 0.3, seed, **attributes(fmt))
        return ops().lns_quantize(q * 3.0 + y, scale * 0.3 * 7.0, seed, **attributes(fmt))

    scale = reference.scale_of(x, fmt)
    q = reference.quantize(x, fmt, scale * F32(0.3)).astype(np.float64)
    total = q * 3 + y  # both ways of rounding the neighbours' own sum are theirs to choose
    fused, twice = total.astype(F32), (q * 3).astype(F32) + y
    wide = F32(scale * F32(0.3)) * F32(7.0), F32(scale * F32(F32(0.3) * F32(7.0)))
    result = jit(step, x, y)
    options = [reference.quantize(t, fmt, s) for t in (fused, twice) for s in wide]
    assert np.all(np.any([result == o for o in options], axis=0))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops().lns_quantize(x, 1.0, tf.constant(0, tf.int64), bits=17, base_factor=8),
        lambda x: ops().lns_quantize(x, 1.0, tf.constant(0, tf.int64), bits=8, base_factor=3),
        lambda x: ops().lns_quantize(x, [1.0], tf.constant(0, tf.int64), bits=8, base_factor=8),
        lambda x: ops().lns_scale(x, bits=8, base_factor=8, axis=[2]),
        lambda x: ops().lns_scale(x, bits=8, base_factor=8, axis=[0, 2]),
        lambda x: ops().lns_scale(x, bits=8, base_factor=8, vector_size=4),
        lambda x: ops().lns_encode(
            x, 1.0, tf.constant(0, tf.int64), Tcode="int16", bits=8, base_factor=8
        ),
        lambda x: ops().lns_decode(tf.cast(x, tf.int8), 1.0, bits=9, base_factor=8),
        lambda x: ops().lns_quantize(x, 1.0, tf.constant([0, 1], tf.int64), bits=8, base_factor=8),
    ],
)
def test_static_mistakes_are_refused(call):
    # Within tf.function the shape function speaks first, as ValueError; op types at compile.
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        jit(call, np.ones((2, 3), F32))


# --- Integer weights ------------------------------------------------------------------


def read(codes, scale, stored, seen):
    return ops().lns_read_variable(
        codes,
        scale,
        Tcode=stored.dtype,
        bits=stored.bits,
        base_factor=stored.base_factor,
        read_bits=seen.bits,
        read_base_factor=seen.base_factor,
    )


def test_read_variable():
    formats = [LNSFormat(16, 2048), LNSFormat(8, 8), LNSFormat(12, 128)]
    scale = F32(0.013)
    variables = []
    for fmt in formats:
        info = np.iinfo(fmt.dtype)
        variables.append(tf.Variable(np.arange(info.min, info.max + 1).astype(fmt.dtype)))
    seen = [LNSFormat(8, 8), LNSFormat(16, 2048), LNSFormat(5, 1)]

    def all_of_them(scale):
        return [
            [read(v.handle, scale, f, s) for s in (f, *seen)]
            for v, f in zip(variables, formats, strict=True)
        ]

    for values, v, fmt in zip(jit(all_of_them, scale), variables, formats, strict=True):
        codes = np.clip(v.numpy(), -fmt.max_code, fmt.max_code)  # the nearest end
        for value, to in zip(values, (fmt, *seen), strict=True):
            expected = reference.decode(
                reference.requantize(codes, fmt, to),
                scale if to == fmt else reference.requantize_scale(scale, fmt, to),
                to,
            )
            assert_same(value, expected, f"{fmt} as {to}")


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_assign_variable(rounding):
    formats = [LNSFormat(16, 2048), LNSFormat(8, 8), LNSFormat(10, 32)]
    value = np.concatenate([random_floats(4000, 2), SPECIAL, NANS])
    variables = [tf.Variable(np.full(value.shape, 3, f.dtype)) for f in formats]

    def assign(value, scale, seed):
        for v, f in zip(variables, formats, strict=True):
            ops().lns_assign_variable(
                v.handle, scale, value, seed, Tcode=f.dtype, rounding=rounding, **attributes(f)
            )
        return [v.read_value() for v in variables]

    compiled = tf.function(assign, jit_compile=True)
    for scale in (F32(0.5), F32(np.nan)):
        results = compiled(value, scale, tf.constant(9, tf.int64))
        for result, v, fmt in zip(results, variables, formats, strict=True):
            numbers = np.where(np.isnan(value), F32(0), value)
            expected = reference.encode(numbers, 0.5, fmt, rounding, seed=9)
            expected[np.isnan(value)] = 3  # left as it was; a bad scale leaves them all
            assert_same(result, expected, str(fmt))
            assert_same(v.numpy(), expected, str(fmt))


def test_a_weight_is_read_and_written_within_a_loop():
    fmt = LNSFormat(16, 2048)
    codes = tf.Variable(np.arange(1, 100, dtype=np.int16))
    scale = F32(2.0**-10)
    start = codes.numpy()

    def loop():
        for _ in tf.range(3):
            value = read(codes.handle, scale, fmt, fmt)
            ops().lns_assign_variable(
                codes.handle,
                scale,
                value * 2.0,
                tf.constant(0, tf.int64),
                Tcode="int16",
                **attributes(fmt),
            )

    jit(loop)
    assert_same(codes.numpy(), (start + 3 * 2048).astype(np.int16))


# --- The optimizer's step -------------------------------------------------------------


def apply_madam(weight, scale, v, exponent, grad, step, fmt, **options):
    """The op on variables, with what most tests do not care about filled in."""
    scalars = {"learning_rate": 2.0**-6, "weight_decay": 0.0, "seed": 0, "cap": -1, "floor": -1}
    scalars = {k: options.pop(k, value) for k, value in scalars.items()}
    return ops().lns_apply_madam(
        weight.handle,
        scale,
        v.handle,
        (v if exponent is None else exponent).handle,
        grad,
        options.pop("grad_scale", 1.0),
        tf.cast(scalars["learning_rate"], tf.float32),
        tf.cast(scalars["weight_decay"], tf.float32),
        tf.cast(step, tf.int64),
        tf.cast(scalars["seed"], tf.int64),
        tf.cast(scalars["cap"], tf.int32),
        tf.cast(scalars["floor"], tf.int32),
        Tweight=weight.dtype,
        Tmoment=v.dtype,
        **attributes(fmt),
        **options,
    )


def gradients(n, steps, seed=0):
    """Many octaves, some exact zeros, some hostile; the last bits vary."""
    rng = np.random.default_rng(seed)
    for t in range(steps):
        g = (rng.standard_normal(n) * np.exp2(rng.integers(-6, 3, n))).astype(F32)
        g[rng.random(n) < 0.1] = 0
        hostile = np.concatenate([SPECIAL, NANS, [1e-20, -3e-30, 1e25]]).astype(F32)
        g[: hostile.size] = np.roll(hostile, t)
        yield g


# Steps far into a run; with them the power of beta goes through each of its bits.
LATE_STEPS = [1, 2, 3, 4, 5, 6, 7, 1000, 4095, 65535, 65536, 2**31 + 7, 2**62 + 1]

MADAM_OPTIONS = [
    {},
    {"rounding": "stochastic", "seed": -77, "learning_rate": 2.0**-9},
    {"weight_decay": 0.7, "learning_rate": 0.011},
    {"floor": 20000, "weight_decay": 0.3, "learning_rate": 0.3, "rounding": "stochastic"},
    {"cap": 30000, "learning_rate": -0.17},
    {"round_gradient": True, "learning_rate": 2.0**-11},
    {"beta": 0.9, "g_bound": 3.3, "learning_rate": 0.049},
    {"beta": 0.5, "learning_rate": 1e30},
    {"learning_rate": 1e-39, "weight_decay": 1e-39, "rounding": "stochastic"},
]


@pytest.mark.parametrize("moment", ["float32", "int8"])
@pytest.mark.parametrize("options", MADAM_OPTIONS, ids=str)
def test_madam_step_by_step(options, moment):
    fmt = LNSFormat(16, 2048)
    rng = np.random.default_rng(0)
    codes = rng.integers(-fmt.max_code, fmt.max_code + 1, 1500).astype(np.int16)
    codes[:20] = 0
    codes[20:24] = [fmt.max_code, -fmt.max_code, 1, -1]
    weight, v = tf.Variable(codes), tf.Variable(np.zeros(codes.shape, moment))
    exponent = None
    state = np.zeros(codes.shape, F32)
    if moment == "int8":
        exponent = tf.Variable(np.int32(-(2**31)))
        state = reference.CompactMoment(np.zeros(codes.shape, np.int8), None)
    names = ("beta", "g_bound", "rounding", "round_gradient")
    static = {k: options[k] for k in names if k in options}
    dynamic = {k: value for k, value in options.items() if k not in static}
    seed = dynamic.pop("seed", 3)

    @tf.function(jit_compile=True)
    def update(grad, step, seed):
        return apply_madam(
            weight, 1.0, v, exponent, grad, step, fmt, seed=seed, **dynamic, **static
        )

    for step, grad in zip(LATE_STEPS, gradients(codes.size, len(LATE_STEPS)), strict=True):
        bad = update(grad, tf.constant(step, tf.int64), tf.constant(seed + step, tf.int64))
        codes, state, nonfinite = reference.madam_step(
            codes,
            grad,
            state,
            step=step,
            format=fmt,
            seed=seed + step,
            **({"learning_rate": 2.0**-6} | dynamic | static),
        )
        context = f"step {step} of {options}"
        if moment == "int8":
            assert_same(v.numpy(), state.k, context)
            assert exponent.numpy() == (-(2**31) if state.exponent is None else state.exponent)
        else:
            assert_same(v.numpy(), state, context)
        assert_same(weight.numpy(), codes, context)
        assert bad.numpy() == nonfinite


def test_madam_on_every_kind_of_weight():
    """Narrow codes and float32 values on the grid; scales of the gradient's own format."""
    formats = [LNSFormat(8, 8), LNSFormat(12, 128), LNSFormat(16, 2048)]
    grad_formats = [LNSFormat(5, 1), LNSFormat(8, 8)]
    shape = (6, 5, 40)
    rng = np.random.default_rng(4)
    scale = F32(2.0**-12)
    cases = []
    for n, fmt in enumerate(formats):
        for kind in (fmt.dtype, "float32"):
            codes = rng.integers(-fmt.max_code, fmt.max_code + 1, shape).astype(fmt.dtype)
            values = reference.decode(codes, scale, fmt)
            weight = tf.Variable(values if kind == "float32" else codes)
            axis = ([], [2], [1, 2])[n]
            cases.append([fmt, grad_formats[n % 2], axis, weight, codes, np.zeros(shape, F32)])
    moments = [tf.Variable(np.zeros(shape, F32)) for _ in cases]

    @tf.function(jit_compile=True)
    def update(grad, step):
        counts = []
        for (fmt, grad_fmt, axis, weight, *_), v in zip(cases, moments, strict=True):
            grad_scale = ops().lns_scale(grad, axis=axis, **attributes(grad_fmt))
            counts.append(
                apply_madam(
                    weight,
                    scale,
                    v,
                    None,
                    grad,
                    step,
                    fmt,
                    grad_scale=grad_scale,
                    grad_bits=grad_fmt.bits,
                    grad_base_factor=grad_fmt.base_factor,
                    grad_axis=axis,
                    grad_underflow="flush",
                    learning_rate=0.13,
                )
            )
        return counts

    for step, flat in enumerate(gradients(np.prod(shape), 6), 1):
        grad = flat.reshape(shape)
        counts = update(grad, tf.constant(step, tf.int64))
        for case, v, count in zip(cases, moments, counts, strict=True):
            fmt, grad_fmt, axis, weight, codes, state = case
            seen = reference.quantize(grad, grad_fmt, axis=axis or None, underflow="flush")
            seen = np.where(np.isinf(grad), grad, seen)
            codes, state, nonfinite = reference.madam_step(
                codes, seen, state, step=step, learning_rate=0.13, format=fmt
            )
            case[4:] = codes, state
            assert_same(v.numpy(), state, f"{fmt} step {step}")
            if weight.dtype == tf.float32:
                codes = reference.decode(codes, scale, fmt)
            assert_same(weight.numpy(), codes, f"{fmt} step {step}")
            assert count.numpy() == nonfinite


def test_a_float_weight_off_the_grid_moves_to_it():
    fmt = LNSFormat(16, 2048)
    x = np.concatenate([random_floats(500, 1), SPECIAL, NANS])
    weight, v = tf.Variable(x), tf.Variable(np.zeros_like(x))
    jit(lambda: apply_madam(weight, 0.25, v, None, np.zeros_like(x), 1, fmt))
    assert_same(weight.numpy(), reference.quantize(np.where(np.isnan(x), F32(0), x), fmt, 0.25))


def test_one_byte_moment_follows_fading_and_growing_gradients():
    fmt = LNSFormat(16, 2048)
    n = 400
    codes = np.full(n, 20000, np.int16)
    weight, v = tf.Variable(codes), tf.Variable(np.zeros(n, np.int8))
    exponent = tf.Variable(np.int32(-(2**31)))
    state = reference.CompactMoment(np.zeros(n, np.int8), None)

    @tf.function(jit_compile=True)
    def update(grad, step):
        return apply_madam(weight, 1.0, v, exponent, grad, step, fmt, seed=step)

    rng = np.random.default_rng(0)
    sizes = [0.0, 0.0, 1.0, 1e-4, 1e-12, 1e-30, 1e-37, 0.0, 1e-3, 1e10, 1e19, 3e38, 1.0, 0.0]
    for step, size in enumerate(sizes, 1):
        grad = (rng.standard_normal(n) * size).clip(-3e38, 3e38).astype(F32)
        update(grad, tf.constant(step, tf.int64))
        codes, state, _ = reference.madam_step(
            codes, grad, state, step=step, learning_rate=2.0**-6, format=fmt, seed=step
        )
        assert_same(v.numpy(), state.k, f"step {step}")
        assert exponent.numpy() == (-(2**31) if state.exponent is None else state.exponent)
        assert_same(weight.numpy(), codes, f"step {step}")


@pytest.mark.parametrize("moment", ["float32", "int8"])
def test_madam_writes_nothing_where_the_cpu_refuses(moment):
    fmt = LNSFormat(8, 8)
    codes = np.arange(-100, 100).astype(np.int8)
    grad = np.linspace(-1, 1, codes.size).astype(F32)
    weight, v = tf.Variable(codes), tf.Variable(np.ones(codes.shape, moment))
    values = tf.Variable(reference.decode(codes, 1.0, fmt))
    exponent = tf.Variable(np.int32(5)) if moment == "int8" else None

    @tf.function(jit_compile=True)
    def update(rate, decay, step, scale, grad_scale, cap, floor):
        for w in (weight, values):
            apply_madam(
                w,
                scale,
                v,
                exponent,
                grad,
                step,
                fmt,
                grad_scale=grad_scale,
                grad_bits=8,
                grad_base_factor=8,
                learning_rate=rate,
                weight_decay=decay,
                cap=cap,
                floor=floor,
            )

    good = [0.1, 0.0, 3, 1.0, 0.01, -1, -1]
    bad = [(0, np.nan), (0, np.inf), (1, np.nan), (1, -np.inf), (2, 0), (2, -(2**63))]
    bad += [(3, 0.0), (3, np.nan), (4, -1.0), (4, np.inf), (5, 127), (6, 127)]
    types = [tf.float32, tf.float32, tf.int64, tf.float32, tf.float32, tf.int32, tf.int32]
    for place, value in [*bad, (0, 8.0)]:
        args = [*good[:place], value, *good[place + 1 :]]
        update(*(tf.constant(a, t) for a, t in zip(args, types, strict=True)))
        changed = (place, value) == (0, 8.0)
        assert np.any(weight.numpy() != codes) == changed, (place, value)
        assert np.any(values.numpy() != reference.decode(codes, 1.0, fmt)) == changed
        assert np.any(v.numpy() != 1) == changed, (place, value)
        assert exponent is None or changed or exponent.numpy() == 5


def test_additive_step():
    n = 1500
    w = random_floats(n, 6)
    w[:1000] = np.random.default_rng(1).standard_normal(1000)
    plans = [(0.01, 0.0, 0.999), (-0.3, 0.1, 0.9), (1e30, 1e10, 0.999), (1e-30, -2.0, 0.5)]
    variables = [(tf.Variable(w), tf.Variable(np.zeros(n, F32))) for _ in plans]
    states = [(w, np.zeros(n, F32)) for _ in plans]

    @tf.function(jit_compile=True)
    def update(grad, step, rates, decays):
        return [
            ops().lns_apply_madam_additive(
                w.handle, v.handle, grad, rates[i], decays[i], step, beta=plans[i][2]
            )
            for i, (w, v) in enumerate(variables)
        ]

    rates, decays = [p[0] for p in plans], [p[1] for p in plans]
    for step, grad in zip(LATE_STEPS, gradients(n, len(LATE_STEPS), 2), strict=True):
        bad = update(grad, tf.constant(step, tf.int64), tf.constant(rates), tf.constant(decays))
        for i, (rate, decay, beta) in enumerate(plans):
            *states[i], nonfinite = reference.additive_step(
                states[i][0],
                grad,
                states[i][1],
                step=step,
                learning_rate=rate,
                beta=beta,
                weight_decay=decay,
            )
            assert_same(variables[i][1].numpy(), states[i][1], f"{plans[i]} step {step}")
            assert_same(variables[i][0].numpy(), states[i][0], f"{plans[i]} step {step}")
            assert bad[i].numpy() == nonfinite
    before = [x.numpy() for x in variables[0]]
    for rate, decay, step in [(np.nan, 0.0, 1), (0.1, np.inf, 1), (0.1, 0.1, 0)]:
        update(grad, tf.constant(step, tf.int64), [rate] * 4, [decay] * 4)
    assert_same(variables[0][0].numpy(), before[0])
    assert_same(variables[0][1].numpy(), before[1])


@pytest.mark.parametrize(
    "mistake",
    [
        {"beta": 1.0},
        {"g_bound": -1.0},
        {"grad_bits": 1},
        {"grad_bits": 8, "grad_base_factor": 8, "grad_axis": [3]},
        {"grad_bits": 8, "grad_base_factor": 8, "grad_scale": [1.0, 1.0]},
        {"grad": np.ones(4, F32)},
        {"cap": [1, 2]},
    ],
    ids=str,
)
def test_static_mistakes_in_a_step_are_refused(mistake):
    weight, v = tf.Variable(np.ones(3, np.int8)), tf.Variable(np.zeros(3, F32))
    grad = mistake.pop("grad", np.ones(3, F32))
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        jit(lambda: apply_madam(weight, 1.0, v, None, grad, 1, LNSFormat(8, 8), **mistake))


# --- No way back to the host ----------------------------------------------------------


def test_compiled_code_stays_on_the_device():
    fmt = LNSFormat(16, 2048)
    codes = tf.Variable(np.ones((8, 8), np.int16))
    moments = [tf.Variable(np.zeros((8, 8), t)) for t in ("float32", "int8")]
    exponent = tf.Variable(np.int32(0))

    @tf.function(jit_compile=True)
    def step(x):
        seed = tf.constant(1, tf.int64)
        w = read(codes.handle, 1.0, fmt, LNSFormat(8, 8))
        y, _ = ops().lns_quantize_dynamic(x @ w, seed, bits=8, base_factor=8, rounding="stochastic")
        c = ops().lns_encode(y, 1.0, seed, Tcode="int16", **attributes(fmt))
        ops().lns_assign_variable(codes.handle, 1.0, y, seed, Tcode="int16", **attributes(fmt))
        for v in moments:
            apply_madam(codes, 1.0, v, exponent, y, 1, fmt, rounding="stochastic")
        return ops().lns_decode(c, 1.0, **attributes(fmt))

    text = step.experimental_get_compiler_ir(np.ones((8, 8), F32))(stage="optimized_hlo")
    assert not re.search(r"custom-call|outfeed|infeed|\bsend\b|\brecv\b|callback", text)
