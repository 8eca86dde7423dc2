"""The SystemVerilog of examples/rtl gives the accumulators of the reference, bit for bit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tf_lns.formats import LNSFormat

RTL = Path(__file__).resolve().parent.parent / "examples/rtl"
sys.path.insert(0, str(RTL))

import area  # noqa: E402
import product  # noqa: E402
import simulate  # noqa: E402

icarus = pytest.mark.skipif(shutil.which("iverilog") is None, reason="no Icarus Verilog here")
verilator = pytest.mark.skipif(shutil.which("verilator") is None, reason="no Verilator here")
yosys = pytest.mark.skipif(shutil.which("yosys") is None, reason="no yosys here")


class Case(NamedTuple):
    """A datapath, and what the random codes are like."""

    k: int
    datapath: dict
    formats: tuple[str, str] = ("lns8:8", "lns8:8")
    outputs: int = 9000
    smallest: int = 1  # magnitudes from there on: large ones saturate
    zeros: float = 0.1


def path(m, accumulator, headroom, vector, fraction=8, conversion="table"):
    return {
        "lut_bits": m,
        "accumulator_bits": accumulator,
        "headroom_bits": headroom,
        "fraction_bits": fraction,
        "vector_size": vector,
        "conversion": conversion,
    }


CASES = {
    "default": Case(20, {}),
    "line-only": Case(9, path(0, 24, 4, 4)),
    "one-bit": Case(9, path(1, 16, 4, 4)),
    "two-bits": Case(7, path(2, 20, 4, 1)),
    "narrow": Case(18, path(3, 12, 0, 16)),
    "wide": Case(6, path(2, 32, 4, 4)),
    "saturating": Case(18, path(1, 16, 0, 16), smallest=110),
    "saturating-one-by-one": Case(12, path(3, 20, 0, 1), smallest=118),
    "mostly-zeros": Case(20, path(3, 24, 0, 4), zeros=0.8),
    "base-factor-2": Case(9, path(1, 24, 4, 4), ("lns8:2", "lns8:2")),
    "base-factor-1": Case(9, path(0, 32, 0, 16), ("lns8:1", "lns8:1"), smallest=124),
    "two-formats": Case(9, path(2, 20, 2, 4, fraction=4), ("lns8:8", "lns5:8")),
    "sixteen-bits": Case(5, path(5, 32, 4, 4, fraction=16), ("lns16:2048", "lns16:2048")),
    "bins": Case(9, path(1, 16, 4, 4, conversion="bins"), outputs=4000),
    "eight-bins": Case(18, path(3, 20, 0, 4, conversion="bins"), outputs=1000, smallest=118),
}


def write(case, folder, seed=0):
    """Random codes of a case; returns the product."""
    a_format, b_format = (LNSFormat.parse(name) for name in case.formats)
    rng = np.random.default_rng(seed)
    m = int(np.ceil(case.outputs**0.5))
    n = -(-case.outputs // m)
    a = product.random_codes(rng, (m, case.k), a_format, case.zeros, case.smallest)
    b = product.random_codes(rng, (case.k, n), b_format, case.zeros, case.smallest)
    return product.write_product(folder, a, b, a_format, b_format, case.datapath)


def accumulators(folder, bits):
    """The words of acc.hex as signed numbers."""
    words = np.array([int(word, 16) for word in (folder / "acc.hex").read_text().split()])
    return np.where(words >> (bits - 1), words - (1 << bits), words)


@icarus
@pytest.mark.parametrize("name", CASES)
def test_random_codes(name, tmp_path):
    case = CASES[name]
    written = write(case, tmp_path, seed=list(CASES).index(name))
    result = simulate.simulate(tmp_path)
    assert result.passed, result.log
    assert result.words == written.words()["acc.hex"] >= case.outputs
    expected = accumulators(tmp_path, written.datapath.accumulator_bits)
    assert len(np.unique(expected)) > 10
    if case.smallest > 1:
        largest = (1 << (written.datapath.accumulator_bits - 1)) - 1
        assert np.any(expected == largest)
        assert np.any(expected == -largest)


def test_cases_are_many():
    assert sum(case.outputs for case in CASES.values()) >= 100_000


@icarus
@pytest.mark.parametrize("m", range(4))
def test_every_pair_of_codes(m, tmp_path):
    codes = np.arange(-127, 128)
    product.write_product(
        tmp_path, codes[:, None], codes[None], "lns8:8", datapath=path(m, 24, 0, 1)
    )
    result = simulate.simulate(tmp_path)
    assert result.passed, result.log
    assert result.words == 255**2


@verilator
def test_verilator_agrees(tmp_path):
    product.write_random(tmp_path, 100_000, 33, ("lns8:8", "lns8:8"), path(2, 16, 4, 16))
    result = simulate.simulate(tmp_path, "verilator")
    assert result.passed, result.log
    assert result.words >= 100_000


def flip(folder, word, bit):
    """Flips one bit of acc.hex."""
    lines = (folder / "acc.hex").read_text().split()
    lines[word] = f"{int(lines[word], 16) ^ (1 << bit):0{len(lines[word])}x}"
    (folder / "acc.hex").write_text("\n".join(lines) + "\n")


@icarus
@pytest.mark.parametrize("bit", [0, 9, 19])
def test_one_flipped_bit_is_found(bit, tmp_path):
    written = product.write_random(
        tmp_path, 50, 5, ("lns8:8", "lns8:8"), path(1, 20, 4, 4), seed=bit
    )
    assert simulate.simulate(tmp_path).passed
    flip(tmp_path, written.words()["acc.hex"] - 1 - bit, bit)
    result = simulate.simulate(tmp_path)
    assert result.differing == 1
    assert result.exit_code != 0
    assert not result.passed


@verilator
def test_verilator_finds_a_flipped_bit(tmp_path):
    product.write_random(tmp_path, 20, 5, ("lns8:8", "lns8:8"), {})
    flip(tmp_path, 3, 23)
    result = simulate.simulate(tmp_path, "verilator")
    assert (result.differing, result.exit_code != 0) == (1, True)


@icarus
def test_the_datapath_matters(tmp_path):
    """Codes and sums of one table are not those of another: the comparison sees a wrong entry."""
    product.write_random(tmp_path, 50, 5, ("lns8:8", "lns8:8"), path(3, 24, 0, 4))
    record = tmp_path / "product.json"
    record.write_text(record.read_text().replace('"lut_bits": 3', '"lut_bits": 1'))
    assert simulate.simulate(tmp_path).differing > 10


@icarus
def test_command_line(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        product.write_random(folder, 20, 3, ("lns8:8", "lns8:8"), {})
    flip(bad, 7, 5)
    for folders, code in ([good], 0), ([good, bad], 1):
        done = subprocess.run(
            [sys.executable, str(RTL / "simulate.py"), *map(str, folders)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "0 of 20 words differ" in done.stdout
        assert ("1 of 20 words differ" in done.stdout) == (code == 1)


def test_missing_words_are_refused(tmp_path):
    product.write_random(tmp_path, 20, 3, ("lns8:8", "lns8:8"), {})
    words = (tmp_path / "b.hex").read_text().split()
    (tmp_path / "b.hex").write_text("\n".join(words[:-1]))
    with pytest.raises(ValueError, match=r"b\.hex must hold 12 words"):
        product.Product.read(tmp_path)


def test_words_are_twos_complement():
    assert product.hex_words([0, 1, -1, 127, -127], 8) == "00\n01\nff\n7f\n81\n"
    assert product.hex_words([-1, 5], 22) == "3fffff\n000005\n"


def test_table_is_that_of_the_datapath():
    text = area.lns_parameters(lut_bits=1)["TABLE"]
    assert text == f"20'h{(362 << 10) + 256:x}"


# --- Gates -------------------------------------------------------------------------------


@icarus
@yosys
def test_gates_agree(tmp_path):
    """What yosys counts computes the right thing."""
    written = product.write_random(
        tmp_path, 400, 9, ("lns8:8", "lns8:8"), path(1, 16, 0, 4), seed=5
    )
    netlist = tmp_path / "gates.v"
    area.write_netlist(netlist, {**written.parameters(), "TABLE": written.table()})
    assert "TABLE" not in netlist.read_text()
    result = simulate.simulate(tmp_path, netlist=netlist)
    assert result.passed, result.log


@yosys
@pytest.mark.parametrize("unit", [area.UNITS[0], area.UNITS[6]], ids=lambda unit: unit.name)
def test_the_table_of_gates_is_current(unit):
    text = (RTL / "AREA.md").read_text()
    if area.version() not in text:
        pytest.skip(f"AREA.md is of another yosys than {area.version()}")
    term = unit.term()
    line = re.search(rf"^\| {re.escape(unit.name)} \|.*$", text, re.MULTILINE)[0]
    assert line.startswith(f"| {unit.name} | {term.gates} | {term.transistors} |")


# --- The peers of the count --------------------------------------------------------------


def clamped_sums(terms, bits):
    """Accumulator after the last of the terms [rows, k, vector]."""
    largest = (1 << (bits - 1)) - 1
    acc = np.zeros(len(terms), np.int64)
    for step in np.moveaxis(terms, 1, 0):
        acc = np.clip(acc + step.sum(axis=-1), -largest, largest)
    return acc


def fixed_point(values, exponent_bits, fraction_bits):
    """Floating-point words as whole numbers, in units of the smallest one."""
    field = (values >> fraction_bits) & ((1 << exponent_bits) - 1)
    significand = values & ((1 << fraction_bits) - 1)
    whole = np.where(field > 0, significand + (1 << fraction_bits), significand)
    whole = whole << np.maximum(field - 1, 0)
    return np.where(values >> (exponent_bits + fraction_bits), -whole, whole)


def peer_terms(kind, a, b):
    """Terms of a peer in units of its accumulator's last bit."""
    if kind == "int":
        signed = [np.where(x > 127, x - 256, x) for x in (a, b)]
        return signed[0] * signed[1]
    exponent_bits, fraction_bits = kind
    x, y = (fixed_point(v, exponent_bits, fraction_bits) for v in (a, b))
    # The largest product has 2 (fraction + 1 + largest shift) bits; 20 of them are kept.
    bits = 2 * (fraction_bits + 1 + (1 << exponent_bits) - 3)
    exact = np.abs(x).astype(object) * np.abs(y).astype(object)
    kept = np.array([int(v) >> (bits - 20) for v in exact.ravel()]).reshape(exact.shape)
    return np.sign(x) * np.sign(y) * kept


