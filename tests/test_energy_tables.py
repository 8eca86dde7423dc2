"""Energy tables: their numbers, their schema, and what is refused with which words."""

import copy
import json
import pathlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_lns.energy.table import BUILT_IN, EnergyTable, check_table, tables

HOROWITZ, JOUPPI, PAPER = map(EnergyTable.load, BUILT_IN)

GOOD = """
name = "mine"
[source]
citation = "measured"
[[row]]
op = "add"
format = "int8"
pj = 0.5
origin = "published"
"""


@pytest.mark.parametrize(
    ("table", "op", "format", "pj"),
    [
        (HOROWITZ, "add", "int8", 0.03),
        (HOROWITZ, "add", "int32", 0.1),
        (HOROWITZ, "multiply", "int8", 0.2),
        (HOROWITZ, "multiply", "int32", 3.1),
        (HOROWITZ, "add", "fp16", 0.4),
        (HOROWITZ, "multiply", "fp16", 1.1),
        (HOROWITZ, "add", "fp32", 0.9),
        (HOROWITZ, "multiply", "fp32", 3.7),
        (HOROWITZ, "read", "sram-8k", 10),
        (HOROWITZ, "read", "sram-32k", 20),
        (HOROWITZ, "read", "sram-1m", 100),
        (JOUPPI, "add", "int8", 0.007),
        (JOUPPI, "multiply", "int8", 0.07),
        (JOUPPI, "add", "int32", 0.03),
        (JOUPPI, "multiply", "int32", 1.48),
        (JOUPPI, "add", "bf16", 0.11),
        (JOUPPI, "multiply", "bf16", 0.21),
        (JOUPPI, "add", "fp16", 0.16),
        (JOUPPI, "multiply", "fp16", 0.34),
        (JOUPPI, "add", "fp32", 0.38),
        (JOUPPI, "multiply", "fp32", 1.31),
        (JOUPPI, "read", "sram-8k", 7.5),
        (JOUPPI, "read", "sram-32k", 8.5),
        (JOUPPI, "read", "sram-1m", 14),
        (JOUPPI, "read", "ddr4", 1300),
    ],
)
def test_published_numbers(table, op, format, pj):
    cost = table.cost(op, format)
    assert cost.pj == pj
    assert cost.origin == "published"


@pytest.mark.parametrize(
    ("table", "level", "low", "high"),
    [(HOROWITZ, "dram", 1300, 2600), (JOUPPI, "hbm2", 250, 450)],
)
def test_a_printed_range_has_its_mean_as_middle(table, level, low, high):
    cost = table.cost("read", level)
    assert (cost.low, cost.pj, cost.high) == (low, (low + high) / 2, high)
    assert table.cost("write", level) == cost


@pytest.mark.parametrize(
    ("table", "op", "format", "pj"),
    [
        (HOROWITZ, "add", "int24", 24 * 0.003125),  # 0.075
        (HOROWITZ, "multiply", "int16", 0.002995 * 256 + 0.00104 * 16),
        (HOROWITZ, "multiply", "fp8", 0.0041667 * 16 + 0.0541667 * 4),  # 0.2833
        (HOROWITZ, "multiply", "bf16", 0.0041667 * 64 + 0.0541667 * 8),  # 0.7
        (HOROWITZ, "select", "int1", 0.0013672),
        (JOUPPI, "add", "int24", 24 * 0.00090625),
        (JOUPPI, "multiply", "fp8", 0.0018211 * 16 + 0.0108771 * 4),  # 0.0726
    ],
)
def test_derived_numbers(table, op, format, pj):
    cost = table.cost(op, format)
    assert cost.pj == pytest.approx(pj, rel=1e-12)
    assert cost.origin == "derived"
    assert cost.rule


@pytest.mark.parametrize(
    ("table", "op", "rule", "bits", "printed", "within"),
    [
        (HOROWITZ, "multiply", "int*", 8, 0.2, 1e-3),
        (HOROWITZ, "multiply", "int*", 32, 3.1, 1e-3),
        (HOROWITZ, "add", "int*", 32, 0.1, 1e-9),
        (HOROWITZ, "multiply", "fp*", 11, 1.1, 1e-4),
        (HOROWITZ, "multiply", "fp*", 24, 3.7, 1e-4),
        (JOUPPI, "multiply", "fp*", 11, 0.34, 1e-4),
        (JOUPPI, "multiply", "fp*", 24, 1.31, 1e-4),
        (JOUPPI, "multiply", "fp*", 8, 0.21, 0.04),  # the check that the rule cites
    ],
)
def test_rules_meet_what_is_printed(table, op, rule, bits, printed, within):
    assert table.row(op, rule).cost(bits).pj == pytest.approx(printed, rel=within)


def test_the_multiplexer_is_a_stated_share_of_an_adder_bit():
    for table in (HOROWITZ, JOUPPI):
        adder, select = table.row("add", "int*").pj_per_bit, table.row("select", "int*").pj_per_bit
        assert select == pytest.approx((adder[0] * 6 / 28, adder[1] * 7 / 16, adder[2]), rel=1e-3)


