"""Every figure of docs/energy.md is what the package computes, digit by digit."""

import json
import math
import pathlib
import re
import sys

import pytest

from tf_lns.energy import EnergyTable, Tally, unit_price
from tf_lns.energy.report import human_ratio
from tf_lns.energy.table import check_table

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs/energy.md").read_text()
DATA = json.loads((ROOT / "docs/energy_bert.json").read_text())
H, J = "horowitz-45nm", "jouppi-7nm"
CONVERSIONS = ("encode", "requantize", "decode")


@pytest.fixture(scope="module")
def example():
    """The script whose results the page shows."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import energy_bert
    finally:
        sys.path.pop(0)
    return energy_bert


@pytest.fixture(scope="module")
def counts():
    """Counts of the two models that the first Python block of the page makes."""
    names: dict = {}
    exec(blocks("python")[0], names)
    return {"FP32 with Adam": names["fp32_counts"], "LNS with LNS-Madam": names["lns_counts"]}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def section(title):
    """Text under a heading, up to the next."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)[
        1
    ]


def rows_after(text, start):
    """Cells of the first table after some words."""
    table = re.search(r"((?:^\|.*\|\n)+)", text[text.index(start) :], re.MULTILINE)[1]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    return [cells[0], *cells[2:]]


def number(text):
    return float(re.fullmatch(r"[\d.]+", text)[0])


def digits(text):
    """A value must be equal to the number as it is printed: half of its last digit."""
    places = len(text.partition(".")[2])
    return pytest.approx(number(text), rel=1e-12, abs=0.5 * 10**-places if places else 1e-9)


# --- The dense layer by hand ----------------------------------------------------------

HAND = section("A dense layer by hand")


def check_layer(rows, tally):
    """Compares the rows of a table with all that the layer executes."""
    executed: dict = {}
    for r in tally.records:
        if r.layer == "dense":
            key = (r.pass_, r.kind, (" x " if r.kind == "mac" else " to ").join(r.formats))
            executed[key] = executed.get(key, 0) + r.count
    printed = {tuple(row[:3]): row[3:] for row in rows}
    assert len(printed) == len(rows)
    assert {key: int(row[0]) for key, row in printed.items()} == executed
    for (_, kind, formats), (count, _, each, together) in printed.items():
        price = unit_price(H, kind, re.split(" x | to ", formats))
        assert price.priced
        assert price.pj == pytest.approx(number(each), rel=1e-12), (kind, formats, each, price.pj)
        assert int(count) * number(each) == pytest.approx(number(together), rel=1e-12), together
    return math.fsum(number(row[-1]) for row in printed.values())


@pytest.mark.parametrize("which", ["FP32 with Adam", "LNS with LNS-Madam"])
def test_the_layer_is_what_is_counted_and_priced(which, counts):
    tally = counts[which]
    total = check_layer(rows_after(HAND, f"{which}:")[1:], tally)
    printed = re.search(r"Together ([\d.]*\d) pJ", HAND[HAND.index(f"{which}:") :])[1]
    assert total == pytest.approx(number(printed), rel=1e-12)
    energy = tally.energy(H)
    assert energy.by_layer["dense"] == pytest.approx(number(printed), rel=1e-12)
    assert energy.unpriced == ()


@pytest.mark.parametrize("column", [3, 5, 6])
def test_a_wrong_digit_fails(column, counts):
    rows = rows_after(HAND, "LNS with LNS-Madam:")[1:]
    for i, row in enumerate(rows):
        last = str((int(row[column][-1]) + 1) % 10)
        wrong = [*row[:column], row[column][:-1] + last, *row[column + 1 :]]
        with pytest.raises(AssertionError):
            check_layer([*rows[:i], wrong, *rows[i + 1 :]], counts["LNS with LNS-Madam"])
    with pytest.raises(AssertionError):
        check_layer(rows[1:], counts["LNS with LNS-Madam"])


