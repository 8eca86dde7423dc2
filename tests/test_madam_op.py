"""The compiled Madam updates against tf_lns.reference, bit for bit, and their errors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from tf_lns import reference as R
from tf_lns.formats import LNSFormat
from tf_lns.ops.library import load

NO_EXPONENT = -(2**31)
INT8, INT16 = LNSFormat(8, 8), LNSFormat(16, 2048)
InvalidArgument = tf.errors.InvalidArgumentError


def scalar(value, dtype=tf.int64):
    return tf.constant(value, dtype)


class Trainee:
    """One weight trained by the op and by the reference side by side."""

    def __init__(self, weights, weight_dtype, compact, format=INT16):
        self.format = LNSFormat.get(format)
        weights = np.asarray(weights, np.float32)
        self.scale = R.weight_scale(weights, self.format)
        self.ref_codes = R.encode(weights, self.scale, self.format)
        on_grid = R.decode(self.ref_codes, self.scale, self.format)
        self.weight = tf.Variable(on_grid if weight_dtype == "float" else self.ref_codes)
        zeros = np.zeros(weights.shape, np.int8 if compact else np.float32)
        self.moment = tf.Variable(zeros)
        self.exponent = tf.Variable(NO_EXPONENT, dtype=tf.int32)
        self.ref_moment = R.CompactMoment(zeros, None) if compact else zeros
        self.compact = compact
        self.t = 0

    def op(self, gradient, *, lr=2**-5, wd=0.0, seed=0, cap=None, floor=None, q=None, **attrs):
        grad_scale, more = 1.0, {}
        if q is not None:
            format, grad_scale, axis, underflow = q
            more = {
                "grad_bits": format.bits,
                "grad_base_factor": format.base_factor,
                "grad_axis": axis,
                "grad_underflow": underflow,
            }
        return load().lns_apply_madam(
            self.weight.handle, self.scale, self.moment.handle, self.exponent.handle,
            gradient, grad_scale, lr, wd, scalar(self.t), scalar(seed),
            -1 if cap is None else cap, -1 if floor is None else floor,
            Tweight=self.weight.dtype, Tmoment=self.moment.dtype, bits=self.format.bits,
            base_factor=self.format.base_factor, **more, **attrs,
        )  # fmt: skip

    def step(self, gradient, *, lr=2**-5, wd=0.0, q=None, **options):
        """One step on both sides; compares all state."""
        self.t += 1
        nonfinite = self.op(gradient, lr=lr, wd=wd, q=q, **options)
        if q is not None:
            format, grad_scale, axis, underflow = q
            rounded = R.quantize(gradient, format, grad_scale, tuple(axis), underflow=underflow)
            gradient = np.where(np.isinf(gradient), gradient, rounded)
        self.ref_codes, self.ref_moment, expected = R.madam_step(
            self.ref_codes, gradient, self.ref_moment, step=self.t, learning_rate=lr,
            format=self.format, weight_decay=wd, **options,
        )  # fmt: skip
        assert int(nonfinite) == expected
        self.check()

    def check(self):
        weight = self.weight.numpy()
        if weight.dtype == np.float32:
            expected = R.decode(self.ref_codes, self.scale, self.format)
            np.testing.assert_array_equal(weight, expected)
        else:
            np.testing.assert_array_equal(weight, self.ref_codes)
        if self.compact:
            np.testing.assert_array_equal(self.moment.numpy(), self.ref_moment.k)
            known = self.ref_moment.exponent
            assert self.exponent.numpy() == (NO_EXPONENT if known is None else known)
        else:
            np.testing.assert_array_equal(self.moment.numpy(), self.ref_moment)


def weights_and_gradients(shape, steps, seed=0, wild=True):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(shape).astype(np.float32)
    weights.flat[::11] = 0
    for t in range(steps):
        gradient = rng.standard_normal(shape).astype(np.float32)
        if wild:
            gradient *= np.float32(10.0 ** rng.integers(-3, 4))
            gradient.flat[::7] = 0
            special = [np.nan, np.inf, -np.inf, 1e-40, -1e-30, 3e38, 1e-18, -2e-38, 2.0**63]
            gradient.flat[t % 5 : t % 5 + 9] = special
        yield weights, gradient


STORES = [("codes", False), ("codes", True), ("float", False), ("float", True)]
OPTIONS = {
    "plain": {},
    "stochastic": {"rounding": "stochastic", "seed": 12345678901234},
    "decay": {"wd": 0.01},
    "stochastic decay": {"rounding": "stochastic", "seed": -3, "wd": -0.02},
    "cap": {"cap": 31000},
    "crossing": {"floor": 29000, "wd": 0.1},
    "crossing, cap": {"floor": 20000, "cap": 28000, "rounding": "stochastic"},
    "authors": {"round_gradient": True, "lr": 2**-7},
    "fast": {"lr": 3.0},
    "backwards": {"lr": -0.01},
    "still": {"lr": 0.0, "wd": 0.5},
    "g_bound": {"g_bound": 0.7},
    "beta": {"beta": 0.9, "seed": 4},
}


@pytest.mark.parametrize("store", STORES, ids=lambda s: f"{s[0]}-{'k' if s[1] else 'v'}")
@pytest.mark.parametrize("name", OPTIONS)
def test_steps_equal_the_reference(store, name):
    options = dict(OPTIONS[name])
    trainee = None
    for t, (weights, gradient) in enumerate(weights_and_gradients((7, 131), 25)):
        trainee = trainee or Trainee(weights, *store)
        if "seed" in options:
            options["seed"] += t
        trainee.step(gradient, **options)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("format", [(8, 8), (8, 4), (2, 1), (10, 32), (12, 128), (16, 4096)])
def test_formats(format, rounding, compact):
    format = LNSFormat(*format)
    lr = 1.0 if format.bits <= 8 else 2**-5
    trainee = None
    for t, (weights, gradient) in enumerate(weights_and_gradients((300,), 15)):
        trainee = trainee or Trainee(weights, "codes", compact, format)
        trainee.step(gradient, lr=lr, rounding=rounding, seed=t, wd=0.02)


@pytest.mark.parametrize("store", STORES, ids=lambda s: f"{s[0]}-{'k' if s[1] else 'v'}")
@pytest.mark.parametrize("axis", [[], [0], [1], [0, 1]])
@pytest.mark.parametrize("format", [(5, 1), (5, 2), (8, 8)])
def test_gradient_rounded_first(format, axis, store):
    format = LNSFormat(*format)
    trainee = None
    for t, (weights, gradient) in enumerate(weights_and_gradients((65, 67), 5)):
        trainee = trainee or Trainee(weights, *store)
        scale = R.scale_of(gradient, format, tuple(axis) or None)
        trainee.step(gradient, q=(format, scale, axis, ("flush", "clamp")[t % 2]), seed=t)


@pytest.mark.parametrize("compact", [False, True])
def test_many_steps(compact):
    """A long run, in which v settles and k is shifted down and up."""
    trainee = None
    for t, (weights, gradient) in enumerate(weights_and_gradients((1000,), 400, wild=False)):
        trainee = trainee or Trainee(weights, "codes", compact)
        size = 1e-3 if 100 < t < 300 else 1.0
        trainee.step(gradient * np.float32(size), seed=t)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (31,), (33,), (63,), (4097,)])
@pytest.mark.parametrize("compact", [False, True])
def test_shapes(shape, compact):
    trainee = None
    for weights, gradient in weights_and_gradients(shape, 4, wild=False):
        trainee = trainee or Trainee(weights, "codes", compact)
        trainee.step(gradient)


def test_zero_gradients_leave_a_compact_moment_without_exponent():
    trainee = Trainee(np.ones(100), "codes", True)
    for _ in range(3):
        trainee.step(np.zeros(100, np.float32))
    assert trainee.exponent.numpy() == NO_EXPONENT
    trainee.step(np.full(100, 1e-45, np.float32))  # a denormal is no gradient either
    assert trainee.exponent.numpy() == NO_EXPONENT
    trainee.step(np.ones(100, np.float32))
    assert trainee.exponent.numpy() != NO_EXPONENT


def test_compact_moment_follows_the_float_one():
    rng = np.random.default_rng(1)
    sizes = np.exp2(rng.uniform(-6, 0, 5000)).astype(np.float32)
    full = Trainee(np.ones(5000), "codes", False)
    compact = Trainee(np.ones(5000), "codes", True)
    for t in range(1, 1501):
        gradient = rng.standard_normal(5000).astype(np.float32) * sizes
        full.t = compact.t = t
        full.op(gradient, lr=0.0)
        compact.op(gradient, lr=0.0, seed=t)
        if t in (2, 30, 300, 1500):
            k = compact.moment.numpy().astype(np.float64)
            v = np.exp2(compact.exponent.numpy() - (127 - k) / 4)
            off = np.log2(v / full.moment.numpy())
            assert k.min() > 0
            assert abs(off.mean()) < 0.1
            assert off.std() < 0.5


# --- Additive step ------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"learning_rate": -3.0},
                                     {"learning_rate": 1e38, "weight_decay": 1e30},
                                     {"g_bound": 0.5}, {"beta": 0.5}])  # fmt: skip
def test_additive_equals_the_reference(options):
    options = {"learning_rate": 0.01, "weight_decay": 0.0, **options}
    attrs = {k: v for k, v in options.items() if k in ("beta", "g_bound")}
    w = v = None
    for t, (weights, gradient) in enumerate(weights_and_gradients((11, 93), 20), 1):
        if w is None:
            w, v = tf.Variable(weights), tf.Variable(np.zeros_like(weights))
            ref_w, ref_v = weights, np.zeros_like(weights)
        bad = load().lns_apply_madam_additive(
            w.handle, v.handle, gradient, options["learning_rate"], options["weight_decay"],
            scalar(t), **attrs,
        )  # fmt: skip
        ref_w, ref_v, ref_bad = R.additive_step(ref_w, gradient, ref_v, step=t, **options)
        assert int(bad) == ref_bad
        np.testing.assert_array_equal(w.numpy(), ref_w)
        np.testing.assert_array_equal(v.numpy(), ref_v)
        assert np.isfinite(ref_w).all()


# --- Threads and instruction sets ---------------------------------------------------


def digest() -> str:
    """A digest of everything that some steps leave behind."""
    state = hashlib.sha256()
    for store in STORES:
        for options in ({}, {"rounding": "stochastic", "wd": 0.01}, {"floor": 25000}):
            trainee = None
            for t, (weights, gradient) in enumerate(weights_and_gradients((300, 701), 3)):
                trainee = trainee or Trainee(weights, *store)
                trainee.t = t + 1
                q = (LNSFormat(5, 2), R.scale_of(gradient, (5, 2), 1), [1], "clamp")
                bad = trainee.op(gradient, seed=t, q=q if t % 2 else None, **options)
                state.update(np.int64(bad).tobytes())
            state.update(trainee.weight.numpy().tobytes())
            state.update(trainee.moment.numpy().tobytes())
            state.update(trainee.exponent.numpy().tobytes())
    return state.hexdigest()


def test_same_bits_for_any_threads_and_instruction_set():
    root = Path(__file__).resolve().parent.parent
    digests = set()
    for threads, cpu in [(1, "plain"), (2, "avx2"), (7, "avx512"), (2, ""), (7, "")]:
        environment = dict(os.environ, PYTHONPATH=str(root), TF_LNS_CPU=cpu)
        environment.update(TF_CPP_MIN_LOG_LEVEL="3", TF_NUM_INTRAOP_THREADS=str(threads))
        result = subprocess.run(
            [sys.executable, __file__],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        digests.add(result.stdout.split()[-1])
    assert len(digests) == 1


def test_a_tensor_read_before_keeps_its_value():
    for store in STORES:
        (weights, gradient), *_ = weights_and_gradients((100,), 1, wild=False)
        trainee = Trainee(weights, *store)
        read = [v.read_value() for v in (trainee.weight, trainee.moment, trainee.exponent)]
        before = [np.array(r) for r in read]
        trainee.step(gradient)
        for tensor, value in zip(read, before, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), value)
        assert (trainee.weight.numpy() != before[0]).any()


# --- Errors -------------------------------------------------------------------------


def call(**changes):
    codes = tf.Variable(np.full((3, 4), 5, np.int16))
    v = tf.Variable(np.zeros((3, 4), np.float32))
    arguments = {
        "weight": codes.handle, "scale": 1.0, "second_moment": v.handle,
        "moment_exponent": v.handle, "grad": np.ones((3, 4), np.float32),
        "grad_scale": 1.0, "learning_rate": 0.1, "weight_decay": 0.0, "step": scalar(1),
        "seed": scalar(0), "cap": -1, "floor": -1, "Tweight": tf.int16,
        "Tmoment": tf.float32, "bits": 16, "base_factor": 2048, **changes,
    }  # fmt: skip
    if "same" in arguments:
        del arguments["same"]
        arguments.update(weight=v.handle, Tweight=tf.float32)
    before = codes.numpy()
    try:
        return load().lns_apply_madam(**arguments)
    finally:
        if changes:  # an error leaves everything as it was
            np.testing.assert_array_equal(codes.numpy(), before)
            np.testing.assert_array_equal(v.numpy(), np.zeros((3, 4)))


def test_the_call_without_changes_is_good():
    assert int(call()) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"grad": np.ones((4, 3), np.float32)},
        {"grad": np.ones(12, np.float32)},
        {"grad": np.ones((0, 4), np.float32)},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"scale": [1.0]},
        {"scale": np.zeros(0, np.float32)},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": [0.1]},
        {"weight_decay": float("nan")},
        {"step": scalar(0)},
        {"step": scalar(-5)},
        {"step": scalar([1])},
        {"seed": scalar([1, 2])},
        {"cap": 40000},
        {"cap": [1]},
        {"floor": 32767},
        {"bits": 1000},
        {"bits": 1},
        {"bits": -1},
        {"bits": 8},
        {"base_factor": 3},
        {"base_factor": 0},
        {"base_factor": 8192},
        {"beta": 1.0},
        {"beta": 0.0},
        {"beta": float("nan")},
        {"g_bound": 0.0},
        {"g_bound": float("inf")},
        {"grad_bits": 1000},
        {"grad_bits": 5, "grad_base_factor": 3},
        {"grad_bits": 5, "grad_axis": [0]},
        {"grad_bits": 5, "grad_axis": [7], "grad_scale": [1.0]},
        {"grad_bits": 5, "grad_axis": [-1], "grad_scale": [1.0] * 4},
        {"grad_bits": 5, "grad_scale": -1.0},
        {"Tweight": tf.int8},
        {"Tweight": tf.float32},
        {"Tmoment": tf.int8},
        {"same": True},
    ],
    ids=str,
)
def test_errors(changes):
    with pytest.raises(InvalidArgument):
        call(**changes)


@pytest.mark.parametrize("name", ["weight", "second_moment"])
def test_variable_of_another_shape_or_none(name):
    dtype = tf.int16 if name == "weight" else tf.float32
    with pytest.raises(InvalidArgument):
        call(**{name: tf.Variable(tf.zeros((5, 5), dtype)).handle})
    handle = tf.raw_ops.VarHandleOp(dtype=dtype, shape=(3, 4), shared_name=f"none-{name}")
    with pytest.raises((tf.errors.FailedPreconditionError, tf.errors.NotFoundError)):
        call(**{name: handle})


def test_compact_moment_needs_a_scalar_exponent():
    k = tf.Variable(np.zeros((3, 4), np.int8))
    for exponent in (tf.Variable([0]), tf.Variable(0.0), tf.Variable(np.zeros(0, np.int32))):
        with pytest.raises(InvalidArgument):
            call(second_moment=k.handle, moment_exponent=exponent.handle, Tmoment=tf.int8)


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31) + 1, 1000, -1000, 0])
def test_hostile_exponent_and_bytes_stay_harmless(value):
    trainee = Trainee(np.ones(200), "codes", True)
    trainee.exponent.assign(value)
    trainee.moment.assign(np.arange(200).astype(np.uint8).view(np.int8))
    trainee.t = 1
    assert int(trainee.op(np.ones(200, np.float32))) == 0
    assert trainee.moment.numpy().min() >= 0
    assert (trainee.weight.numpy() > 0).all()


def test_additive_errors():
    w, v = (tf.Variable(np.zeros(3, np.float32)) for _ in range(2))
    g = np.ones(3, np.float32)
    good = [w.handle, v.handle, g, 0.1, 0.0, scalar(1)]
    load().lns_apply_madam_additive(*good)
    for at, bad in [(0, v.handle), (2, g[:2]), (3, float("nan")), (3, [0.1]),
                    (4, float("inf")), (5, scalar(0))]:  # fmt: skip
        arguments = list(good)
        arguments[at] = bad
        with pytest.raises(InvalidArgument):
            load().lns_apply_madam_additive(*arguments)
    with pytest.raises(InvalidArgument):
        load().lns_apply_madam_additive(*good, beta=1.5)


# --- Laws ---------------------------------------------------------------------------

any_float = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(deadline=None, max_examples=60)
@given(
    gradients=st.lists(any_float, min_size=1, max_size=70),
    codes=st.lists(st.integers(-32767, 32767), min_size=1, max_size=70),
    lr=st.floats(-100, 100, width=32),
    wd=st.floats(-1, 1, width=32),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    compact=st.booleans(),
    cap=st.none() | st.integers(0, 32766),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_laws(gradients, codes, lr, wd, rounding, compact, cap, seed):
    n = min(len(gradients), len(codes))
    gradient, codes = np.float32(gradients[:n]), np.int16(codes[:n])
    trainee = Trainee(np.ones(n), "codes", compact)
    trainee.weight.assign(codes)
    trainee.ref_codes = codes
    for _ in range(3):
        before = trainee.weight.numpy()
        trainee.step(gradient, lr=lr, wd=wd, rounding=rounding, cap=cap, seed=seed)
        after = trainee.weight.numpy()
        np.testing.assert_array_equal(np.sign(after), np.sign(before))
        assert np.abs(after.astype(int)).max() <= 32767
        if cap is not None:
            bound = np.maximum(np.abs(before.astype(int)), cap + 1)
            assert (np.abs(after.astype(int)) <= bound).all()
        assert np.isfinite(trainee.moment.numpy()).all()
        assert (trainee.moment.numpy() >= 0).all()


if __name__ == "__main__":
    print(digest())
