"""The TensorBoard tab without a browser: what is written, what is read, what the routes reply."""

import dataclasses
import json
import math
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
import tensorflow as tf
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin

from tests.energy_runs import my_table, serve, tally_of, write_runs
from tf_lns.energy import events
from tf_lns.energy.comparison import retarget
from tf_lns.energy.counts import Tally
from tf_lns.energy.events import EnergyWriter, TensorNumerics
from tf_lns.energy.price import unit_price
from tf_lns.energy.table import BUILT_IN
from tf_lns.tensorboard.data import TARGETS, EnergyData, NotFoundError, RequestError, key
from tf_lns.tensorboard.plugin import EnergyPlugin

CTX = context.RequestContext()


def read(folder, samples=None):
    """`EnergyData` on event files, through TensorBoard's own reader, and no process."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer(
        tensor_size_guidance={events.PLUGIN_NAME: 0}
    )
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return EnergyData(data_provider.MultiplexerDataProvider(multiplexer, str(folder)), samples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs, the first of which has a table of its own."""
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder, table=my_table())
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return read(folder)


@pytest.fixture
def writer(tmp_path):
    writer = EnergyWriter(tmp_path / "run")
    yield writer
    writer.close()


# What is written.


def entries(folder):
    """(tag, step, content of the metadata, JSON) of each entry in event files, in their order."""
    found = []
    for path in sorted(folder.rglob("*.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "lns_energy"
                assert value.metadata.data_class == 2, "DATA_CLASS_TENSOR, else it is not listed"
                text = tf.make_ndarray(value.tensor).item()
                content = value.metadata.plugin_data.content
                found.append((value.tag, event.step, content, json.loads(text)))
    return found


def test_counts_are_written_once_per_signature_and_read_back(writer, tmp_path):
    whole, half = tally_of(), tally_of(batch=16)
    for tally in (whole, half, whole):
        writer.write_counts(tally.signature, tally)
    writer.close()
    found = entries(tmp_path)
    assert [tag for tag, *_ in found] == [
        f"energy/counts/{events.signature_id(t.signature)}" for t in (whole, half)
    ]
    assert all(events.entry_of(content) == "counts" for _, _, content, _ in found)
    assert [Tally.from_dict(entry["tally"]) for *_, entry in found] == [whole, half]


def test_progress_takes_numpy_numbers_and_leaves_out_what_is_not_finite(writer, tmp_path):
    writer.write_progress(
        step=np.int64(3),
        epoch=1,
        steps_by_signature={"a": np.float32(2.5), "b": 1},
        samples=np.int64(96),
        joules={"horowitz-45nm": np.float64(0.25)},
        metrics={"loss": float("nan"), "accuracy": np.float32(0.5), "val_loss": math.inf},
    )
    writer.close()
    [(tag, step, content, entry)] = entries(tmp_path)
    assert (tag, step, events.entry_of(content)) == ("energy/progress", 3, "progress")
    assert entry == {
        "schema": 1,
        "step": 3,
        "epoch": 1,
        "steps": {events.signature_id("a"): 2.5, events.signature_id("b"): 1},
        "val_steps": {},
        "samples": 96,
        "joules": {"horowitz-45nm": 0.25},
        "metrics": {"accuracy": 0.5},
    }


def test_entries_are_written_where_summaries_are_off(writer, tmp_path):
    with tf.summary.record_if(False):
        writer.write_counts("a", tally_of())
    writer.close()
    assert len(entries(tmp_path)) == 1


def test_an_energy_that_is_no_number_is_refused(writer):
    with pytest.raises(ValueError, match="JSON"):
        writer.write_progress(1, 0, {}, 1, {"t": float("nan")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "schema 1. Received: 'list'"),
        ('{"schema": 2}', "schema 1. Received: 2; read it with the release"),
        ('{"schema": 1}', r"lacks \['step'\]"),
    ],
)
def test_load_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        events.load(text, ("step",))


# What is read.


def test_runs(data):
    assert data.runs(CTX, "")["runs"] == [
        {"run": "fp32", "entries": ["counts", "numerics", "progress", "table"]},
        {"run": "lns8", "entries": ["counts", "numerics", "progress"]},
        {"run": "lns8-grad5", "entries": ["counts", "numerics", "progress"]},
    ]


def test_counts_are_those_of_the_tally(data):
    tally = tally_of()
    reply = data.counts(CTX, "", "lns8")
    assert reply["problems"] == []
    [counts] = [c for c in reply["counts"] if c["signature"] == tally.signature]
    assert len(reply["counts"]) == 3
    assert counts["id"] == events.signature_id(tally.signature)
    assert (counts["samples"], counts["name"]) == (tally.samples, "transformer")
    assert [
        (r["layer"], r["pass"], r["kind"], tuple(r["formats"]), r["count"]) for r in counts["rows"]
    ] == [(r.layer, r.pass_, r.kind, r.formats, r.count) for r in tally.records]
    assert [u["op"] for u in counts["unpriced"]] == ["Bucketize"]
    assert list(counts["targets"]) == list(TARGETS)


@pytest.mark.parametrize("run", ["fp32", "lns8", "lns8-grad5"])
def test_counts_times_prices_are_the_energy_in_every_format(data, run):
    tables = data.tables(CTX, "")
    assert tables["problems"] == []
    assert [t["name"] for t in tables["tables"]] == [*BUILT_IN, "my-28nm"]
    for counts in data.counts(CTX, "", run)["counts"]:
        [tally] = [
            Tally.from_dict(e["tally"])
            for e in data._read(CTX, "", run, "counts", [])
            if e["id"] == counts["id"]
        ]
        for described in tables["tables"]:
            table = my_table() if described["name"] == "my-28nm" else described["name"]
            for name in (None, *TARGETS):
                rows = counts["rows"] if name is None else counts["targets"][name]
                prices = [(described["prices"][r["key"]], r["count"]) for r in rows]
                expected = (tally if name is None else retarget(tally, name)).energy(table)
                for field, total in (
                    ("pj", expected.total_pj),
                    ("low", expected.low_pj),
                    ("high", expected.high_pj),
                ):
                    got = math.fsum(price[field] * n for price, n in prices if price)
                    assert got == pytest.approx(total, rel=1e-12), (described["name"], name, field)


def test_tables_say_where_they_come_from_and_what_they_lack(data):
    tables = {t["name"]: t for t in data.tables(CTX, "")["tables"]}
    horowitz, paper, mine = (tables[n] for n in ("horowitz-45nm", "lns-madam-paper", "my-28nm"))
    assert (horowitz["built_in"], horowitz["runs"]) == (True, [])
    assert (mine["built_in"], mine["runs"]) == (False, ["fp32"])
    assert mine["rows"] == my_table().to_dict()["rows"]
    assert "ISSCC" in horowitz["source"]["citation"]
    name = key("encode", ("fp32", "lns8:8"))
    assert paper["prices"][name] is None
    assert paper["missing"][name] == list(
        unit_price("lns-madam-paper", "encode", ("fp32", "lns8:8")).missing
    )
    mac = horowitz["prices"][key("mac", ("lns8:8", "lns8:8"))]
    assert mac["low"] < mac["pj"] < mac["high"]
    assert sum(part["pj"] for part in mac["parts"]) == pytest.approx(mac["pj"], rel=1e-12)


def test_memory_of_a_level_is_that_of_the_energy(data):
    tally = tally_of()
    [table] = [t for t in data.tables(CTX, "")["tables"] if t["name"] == "horowitz-45nm"]
    expected = tally.energy().memory
    assert [level["level"] for level in table["memory"]] == list(expected)
    for level in table["memory"]:
        pj = sum(t.bytes * level[t.direction]["pj"] for t in tally.traffic)
        assert pj == pytest.approx(expected[level["level"]].pj, rel=1e-12)


def test_progress_is_in_order_and_the_later_of_two_entries_stands(tmp_path):
    for samples in (10, 20):  # the second is a run resumed from step 2
        writer = EnergyWriter(tmp_path / "run")
        for step in (1, 2, 3) if samples == 10 else (3, 4):
            writer.write_progress(step, 1, {"a": step}, samples * step, {}, {})
        writer.close()
    points = read(tmp_path).progress(CTX, "", "run")["points"]
    assert [(p["step"], p["samples"]) for p in points] == [(1, 10), (2, 20), (3, 60), (4, 80)]


def test_numerics_of_a_step(data):
    last = data.numerics(CTX, "", "lns8-grad5", None)
    assert (last["steps"], last["step"]) == ([804, 1608, 2412], 2412)
    assert {t["format"] for t in last["tensors"] if t["role"] == "gradients"} == {"lns5:1"}
    assert data.numerics(CTX, "", "lns8-grad5", "804")["step"] == 804
    with pytest.raises(NotFoundError, match=r"no numerics of step 5: \[804, 1608, 2412\]"):
        data.numerics(CTX, "", "lns8-grad5", "5")
    with pytest.raises(RequestError, match=r"whole number\. Received: 'x'"):
        data.numerics(CTX, "", "lns8-grad5", "x")


def test_numerics_are_written_as_they_are(writer, tmp_path):
    entry = TensorNumerics("d/w", "d", "weights", "lns8:8", 4, 0.25, 0.0, 0.5, -3, (1, 0, 1))
    writer.write_numerics(7, [entry])
    writer.write_numerics(8, [])
    writer.close()
    reply = read(tmp_path).numerics(CTX, "", "run", "7")
    assert reply["tensors"] == [{**dataclasses.asdict(entry), "counts": [1, 0, 1]}]
    assert read(tmp_path).numerics(CTX, "", "run", None)["tensors"] == []


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path, monkeypatch):
    writer = EnergyWriter(tmp_path / "run")
    writer.write_counts("a", tally_of())
    writer._write("counts", "energy/counts/bad", 0, {"id": "bad", "tally": {"version": 99}})
    writer._write("progress", "energy/progress", 1, {"step": 1})
    writer._write("table", "energy/table/bad", 0, {"table": {"name": "bad"}})
    writer.write_table(dataclasses.replace(my_table(), name="horowitz-45nm"))
    monkeypatch.setattr(events, "SCHEMA", 2)
    writer._write("counts", "energy/counts/new", 0, {"id": "new", "tally": {}})
    writer.close()
    monkeypatch.undo()
    data = read(tmp_path)
    counts = data.counts(CTX, "", "run")
    assert [c["id"] for c in counts["counts"]] == [events.signature_id("a")]
    assert any("version 1 are expected" in p for p in counts["problems"])
    assert any("energy/counts/new: " in p and "schema 1" in p for p in counts["problems"])
    progress = data.progress(CTX, "", "run")
    assert progress["points"] == []
    assert any("step 1: An entry of the energy account lacks" in p for p in progress["problems"])
    tables = data.tables(CTX, "")
    assert [t["name"] for t in tables["tables"]] == list(BUILT_IN)
    assert any("a table cannot be read" in p for p in tables["problems"])
    assert any("differs from another of that name" in p for p in tables["problems"])


