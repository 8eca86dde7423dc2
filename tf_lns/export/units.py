"""The constants of a datapath: what the RTL takes as parameters, and as a header."""

from __future__ import annotations

from typing import Any

from tf_lns.datapath import Datapath, pair_of_formats


def unit_of(datapath: Datapath, a_format: Any, b_format: Any) -> dict[str, Any]:
    """A datapath with two formats, as JSON-able constants.

    A term is the table's entry times ``base_factor + l``, shifted left by ``q + term_shift``
    (right where that is negative); with bins, ``base_factor + l`` alone.
    """
    a, b = pair_of_formats(a_format, b_format)
    lsb, g = datapath.lsb(a, b), a.log2_base_factor
    fraction = 0 if datapath.conversion == "bins" else datapath.fraction_bits
    return {
        "datapath": datapath.get_config(),
        "a_format": str(a),
        "b_format": str(b),
        "lut_bits": datapath.table_bits(a.base_factor),
        "table": list(datapath.table(a.base_factor)),
        "lsb": lsb,
        "largest_exponent": (a.max_exponent + b.max_exponent) // a.base_factor,
        "term_shift": -lsb - fraction - g,
        "largest_accumulator": (1 << (datapath.accumulator_bits - 1)) - 1,
    }


def header(unit: dict[str, Any]) -> str:
    """The constants as a SystemVerilog header, to be included in a module."""
    datapath = Datapath.from_config(unit["datapath"])
    a, b = pair_of_formats(unit["a_format"], unit["b_format"])
    width = datapath.fraction_bits + 2
    packed = sum(entry << (h * width) for h, entry in enumerate(unit["table"]))
    numbers = {
        "A_BITS": a.bits,
        "B_BITS": b.bits,
        "LOG2_BASE_FACTOR": a.log2_base_factor,
        "LUT_BITS": unit["lut_bits"],
        "ACC_BITS": datapath.accumulator_bits,
        "HEADROOM": datapath.headroom_bits,
        "FRACTION_BITS": datapath.fraction_bits,
        "VECTOR": datapath.vector_size,
        "BINS": int(datapath.conversion == "bins"),
        "Q_MAX": unit["largest_exponent"],
        "LSB": unit["lsb"],
        "TERM_SHIFT": unit["term_shift"],
    }
    lines = [
        f"// {datapath}; codes {a} and {b}.",
        "// TABLE: entry 0 in the lowest bits, FRACTION_BITS + 2 bits each. Written by tf_lns.",
        *(f"localparam int {name} = {value};" for name, value in numbers.items()),
        "localparam [(FRACTION_BITS + 2) * 2**LUT_BITS - 1:0] TABLE =",
        f"    {len(unit['table']) * width}'h{packed:x};",
    ]
    return "\n".join([*lines, ""])