def test_the_prices_of_the_layer_are_what_the_recipes_give():
    lines = re.findall(r"^(.*): ([\d.*+ ]+) = ([\d.]+) pJ$", HAND, re.MULTILINE)
    parts = {part.name: part.pj for part in unit_price(H, "mac", ("lns8:8", "lns8:8")).parts}
    for name, calculation, value in lines:
        assert eval(calculation) == pytest.approx(number(value), rel=1e-12), name
        kind, _, formats = name.partition(" ")
        operands = (formats,) * 2 if kind == "mac" else formats.split(" to ")
        pj = parts[name] if name in parts else unit_price(H, kind, operands).pj
        assert pj == pytest.approx(number(value), rel=1e-12), name
    names = [name for name, _, _ in lines]
    assert len(names) == 11
    assert set(parts) <= set(names)


def test_the_summary_of_the_layer(counts):
    fp32, lns = counts.values()
    macs = [
        math.fsum(
            r.pj
            for r in tally.energy(H).records
            if r.record.layer == "dense" and r.record.kind == "mac"
        )
        for tally in (fp32, lns)
    ]
    totals = [tally.energy(H).by_layer["dense"] for tally in (fp32, lns)]
    products, layer = re.search(r"are ([\d.]+)x cheaper, the layer ([\d.]+)x", HAND).groups()
    assert macs[0] / macs[1] == digits(products)
    assert totals[0] / totals[1] == digits(layer)
    moved = [math.fsum(t.bytes for t in x.traffic if t.layer == "dense") for x in (fp32, lns)]
    assert re.search(r"is (\d+) bytes in FP32 and (\d+) in LNS", HAND).groups() == tuple(
        f"{n:.0f}" for n in moved
    )
    read = EnergyTable.load(H).cost("read", "sram-1m").pj
    assert re.search(r"that is (\d+) and (\d+) pJ", HAND).groups() == tuple(
        f"{n / 8 * read:.0f}" for n in moved
    )


# --- The example of a table -----------------------------------------------------------


def test_the_table_of_the_page_can_be_used(tmp_path, counts):
    (text,) = blocks("toml")
    path = tmp_path / "my-28nm.toml"
    path.write_text(text)
    assert check_table(path) == ()
    for tally in counts.values():
        energy = tally.energy(path)
        assert energy.unpriced == ()
        assert 0 < energy.low_pj < energy.total_pj < energy.high_pj
        assert energy.memory_pj["sram-64k"] > 0


# --- BERT and ResNet-50 ---------------------------------------------------------------


def of_run(model, batch):
    (run,) = [r for r in DATA["runs"] if (r["model"], r["batch"]) == (model, batch)]
    return run["result"]


def ratio(run, table, format, rung, place=1):
    return run["tables"][table]["ratios_to_lns8"][format][rung][place]


TITLES = {"bert-base": "BERT-base", "bert-large": "BERT-large", "resnet-50": "ResNet-50"}
LADDER = [("a", "a", "a"), ("b", "b", "b"), ("c", "c", "c"), ("d", "d", "d"), ("e", "e", "e")]
LADDER += [("f, SRAM 1 MB", "f sram-1m", "f sram-1m"), ("f, DRAM", "f dram", "f ddr4")]
LADDER += [("f, HBM2", None, "f hbm2")]


def ladder_rows():
    base = of_run("bert-base", 1)
    return [
        [
            name,
            *(
                human_ratio(ratio(base, table, format, rung)) if rung else "-"
                for format in ("fp32", "fp16", "bf16", "fp8", "int8")
                for table, rung in ((H, h), (J, j))
            ),
        ]
        for name, h, j in LADDER
    ]


def rest_share(run, table=H):
    """Share of the arithmetic of an LNS step that is neither product nor conversion."""
    parts = run["tables"][table]["parts_pj"]["lns8"]
    return (parts["element-wise"] + parts["update"]) / sum(parts.values())


def model_rows():
    return [
        [
            title,
            str(batch),
            *(
                human_ratio(ratio(of_run(model, batch), table, format, "e"))
                for format in ("fp32", "fp8", "int8")
                for table in (H, J)
            ),
            f"{rest_share(of_run(model, batch)):.0%}".replace("%", " %"),
        ]
        for model, title in TITLES.items()
        for batch in (1, 32)
    ]


def mac_rows():
    order = ("total", "forward", "error", "gradient")
    return [
        [title, *(f"{of_run(model, 1)['macs'][name] / 1e9:.2f}" for name in order)]
        for model, title in TITLES.items()
    ]


