"""The reference product against the specification's text, term by term in Python's integers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_lns import Datapath, LNSFormat, reference

FORMATS = [LNSFormat(*f) for f in ((8, 8), (5, 2), (8, 1), (6, 4), (12, 128), (16, 2048), (2, 1))]


def shifted(n, by):
    return n << by if by >= 0 else n >> -by


def one_output(a, b, fa, fb, d):
    """Accumulators of one output, straight from the text."""
    gamma, g = fa.base_factor, fa.base_factor.bit_length() - 1
    m, big_f, big_a = d.table_bits(gamma), d.fraction_bits, d.accumulator_bits
    q_max = (fa.max_code - 1 + fb.max_code - 1) // gamma
    lsb = q_max + 1 + d.headroom_bits - (big_a - 1)
    bins = 2**m if d.conversion == "bins" else 1
    table = [round(2 ** (h / 2**m) * 2**big_f) for h in range(2**m)]
    limit, acc = 2 ** (big_a - 1) - 1, [0] * bins
    for start in range(0, len(a), d.vector_size):
        sums = [0] * bins
        for ca, cb in zip(
            a[start : start + d.vector_size], b[start : start + d.vector_size], strict=True
        ):
            if ca == 0 or cb == 0:
                continue
            p = (abs(ca) - 1) + (abs(cb) - 1)
            q, r = divmod(p, gamma)
            h, rest = r >> (g - m), r % 2 ** (g - m)
            sign = -1 if (ca < 0) != (cb < 0) else 1
            if d.conversion == "bins":
                sums[h] += sign * shifted(gamma + rest, q - lsb - g)
            else:
                sums[0] += sign * shifted(table[h] * (gamma + rest), q - lsb - big_f - g)
        acc = [max(-limit, min(limit, x + s)) for x, s in zip(acc, sums, strict=True)]
    if d.conversion == "bins":
        return acc, sum(t * x for t, x in zip(table, acc, strict=True)), lsb - big_f
    return acc, acc[0], lsb


@st.composite
def cases(draw):
    format = draw(st.sampled_from(FORMATS))
    other = draw(st.sampled_from([f for f in FORMATS if f.base_factor == format.base_factor]))
    g = format.log2_base_factor
    datapath = Datapath(
        lut_bits=draw(st.sampled_from([None, *range(g + 1)])),
        accumulator_bits=draw(st.integers(8, 32)),
        headroom_bits=draw(st.integers(0, 8)),
        fraction_bits=draw(st.integers(0, 16)),
        vector_size=draw(st.integers(1, 20)),
        conversion=draw(st.sampled_from(["table", "bins"])),
    )
    n = draw(st.integers(1, 40))
    codes = [
        draw(st.lists(st.integers(-f.max_code, f.max_code), min_size=n, max_size=n))
        for f in (format, other)
    ]
    return (*codes, format, other, datapath)


@given(cases())
@settings(max_examples=400, deadline=None)
def test_follows_the_text(case):
    a, b, fa, fb, datapath = case
    if datapath.conversion == "bins" and datapath.table_bits(fa.base_factor) > 6:
        datapath = datapath.replace(lut_bits=6)
    acc, total, exponent = one_output(a, b, fa, fb, datapath)
    product = reference.lns_matmul(
        [a], np.array(b)[:, None], fa, fb, datapath=datapath, return_details=True
    )
    assert product.accumulators.reshape(-1).tolist() == acc
    with np.errstate(over="ignore"):
        expected = np.float32(np.ldexp(np.float32(total), exponent)) if total else np.float32(0)
    assert product.values[0, 0].tobytes() == expected.tobytes()


@given(cases())
@settings(max_examples=100, deadline=None)
def test_laws(case):
    """Negating an operand negates the result; zeros add nothing; operands may change places."""
    a, b, fa, fb, datapath = case
    if datapath.conversion == "bins" and datapath.table_bits(fa.base_factor) > 6:
        datapath = datapath.replace(lut_bits=6)
    a, b = np.array([a]), np.array(b)[:, None]
    y = reference.lns_matmul(a, b, fa, fb, datapath=datapath)
    np.testing.assert_array_equal(reference.lns_matmul(-a, b, fa, fb, datapath=datapath), -y)
    np.testing.assert_array_equal(reference.lns_matmul(b.T, a.T, fb, fa, datapath=datapath), y)
    pad = np.zeros((1, datapath.vector_size), int)
    wide = np.concatenate([pad, a], 1), np.concatenate([pad.T, b], 0)
    np.testing.assert_array_equal(reference.lns_matmul(*wide, fa, fb, datapath=datapath), y)


def test_the_order_of_k_matters_only_where_it_saturates():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-127, 128, (1, 64)), rng.integers(-127, 128, (64, 1))
    order = rng.permutation(64)
    wide, narrow = Datapath(), Datapath(accumulator_bits=8, headroom_bits=0, vector_size=1)
    for datapath in (wide, narrow):
        one = reference.lns_matmul(a, b, "lns8:8", datapath=datapath)
        other = reference.lns_matmul(a[:, order], b[order], "lns8:8", datapath=datapath)
        if datapath is wide:
            np.testing.assert_array_equal(one, other)
    a, b = np.full((1, 3), 127), np.array([[127], [127], [-127]])
    kept = reference.lns_matmul(a, b, "lns8:8", datapath=narrow)
    clamped = reference.lns_matmul(a, b[[2, 0, 1]], "lns8:8", datapath=narrow)
    assert kept != clamped


@pytest.mark.parametrize("format", ["lns8:8", "lns16:2048", "lns5:2"])
def test_is_near_the_float_product(format):
    """All 255 x 255 pairs of 8-bit codes: off by the table and one unit of the accumulator."""
    format = LNSFormat.get(format)
    codes = np.unique(np.linspace(-format.max_code, format.max_code, 255).astype(int))
    datapath = Datapath(accumulator_bits=32, headroom_bits=0, fraction_bits=16)
    product = reference.lns_matmul(codes[:, None], codes[None, :], format, datapath=datapath)
    values = reference.decode(codes, 1.0, format).astype(np.float64)
    exact = values[:, None] * values[None, :]
    unit = math.ldexp(1.0, datapath.lsb(format))
    bound = datapath.max_relative_error(format.base_factor, True) + 2.0**-22
    assert np.all(np.abs(product - exact) <= bound * np.abs(exact) + unit)
