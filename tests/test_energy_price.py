"""Prices by hand: what an operation is made of, and that every sum is the same sum."""

import csv
import dataclasses
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tf_lns.energy import recipes, report
from tf_lns.energy.counts import Tally
from tf_lns.energy.price import price, unit_price
from tf_lns.energy.records import KINDS, PASSES, Record, Traffic, Unpriced
from tf_lns.energy.report import human_energy
from tf_lns.energy.table import BUILT_IN, EnergyTable

H, J, P = BUILT_IN
SELECT = {H: 0.0013672, J: 0.00039648}
TABLE_8 = 7 * 9  # a tree over 8 entries of 9 bits
SHIFT_24 = 5 * 24  # five stages over 24 bits


@pytest.mark.parametrize(
    ("table", "format", "pj"),
    [
        (H, "fp32", 3.7 + 0.9),  # 4.6
        (H, "fp16", 1.1 + 0.9),  # 2.0: the sum is fp32
        (H, "bf16", 0.7 + 0.9),
        (H, "fp8", 0.283333 + 0.9),
        (H, "int8", 0.2 + 0.1),  # 0.3: the sum is int32
        (H, "lns8:8", 0.03 + (TABLE_8 + SHIFT_24) * SELECT[H] + 0.075),  # 0.3552
        (J, "fp32", 1.31 + 0.38),
        (J, "fp16", 0.34 + 0.38),
        (J, "bf16", 0.21 + 0.38),
        (J, "fp8", 0.072646 + 0.38),
        (J, "int8", 0.07 + 0.03),
        (J, "lns8:8", 0.007 + (TABLE_8 + SHIFT_24) * SELECT[J] + 0.02175),  # 0.1013
        (P, "lns8:8", 0.080),
        (P, "fp8", 0.1824),
        (P, "fp16", 0.3728),
        (P, "fp32", 0.896),
    ],
)
def test_a_multiply_accumulate(table, format, pj):
    unit = unit_price(table, "mac", (format, format))
    assert unit.priced
    assert unit.pj == pytest.approx(pj, rel=1e-5)
    assert unit.low <= unit.pj <= unit.high
    assert math.fsum(p.pj for p in unit.parts) == unit.pj


def test_a_multiply_accumulate_taken_apart():
    unit = unit_price(H, "mac", ("lns8:8", "lns8:8"))
    assert [(p.name, p.op, p.format, p.number) for p in unit.parts] == [
        ("exponent add", "add", "int8", 1),
        ("table read", "select", "int9", 7),
        ("shift", "select", "int24", 5),
        ("accumulate", "add", "int24", 1),
    ]
    assert [p.pj for p in unit.parts] == pytest.approx([0.03, 0.0861336, 0.164064, 0.075])
    assert str(unit.parts[0]) == "exponent add: add int8 = 0.03 pJ (published)"
    assert str(unit) == "mac lns8:8 x lns8:8: 0.355198 pJ (0.227537 to 0.80625), horowitz-45nm"


def test_the_low_estimate_of_a_float_product_has_an_fp16_sum():
    assert unit_price(H, "mac", ("fp16", "fp16")).low == pytest.approx(1.1 + 0.4)
    assert unit_price(H, "mac", ("fp32", "fp32")).low == pytest.approx(3.7 + 0.9)
    # integer multiplier of 4 bits, exponent adder of 8, fp16 sum
    assert unit_price(H, "mac", ("fp8", "fp8")).low == pytest.approx(
        0.002995 * 16 + 0.00104 * 4 + 0.025 + 0.4
    )


@pytest.mark.parametrize(
    ("first", "second", "adder", "entries", "stages"),
    [
        ("lns8:8", "lns8:8", 8, 8, 5),  # exponents to 126, 31.5 octaves
        ("lns8:8", "lns5:8", 8, 8, 5),  # 126 + 14: 17 octaves
        ("lns5:1", "lns5:1", 5, 1, 5),  # exponents to 14, 28 octaves, no table
        ("lns5:1", "lns8:8", 8, 8, 5),  # 14 * 8 = 112 on the finer grid
        ("lns8:8", "lns5:2", 8, 8, 5),
        ("lns8:64", "lns8:64", 8, 64, 2),  # 3.9 octaves: 4 positions
        ("lns2:1", "lns2:1", 2, 1, 0),  # one magnitude: nothing to shift
        ("lns16:2048", "lns16:2048", 16, 2048, 5),
    ],
)
def test_the_datapath_of_other_formats(first, second, adder, entries, stages):
    for pair in ((first, second), (second, first)):
        parts = recipes.recipe("mac", pair)
        assert [p.name for p in parts] == ["exponent add", "table read", "shift", "accumulate"]
        assert parts[0].format == f"int{adder}"
        assert parts[1].format == f"{entries}x9"
        assert parts[2].otherwise.numbers[1] == stages
        assert parts[3].format == "int24"
        assert unit_price(H, "mac", pair).priced