def paper_rows(nets):
    by_model = {row["model"]: row for row in DATA["paper_pj_per_mac"]}
    rows = [["ResNet-18", "0.54", "1.82", f"{0.54e9 / (3 * 1.82e9):.4f}", "-"]]
    for model, title in TITLES.items():
        row, net = by_model[model], nets[model]
        all_macs = net.millijoules * 1e9 / of_run(model, 1)["macs"]["total"]
        per_weight = net.millijoules * 1e9 / (3 * net.weight_macs)
        assert row["all_counted_macs"] == pytest.approx(all_macs, rel=1e-5)
        assert row["three_products_per_weight"] == pytest.approx(per_weight, rel=1e-5)
        rows.append(
            [
                title,
                f"{net.millijoules:g}",
                f"{net.weight_macs / 1e9:.3g}",
                f"{per_weight:.4f}",
                f"{all_macs:.4f}",
            ]
        )
    return rows


def figures():
    """The figures that stand in sentences, by what they say."""
    base = of_run("bert-base", 1)

    def both(format, rung):
        return " and ".join(human_ratio(ratio(base, table, format, rung)) for table in (H, J))

    narrow = []
    for table in (H, J):
        fp8, lns8 = (unit_price(table, "mac", (f, f)) for f in ("fp8", "lns8:8"))
        fp16_sum = EnergyTable.load(table).cost("add", "fp16").pj
        narrow.append(human_ratio((fp8.parts[0].pj + fp16_sum) / lns8.pj))
    parts = {table: base["tables"][table]["parts_pj"] for table in (H, J)}
    saved = {
        name: 1 - parts[H][name]["conversions"] / parts[H]["lns8"]["conversions"]
        for name in ("lns8 g5:2", "lns8 g5:1")
    }
    moved = base["tables"][H]["bytes"]
    reached = [
        ratio(base, table, "fp32", rung, 2)
        for table in (H, J)
        for rung in base["tables"][table]["ratios_to_lns8"]["fp32"]
        if rung not in "ab"
    ]
    shares = [parts[t]["lns8"]["conversions"] / sum(parts[t]["lns8"].values()) for t in (H, J)]
    memory = [
        ratio(base, table, "int8", rung)
        for table, rungs in ((H, ("f sram-1m", "f dram")), (J, ("f sram-1m", "f hbm2", "f ddr4")))
        for rung in rungs
    ]
    updates = [parts[H][name]["update"] / 1e9 for name in ("lns8", "fp32")]
    return {
        "COMMAND": DATA["command"],
        "B": f"{both('fp32', 'b')} remain",
        "CMAX": f"high end of the range ({human_ratio(max(reached))})",
        "C": f"whole MAC ({both('fp32', 'c')})",
        "E": f"whole step ({both('fp32', 'e')})",
        "C8": f"{both('fp8', 'c')} for the MAC",
        "C8LOW": " and ".join(narrow),
        "CI": f"costs {both('int8', 'c')} an LNS-8 MAC",
        "FI": f"{human_ratio(min(memory))} to {human_ratio(max(memory))}",
        "CONV": " and ".join(f"{100 * share:.2f} %" for share in shares),
        "G52": f"{100 * saved['lns8 g5:2']:.0f} % (`lns5:2`)",
        "G51": f"{100 * saved['lns8 g5:1']:.0f} % (`lns5:1`)",
        "GM": f"traffic by {100 * (1 - moved['lns8 g5:2'] / moved['lns8']):.1f} %",
        "UPD": f"{updates[0]:.2f} against {updates[1]:.2f} mJ",
        "FD": f"{human_ratio(ratio(base, H, 'fp32', 'f dram'))} (H), "
        f"{human_ratio(ratio(base, J, 'fp32', 'f hbm2'))} (J, HBM2) and "
        f"{human_ratio(ratio(base, J, 'fp32', 'f ddr4'))} (J, DDR4)",
        "BYTES": f"{moved['fp32'] / moved['lns8']:.2f} times fewer bytes",
        "REST1": f"{rest_share(base):.0%}".replace("%", " %"),
        "REST1R": f"for ResNet-50 {rest_share(of_run('resnet-50', 1)):.0%}".replace("%", " %"),
    }


