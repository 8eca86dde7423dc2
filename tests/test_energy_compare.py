"""The same counts in other formats: what changes, what stays, and the ratios."""

import csv
import dataclasses
import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_lns.energy.comparison import FORMATS, compare, retarget, target_format
from tf_lns.energy.counts import Tally
from tf_lns.energy.records import Operand, Record, Traffic
from tf_lns.energy.table import BUILT_IN, EnergyTable
from tf_lns.formats import LNSFormat

H, J, P = BUILT_IN
REST = (
    Record("d", "forward", "add", ("fp32",), 8),
    Record("d", "update", "multiply", ("fp32",), 12),
    Record("d", "update", "encode", ("fp32", "lns5:1"), 12),
    Record("", "other", "transcendental", ("fp32",), 4),
)


def floats(format="fp32"):
    """A dense layer, batch 2, 3 to 4, as float Keras would execute it."""
    bits = int(format[2:])
    return Tally(
        records=(
            Record("d", "forward", "mac", (format, format), 24, 3),
            Record("d", "gradient", "mac", (format, format), 24, 2),
            *REST,
        ),
        traffic=(
            Traffic("d", "forward", "weights", "read", format, bits, 12),
            Traffic("d", "forward", "activations", "read", format, bits, 6),
            Traffic("d", "gradient", "gradients", "write", format, bits, 12),
            Traffic("d", "update", "weights", "write", "fp32", 32, 12),
        ),
        operands=(
            Operand("d", "forward", "weights", format, 12),
            Operand("d", "forward", "activations", format, 6),
            Operand("d", "gradient", "errors", format, 8),
        ),
        samples=2,
        name="net",
    )


def lns(errors="lns8:8"):
    """The same layer in LNS, conversions counted."""
    return Tally(
        records=(
            Record("d", "forward", "encode", ("fp32", "lns8:8"), 6),
            Record("d", "forward", "requantize", ("lns16:2048", "lns8:8"), 12),
            Record("d", "forward", "mac", ("lns8:8", "lns8:8"), 24, 3),
            Record("d", "gradient", "encode", ("fp32", errors), 8),
            Record("d", "gradient", "mac", ("lns8:8", errors), 24, 2),
            Record("plain", "forward", "mac", ("fp32", "fp32"), 10, 5),
            *REST,
        ),
        traffic=(
            Traffic("d", "forward", "weights", "read", "lns8:8", 8, 12),
            Traffic("d", "update", "weights", "write", "lns16:2048", 16, 12),
        ),
        operands=(Operand("d", "forward", "weights", "lns8:8", 12),),
        samples=2,
        name="net",
    )


def conversions(tally):
    return [
        (r.kind, r.formats, r.count)
        for r in tally.records
        if r.kind in ("encode", "requantize", "decode") and r.pass_ != "update"
    ]


def macs(tally):
    return [(r.formats, r.count) for r in tally.records if r.kind == "mac"]


@pytest.mark.parametrize(
    ("format", "target", "bits"),
    [
        ("lns8", "lns8:8", 8),
        ("lns8:8", "lns8:8", 8),
        ("lns6:4", "lns6:4", 6),
        ("fp8", "fp8", 8),
        ("int8", "int8", 8),
        ("bf16", "bf16", 16),
        ("fp16", "fp16", 16),
        ("fp32", "fp32", 32),
    ],
)
def test_products_of_floats(format, target, bits):
    counts = retarget(floats(), format)
    assert macs(counts) == [((target, target), 24)] * 2
    if target in ("bf16", "fp16", "fp32"):
        assert conversions(counts) == []
    else:
        weights = (
            ("requantize", ("lns16:2048", target), 12)
            if target.startswith("lns")
            else ("encode", ("fp32", target), 12)
        )
        assert conversions(counts) == [
            weights,
            ("encode", ("fp32", target), 6),
            ("encode", ("fp32", target), 8),
        ]
    assert all(record in counts.records for record in REST)
    assert [t.bits for t in counts.traffic] == [bits, bits, 32, 32]
    assert counts.notes[-1].startswith(f"Products of forward, error and gradient pass in {target}")


def test_half_precision_counts_become_single():
    assert retarget(floats("fp16"), "fp32").records == floats().records