def test_a_large_table_is_a_memory():
    parts = unit_price(H, "mac", ("lns16:2048", "lns16:2048")).parts
    assert (parts[1].op, parts[1].format) == ("read", "sram-8k")
    assert parts[1].pj == pytest.approx(10 * 9 / 64)
    # Where a tree becomes a memory the two cost about the same.
    tree = recipes.LARGEST_TREE * SELECT[H]
    assert tree == pytest.approx(10 * 9 / 64, rel=0.01)


@pytest.mark.parametrize(
    ("first", "second", "format"),
    [
        ("fp32", "lns8:8", "fp32"),
        ("fp16", "bf16", "fp32"),
        ("fp16", "fp8", "fp16"),
        ("fp64", "bf16", "fp64"),
        ("int8", "bf16", "bf16"),
        ("int8", "int32", "int32"),
        ("int8", "fp8", "fp32"),
        ("lns8:8", "lns16:2048", "lns16:2048"),
    ],
)
def test_products_of_two_formats(first, second, format):
    assert recipes.operand_format(first, second) == format
    assert recipes.operand_format(second, first) == format


@pytest.mark.parametrize(
    ("kind", "formats", "pj"),
    [
        ("add", ("fp32",), 0.9),
        ("multiply", ("fp32",), 3.7),
        ("add", ("int16",), 16 * 0.003125),
        ("add", ("lns16:2048",), 16 * 0.003125),  # codes are integers
        ("multiply", ("lns8:8",), 0.03),
        ("compare", ("fp32",), 0.1),  # as int32
        ("compare", ("bool",), 0.003125),
        ("divide", ("fp32",), 5 * 3.7 + 2 * 0.9),  # two steps from an 8-bit seed
        ("divide", ("fp16",), 3 * 1.1 + 0.4),
        ("sqrt", ("fp32",), 7 * 3.7 + 2 * 0.9),
        ("transcendental", ("fp32",), 8 * (3.7 + 0.9)),
        ("round", ("fp32",), SHIFT_24 * SELECT[H] + 0.075),
        ("random", ("int32",), 0.3),
        ("lookup", ("8x9",), TABLE_8 * SELECT[H]),
        ("lookup", ("128x32",), 10 * 32 / 64),
        ("requantize", ("lns16:2048", "lns8:8"), 2 * 0.05),
        (
            "encode",
            ("fp32", "lns8:8"),
            (SHIFT_24 + TABLE_8) * SELECT[H] + 9 * 0.003125 + 0.03,
        ),
        ("encode", ("fp32", "lns5:1"), SHIFT_24 * SELECT[H] + 5 * 0.003125),
        ("encode", ("fp32", "fp8"), 0.03 + 2 * 4 * SELECT[H] + 0.03),
        ("encode", ("fp32", "int8"), 3.7 + SHIFT_24 * SELECT[H] + 0.03),
        ("encode", ("bf16", "fp32"), 0.0),
        ("decode", ("lns8:8", "fp32"), 7 * 24 * SELECT[H] + 0.03),
        ("decode", ("fp8", "fp32"), 0.0),
        ("decode", ("int8", "fp32"), SHIFT_24 * SELECT[H] + 3.7),
    ],
)
def test_other_operations_at_45_nm(kind, formats, pj):
    unit = unit_price(H, kind, formats)
    assert unit.priced
    assert unit.pj == pytest.approx(pj, rel=1e-9)
    assert unit.low <= unit.pj <= unit.high


def test_every_kind_has_a_recipe():
    for kind in KINDS:
        pair = {"requantize": ("lns16:2048", "lns8:8"), "encode": ("fp32", "lns8:8")}
        pair |= {"decode": ("lns8:8", "fp32"), "mac": ("fp32", "fp32"), "lookup": ("8x9",)}
        for table in (H, J):
            unit = unit_price(table, kind, pair.get(kind, ("fp32",)))
            assert unit.priced, unit
            assert {p.name for p in unit.parts} <= set(recipes.PARTS)