def test_no_such_run(data):
    for answer in (data.counts, data.progress, lambda *a: data.numerics(*a, None)):
        with pytest.raises(NotFoundError, match="no run 'nowhere'"):
            answer(CTX, "", "nowhere")


def test_an_empty_folder_has_no_runs_and_every_built_in_table(tmp_path):
    data = read(tmp_path)
    assert data.runs(CTX, "") == {"runs": [], "problems": []}
    assert [t["name"] for t in data.tables(CTX, "")["tables"]] == list(BUILT_IN)


# What a real TensorBoard replies, with its fast loader and without.


@pytest.fixture(scope="module", params=["true", "false"])
def server(request, folder):
    if request.param == "true":
        pytest.importorskip("tensorboard_data_server", reason="has no fast loader here")
    with serve(folder, f"--load_fast={request.param}") as server:
        server.wait_for(["fp32", "lns8", "lns8-grad5"])
        yield server


def test_tensorboard_finds_the_plugin():
    [found] = entry_points(group="tensorboard_plugins", name="lns_energy")
    loader = found.load()()
    assert isinstance(loader.load(base_plugin.TBContext()), EnergyPlugin)


def test_a_broken_tf_lns_does_not_keep_tensorboard_from_starting(monkeypatch, caplog):
    [found] = entry_points(group="tensorboard_plugins", name="lns_energy")
    loader = found.load()()
    monkeypatch.setitem(sys.modules, "tf_lns.tensorboard.plugin", None)
    assert loader.load(base_plugin.TBContext()) is None
    assert "LNS ENERGY" in caplog.text


