"""The reference Madam step against values computed some other way."""

from __future__ import annotations

import math
import random

import mpmath
import numpy as np
import pytest

from tf_lns import reference as R
from tf_lns.formats import LNSFormat

F32 = np.float32
FORMAT = LNSFormat(16, 2048)


def one_step(code, g, v=0.0, **options):
    """A step on a single weight, as plain Python numbers."""
    options = {"step": 1, "learning_rate": 2**-4, **options}
    codes, moment, _ = R.madam_step(
        np.array([code], np.int16), np.array([g], F32), np.array([v], F32), **options
    )
    return int(codes[0]), float(moment[0])


# --- Hand-worked numbers ------------------------------------------------------------


def test_first_step_is_one_unit_of_the_normalised_gradient():
    # v = (1 - beta) g^2, so g / sqrt(v / (1 - beta)) = +-1, and 2^-4 * 2048 = 128 codes.
    assert one_step(1000, 0.3) == (872, pytest.approx(0.001 * 0.09, rel=1e-4))
    assert one_step(1000, -0.3)[0] == 1128
    assert one_step(-1000, 0.3)[0] == -1128  # a negative weight moves away from zero
    assert one_step(-1000, -0.3)[0] == -872


def test_bounds():
    assert one_step(0, 5.0)[0] == 0
    assert one_step(100, 1.0)[0] == 1  # the sign never changes
    assert one_step(-100, -1.0)[0] == -1
    assert one_step(32760, -1.0)[0] == 32767
    assert one_step(1000, 0.0) == (1000, 0.0)
    # g_bound: v is small against g, t is large.
    assert one_step(20000, 1.0, v=1e-9, step=10**6)[0] == 20000 - 1280
    assert one_step(20000, 1.0, v=1e-9, step=10**6, g_bound=3.0)[0] == 20000 - 384


def test_weight_decay_is_decoupled_and_towards_zero():
    # 128 * (0 + 0.5) = 64 codes, whatever the gradient's scale, for both signs.
    assert one_step(1000, 0.0, weight_decay=0.5)[0] == 936
    assert one_step(-1000, 0.0, weight_decay=0.5)[0] == -936
    assert one_step(1000, 3e-5, weight_decay=0.5)[0] == 1000 - 192


def test_half_steps_round_to_even():
    # 2^-11 * 0.5 * 2048 = 0.5 codes; 1.5 codes; 2.5 codes.
    for rate, codes in ((0.5, 0), (1.5, 2), (2.5, 2), (3.5, 4)):
        assert one_step(1000, 1.0, learning_rate=rate / 2048)[0] == 1000 - codes
        assert one_step(1000, -1.0, learning_rate=rate / 2048)[0] == 1000 + codes


def test_cap():
    # exponent = code - 1; one above the cap may stay or shrink.
    assert one_step(1000, -1.0, cap=1050)[0] == 1051
    assert one_step(1060, -1.0, cap=1050)[0] == 1060
    assert one_step(1060, 1.0, cap=1050)[0] == 932


def test_sign_crossing():
    # From exponent 1050, 128 down to 922: 78 under the floor, so 78 above, other sign.
    assert one_step(1051, 1.0, floor=1000)[0] == -(1000 + 78 + 1)
    assert one_step(-1051, -1.0, floor=1000)[0] == 1079
    assert one_step(501, -1.0, floor=1000)[0] == 1129  # raised to the floor first
    assert one_step(1501, 1.0, floor=1000)[0] == 1373
    # At most one octave back.
    assert one_step(1001, 1.0, floor=1000, learning_rate=4.0)[0] == -(1000 + 2048 + 1)
    # Only weights over an octave above the floor decay.
    assert one_step(3050, 0.0, floor=1000, weight_decay=0.5)[0] == 3050 - 64
    assert one_step(3049, 0.0, floor=1000, weight_decay=0.5)[0] == 3049


