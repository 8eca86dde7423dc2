"""What the README shows runs, and what it names exists."""

import pathlib
import re

import numpy as np

import tf_lns

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_ten_lines_run():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    lns = names["lns"]
    images = np.random.default_rng(0).random((32, 28, 28, 1)).astype("float32")
    history = lns.fit(images, np.arange(32) % 10, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert all(isinstance(layer.kernel, tf_lns.LNSVariable) for layer in lns.layers[::2])


def test_the_names_of_the_table_exist():
    rows = re.findall(r"^\| (`[^|]*) \|", README, re.MULTILINE)
    names = re.findall(r"`(?:tf_lns\.)?(\w+)", " ".join(rows))
    missing = [n for n in names if n not in ("tf_lns", "import") and not hasattr(tf_lns, n)]
    assert rows
    assert missing == []


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