def test_the_tab_is_listed_where_there_are_data(server):
    status, _, text = server.get("/data/plugins_listing")
    listed = json.loads(text)["lns_energy"]
    assert status == 200
    assert (listed["enabled"], listed["tab_name"]) == (True, "LNS Energy")


def test_routes_reply_what_the_files_hold(server, data):
    assert server.json("runs") == data.runs(CTX, "")
    assert server.json("tables") == json.loads(json.dumps(data.tables(CTX, "")))
    for run in ("fp32", "lns8", "lns8-grad5"):
        expected = json.loads(json.dumps(data.counts(CTX, "", run)))
        reply = server.json("counts", run=run)
        by_id = {c["id"]: c for c in reply["counts"]}
        assert by_id == {c["id"]: c for c in expected["counts"]}
        # Fewer points where TensorBoard takes a sample, but always the last.
        points = server.json("progress", run=run)["points"]
        all_points = data.progress(CTX, "", run)["points"]
        assert 2 < len(points) <= len(all_points)
        assert {k: v for k, v in points[-1].items() if k != "wall_time"} == {
            k: v for k, v in all_points[-1].items() if k != "wall_time"
        }
        assert server.json("numerics", run=run)["step"] == 2412
        assert server.json("numerics", run=run, step=804)["step"] == 804


