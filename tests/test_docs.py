"""What the README and the user guide show runs, and what they name exists."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest

import tf_lns

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = ["quickstart", "formats", "layers", "loops", "saving", "energy"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_ten_lines_run():
    names: dict = {}
    for code in blocks_of(README):
        exec(compile(code, "README.md", "exec"), names)
    lns = names["lns"]
    images = np.random.default_rng(0).random((32, 28, 28, 1)).astype("float32")
    history = lns.fit(images, np.arange(32) % 10, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert all(isinstance(layer.kernel, tf_lns.LNSVariable) for layer in lns.layers[::2])


@pytest.mark.parametrize("page", GUIDE)
def test_the_blocks_of_a_page_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of((ROOT / f"docs/{page}.md").read_text())
    assert len(blocks) >= 4
    names = {"__name__": page}
    for i, code in enumerate(blocks, 1):
        exec(compile(code, f"docs/{page}.md, block {i}", "exec"), names)


def test_the_names_of_the_table_exist():
    rows = re.findall(r"^\| (`[^|]*) \|", README, re.MULTILINE)
    names = re.findall(r"`(?:tf_lns\.)?(\w+)", " ".join(rows))
    missing = [
        name
        for name in names
        if name not in ("tf_lns", "import")
        and not hasattr(tf_lns, name)
        and importlib.util.find_spec(f"tf_lns.{name}") is None
    ]
    assert rows
    assert missing == []


def test_the_blocks_on_tfmot_run(run_python):
    code = "\n".join(blocks_of((ROOT / "docs/tfmot.md").read_text()))
    run_python(code)  # in a process of its own: importing tfmot changes what tf.keras is


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert links or page.parent.name == "docs"
    assert [link for link in links if not (page.parent / link).exists()] == []