def test_what_has_no_price_is_named():
    unit = unit_price(H, "add", "complex64")
    assert (unit.priced, unit.pj, unit.missing) == (False, 0.0, ("format complex64",))
    unit = unit_price(P, "divide", "fp32")
    assert unit.missing == ("multiply fp32", "add fp32")
    assert unit_price(P, "mac", ("int8", "int8")).missing == ("mac int8",)
    assert str(unit) == "divide fp32: unpriced, no multiply fp32, add fp32 in lns-madam-paper"
    json.dumps(unit.to_dict(), allow_nan=False)


def test_the_wrong_question():
    with pytest.raises(ValueError, match=r"`kind` must be one of mac.*Received: kind='fma'"):
        unit_price(H, "fma", "fp32")
    with pytest.raises(ValueError, match=r"`formats` of mac must be 2 names. Received"):
        unit_price(H, "mac", "fp32")
    with pytest.raises(ValueError, match=r"`formats` of add must be 1 name. Received"):
        unit_price(H, "add", ("fp32", "fp32"))


def test_rows_of_whole_units_come_first(tmp_path):
    path = tmp_path / "mine.toml"
    rows = {
        ("shift", "int24"): 1.0,
        ("lookup", "8x9"): 2.0,
        ("add", "int8"): 4.0,
        ("add", "int24"): 8.0,
        ("mac", "lns6"): 16.0,
        ("mac", "lns5:1"): 32.0,
        ("encode", "lns8:8"): 64.0,
        ("compare", "int32"): 128.0,
    }
    path.write_text(
        'name = "mine"\nsource = {citation = "here"}\n'
        + "".join(
            f'[[row]]\nop = "{op}"\nformat = "{format}"\npj = {pj}\norigin = "published"\n'
            for (op, format), pj in rows.items()
        )
    )
    table = EnergyTable.load(path)
    assert unit_price(table, "mac", ("lns8:8", "lns8:8")).pj == 15.0
    assert unit_price(table, "mac", ("lns6:4", "lns5:2")).pj == 16.0
    assert unit_price(table, "mac", ("lns5:1", "lns5:1")).pj == 32.0
    assert unit_price(table, "encode", ("fp32", "lns8:8")).pj == 64.0
    assert unit_price(table, "compare", "fp32").pj == 128.0


def dense_step():
    """One dense layer, batch 2, 3 inputs, 4 outputs, in FP32: 24 MACs forward, 24 gradient."""
    return Tally(
        records=(
            Record("net/dense", "forward", "mac", ("fp32", "fp32"), 24, 3, "MatMul"),
            Record("net/dense", "forward", "add", ("fp32",), 8, None, "BiasAdd"),
            Record("net/dense", "gradient", "mac", ("fp32", "fp32"), 24, 2, "MatMul"),
            Record("", "update", "add", ("complex64",), 5, None, "AddV2"),
        ),
        traffic=(
            Traffic("net/dense", "forward", "weights", "read", "fp32", 32, 12),
            Traffic("net/dense", "forward", "activations", "write", "fp32", 32, 8),
        ),
        unpriced=(Unpriced("Qr", 1, 9, ("net/dense",)),),
        samples=2,
        name="net",
    )


def test_a_step_by_hand():
    energy = price(dense_step(), H)
    # 48 x 4.6 + 8 x 0.9 = 220.8 + 7.2 = 228
    assert energy.total_pj == pytest.approx(228.0, rel=1e-12)
    assert energy.per_sample_pj == pytest.approx(114.0, rel=1e-12)
    assert energy.by_pass == pytest.approx({"forward": 117.6, "gradient": 110.4})
    assert energy.by_kind == pytest.approx({"mac": 220.8, "add": 7.2})
    assert energy.by_layer == pytest.approx({"net/dense": 228.0})
    assert energy.by_part == pytest.approx(
        {"multiply": 177.6, "accumulate": 43.2, "element-wise": 7.2}
    )
    # 12 reads and 8 writes of 32 bits are 10 words of 64
    assert energy.memory_pj == {"sram-8k": 100, "sram-32k": 200, "sram-1m": 1000, "dram": 19500}
    assert (energy.memory["dram"].low, energy.memory["dram"].high) == (13000, 26000)
    assert [(g.what, g.count) for g in energy.unpriced] == [("Qr", 1), ("add complex64", 5)]
    assert energy.table.name == H


def test_energy_as_text_names_the_table():
    energy = dense_step().energy(H)
    assert str(energy) == (
        "228 pJ per step (228 pJ to 228 pJ), 114 pJ per sample, arithmetic only, table "
        "horowitz-45nm; not in it: Qr, add complex64"
    )
    assert (
        repr(energy)
        == "<Energy 228 pJ per step (228 pJ to 228 pJ), table horowitz-45nm, 2 unpriced>"
    )