def test_the_paper_gives_ratios():
    lns = PAPER.cost("mac", "lns8")
    for format, ratio in (("fp8", 2.28), ("fp16", 4.66), ("fp32", 11.2)):
        cost = PAPER.cost("mac", format)
        for name in ("low", "pj", "high"):
            assert getattr(cost, name) / getattr(lns, name) == pytest.approx(ratio, rel=1e-9)
    # mJ per iteration over three products per weight, see the row's rule.
    per_mac = {
        "ResNet-50": 0.98e9 / (3 * 4.09e9),
        "BERT-base": 7.9e9 / (3 * 32.6e9),
        "BERT-large": 27.7e9 / (3 * 116e9),
        "ResNet-18": 0.54e9 / (3 * 1.82e9),
    }
    assert lns.low == pytest.approx(min(per_mac.values()) * 0.98, rel=5e-3)
    assert lns.high == pytest.approx(max(per_mac.values()) * 1.02, rel=5e-3)
    assert sorted(per_mac.values())[1] == pytest.approx(lns.pj, rel=5e-3)


@given(
    st.sampled_from([HOROWITZ, JOUPPI]),
    st.sampled_from(["add", "multiply", "select"]),
    st.integers(1, 64),
)
def test_low_to_high_holds_the_estimate_and_wider_costs_more(table, op, bits):
    cost = table.cost(op, f"int{bits}")
    assert 0 <= cost.low <= cost.pj <= cost.high
    rule = table.row(op, "int*")
    assert rule.cost(bits).pj < rule.cost(bits + 1).pj


def test_the_names():
    names = list(tables())
    assert names == list(BUILT_IN)
    assert "horowitz-45nm" in tables()
    assert [str(t) for t in tables().values()] == names
    assert EnergyTable.load(HOROWITZ) is HOROWITZ
    assert EnergyTable.load("horowitz-45nm") is HOROWITZ
    assert repr(HOROWITZ).startswith("EnergyTable('horowitz-45nm'")


@pytest.mark.parametrize("table", [HOROWITZ, JOUPPI, PAPER], ids=BUILT_IN)
def test_every_table_says_where_it_is_from(table):
    assert check_table(table.name) == ()
    assert {"citation", "year", "doi", "read"} <= set(table.source)
    assert all(row.rule for row in table.rows if row.origin == "derived")
    assert json.loads(json.dumps(table.to_dict()))["rows"][0]["op"] == table.rows[0].op
    assert pickle.loads(pickle.dumps(table)).rows == copy.deepcopy(table).rows == table.rows


def test_what_no_row_and_no_rule_prices():
    assert HOROWITZ.cost("mac", "fp32") is None
    assert HOROWITZ.cost("select", "fp32") is None
    assert HOROWITZ.cost("read", "moon") is None
    assert PAPER.cost("add", "int8") is None


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    table = EnergyTable.load(path)
    assert (table.name, table.title, table.path) == ("mine", "mine", str(path))
    assert table.cost("add", "int8").pj == 0.5
    assert check_table(path) == ()
    assert EnergyTable.load(str(path)).rows == table.rows


