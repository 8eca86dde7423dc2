"""The TensorBoard tab in a headless Chromium: what a person sees and clicks.

Needs chromium and chromedriver on the path and the Python package selenium; skipped without.
"""

import csv
import json

import pytest

from tests.energy_runs import (
    CHROMEDRIVER,
    CHROMIUM,
    HOSTILE,
    chromium,
    my_table,
    serve,
    tally_of,
    write_run,
    write_runs,
)
from tf_lns.energy.records import Record
from tf_lns.energy.table import BUILT_IN

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="chromium or chromedriver is not on the path"
)


class Page:
    """The tab in a browser; elements by CSS selector."""

    def __init__(self, browser, address):
        self.browser = browser
        self.address = address

    def open(self):
        self.browser.get(f"{self.address}/data/plugin_entry.html?name=lns_energy")
        self.until("/ready|empty|error/.test(document.getElementById('app')?.dataset.state)")
        return self

    def js(self, script, *arguments):
        return self.browser.execute_script(f"return {script}", *arguments)

    def until(self, condition, seconds=20):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, seconds, 0.05).until(
            lambda _: self.js(f"Boolean({condition})"), f"never came true: {condition}"
        )

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def text(self, selector):
        return self.browser.find_element("css selector", selector).text

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def click(self, selector):
        self.js("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.browser.find_element("css selector", selector).click()

    def select(self, name, value):
        from selenium.webdriver.support.ui import Select

        Select(self.browser.find_element("id", name)).select_by_value(str(value))

    def choose_run(self, name):
        for button in self.all("#runs button"):
            if button.get_attribute("data-run") == name:
                button.click()
                return
        raise AssertionError(f"no run {name} in {self.texts('#runs button')}")

    def joules(self, tile):
        return float(self.js(f"document.getElementById('tile-{tile}').dataset.joules"))

    def errors(self):
        """What the browser complained about; a page of its own has no icon, which is no matter."""
        return [
            entry["message"]
            for entry in self.browser.get_log("browser")
            if entry["level"] == "SEVERE" and "favicon.ico" not in entry["message"]
        ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser"), "--window-size=1200,900") as browser:
        yield browser


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Folder of the runs, and what was executed in each; one run and layer have a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    executed = write_runs(folder, table=my_table())
    extra = [Record(HOSTILE, "forward", "mac", ("fp32", "fp32"), 9e9, 3, "MatMul")]
    tally = tally_of("fp32", "fp32", name=HOSTILE, extra=extra)
    executed[HOSTILE] = write_run(folder / HOSTILE, tally, 0.5, epochs=3, seed=4)
    return folder, executed


@pytest.fixture(scope="module")
def server(executed):
    folder, runs = executed
    with serve(folder) as server:
        server.wait_for(runs)
        yield server


@pytest.fixture
def page(browser, server):
    browser.get_log("browser")
    browser.get(f"{server.address}/data/plugin/lns_energy/static/style.css")
    browser.execute_script("localStorage.clear()")
    page = Page(browser, server.address).open()
    yield page
    assert page.errors() == []


def joules(steps, table):
    return 1e-12 * sum(tally.energy(table).total_pj * times for tally, times in steps)


def test_every_run_and_table_shows_the_energy_that_python_computes(page, executed):
    for table in (*BUILT_IN, my_table()):
        page.select("table", str(table))
        for run, steps in executed[1].items():
            page.choose_run(run)
            expected = joules(steps, table)
            number = sum(times for _, times in steps)
            samples = sum(tally.samples * times for tally, times in steps)
            assert page.text("#run-title") == run
            assert page.joules("total") == pytest.approx(expected, rel=1e-9)
            assert page.joules("step") == pytest.approx(expected / number, rel=1e-9)
            assert page.joules("sample") == pytest.approx(expected / samples, rel=1e-9)


def test_ratios_are_those_of_the_comparison(page, executed):
    from tf_lns.energy.comparison import compare

    page.choose_run("lns8")
    tally = executed[1]["lns8"][0][0]  # both signatures have the same mix
    for table in BUILT_IN:
        page.select("table", table)
        expected = compare(tally, tables=table)
        for format in expected.formats:
            shown = page.js(f"document.getElementById('ratio-{format}').dataset.ratio")
            total = expected.entry(table, format).total_pj
            if total is None:
                assert (shown, page.text(f"#ratio-{format} .ratio-value")) == ("NaN", "–")
            else:
                ratio = total / tally.energy(table).total_pj
                assert float(shown) == pytest.approx(ratio, rel=1e-9), (table, format)


def test_the_selector_of_tables_changes_every_figure_and_its_caption(page):
    page.choose_run("lns8")
    parts = ("#tile-total .tile-value", "#runs", "#passes", "#kinds", "#layers", "#compare")
    before = {part: page.text(part) for part in parts}
    assert {p for p in page.texts(".by") if p} == {
        "Priced with horowitz-45nm, 45 nm, 0.9 V. Arithmetic only.",
        "Priced with horowitz-45nm, 45 nm, 0.9 V. "
        "Each column as if all traffic went to that memory.",
    }
    page.select("table", "jouppi-7nm")
    after = {part: page.text(part) for part in parts}
    assert not [part for part in parts if before[part] == after[part]]
    assert all("jouppi-7nm, 7 nm" in text for text in page.texts(".by"))
    assert "Jouppi" in page.text("#table-note")
    assert "table jouppi-7nm" in page.text("#run-note")
    page.open()
    assert page.text("#run-note").endswith("table jouppi-7nm"), "the choice is remembered"


def test_a_table_of_the_users_own_is_offered(page):
    labels = page.js(
        "[...document.querySelectorAll('#table optgroup')].map(g => [g.label, g.innerText.trim()])"
    )
    assert labels[1] == ["of these runs", "my-28nm"]
    page.select("table", "my-28nm")
    assert "Measured on a test chip" in page.text("#source")
    assert "fp32" in page.text("#source .facts")


def test_what_has_no_price_is_shown(page):
    page.choose_run("lns8")
    assert page.text("#gap").startswith("Not in these figures: Bucketize.")
    assert page.texts("#unpriced tbody td")[:1] == ["Bucketize"]
    page.select("table", "lns-madam-paper")
    assert "and 4 more" in page.text("#gap")
    shown = page.text("#unpriced")
    assert "encode fp32 lns8:8" in shown
    assert "lns-madam-paper has no" in shown
    assert page.text("#ratio-int8 .tile-note") == "no price"


def test_ranges_are_shown_where_prices_are_derived(page):
    page.choose_run("lns8")
    assert "–" in page.text("#tile-total .tile-note")
    assert len(page.all("#passes .whisker")) == 3
    page.choose_run("fp32")
    assert page.text("#tile-total .tile-note") == "no range"
    assert page.all("#passes .whisker") == []


def numbers(page, column):
    head = page.texts("#layers thead th")
    index = next(i for i, text in enumerate(head) if text.startswith(column))
    return page.js(
        "[...document.querySelectorAll('#layers tbody tr')]"
        ".map(row => row.cells[arguments[0]].innerText)",
        index,
    )


def test_layers_sort_by_their_heads(page):
    page.choose_run("lns8")
    head = '#layers th[data-column="{}"]'
    assert page.js(f"document.querySelector('{head.format('energy')}').ariaSort") == "descending"
    first = numbers(page, "Layer")
    page.click(head.format("energy") + " button")
    assert page.js(f"document.querySelector('{head.format('energy')}').ariaSort") == "ascending"
    assert numbers(page, "Layer")[-1] in first[:3]
    page.click(head.format("layer") + " button")
    names = numbers(page, "Layer")
    assert names == sorted(names, key=lambda name: name.replace("(", "").lower()) or names[0] == (
        "(outside of layers)"
    )
    assert page.js("document.activeElement.closest('th').dataset.column") == "layer"


def test_layers_are_filtered(page):
    page.choose_run("lns8")
    box = page.browser.find_element("id", "layer-filter")
    box.send_keys("encoder_1/att")
    names = numbers(page, "Layer")
    assert len(names) == 5
    assert all(name.startswith("encoder_1/attention") for name in names)
    box.clear()


def downloaded(browser, name):
    path = browser.downloads / name
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 15, 0.1).until(lambda _: path.exists() and path.stat().st_size)
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return text


def test_layers_are_downloaded_with_their_table(page, executed):
    page.choose_run("lns8")
    steps = executed[1]["lns8"]
    number = sum(times for _, times in steps)
    expected = {}
    for tally, times in steps:
        for layer, pj in tally.energy().by_layer.items():
            expected[layer or "(outside of layers)"] = (
                expected.get(layer or "(outside of layers)", 0) + pj * times / number
            )
    page.click("#layers-csv")
    rows = list(
        csv.DictReader(downloaded(page.browser, "energy-lns8-horowitz-45nm.csv").splitlines())
    )
    assert {r["layer"]: float(r["energy_pj"]) for r in rows} == pytest.approx(expected, rel=1e-9)
    assert {(r["run"], r["table"]) for r in rows} == {("lns8", "horowitz-45nm")}
    assert all(float(r["low_pj"]) <= float(r["energy_pj"]) <= float(r["high_pj"]) for r in rows)
    page.click("#layers-json")
    data = json.loads(downloaded(page.browser, "energy-lns8-horowitz-45nm.json"))
    assert (data["table"], data["unit"]) == ("horowitz-45nm", "pJ per step")
    assert "ISSCC" in data["source"]["citation"]
    assert {r["layer"]: r["energy_pj"] for r in data["layers"]} == pytest.approx(expected, rel=1e-9)


def test_the_treemap_marks_a_layer_in_the_table(page):
    page.choose_run("lns8")
    leaves = page.all("#treemap .leaf")
    assert len(leaves) == len(page.all("#layers tbody tr"))
    page.js(
        "[...document.querySelectorAll('#treemap .leaf')]"
        ".find(l => l.ariaLabel.startsWith('encoder_1/dense_in')).dispatchEvent(new Event('click'))"
    )
    assert page.text("#layers tr.current td") == "encoder_1/dense_in"


def test_runs_are_compared_and_can_be_left_out(page):
    assert len(page.all("#compare tbody tr")) == 4
    assert len(page.all("#pareto .point")) == 4
    assert len(page.all("#trend .line")) == 4
    for box in page.all("#runs input"):
        if "alert" in box.get_attribute("aria-label"):
            box.click()
            break
    assert page.texts("#pareto .point") == ["fp32", "lns8", "lns8-grad5"]
    assert len(page.all("#trend .line")) == 3
    rows = page.texts("#compare tbody tr")
    assert len(rows) == 3
    assert rows[-1].startswith("fp32"), "the cheapest first"
    assert "1.00×" in rows[-1]
    page.browser.find_element("id", "run-filter").send_keys("grad")
    assert [text.split("\n")[0] for text in page.texts("#runs button")] == ["lns8-grad5"]


def test_accuracy_against_energy_follows_the_metric(page):
    options = page.js("[...document.querySelectorAll('#metric option')].map(o => o.value)")
    assert options == ["val_accuracy", "accuracy", "val_loss", "loss"]
    assert "val_accuracy (higher is better)" in page.text("#pareto svg")
    best = page.js("document.querySelectorAll('#pareto .solid').length")
    assert best >= 2
    page.select("metric", "loss")
    assert "loss (lower is better)" in page.text("#pareto svg")
    assert page.texts("#compare thead th")[-1] == "loss"
    page.click("#higher")
    assert "loss (higher is better)" in page.text("#pareto svg")


def test_energy_over_steps_reads_out_under_the_keyboard(page):
    page.js("document.querySelector('#trend svg').focus()")
    from selenium.webdriver.common.keys import Keys

    page.browser.find_element("css selector", "#trend svg").send_keys(Keys.ARROW_LEFT)
    tip = page.text("#tip")
    assert "steps" in tip
    assert "lns8-grad5" in tip
    page.browser.find_element("css selector", "#trend svg").send_keys(Keys.ESCAPE)
    assert not page.browser.find_element("id", "tip").is_displayed()
    page.select("x-axis", "samples")
    assert "samples" in page.text("#trend svg")


def test_bars_have_a_tooltip(page):
    from selenium.webdriver import ActionChains

    page.choose_run("lns8")
    page.js("document.getElementById('passes').scrollIntoView({block: 'center'})")
    ActionChains(page.browser).move_to_element(page.all("#passes .bar-row")[0]).perform()
    tip = page.text("#tip")
    assert tip.startswith("Forward")
    assert "horowitz-45nm" in tip


def test_numerics_by_tensor(page):
    page.choose_run("lns8-grad5")
    page.until("document.querySelectorAll('#numerics tbody tr').length > 20")
    assert page.texts("#numerics-step option") == ["804", "1,608", "2,412"]
    assert "lns5:1" in page.text("#numerics tbody")
    page.click('#numerics button[data-tensor="classifier/gradients"]')
    assert "classifier/gradients" in page.text("#numerics .tensor")
    assert page.all("#numerics .tensor .bin")
    page.select("numerics-step", 804)
    page.until("document.getElementById('numerics-step').value === '804'")
    page.choose_run(HOSTILE)
    page.until("document.querySelector('#numerics .nothing')")
    assert "no numerics" in page.text("#numerics")


def test_names_stay_text(page):
    page.choose_run(HOSTILE)
    assert page.text("#run-title") == HOSTILE
    assert HOSTILE in page.text("#run-note"), "the model's name"
    assert HOSTILE in numbers(page, "Layer")
    assert page.js("document.querySelectorAll('img').length") == 0
    assert any(
        leaf.get_attribute("aria-label").startswith(HOSTILE) for leaf in page.all("#treemap .leaf")
    )


def test_dark_mode(page):
    def paper():
        return page.js("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.click("#theme")
    assert page.js("document.documentElement.dataset.theme") == "dark"
    assert page.text("#theme") == "Light"
    dark = paper()
    assert dark != light
    page.open()
    assert paper() == dark, "the choice is remembered"
    page.click("#theme")
    assert paper() == light


def test_dark_mode_of_the_system(page):
    emulate = "Emulation.setEmulatedMedia"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.browser.execute_cdp_cmd(emulate, {"features": dark})
    page.until("document.documentElement.dataset.theme === 'dark'")
    page.browser.execute_cdp_cmd(emulate, {"features": []})
    page.until("document.documentElement.dataset.theme === 'light'")


@pytest.mark.parametrize("width", [1200, 800])
def test_nothing_is_wider_than_the_window(page, width):
    page.browser.set_window_size(width, 900)
    try:
        page.until(f"window.innerWidth <= {width}")
        for table in BUILT_IN:
            page.select("table", table)
            assert page.js("document.documentElement.scrollWidth <= window.innerWidth")
            page.until("[...document.querySelectorAll('.figure svg')].every("
                       "svg => svg.clientWidth <= svg.parentNode.clientWidth)")  # fmt: skip
    finally:
        page.browser.set_window_size(1200, 900)


def test_reload_keeps_what_was_chosen(page):
    page.choose_run("lns8")
    page.select("metric", "loss")
    page.click("#reload")
    page.until("!document.getElementById('reload').disabled")
    assert page.text("#run-title") == "lns8"
    assert page.js("document.getElementById('metric').value") == "loss"


def test_inside_tensorboard(browser, server):
    browser.get_log("browser")
    page = Page(browser, server.address)
    browser.get(f"{server.address}/#lns_energy")
    page.until("document.querySelector('iframe')", 40)
    browser.switch_to.frame(browser.find_element("css selector", "iframe"))
    try:
        page.until("document.getElementById('app')?.dataset.state === 'ready'")
        assert page.text("#tile-total .tile-value")
        page.choose_run("fp32")
        assert page.text("#run-title") == "fp32"
    finally:
        browser.switch_to.default_content()
    assert page.errors() == []


def test_an_empty_folder_says_how_to_make_data_and_shows_it_once_there(browser, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    with serve(folder) as server:
        browser.get_log("browser")
        page = Page(browser, server.address).open()
        assert page.js("document.getElementById('app').dataset.state") == "empty"
        assert "EnergyCallback" in page.text("#snippet")
        assert not page.browser.find_element("id", "content").is_displayed()
        write_run(folder / "first", tally_of(), 0.9, epochs=2)
        server.wait_for(["first"])
        page.click("#reload")
        page.until("document.getElementById('app').dataset.state === 'ready'")
        assert page.text("#run-title") == "first"
        assert page.errors() == []
    page.click("#reload")
    page.until("document.getElementById('error').hidden === false")
    assert "does not answer" in page.text("#error")
    assert page.text("#run-title") == "first", "what was read stays"