@pytest.mark.parametrize("errors", ["lns8:8", "lns5:1"])
@pytest.mark.parametrize("table", BUILT_IN)
def test_an_lns_model_is_itself(errors, table):
    counts = lns(errors)
    assert retarget(counts, "lns8").records == counts.records
    assert retarget(counts, "lns8").traffic == counts.traffic
    compared = compare(counts, tables=table).entry(table, "lns8")
    assert compared.energy.total_pj == counts.energy(table).total_pj
    assert compared.energy.by_layer == counts.energy(table).by_layer


def test_conversions_keep_their_number():
    counts = retarget(lns("lns5:1"), "fp8")
    assert macs(counts) == [(("fp8", "fp8"), 24)] * 2 + [(("fp32", "fp32"), 10)]
    assert conversions(counts) == [
        ("encode", ("fp32", "fp8"), 6),
        ("encode", ("fp32", "fp8"), 12),
        ("encode", ("fp32", "fp8"), 8),
    ]
    assert all(record in counts.records for record in REST)
    assert [(t.format, t.bits) for t in counts.traffic] == [("fp8", 8), ("lns16:2048", 16)]


def test_explicit_lns_formats_replace_all():
    counts = retarget(lns("lns5:1"), LNSFormat(6, 4))
    assert macs(counts)[:2] == [(("lns6:4", "lns6:4"), 24)] * 2
    assert ("requantize", ("lns16:2048", "lns6:4"), 12) in conversions(counts)


@pytest.mark.parametrize("format", ["bf16", "fp16", "fp32"])
def test_wide_floats_need_no_conversion(format):
    counts = retarget(lns(), format)
    assert conversions(counts) == []
    assert macs(counts)[0] == ((format, format), 24)


def test_only_low_bit_operands_change():
    record = Record("d", "forward", "mac", ("lns8:8", "fp32"), 24, 3)
    counts = retarget(Tally((record,)), "int8")
    assert macs(counts) == [(("int8", "fp32"), 24)]


def test_decodes():
    tally = Tally(
        (
            Record("d", "forward", "mac", ("lns8:8", "lns8:8"), 1, 1),
            Record("d", "forward", "decode", ("lns8:8", "fp32"), 7),
        )
    )
    assert conversions(retarget(tally, "lns8")) == [("decode", ("lns8:8", "fp32"), 7)]
    assert conversions(retarget(tally, "int8")) == [("decode", ("int8", "fp32"), 7)]
    assert conversions(retarget(tally, "fp16")) == []


def test_products_of_update_and_loss_stay():
    records = (
        Record("d", "forward", "mac", ("fp32", "fp32"), 1, 1),
        Record("d", "update", "mac", ("fp32", "fp32"), 2, 1),
        Record("", "other", "mac", ("fp32", "fp32"), 3, 1),
    )
    assert macs(retarget(Tally(records), "fp8")) == [
        (("fp8", "fp8"), 1),
        (("fp32", "fp32"), 2),
        (("fp32", "fp32"), 3),
    ]


@given(st.sampled_from(FORMATS), st.sampled_from(FORMATS))
def test_the_number_of_products_never_changes(first, second):
    for tally in (floats(), lns()):
        counts = retarget(retarget(tally, first), second)
        assert counts.macs() == tally.macs()
        assert counts.count("multiply") == tally.count("multiply")


@given(st.sampled_from(["fp8", "int8", "lns8"]))
def test_back_to_single_precision(format):
    back = retarget(retarget(floats(), format), "fp32")
    assert back.records == floats().records
    assert back.traffic == floats().traffic


def test_ratios_by_hand():
    tally = Tally((Record("d", "forward", "mac", ("fp32", "fp32"), 1000, 10),))
    result = compare(tally)
    assert result.ratio(P, "fp32", "lns8") == pytest.approx(11.2, rel=1e-9)
    assert result.ratio(P, "fp16", "lns8") == pytest.approx(4.66, rel=1e-9)
    assert result.ratio(P, "fp8", "lns8") == pytest.approx(2.28, rel=1e-9)
    assert result.ratio(H, "fp32", "int8") == pytest.approx(4.6 / 0.3, rel=1e-9)
    assert result.ratio(H, "fp32", "lns8") == pytest.approx(4.6 / 0.3551976, rel=1e-6)
    assert result.ratio(J, "fp32", "lns8") == pytest.approx(1.69 / 0.10130564, rel=1e-5)
    assert result.ratio(H, "fp8", "fp8") == 1.0
    assert result.ratio(P, "bf16", "lns8") is None


