"""The datapath as a record: checked, readable, and what it says about itself."""

import json
import pathlib
import re

import numpy as np
import pytest

import tf_lns
from tf_lns import Datapath

PAGE = (pathlib.Path(__file__).parent.parent / "docs/datapath.md").read_text()


def test_defaults_are_those_of_the_specification():
    datapath = Datapath(lut_bits=3)
    assert (datapath.accumulator_bits, datapath.headroom_bits) == (24, 4)
    assert (datapath.fraction_bits, datapath.vector_size) == (8, 16)
    assert datapath.conversion == "table"
    assert datapath.lsb() == (126 + 126) // 8 + 1 + 4 - 23


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lut_bits", -1),
        ("lut_bits", 13),
        ("accumulator_bits", 7),
        ("accumulator_bits", 33),
        ("headroom_bits", -1),
        ("fraction_bits", 17),
        ("vector_size", 0),
        ("conversion", "table_"),
    ],
)
def test_refuses_values_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*{name}={value!r}"):
        Datapath(**{name: value})


@pytest.mark.parametrize("value", [1.0, "2", True, None])
def test_refuses_what_is_no_integer(value):
    with pytest.raises(TypeError, match="`accumulator_bits` must be an integer"):
        Datapath(accumulator_bits=value)


def test_takes_integers_of_numpy():
    assert type(Datapath(lut_bits=np.int64(2)).lut_bits) is int


def test_is_a_record():
    datapath = Datapath(lut_bits=2, conversion="bins")
    config = json.loads(json.dumps(datapath.get_config()))
    assert Datapath.from_config(config) == datapath == Datapath.get(config)
    assert hash(Datapath.get(None)) == hash(Datapath())
    assert datapath.replace(lut_bits=1).lut_bits == 1
    with pytest.raises(AttributeError):
        datapath.lut_bits = 1
    with pytest.raises(ValueError, match="width"):
        Datapath.from_config({"width": 3})
    with pytest.raises(TypeError, match="Received: 16"):
        Datapath.get(16)


def test_repr_reads_like_a_sentence():
    assert repr(Datapath(lut_bits=1, accumulator_bits=16, headroom_bits=1)) == (
        "<Datapath: 2-entry table (8 fraction bits), 16-bit accumulator with 1 bit of headroom, "
        "vectors of 16>"
    )
    assert "an accumulator for each entry" in repr(Datapath(conversion="bins"))


def test_table_that_is_too_large():
    assert Datapath().table_bits(2) == 1
    with pytest.raises(ValueError, match=r"at most log2\(base_factor\) = 1 .*lut_bits=3"):
        Datapath(lut_bits=3).table(2)


def test_base_factors_must_agree():
    with pytest.raises(ValueError, match="requantize"):
        Datapath().lsb("lns8:8", "lns8:4")


@pytest.mark.parametrize(("m", "percent"), [(0, 6.1), (1, 6.0), (2, 3.2), (3, 0.0)])
def test_error_of_the_table(m, percent):
    """The figures of the specification, and every exponent tried."""
    datapath = Datapath(lut_bits=m)
    assert round(100 * datapath.max_relative_error(), 1) == percent
    wide = datapath.replace(accumulator_bits=32, headroom_bits=0, fraction_bits=16)
    r = np.arange(8)
    a = np.full((1, 1), 127, np.int8)
    b = (r + 120 - 8 + 1)[None, :].astype(np.int8)
    product = tf_lns.reference.lns_matmul(a, b, "lns8:8", datapath=wide)
    exact = np.exp2((126 + b.astype(float) - 1) / 8)
    error = np.max(np.abs(product / exact - 1))
    assert error == pytest.approx(wide.max_relative_error(fraction_rounding=True), abs=1e-6)


def test_the_page_shows_these_tables():
    rows = re.findall(r"^\| (\d) \| (\d) \| ([\d, ]+) \| ([\d.]+) % \| ([\d.]+) % \|$", PAGE, re.M)
    assert len(rows) == 4
    for m, entries, table, error, rounded in rows:
        datapath = Datapath(lut_bits=int(m))
        assert table == ", ".join(map(str, datapath.table()))
        assert int(entries) == len(datapath.table())
        assert error == f"{100 * datapath.max_relative_error():.2f}"
        assert rounded == f"{100 * datapath.max_relative_error(fraction_rounding=True):.2f}"


@pytest.mark.parametrize("factor", [0, 3, 6, 8192])
def test_base_factor_must_be_a_power_of_two(factor):
    for ask in (Datapath().table, Datapath().table_bits, Datapath().max_relative_error):
        with pytest.raises(ValueError, match=f"`base_factor` must be a power of two.*={factor}"):
            ask(factor)
    with pytest.raises(TypeError, match="`base_factor` must be an integer"):
        Datapath().table("lns8:8")