def test_gradients_that_are_no_numbers():
    gradient = np.array([np.nan, np.inf, -np.inf, 1.0, 1e-40, 3e38], F32)
    codes, v, bad = R.madam_step(
        np.full(6, 1000, np.int16), gradient, np.zeros(6, F32), step=1, learning_rate=2**-4
    )
    assert bad == 3
    assert codes.tolist() == [1000, 1000, 1000, 872, 1000, 872]
    assert v[[0, 1, 2, 4]].tolist() == [0.0] * 4
    assert v[5] == pytest.approx(0.001 * 2.0**126, rel=1e-4)  # clipped to 2^63 first


def test_a_moment_that_was_set_to_nonsense_heals():
    for v in (math.nan, -1.0, -math.inf):
        assert one_step(1000, 0.3, v=v) == one_step(1000, 0.3, v=0.0)


# --- Against exact arithmetic -------------------------------------------------------


def exact_steps(code, g, v, t, lr, wd, beta=0.999, g_bound=10):
    """The real number that the step is rounded from, and the real v, by mpmath."""
    with mpmath.workdps(40):
        beta = mpmath.mpf(float(F32(beta)))
        moment = beta * mpmath.mpf(v) + (1 - beta) * mpmath.mpf(g) ** 2
        g_hat = mpmath.mpf(g) / mpmath.sqrt(moment / (1 - beta**t))
        g_hat = max(min(g_hat, g_bound), -g_bound)
        delta = lr * 2048 * (g_hat * (1 if code > 0 else -1) + mpmath.mpf(float(F32(wd))))
        return delta, moment


@pytest.mark.parametrize("wd", [0.0, 0.03])
def test_steps_are_those_of_exact_arithmetic(wd):
    rng = random.Random(1)
    checked = 0
    for _ in range(500):
        code = rng.choice((-1, 1)) * rng.randint(5000, 25000)
        g = float(F32(rng.gauss(0, 1) * 10.0 ** rng.randint(-6, 6)))
        v = float(F32(g * g * 10.0 ** rng.uniform(-2, 2)))
        t = rng.choice((1, 2, 10, 1000, 10**6))
        lr = float(F32(2.0**-5 / math.sqrt(1 + t / 200)))
        delta, moment = exact_steps(code, g, v, t, lr, wd)
        got, got_v = one_step(code, g, v, step=t, learning_rate=lr, weight_decay=wd)
        assert abs(got_v - moment) <= 3e-7 * moment
        if abs(delta - mpmath.floor(delta) - 0.5) > 1e-3:  # far from a tie
            expected = abs(code) - int(mpmath.nint(delta))
            assert abs(got) == expected
            checked += 1
    assert checked > 450


def test_stochastic_rounding_is_unbiased():
    n = 40000
    codes, _, _ = R.madam_step(
        np.full(n, 20000, np.int16), np.ones(n, F32), np.zeros(n, F32), step=1,
        learning_rate=3.3 / 2048, rounding="stochastic", seed=5,
    )  # fmt: skip
    steps = 20000 - codes.astype(int)
    assert set(steps.tolist()) == {3, 4}
    assert steps.mean() == pytest.approx(3.3, abs=5 * 0.46 / math.sqrt(n))


def test_bias_correction():
    for beta, t in ((0.999, 1), (0.999, 7), (0.9, 100), (0.5, 3), (0.999, 10**6)):
        with mpmath.workdps(40):
            exact = 1 - mpmath.mpf(float(F32(beta))) ** t
        assert R.bias_correction(beta, t) == pytest.approx(float(exact), rel=1e-10)


# --- The authors' rule --------------------------------------------------------------