def test_energy_as_data(tmp_path):
    energy = dense_step().energy(H)
    data = json.loads(energy.to_json(tmp_path / "e.json"))
    assert data == json.loads((tmp_path / "e.json").read_text())
    assert (data["table"], data["total_pj"]) == (H, energy.total_pj)
    assert math.fsum(r["pj"] for r in data["records"]) == energy.total_pj
    assert data["memory_pj"]["dram"] == {"pj": 19500, "low": 13000, "high": 26000}
    rows = list(csv.DictReader(io.StringIO(energy.to_csv(tmp_path / "e.csv"))))
    assert (tmp_path / "e.csv").read_text() == energy.to_csv()
    assert math.fsum(float(r["pj"]) for r in rows if r["pj"]) == energy.total_pj
    assert {r["table"] for r in rows} == {H}
    assert [r["formats"] for r in rows if r["kind"] == "unpriced"] == ["Qr", "add complex64"]


RECORDS = st.builds(
    Record,
    layer=st.sampled_from(["a", "a/b", "c", ""]),
    pass_=st.sampled_from(PASSES),
    kind=st.sampled_from(["add", "multiply", "divide", "compare", "transcendental"]),
    formats=st.sampled_from([("fp32",), ("fp16",), ("bf16",), ("int32",), ("lns8:8",)]),
    count=st.integers(0, 10**12),
) | st.builds(
    Record,
    layer=st.sampled_from(["a", "a/b", "c", ""]),
    pass_=st.sampled_from(PASSES),
    kind=st.just("mac"),
    formats=st.tuples(*[st.sampled_from(["fp32", "fp8", "int8", "lns8:8", "lns5:1"])] * 2),
    count=st.integers(0, 10**12),
)


@given(st.lists(RECORDS, max_size=20), st.sampled_from(BUILT_IN))
def test_every_sum_is_the_total(records, table):
    energy = price(Tally(tuple(records)), table)
    for parts in (energy.by_layer, energy.by_pass, energy.by_kind, energy.by_part):
        assert math.fsum(parts.values()) == pytest.approx(energy.total_pj, rel=1e-12)
    assert energy.low_pj <= energy.total_pj <= energy.high_pj
    assert len(energy.records) + sum(
        not unit_price(table, r.kind, r.formats).priced for r in records
    ) == len(records)


@given(st.lists(RECORDS, max_size=10), st.integers(1, 1000))
def test_energy_is_linear_in_the_counts(records, times):
    once = price(Tally(tuple(records)), J)
    many = price(Tally(tuple(dataclasses.replace(r, count=r.count * times) for r in records)), J)
    assert many.total_pj == pytest.approx(times * once.total_pj, rel=1e-12)


@pytest.mark.parametrize(
    ("pj", "text"),
    [
        (0, "0.00 pJ"),
        (0.0041, "0.0041 pJ"),
        (4.6, "4.60 pJ"),
        (46, "46.0 pJ"),
        (999.4, "999 pJ"),
        (999.6, "1.00 nJ"),
        (2.3e6, "2.30 µJ"),
        (9.8e8, "980 µJ"),
        (9.8e9, "9.80 mJ"),
        (1e12, "1.00 J"),
        (3.6e18, "3.60 MJ"),
        (-5e3, "-5.00 nJ"),
    ],
)
def test_human_energy(pj, text):
    assert human_energy(pj) == text


def shown(renderable) -> str:
    console = Console(width=110, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_tables_for_a_terminal():
    energy = dense_step().energy(H)
    for make in (report.layer_table, report.kind_table, report.part_table):
        text = shown(make(energy))
        assert H in text
        assert "228 pJ per step" in text
        assert "Not in the total: Qr, add complex64." in text
    assert "net/dense" in shown(report.layer_table(energy))
    assert "19.5 nJ" in shown(report.memory_table(energy))
    assert "10.1109/ISSCC.2014.6757323" in shown(report.price_table(energy.table))


def test_many_layers_are_summed_up():
    records = tuple(Record(f"l{i}", "forward", "add", ("fp32",), i) for i in range(1, 6))
    text = shown(report.layer_table(price(Tally(records), H), limit=2))
    assert "3 more layers" in text  # 0.9 x (1 + 2 + 3)
    assert "5.40 pJ" in text
    assert "l5" in text
    assert "l1 " not in text


def test_names_are_no_markup():
    record = Record("a[bold]", "forward", "add", ("fp32",), 1)
    assert "a[bold]" in shown(report.layer_table(price(Tally((record,), name="[red]m"), H)))