@pytest.mark.parametrize(
    ("route", "query", "status", "message"),
    [
        ("counts", {}, 400, "The query lacks 'run': ?run=..."),
        ("progress", {"run": "nowhere"}, 404, "There is no run 'nowhere'"),
        ("numerics", {"run": "lns8", "step": "x"}, 400, "must be a whole number. Received: 'x'"),
        ("numerics", {"run": "lns8", "step": "3"}, 404, "has no numerics of step 3"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(server, route, query, status, message):
    got, headers, text = server.get(route, **query)
    assert (got, headers.get_content_type()) == (status, "text/plain")
    assert message in text


def test_only_reading_is_allowed(server):
    assert server.get("runs", method="POST")[0] == 405
    assert server.get("runs", method="HEAD")[0] == 200


def test_files_of_the_page(server):
    for name, type_ in [
        ("main.js", "application/javascript"),
        ("style.css", "text/css"),
        ("index.html", "text/html"),
    ]:
        status, headers, text = server.get(f"static/{name}")
        assert (status, headers.get_content_type()) == (200, type_)
        assert text
    policy = server.get("static/index.html")[1]["Content-Security-Policy"]
    assert "default-src 'self'" in policy


@pytest.mark.parametrize(
    "path",
    [
        "static/../plugin.py",
        "static/..%2fplugin.py",
        "static/%2e%2e/plugin.py",
        "static/%2e%2e%2fplugin.py",
        "static//etc/passwd",
        "static/..\\plugin.py",
        "static/nothing.js",
        "static/",
        "plugin.py",
        "http_api.md",
    ],
)
def test_no_other_file_is_served(server, path):
    assert server.get(path)[0] == 404