@icarus
@pytest.mark.parametrize("vector", [1, 4])
@pytest.mark.parametrize("kind", ["int", (5, 10), (4, 3)], ids=["int8", "fp16", "fp8"])
def test_peers_multiply_and_accumulate(kind, vector, tmp_path):
    rows, steps, rng = 2000, 3, np.random.default_rng(7)
    bits = 8 if kind == "int" else 1 + sum(kind)
    a, b = rng.integers(0, 1 << bits, (2, rows, steps, vector))
    if kind != "int":  # Inf and NaN do not occur; large products are rare without help
        top = ((1 << kind[0]) - 1) << kind[1]
        a, b = (np.where(x & top == top, x ^ (1 << kind[1]), x) for x in (a, b))
        a[::2] |= top ^ (1 << kind[1])
        b[::2] |= top ^ (1 << kind[1])
        a, b = (np.where(x & top == top, x ^ (1 << kind[1]), x) for x in (a, b))
    expected = clamped_sums(peer_terms(kind, a, b), 24)
    assert len(np.unique(expected)) > 100
    for name, words, width in ("a", a, bits), ("b", b, bits), ("acc", expected, 24):
        (tmp_path / f"{name}.hex").write_text(product.hex_words(words, width))

    unit = "int_mac" if kind == "int" else "fp_mac"
    formats = "" if kind == "int" else f".EXPONENT_BITS({kind[0]}), .FRACTION_BITS({kind[1]}),"
    defines = {"UNIT": unit, "PARAMETERS": formats, "BITS": bits, "VECTOR": vector}
    defines |= {"ROWS": rows, "STEPS": steps}
    sources = ["saturating_accumulator.sv", *(str(p) for p in sorted(RTL.glob("peers/*.sv")))]
    macros = [f"-D{k}={v}" for k, v in defines.items()]
    program = str(tmp_path / "run")
    subprocess.run(
        ["iverilog", "-g2012", *macros, "-s", "peers_testbench", "-o", program, *sources],
        check=True,
        cwd=RTL,
    )
    done = subprocess.run(
        ["vvp", "-n", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert f"0 of {rows} words differ" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