def test_authors_rule():
    """With 128 codes per octave and a rate of 2^-7 the step is round(g_hat)."""
    rng = np.random.default_rng(3)
    format = LNSFormat(12, 128)
    codes = (rng.integers(100, 1900, 500) * rng.choice([-1, 1], 500)).astype(np.int16)
    v_float, v = [0.0] * 500, np.zeros(500, F32)
    for t in range(1, 30):
        gradient = (rng.standard_normal(500) * rng.choice([1, 30], 500)).astype(F32)
        stepped, v, _ = R.madam_step(codes, gradient, v, step=t, learning_rate=2**-7, format=format)
        for i in range(500):
            g = float(gradient[i])
            v_float[i] = 0.999 * v_float[i] + 0.001 * g * g
            g_hat = max(-10.0, min(10.0, g / math.sqrt(v_float[i] / (1 - 0.999**t))))
            if abs(abs(g_hat) % 1 - 0.5) < 1e-3:
                continue
            sign = 1 if codes[i] > 0 else -1
            # w * 2^(-lr round(g_hat) sign(w)): round(g_hat) codes, as lr gamma = 1
            expected = abs(int(codes[i])) - round(g_hat) * sign
            assert abs(int(stepped[i])) == max(1, min(expected, 2047))
        codes = stepped


def test_rounding_the_gradient_first_changes_nothing_there():
    rng = np.random.default_rng(4)
    codes = np.full(1000, 1000, np.int16)
    gradient, v = rng.standard_normal(1000).astype(F32), rng.random(1000).astype(F32)
    options = {"step": 5, "learning_rate": 2**-7, "format": LNSFormat(12, 128)}
    first = R.madam_step(codes, gradient, v, **options)
    second = R.madam_step(codes, gradient, v, round_gradient=True, **options)
    np.testing.assert_array_equal(first[0], second[0])


# --- One-byte second moment ---------------------------------------------------------


def test_growth_table():
    """T is the addition of two numbers in quarter octaves."""
    for beta in (0.999, 0.9, 0.5):
        table = R.compact_growth(beta)
        b = mpmath.mpf(float(F32(beta)))
        first = int(mpmath.floor(4 * mpmath.log(1 - b, 2)))
        assert R.compact_first(beta) == first
        for x in (-104, -60, -1, 0, 1, 23):
            exact = 4 * mpmath.log(b + (1 - b) * mpmath.mpf(2) ** ((x - first) / 4.0), 2)
            assert table[x + 104] == int(mpmath.nint(exact * 65536))
        # From below: the gradient adds nothing. Above: v is forgotten.
        decay = 4 * mpmath.log(b, 2) * 65536
        assert abs(table[0] - decay) < 2
        assert 0 <= table[-1] / 65536 - 23 < 1.2


def test_draws_share_words_and_are_uniform():
    draws = R.compact_draws(9, 40000)
    word = int(R.random_bits(9, 1)[0])
    octets = [(word >> 8 * i) & 255 for i in (0, 1, 2, 3, 0)]
    assert draws[:4].tolist() == [octets[i] | octets[i + 1] << 8 for i in range(4)]
    assert draws.min() >= 0
    assert draws.max() < 65536
    assert draws.mean() == pytest.approx(32767.5, abs=5 * 18919 / 200)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


def test_compact_first_step():
    # g = 1: 8 log2 = 0; first = -40, so E = ceil(-40 / 4) + 1 = -9 and
    # k = -40 + 36 + 127 = 123: v = 2^(-9 - 1) = 2^-10, for 0.001.
    codes, moment, _ = R.madam_step(
        np.array([1000, 1000], np.int16), np.array([1.0, 0.0], F32),
        R.CompactMoment(np.zeros(2, np.int8), None), step=1, learning_rate=2**-4,
    )  # fmt: skip
    assert moment.exponent == -9
    assert moment.k.tolist() == [123, 0]
    # g_hat = 1 / sqrt(2^-10 / 0.001) = 1.0119; 128 of that is 129.5, rounded 130.
    assert codes.tolist() == [1000 - 130, 1000]


def test_compact_growth_is_unbiased():
    """k falls by -4 log2(beta) a step on average where there is no gradient."""
    n, steps = 20000, 300
    moment = R.CompactMoment(np.full(n, 120, np.int8), 0)
    zeros = np.zeros(n, F32)
    for t in range(steps):
        _, moment = R.normalized_gradient_compact(zeros, moment, step=t + 1, seed=t)
    k = moment.k + 4 * (0 - moment.exponent)
    fall = -4 * math.log2(0.999) * steps
    assert 120 - k.mean() == pytest.approx(fall, abs=0.06)