def test_every_table_and_format():
    result = compare(floats())
    assert [(r.table, r.format) for r in result.rows] == [(t, f) for t in BUILT_IN for f in FORMATS]
    assert result.table_names == BUILT_IN
    assert {r.format for r in result.rows if not r.priced} == {"int8", "bf16"}
    unpriced = result.entry(P, "bf16")
    assert (unpriced.total_pj, unpriced.low_pj, unpriced.high_pj) == (None, None, None)
    for row in result.rows:
        if row.priced:
            assert row.low_pj <= row.total_pj <= row.high_pj
            parts = row.products_pj + row.conversions_pj + row.rest_pj
            assert parts == pytest.approx(row.total_pj, rel=1e-12)


def test_the_rest_is_the_same_in_every_format():
    for table in (H, J):
        rests = {compare(floats(), tables=table).entry(table, f).rest_pj for f in FORMATS}
        assert len(rests) == 1


def test_chosen_formats_and_tables():
    result = compare(lns(), formats="fp8", tables=[EnergyTable.load(H)])
    assert (result.formats, result.table_names) == (("fp8",), (H,))
    result = compare(floats(), formats=("lns8", LNSFormat(8, 4)), tables=(H, J))
    assert result.formats == ("lns8", "lns8:4")
    assert result.ratio(H, LNSFormat(8, 4), "lns8") < 1


def test_as_data(tmp_path):
    result = compare(floats())
    data = json.loads(result.to_json(tmp_path / "c.json"))
    assert json.loads((tmp_path / "c.json").read_text()) == data
    assert data["tables"] == list(BUILT_IN)
    row = next(r for r in data["rows"] if (r["table"], r["format"]) == (H, "fp8"))
    assert row["ratios"]["fp32"] == result.ratio(H, "fp32", "fp8")
    assert set(row["memory_pj"]) == {"sram-8k", "sram-32k", "sram-1m", "dram"}
    rows = list(csv.DictReader(io.StringIO(result.to_csv(tmp_path / "c.csv"))))
    assert len(rows) == 18
    assert float(rows[1]["total_pj"]) == result.entry(H, "fp8").total_pj
    assert (tmp_path / "c.csv").read_text() == result.to_csv()


def test_as_text():
    text = str(compare(floats()))
    for table in BUILT_IN:
        assert f"table {table}" in text
    assert text.count("not in this table") == 2
    assert "Not in the total: add fp32" in text
    assert "lns8" in repr(compare(floats()))


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "c.png"
    figure = compare(floats()).plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"table {name}" for name in BUILT_IN]
    labels = [t.get_text() for t in figure.axes[2].texts]
    assert labels.count(" not in this table") == 2
    assert any("11.2x lns8" in label for label in labels)


def test_a_picture_of_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    compare(Tally(()), formats="lns8", tables=H).plot(tmp_path / "c.svg")


def test_the_picture_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        compare(floats()).plot()


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"one of lns8, fp8.*Received: format='fp4'"):
        retarget(floats(), "fp4")
    with pytest.raises(TypeError, match="Received: format=8"):
        target_format(8)
    with pytest.raises(TypeError, match="must be a Tally"):
        retarget({}, "fp8")
    with pytest.raises(ValueError, match="must be None with a Tally"):
        compare(floats(), batch=1)
    with pytest.raises(ValueError, match="`formats` must name at least one"):
        compare(floats(), formats=())
    with pytest.raises(ValueError, match="must have different names"):
        compare(floats(), tables=(H, EnergyTable.load(H)))
    with pytest.raises(ValueError, match="Received: table='5nm'"):
        compare(floats(), tables="5nm")
    with pytest.raises(ValueError, match="Received: table='5nm', format='fp8'"):
        compare(floats()).ratio("5nm", "fp8", "fp8")


def test_counts_are_left_alone():
    tally = lns()
    before = dataclasses.replace(tally)
    compare(tally)
    assert tally == before
