"""Sample runs of the energy account, a TensorBoard on them, and a browser.

    PYTHONPATH=. python tests/energy_runs.py write FOLDER        # for tensorboard --logdir FOLDER
    PYTHONPATH=. python tests/energy_runs.py picture FOLDER FILE.png [dark]

The first writes a small Transformer in LNS and in FP32, invented accuracies included. The second
takes a picture of the tab on any folder of runs, such as docs/energy_tab.png.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np

from tf_lns.energy.counts import Tally
from tf_lns.energy.events import EnergyWriter, TensorNumerics
from tf_lns.energy.records import Operand, Record, Traffic, Unpriced
from tf_lns.energy.table import EnergyTable, tables

BATCH, LENGTH, WIDTH, CLASSES = 32, 64, 128, 10
HOSTILE = "<img src=x onerror=alert(1)>"
"""A name of a run and of a layer that must stay text."""

# Path, rows of the weight, columns of it; 0 rows: a product of two activations.
_PRODUCTS = [("embedding", WIDTH, WIDTH)]
for _block in range(3):
    _PRODUCTS += [
        (f"encoder_{_block}/attention/query", WIDTH, WIDTH),
        (f"encoder_{_block}/attention/key", WIDTH, WIDTH),
        (f"encoder_{_block}/attention/value", WIDTH, WIDTH),
        (f"encoder_{_block}/attention", 0, LENGTH),
        (f"encoder_{_block}/attention/attention_output", WIDTH, WIDTH),
        (f"encoder_{_block}/dense_in", WIDTH, 4 * WIDTH),
        (f"encoder_{_block}/dense_out", 4 * WIDTH, WIDTH),
    ]
_PRODUCTS.append(("classifier", WIDTH, CLASSES))


def tally_of(
    forward="lns8:8", gradient="lns8:8", batch=BATCH, training=True, name="transformer", extra=()
):
    """Counts of one step; formats "fp32" for a float model."""
    low_bit = forward != "fp32"
    records, traffic, operands = [], [], []
    for layer, rows, columns in _PRODUCTS:
        inputs = batch * LENGTH * (rows or WIDTH)
        macs = inputs * columns * (1 if rows else 2)
        passes = [("forward", forward, forward)]
        if training:
            passes.append(("gradient", forward, gradient))
            if layer != "embedding":
                passes.insert(1, ("error", forward, forward))
        for pass_, a, b in passes:
            records.append(Record(layer, pass_, "mac", (a, b), macs, rows or WIDTH, "MatMul"))
            records.append(Record(layer, pass_, "add", ("fp32",), inputs // 4, None, "AddV2"))
            role = {"forward": "activations", "error": "errors", "gradient": "gradients"}[pass_]
            width = 8 if low_bit else 32
            traffic.append(Traffic(layer, pass_, role, "read", a, width, inputs))
            traffic.append(Traffic(layer, pass_, role, "write", "fp32", 32, inputs))
            operands.append(Operand(layer, pass_, role, a, inputs))
            if low_bit:
                records.append(Record(layer, pass_, "encode", ("fp32", b), inputs, None, "Encode"))
        if not rows:
            records.append(
                Record(
                    layer, "forward", "transcendental", ("fp32",), batch * LENGTH**2, None, "Exp"
                )
            )
            continue
        weights = rows * columns
        traffic.append(Traffic(layer, "forward", "weights", "read", forward, 8, weights))
        operands.append(Operand(layer, "forward", "weights", forward, weights))
        if low_bit:
            formats = ("lns16:2048", forward)
            records.append(Record(layer, "forward", "requantize", formats, weights))
        if training:
            update = [("add", "int16", 2), ("compare", "int16", 2), ("multiply", "int16", 1)]
            if not low_bit:
                update = [("add", "fp32", 3), ("multiply", "fp32", 4), ("divide", "fp32", 1)]
                update.append(("sqrt", "fp32", 1))
            for kind, format, times in update:
                records.append(Record(layer, "update", kind, (format,), times * weights))
            traffic.append(Traffic(layer, "update", "state", "read", "fp32", 32, weights))
            traffic.append(Traffic(layer, "update", "state", "write", "fp32", 32, weights))
    records.append(Record("", "other", "transcendental", ("fp32",), batch * CLASSES, None, "Log"))
    return Tally(
        (*records, *extra),
        tuple(traffic),
        tuple(operands),
        (Unpriced("Bucketize", 1, batch * LENGTH, ("embedding",)),),
        samples=batch,
        signature=f"x: [{batch}, {LENGTH}], trained: {len(_PRODUCTS) if training else 0}",
        notes=("Element-wise work is taken as fused into what comes before it.",),
        name=name,
    )


def write_run(folder, tally, final, *, epochs=12, rate=0.35, numerics=True, table=None, seed=1):
    """One run of `epochs` epochs of 200 whole and one smaller step, with validation.

    Returns the tallies and how often each was executed: [(tally, steps), ...].
    """
    random = np.random.default_rng(seed)
    smaller = _scaled(tally, 0.5)
    forward = Tally(
        tuple(r for r in tally.records if r.pass_ in ("forward", "other")),
        samples=tally.samples,
        signature=tally.signature + ", validation",
    )
    writer = EnergyWriter(folder)
    for counted in (tally, smaller, forward):
        writer.write_counts(counted.signature, counted)
    if table is not None:
        writer.write_table(table)
    names = [*tables(), *([table] if table is not None else [])]
    per_step = [{str(t): c.energy(t).total_pj * 1e-12 for t in names} for c in (tally, smaller)]
    for epoch in range(1, epochs + 1):
        steps = {tally.signature: 200 * epoch, smaller.signature: epoch}
        reached = final * (1 - math.exp(-rate * epoch)) + 0.004 * random.standard_normal()
        writer.write_progress(
            step=201 * epoch,
            epoch=epoch,
            steps_by_signature=steps,
            samples=(200 * tally.samples + smaller.samples) * epoch,
            joules={
                name: sum(per_step[i][name] * n for i, n in enumerate(steps.values()))
                for name in per_step[0]
            },
            metrics={
                "accuracy": min(reached + 0.01, 1),
                "loss": 2.3 * math.exp(-rate * epoch) + 1 - final,
                "val_accuracy": reached,
                "val_loss": 2.4 * math.exp(-rate * epoch) + 1.1 - final,
            },
            val_steps_by_signature={forward.signature: 20 * epoch},
        )
        if numerics and epoch % 4 == 0:
            writer.write_numerics(201 * epoch, _numerics(tally, random))
    writer.close()
    return [(tally, 200 * epochs), (smaller, epochs)]


def _scaled(tally, factor):
    """The counts of a step with a smaller batch."""
    return dataclasses.replace(
        tally,
        records=tuple(dataclasses.replace(r, count=r.count * factor) for r in tally.records),
        samples=int(tally.samples * factor),
        signature=tally.signature + ", last of an epoch",
    )


def _numerics(tally, random):
    """A normal distribution of each tensor, seen by an 8-bit and a 5-bit format."""
    entries = []
    centres = {"weights": -5, "activations": -1, "errors": -14, "gradients": -11}
    for layer in tally.layers:
        products = [r for r in tally.records if r.layer == layer and r.kind == "mac"]
        for role, centre in centres.items():
            wanted = {"errors": "error", "gradients": "gradient"}.get(role, "forward")
            mine = [r for r in products if r.pass_ == wanted]
            if not mine:
                continue
            format = mine[0].formats[-1]
            values = np.abs(random.standard_normal(4000)) * 2.0 ** (centre + random.normal(0, 1))
            values[random.random(4000) < (0.3 if role == "activations" else 0.02)] = 0
            exponents = np.floor(np.log2(values[values > 0])).astype(int)
            octaves = {"lns8:8": 15.75, "lns5:1": 14.0}.get(format)
            largest = None if octaves is None else float(centre + 2.2)
            smallest = None if largest is None else largest - octaves + 4
            first = int(exponents.min())
            outside = values[values > 0]
            entries.append(
                TensorNumerics(
                    tensor=f"{layer}/{role}",
                    layer=layer,
                    role=role,
                    format=format,
                    elements=len(values),
                    saturated=0.0
                    if largest is None
                    else float((outside > 2**largest).sum() / 4000),
                    underflowed=0.0
                    if smallest is None
                    else float((outside < 2**smallest).sum() / 4000),
                    zero=float((values == 0).mean()),
                    first=first,
                    counts=tuple(np.bincount(exponents - first).tolist()),
                    smallest=smallest,
                    largest=largest,
                )
            )
    return entries


def my_table():
    """A table of the user's own."""
    base = tables()["horowitz-45nm"]
    return EnergyTable(
        name="my-28nm",
        title="Measured in house, 28 nm",
        source={"citation": "Measured on a test chip", "year": 2025},
        rows=tuple(
            dataclasses.replace(row, pj=tuple(0.55 * x for x in row.pj)) for row in base.rows
        ),
        node_nm=28.0,
        voltage_v=0.8,
        notes=("Adders, multipliers and memory alone.",),
    )