def test_compact_shift():
    k = np.array([0, 1, 50, 100], np.int64)
    moved, exponent = R.shift_compact(k, 3)
    # ceil((100 - 127) / 4) + 1 = -5 octaves
    assert exponent == -2
    assert moved.tolist() == [0, 21, 70, 120]
    moved, exponent = R.shift_compact(np.array([0, 1, 50, 151]), 3)
    assert exponent == 10
    assert moved.tolist() == [0, 1, 22, 123]
    assert R.shift_compact(np.array([0, 5, 120]), 3)[1] == 3
    assert R.shift_compact(np.array([0, 0]), 3)[1] == 3
    assert R.shift_compact(np.array([2]), -119) == (np.array([6]), -120)


def test_compact_never_dies_and_never_revives_zero():
    moment = R.CompactMoment(np.array([1, 0, 127], np.int8), 0)
    for t in range(1, 50):
        gradient = np.array([0.0, 0.0, 1.0], F32)
        _, moment = R.normalized_gradient_compact(gradient, moment, step=t, seed=t)
        assert moment.k[0] >= 1
        assert moment.k[1] == 0


# --- Additive step ------------------------------------------------------------------


def test_additive():
    w, v, bad = R.additive_step(
        np.array([1.0, -2.0, 3.0], F32), np.array([0.5, -4.0, np.nan], F32),
        np.zeros(3, F32), step=1, learning_rate=0.25, weight_decay=0.5,
    )  # fmt: skip
    # g_hat = 1, -1, 0; w - 0.25 (g_hat + 0.5 w)
    assert w == pytest.approx([1 - 0.25 * 1.5, -2 + 0.25 * 2, 3 - 0.25 * 1.5], rel=1e-6)
    assert v == pytest.approx([0.00025, 0.016, 0.0], rel=1e-4)
    assert bad == 1


def _g_hats(gradients, compact):
    """g_hat of one weight after another, on a float or a one-byte second moment."""
    shape = gradients[0].shape
    moment = (
        R.CompactMoment(np.zeros(shape, np.int8), None) if compact else np.zeros(shape, np.float32)
    )
    step = R.normalized_gradient_compact if compact else R.normalized_gradient
    results = []
    for t, gradient in enumerate(gradients, 1):
        seed = {"seed": t} if compact else {}
        g_hat, moment = step(gradient.astype(np.float32), moment, step=t, **seed)
        results.append(g_hat)
    return np.array(results)


@pytest.mark.parametrize("rise", [4, 8, 20])
def test_a_sudden_rise_of_the_gradient_does_not_blow_up_the_one_byte_step(rise):
    ones = np.ones(64)
    gradients = [2.0**-rise * ones, *[ones] * 4]
    exact, compact = _g_hats(gradients, False), _g_hats(gradients, True)
    # v keeps six octaves of a rise at once. Until it has caught up it knows the last gradient
    # alone, so that g_hat is too large by at most the root of the number of gradients.
    assert np.all(compact.mean(1) <= 1.05 * np.sqrt(np.arange(1, 6)))
    assert np.all(compact.mean(1) >= 0.9 * exact.mean(1))


def test_gradients_far_below_the_largest_still_move_their_weights():
    rng = np.random.default_rng(0)
    weak = 2.0 ** -np.array([0, 8, 14, 16, 18, 20])
    gradients = [rng.choice([-1.0, 1.0], 6) * weak for _ in range(300)]
    size = np.abs(_g_hats(gradients, True)[-50:]).mean(0)
    np.testing.assert_allclose(size[:3], 1, rtol=0.3)
    assert np.all(np.diff(size[2:]) < 0), size  # fades smoothly below the range of k
    assert size[-1] > 2.0**-8, size
