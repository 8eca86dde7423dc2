"""LNSFormat: derived numbers, ways of naming one, and what is refused."""

import copy
import json
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_lns.formats import LNSFormat

WIDTHS = st.integers(2, 16)
FACTORS = st.sampled_from([2**i for i in range(13)])
FORMATS = st.builds(LNSFormat, WIDTHS, FACTORS)


@pytest.mark.parametrize(
    ("bits", "factor", "max_code", "octaves", "dtype", "itemsize"),
    [
        (2, 1, 1, 0.0, "int8", 1),
        (3, 1, 3, 2.0, "int8", 1),
        (5, 1, 15, 14.0, "int8", 1),
        (5, 2, 15, 7.0, "int8", 1),
        (8, 8, 127, 15.75, "int8", 1),
        (8, 1, 127, 126.0, "int8", 1),
        (9, 16, 255, 15.875, "int16", 2),
        (16, 2048, 32767, 15.9990234375, "int16", 2),
        (16, 4096, 32767, 7.99951171875, "int16", 2),
        (16, 1, 32767, 32766.0, "int16", 2),
    ],
)
def test_derived_numbers(bits, factor, max_code, octaves, dtype, itemsize):
    fmt = LNSFormat(bits, factor)
    assert fmt.max_code == max_code
    assert fmt.max_exponent == max_code - 1
    assert fmt.octaves == octaves
    assert fmt.dtype == dtype
    assert fmt.itemsize == itemsize == np.dtype(dtype).itemsize
    assert 2**fmt.log2_base_factor == factor
    assert fmt.max_relative_error == pytest.approx(2 ** (1 / (2 * factor)) - 1)


@given(FORMATS)
def test_every_code_fits_its_dtype(fmt):
    limits = np.iinfo(fmt.dtype)
    assert limits.min < -fmt.max_code
    assert fmt.max_code <= limits.max
    assert Fraction(fmt.max_exponent, fmt.base_factor) == Fraction(fmt.octaves)


@given(FORMATS)
def test_every_way_of_naming_it(fmt):
    pair = (fmt.bits, fmt.base_factor)
    named = [fmt, str(fmt), str(fmt).upper(), f"  {fmt} ", pair, list(pair), fmt.get_config()]
    assert all(LNSFormat.get(name) == fmt for name in named)
    assert LNSFormat.parse(str(fmt)) == fmt
    assert LNSFormat.from_config(json.loads(json.dumps(fmt.get_config()))) == fmt
    assert pickle.loads(pickle.dumps(fmt)) == copy.deepcopy(fmt) == eval(repr(fmt)) == fmt
    assert hash(fmt) == hash(LNSFormat(*pair))


def test_numpy_integers_become_python_ones():
    fmt = LNSFormat(np.int64(8), np.int32(8))
    assert type(fmt.bits) is type(fmt.base_factor) is int
    assert fmt == LNSFormat(8, 8)


def test_is_immutable():
    with pytest.raises(AttributeError):
        LNSFormat(8, 8).bits = 9


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 1000])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f"`bits` must be 2 to 16. Received: bits={bits}"):
        LNSFormat(bits, 8)


@pytest.mark.parametrize("factor", [-8, 0, 3, 12, 8192])
def test_base_factor_out_of_range(factor):
    with pytest.raises(ValueError, match=f"`base_factor`.*Received: base_factor={factor}"):
        LNSFormat(8, factor)


@pytest.mark.parametrize("value", [8.0, "8", None, True, [8], np.float32(8)])
@pytest.mark.parametrize("argument", ["bits", "base_factor"])
def test_wrong_types(argument, value):
    with pytest.raises(TypeError, match=f"`{argument}` must be an integer"):
        LNSFormat(**{"bits": 8, "base_factor": 8, argument: value})


@pytest.mark.parametrize(
    "text", ["", "lns", "lns8", "lns8:", "8:8", "lns-8:8", "lns8:8:8", "lns８:8", "lns8 8", "int8"]
)
def test_text_of_another_form(text):
    with pytest.raises(ValueError, match="must look like"):
        LNSFormat.parse(text)


@pytest.mark.parametrize("text", ["lns1:8", "lns17:8", "lns8:3", "lns8:999999999"])
def test_text_out_of_range(text):
    with pytest.raises(ValueError, match="Received: b"):
        LNSFormat.parse(text)


@pytest.mark.parametrize("value", [None, 8, 8.5, b"lns8:8", (8,), (8, 8, 8), {8}, np.ones(2)])
def test_what_names_no_format(value):
    with pytest.raises(TypeError, match="A format must be"):
        LNSFormat.get(value)
    if not isinstance(value, str):
        with pytest.raises(TypeError, match="must be a string"):
            LNSFormat.parse(value)


@pytest.mark.parametrize("config", [{}, {"bits": 8}, {"bits": 8, "base_factor": 8, "x": 1}])
def test_configs_need_exactly_their_keys(config):
    with pytest.raises(ValueError, match="keys"):
        LNSFormat.from_config(config)