def write_runs(folder, *, table=None):
    """Three runs; returns what was executed by name of the run."""
    folder = pathlib.Path(folder)
    return {
        "fp32": write_run(folder / "fp32", tally_of("fp32", "fp32"), 0.914, table=table, seed=1),
        "lns8": write_run(folder / "lns8", tally_of(), 0.911, rate=0.33, seed=2),
        "lns8-grad5": write_run(
            folder / "lns8-grad5", tally_of(gradient="lns5:1"), 0.897, rate=0.3, seed=3
        ),
    }


class Server:
    """A TensorBoard process; `get` returns (status, headers, text) of a route of the plugin."""

    def __init__(self, address):
        self.address = address

    def get(self, route, method="GET", **query):
        path = route if route.startswith("/") else f"/data/plugin/lns_energy/{route}"
        url = self.address + path
        if query:
            url += "?" + urllib.parse.urlencode(query)
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method)) as reply:
                return reply.status, reply.headers, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def json(self, route, **query):
        status, _, text = self.get(route, **query)
        assert status == 200, text
        return json.loads(text)

    def wait_for(self, runs, seconds=60):
        """Until TensorBoard has read every entry of these runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = {run["run"]: run["entries"] for run in self.json("runs")["runs"]}
            if set(runs) <= set(found) and all(
                "progress" in found[run] and self.json("progress", run=run)["points"][-1:]
                for run in runs
            ):
                return
            time.sleep(0.5)
        raise AssertionError(f"TensorBoard found only {found}, not {list(runs)}")


@contextlib.contextmanager
def serve(folder, *flags, seconds=120):
    """TensorBoard on a folder, as a person starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = pathlib.Path(folder).with_suffix(".log")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--reload_interval", "1", *flags]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        end = time.monotonic() + seconds
        while True:
            assert process.poll() is None, f"TensorBoard ended:\n{log.read_text()}"
            assert time.monotonic() < end, f"TensorBoard does not answer:\n{log.read_text()}"
            try:
                if server.get("runs")[0] == 200:
                    break
            except urllib.error.URLError:
                pass
            time.sleep(0.3)
        yield server
    finally:
        process.terminate()
        process.wait(20)


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextlib.contextmanager
def chromium(folder, *flags):
    """A headless browser whose profile and downloads are in a folder."""
    from selenium import webdriver

    folder = pathlib.Path(folder)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, *flags, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    downloads = {"download.default_directory": str(folder / "downloads")}
    options.add_experimental_option("prefs", downloads)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=CHROMEDRIVER)
    browser = webdriver.Chrome(options=options, service=service)
    browser.downloads = folder / "downloads"
    try:
        yield browser
    finally:
        browser.quit()


def picture(folder, file, theme="light", run="lns8", size=(1280, 1655)):
    """Saves a picture of the upper part of the tab, with the details of one run."""
    flags = (f"--window-size={size[0]},{size[1]}", "--force-device-scale-factor=1.5")
    with (
        tempfile.TemporaryDirectory() as profile,
        serve(folder) as server,
        chromium(profile, *flags, "--hide-scrollbars") as browser,
    ):
        page = f"{server.address}/data/plugin_entry.html?name=lns_energy"
        browser.get(page)
        browser.execute_script("localStorage.setItem('lns_energy.theme', arguments[0])", theme)
        browser.get(page)
        button = f"#runs button[data-run={json.dumps(run)}]"
        end = time.monotonic() + 60
        while not browser.find_elements("css selector", button):
            assert time.monotonic() < end, f"no run {run!r} in {folder}"
            time.sleep(0.2)
        browser.find_element("css selector", button).click()
        time.sleep(1)  # fonts and numerics
        browser.save_screenshot(str(file))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", folder]:
            write_runs(folder, table=my_table())
        case ["picture", folder, file, *theme]:
            picture(folder, file, *theme)
        case _:
            sys.exit(__doc__)