def test_the_tables_of_results(example):
    text = section('"Over 60 times on BERT", taken apart')
    assert rows_after(text, "Energy divided by")[1:] == ladder_rows()
    assert rows_after(text, "The whole step (e)")[1:] == model_rows()
    assert rows_after(text, "MACs of a step")[1:] == mac_rows()
    text = section("What an iteration of the paper may be")
    assert rows_after(text, "The authors' figure")[1:] == paper_rows(example.NETS)


@pytest.mark.parametrize("name", figures())
def test_figures_in_sentences(name):
    text = " ".join(section('"Over 60 times on BERT", taken apart').split())
    assert figures()[name] in text


def test_sixty_is_reached_where_the_page_says():
    base = of_run("bert-base", 1)
    for table in (H, J):
        assert ratio(base, table, "fp32", "b") < 60 < ratio(base, table, "fp32", "a")
        low, _, high = base["tables"][table]["ratios_to_lns8"]["fp32"]["c"]
        assert low < 11.2 < high
        low, middle, high = base["tables"][table]["ratios_to_lns8"]["fp8"]["c"]
        assert low < 2.28 < middle < high


def test_five_bit_gradients_change_no_product():
    for run in DATA["runs"]:
        macs = [
            sorted((r.pass_, r.formats, r.count) for r in counted.records if r.kind == "mac")
            for name, counted in run["counts"].items()
            if name.startswith("lns8")
            for counted in [Tally.from_dict(counted)]
        ]
        assert len(macs) == 3
        assert macs[0] == macs[1] == macs[2]
        for table in (H, J):
            energies = run["result"]["tables"][table]["energies_pj"]
            for name in ("lns8 g5:2", "lns8 g5:1"):
                assert 0.999 < energies[name]["e"][1] / energies["lns8"]["e"][1] <= 1


def test_the_share_of_the_dense_layer(counts):
    energy = counts["LNS with LNS-Madam"].energy(H)
    rest = math.fsum(
        r.pj
        for r in energy.records
        if r.record.layer == "dense" and r.record.kind not in ("mac", *CONVERSIONS)
    )
    share = f"{rest / energy.by_layer['dense']:.0%}".replace("%", " %")
    text = " ".join(section('"Over 60 times on BERT", taken apart').split())
    assert f"for the dense layer above {share}" in text


@pytest.mark.parametrize("run", DATA["runs"], ids=lambda r: f"{r['model']}-{r['batch']}")
def test_the_file_of_results_follows_from_its_counts(run, example):
    """If a table or a recipe changes, the page changes: run the example again."""
    found = json.loads(json.dumps(example.evaluate(run)))

    def compare(printed, value, path=""):
        if isinstance(printed, dict):
            assert printed.keys() == value.keys(), path
            for key in printed:
                compare(printed[key], value[key], f"{path}/{key}")
        elif isinstance(printed, list):
            for i, (a, b) in enumerate(zip(printed, value, strict=True)):
                compare(a, b, f"{path}/{i}")
        else:
            assert printed == (value if value is None else pytest.approx(value, rel=1e-5)), path

    compare(run["result"], found)


def test_the_example_counts_a_small_bert(example):
    pytest.importorskip("keras_hub")
    layers, width, tokens = 1, 16, 6
    net = example.Net(
        "tiny",
        lambda tokens: example.build_bert(layers, width, 2, tokens),
        example.text_batch,
        True,
        1.0,
        1.0,
    )
    # Per layer 4 projections and 2 of four times the width; scores and their use; the head.
    weights = layers * tokens * 12 * width**2 + tokens * width * 2
    attention = layers * 2 * tokens**2 * width
    products = {}
    for name in ("fp32", "lns8 g5:1"):
        model = example.build(net, example.RECIPES[name], tokens)
        counted = example.tally(model, net.batch(1, tokens))
        small = example.collapse(counted)
        assert small.macs("forward") == weights + attention
        assert small.macs("error") == weights + 2 * attention
        assert small.macs("gradient") == weights
        energy = small.energy(H)
        assert energy.total_pj == pytest.approx(counted.energy(H).total_pj, rel=1e-12)
        products[name] = energy.by_kind["mac"]
    assert products["fp32"] / products["lns8 g5:1"] == pytest.approx(4.6 / 0.3551976)