def test_yaml(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nsource: {citation: measured}\n"
        "row:\n  - {op: read, level: l2, low: 1, high: 3, origin: published}\n"
    )
    assert EnergyTable.load(path).cost("read", "l2").pj == 2.0
    path.write_text("a: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        EnergyTable.load(path)


def test_yaml_without_pyyaml(tmp_path, monkeypatch):
    path = tmp_path / "mine.yml"
    path.write_text("name: mine")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install pyyaml"):
        EnergyTable.load(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"add"', '"ad"', "row 1: `op` must be one of add, multiply"),
        ('"int8"', '"int"', "row 1: `format` must be fp64"),
        ('"int8"', "8", "Received: format=8"),
        ("pj = 0.5", "pj = -0.5", "row 1: `pj` must be a number of pJ, 0 or more. Received: pj=-0"),
        ("pj = 0.5", "pj = nan", "Received: pj=nan"),
        ("pj = 0.5", "pj = true", "Received: pj=True"),
        ("pj = 0.5", 'pj = "1"', "Received: pj='1'"),
        ("pj = 0.5", "", "`pj` is missing"),
        ("pj = 0.5", "pj = 0.5\nlow = 0.6", "low <= pj <= high must hold"),
        ("pj = 0.5", "pj = 0.5\npj_per_bit = 1", "`pj_per_bit` is for a family"),
        ("pj = 0.5", "energy = 0.5", "row 1: unknown key 'energy'; known are"),
        ('"published"', '"guessed"', "`origin` must be one of published, recalled, derived"),
        ('"published"', '"derived"', "`rule` must say in a sentence"),
        ('format = "int8"', "", "needs exactly one of `format` and `family`. Received: none"),
        ('format = "int8"', 'format = "int8"\nfamily = "int"', "Received: format='int8', family="),
        ('op = "add"', 'op = "read"', "a row of read needs exactly one of `level`"),
        ('format = "int8"', 'family = "float"\nrule = "x"', "`family` must be one of int, fp"),
        ('citation = "measured"', "", "`source` must be a mapping with at least a `citation`"),
        ('citation = "measured"', 'citation = "m"\nyear = 45', "source: `year` must be a year"),
        ('citation = "measured"', 'citation = "m"\nauthor = "x"', "source: unknown key 'author'"),
        ('name = "mine"', "", "`name` must be letters"),
        ('name = "mine"', 'name = "mine"\nnode_nm = 0', "`node_nm` must be a number above 0"),
        ('name = "mine"', 'name = "mine"\nnotes = "x"', "`notes` must be a list of texts"),
        ('name = "mine"', 'name = "mine"\nunits = "pJ"', "unknown key 'units'"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, said):
    assert old in GOOD
    path = tmp_path / "wrong.toml"
    path.write_text(GOOD.replace(old, new, 1))
    found = check_table(path)
    assert any(said in problem for problem in found), found
    assert all(problem.startswith(f"{path}: ") for problem in found)
    with pytest.raises(ValueError, match=r"wrong\.toml: "):
        EnergyTable.load(path)


def test_a_row_twice(tmp_path):
    path = tmp_path / "twice.toml"
    path.write_text(GOOD + GOOD[GOOD.index("[[row]]") :])
    assert check_table(path) == (
        f"{path}: row 2: add int8 stands in row 1 already; keep one of them",
    )


@pytest.mark.parametrize(
    ("coefficient", "said"),
    [
        ("pj_per_bit = [1, 2]", "or three of them"),
        ("pj_per_bit = [1, 2, -3]", "Received: pj_per_bit=[1, 2, -3]"),
        ("low = 1", "`low` is for a row of one format"),
        ("", "a family needs at least one of"),
    ],
)
def test_mistakes_in_a_rule(tmp_path, coefficient, said):
    path = tmp_path / "rule.toml"
    row = f'family = "int"\nrule = "so"\n{coefficient}\n'
    path.write_text(GOOD.replace('format = "int8"\npj = 0.5\n', row))
    assert any(said in problem for problem in check_table(path))


def test_every_mistake_is_told_at_once(tmp_path):
    path = tmp_path / "many.toml"
    path.write_text(GOOD.replace("0.5", "-1").replace('"measured"', '""'))
    with pytest.raises(ValueError, match=r"(?s)citation.*row 1: `pj`"):
        EnergyTable.load(path)


@pytest.mark.parametrize(
    ("text", "suffix", "said"),
    [
        ("a = [", ".toml", "not valid TOML"),
        ("", ".json", "must be a .toml, .yaml or .yml file"),
        ("\x80", ".toml", "cannot be read"),
        ("", ".toml", "`row` must be a list"),
    ],
)
def test_files_that_are_no_tables(tmp_path, text, suffix, said):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=said):
        EnergyTable.load(path)


def test_no_such_table(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of horowitz-45nm, .*Received: table='42nm'"):
        EnergyTable.load("42nm")
    with pytest.raises(ValueError, match="or the path of a TOML or YAML file"):
        EnergyTable.load(tmp_path)
    with pytest.raises(TypeError, match="Received: table=45"):
        EnergyTable.load(45)
    with pytest.raises(ValueError, match="cannot be read"):
        check_table(pathlib.Path("absent.toml"))


def test_hwcomponents():
    try:
        from hwcomponents_library.library import aladdin  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"pip install tf-lns\[hwcomponents\]"):
            EnergyTable.load("hwcomponents")
    else:
        # 12.68 pJ at 40 nm and 32 bits, scaled to 45 nm: about 0.9 pJ at 8 bits.
        assert EnergyTable.load("hwcomponents").cost("multiply", "int8").pj == pytest.approx(
            0.912, rel=0.01
        )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("pj = 0.5", "pj = 1" + "0" * 400, "`pj` must be a number"),
        ("pj = 0.5", "pj = 1e308", "`pj` must be a number"),
        (
            'format = "int8"\npj = 0.5\norigin = "published"',
            'family = "int"\npj_per_bit = [3, 2, 1]\norigin = "derived"\nrule = "A line."',
            "low <= middle <= high",
        ),
    ],
)
def test_numbers_beyond_reason_name_the_row(tmp_path, old, new, problem):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=f"row 1: .*{problem}"):
        EnergyTable.load(path)


def test_keys_that_come_twice_a_mark_and_a_missing_file(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nname: yours\n")
    with pytest.raises(ValueError, match="comes twice"):
        EnergyTable.load(path)
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert EnergyTable.load(path).name == "mine"
    with pytest.raises(ValueError, match="no file that is there"):
        EnergyTable.load(tmp_path / "missing.toml")
