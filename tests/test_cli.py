"""`tf-lns`: each command against the library, every wrong file as one line, exit codes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tf_lns.cli import console, main, rounding
from tf_lns.cli import formats as formats_command
from tf_lns.cli import models as model_files
from tf_lns.cli import shapes as shape_arguments
from tf_lns.formats import LNSFormat

ROOT = pathlib.Path(__file__).parent.parent

OWN_CLASSES = """
import keras

print("a module that talks")


class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.a = keras.layers.Dense(8, name="a")
        self.b = keras.layers.Dense(3, name="b")

    def call(self, x):
        return self.b(self.a(x))


def own_loss(y, p):
    return keras.ops.mean((y - p) ** 2)
"""

LAUNCHER = """
import sys
from tf_lns_launch import main
"""


def _mlp(keras):
    layers = [keras.Input((6,)), keras.layers.Dense(5, "relu", name="hidden")]
    return keras.Sequential([*layers, keras.layers.Dense(3, name="head")], name="mlp")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of saved models of every kind, and of files that are none."""
    import keras

    import tf_lns

    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(1)
    plain = _mlp(keras)
    plain.save(folder / "uncompiled.keras")
    plain.save(folder / "uncompiled.h5")
    plain.save_weights(folder / "only.weights.h5")
    plain.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    plain.save(folder / "plain.keras")
    plain.save(folder / "plain.h5")
    lns = tf_lns.quantize_model(plain)
    lns.compile(tf_lns.LNSMadam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    lns.save(folder / "lns.keras")

    ids = keras.Input((None,), dtype="int32", name="ids")
    mask = keras.Input((None,), dtype="int32", name="mask")
    x = keras.layers.Embedding(50, 4, name="embedding")(ids)
    x = x * keras.ops.cast(keras.ops.expand_dims(mask, -1), "float32")
    out = keras.layers.Dense(2, name="out")(x)
    for name, inputs in (("named", {"ids": ids, "mask": mask}), ("listed", [ids, mask])):
        model = keras.Model(inputs, out, name=name)
        model.compile("sgd", "mse")
        model.save(folder / f"{name}.keras")
    image = [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, name="conv")]
    keras.Sequential(image, name="image").save(folder / "image.keras")
    twice = keras.layers.Lambda(lambda x: 2 * x, name="twice")
    code = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d"), twice])
    code.save(folder / "lambda.keras")
    code.save(folder / "lambda.h5")

    (folder / "own_classes.py").write_text(OWN_CLASSES)
    sys.path.insert(0, str(folder))
    try:
        import own_classes

        net = own_classes.Net(name="net")
        net.compile("sgd", own_classes.own_loss)
        net(np.zeros((2, 5), "float32"))
        net.save(folder / "net.keras")
        loss = _mlp(keras)
        loss.compile("sgd", own_classes.own_loss)
        loss.save(folder / "loss.keras")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("own_classes", None)

    (folder / "folder.keras").mkdir()
    (folder / "saved_model").mkdir()
    (folder / "saved_model" / "saved_model.pb").write_bytes(b"")
    (folder / "empty.keras").write_bytes(b"")
    (folder / "text.keras").write_text("no model\n")
    whole = (folder / "plain.keras").read_bytes()
    (folder / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.h5").write_bytes((folder / "plain.h5").read_bytes()[:3000])
    (folder / "renamed.bin").write_bytes(whole)
    shutil.copy(folder / "plain.h5", folder / "renamed.keras")
    with zipfile.ZipFile(folder / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "no model")
    with zipfile.ZipFile(folder / "nonsense.keras", "w") as archive:
        archive.writestr("config.json", '{"class_name": "Sequential", "config": 7}')
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", "")
    with zipfile.ZipFile(folder / "broken.keras", "w") as archive:
        archive.writestr("config.json", "{")
    return folder


@pytest.fixture
def tf_lns_command(files, capsys, monkeypatch):
    """Runs a command in the folder of models; returns exit code, stdout and stderr."""
    monkeypatch.chdir(files)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(line):
        before = set(sys.modules)
        code = main(line.split() if isinstance(line, str) else line)
        for name in {"own_classes"} & set(sys.modules) - before:
            del sys.modules[name]
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(tf_lns_command):
    """Runs a command whose input is wrong; returns its one line."""

    def run(line):
        code, out, err = tf_lns_command(line)
        assert (code, out) == (1, ""), err
        assert err.startswith("tf-lns: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def loaded(files):
    import keras

    return lambda name: keras.saving.load_model(files / name)


# --- energy --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain.keras", "lns.keras", "uncompiled.keras"])
def test_json_is_what_the_library_counts(tf_lns_command, loaded, name):
    from tf_lns.energy import tally

    code, out, err = tf_lns_command(f"energy {name} --batch 8 --json --table jouppi-7nm")
    assert (code, err) == (0, "")
    found = json.loads(out)
    counts = tally(loaded(name), 8)
    assert found["tally"] == json.loads(json.dumps(counts.to_dict()))
    assert found["energy"] == [json.loads(counts.energy("jouppi-7nm").to_json())]
    assert found["comparison"] is None
    assert (found["batch"], found["step"]) == (8, "training")


def test_json_of_a_comparison(tf_lns_command, loaded):
    from tf_lns.energy import compare

    _, out, _ = tf_lns_command(
        "energy lns.keras --json --formats lns8,fp32 --table horowitz-45nm --table jouppi-7nm"
    )
    tables = ["horowitz-45nm", "jouppi-7nm"]
    expected = compare(loaded("lns.keras"), 32, ["lns8", "fp32"], tables)
    assert json.loads(out)["comparison"] == json.loads(expected.to_json())
    assert [e["table"] for e in json.loads(out)["energy"]] == tables


def test_evaluate_counts_the_forward_pass(tf_lns_command, loaded):
    from tf_lns.energy import tally_evaluation

    _, out, _ = tf_lns_command("energy plain.keras --evaluate --json")
    expected = tally_evaluation(loaded("plain.keras"), 32)
    assert json.loads(out)["tally"] == json.loads(json.dumps(expected.to_dict()))
    assert json.loads(out)["step"] == "evaluate"


@pytest.mark.parametrize("name", ["plain", "uncompiled"])
def test_h5_counts_as_keras_does(tf_lns_command, name):
    def counted(suffix):
        return json.loads(tf_lns_command(f"energy {name}.{suffix} --json")[1])["tally"]

    assert counted("h5")["records"] == counted("keras")["records"]


def test_tables_for_people(tf_lns_command):
    code, out, err = tf_lns_command("energy lns.keras --compare --table horowitz-45nm")
    assert (code, err) == (0, "")
    macs = 32 * (6 * 5 + 5 * 3)
    for text in (
        f"mlp: {2 * macs + 32 * 5 * 3:,} multiply-accumulates per training step of 32 samples",
        f"forward {macs:,}",
        "hidden",
        "lns8:8 x lns8:8",
        "Energy by kind of operation",
        "horowitz-45nm",
        "per sample",
        "dram",
        "fp32",
        "Note: ",
    ):
        assert text in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= console.WIDTH


def test_what_has_no_price_and_what_was_assumed_is_said(tf_lns_command):
    _, out, _ = tf_lns_command("energy uncompiled.keras --table lns-madam-paper --layers 1")
    assert "Not in the total: add fp32 (" in out
    assert "lns-madam-paper has no add fp32" in out
    assert "Note: The model is not compiled" in out
    assert "1 more layer" in out


def test_width_comes_from_the_environment(tf_lns_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = tf_lns_command("energy plain.keras")
    assert max(map(len, out.splitlines())) <= 60


def test_csv_and_plot(tf_lns_command, files, loaded):
    from tf_lns.energy import compare, tally

    pytest.importorskip("matplotlib")
    one, both = files / "one.csv", files / "both.csv"
    code, out, _ = tf_lns_command(f"energy plain.keras --csv {one} --plot {files / 'p.png'}")
    assert code == 0
    assert "Wrote" in out
    assert "to lns8" not in out  # the comparison was for the picture
    counts = tally(loaded("plain.keras"), 32)
    assert one.read_text() == counts.energy().to_csv()
    assert (files / "p.png").read_bytes().startswith(b"\x89PNG")
    tf_lns_command(f"energy plain.keras --csv {both} --table horowitz-45nm --table jouppi-7nm")
    assert both.read_text().splitlines() == [
        *counts.energy("horowitz-45nm").to_csv().splitlines(),
        *counts.energy("jouppi-7nm").to_csv().splitlines()[1:],
    ]
    tf_lns_command(f"energy plain.keras --csv {both} --compare")
    assert both.read_text() == compare(counts).to_csv()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("named", ["16"]),
        ("named", ["ids=16", "mask=16"]),
        ("listed", ["16", "16"]),
        ("listed", ["mask=16", "16"]),
    ],
)
def test_open_shapes_are_filled_in(tf_lns_command, name, shapes):
    arguments = [part for shape in shapes for part in ("--shape", shape)]
    code, out, err = tf_lns_command(["energy", f"{name}.keras", "--json", *arguments])
    assert (code, err) == (0, "")
    counts = json.loads(out)["tally"]
    forward = [r for r in counts["records"] if r[2] == "mac" and r[1] == "forward"]
    assert sum(r[4] for r in forward) == 32 * 16 * 4 * 2
    assert "int32[32,16], int32[32,16], float32[32,16,2]" in counts["signature"]


@pytest.mark.parametrize("shape", ["10,12,3", "10,12", "10x12", "10,12:float32"])
def test_sizes_of_images(tf_lns_command, shape):
    _, out, _ = tf_lns_command(f"energy image.keras --batch 2 --json --shape {shape}")
    assert json.loads(out)["tally"]["signature"].startswith("float32[2,10,12,3]")


def test_a_subclassed_model_knows_the_shape_it_was_built_with(tf_lns_command):
    code, out, err = tf_lns_command("energy net.keras --import own_classes --batch 4 --json")
    assert (code, err) == (0, "")  # what the module prints is in neither
    counts = json.loads(out)["tally"]
    assert "float32[4,5], float32[4,3]" in counts["signature"]
    assert any("float32" in note for note in counts["notes"])
    forward = [r for r in counts["records"] if r[2] == "mac" and r[1] == "forward"]
    assert sum(r[4] for r in forward) == 4 * (5 * 8 + 8 * 3)
    again = tf_lns_command(
        "energy net.keras --import own_classes.py --batch 4 --json --shape 5:float32"
    )[1]
    assert json.loads(again)["tally"]["records"] == counts["records"]


def test_unknown_names_are_imported_or_left_out(tf_lns_command, refused):
    assert "'Net', 'own_loss': add --import own_classes" in refused("energy net.keras")
    line = refused("energy loss.keras")
    assert "'own_loss'" in line
    assert "--no-compile" in line
    assert "unknown here, 'Net': add --import own_classes" in refused("summary net.keras")
    assert tf_lns_command("energy loss.keras --import own_classes")[0] == 0
    code, out, _ = tf_lns_command("energy loss.keras --no-compile")
    assert code == 0
    assert "not compiled" in out
    assert tf_lns_command("summary loss.keras")[0] == 0


@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_code_in_a_file_is_run_only_if_told_to(tf_lns_command, refused, name):
    line = refused(f"energy {name}")
    assert "the Lambda layer 'twice'" in line
    assert "--unsafe" in line
    assert refused(f"summary {name}") == line
    assert tf_lns_command(f"energy {name} --unsafe")[0] == 0


WRONG_FILES = {
    "missing.keras": "no such file",
    "folder.keras": "a directory",
    "saved_model": "SavedModel",
    "empty.keras": "empty",
    "text.keras": "no Keras model",
    "cut.keras": "damaged",
    "cut.h5": "damaged",
    "only.weights.h5": "weights only",
    "renamed.bin": "rename it",
    "renamed.keras": "rename it",
    "other.keras": "holds no Keras model",
    "nonsense.keras": "cannot be loaded",
    "broken.keras": "damaged",
    "/dev/null": "not a regular file",
    "n" * 300 + ".keras": "cannot be read",
    "null\0byte.keras": "cannot be read",
}


@pytest.mark.parametrize("command", ["energy", "summary"])
@pytest.mark.parametrize(("name", "text"), WRONG_FILES.items(), ids=lambda x: x[:20].split("\0")[0])
def test_wrong_files(refused, command, name, text):
    assert text in refused([command, name])


def test_a_file_that_may_not_be_read(refused, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(model_files, "open", denied, raising=False)
    assert "permission denied" in refused("energy plain.keras")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("energy named.keras", "--shape ids=128"),
        ("energy image.keras", "224,224,3"),
        ("energy image.keras --shape 10,12,4", "does not fit"),
        ("energy plain.keras --shape 5", "of shape (6)"),
        ("energy named.keras --shape other=3", "its inputs are ids, mask"),
        ("energy listed.keras --shape 3 --shape 3 --shape 3", "3 shapes"),
        ("energy named.keras --shape ids=16 --shape mask=17", "cannot be called"),
        ("energy net.keras --import own_classes --shape 7", "cannot be called"),
        ("energy plain.keras --table nothing", "horowitz-45nm"),
        ("energy plain.keras --table text.keras", "must be a .toml"),
        ("energy plain.keras --table jouppi-7nm --table jouppi-7nm", "one name"),
        ("energy plain.keras --formats fp9", "fp9"),
        ("energy plain.keras --import no_such_module", "no_such_module"),
        ("energy plain.keras --import text.py", "text.py"),
        ("energy plain.keras --csv no/such/file.csv", "no directory"),
        ("energy plain.keras --csv folder.keras", "is a directory"),
        ("energy plain.keras --plot picture.bmp", ".png"),
        ("tables show nothing", "horowitz-45nm"),
        ("formats lns8", "lns8:8"),
        ("formats --bits 40", "2 to 16"),
        ("formats --bits 8 --base-factor 3", "power of two"),
        ("formats --plot no/such/file.png", "no directory"),
    ],
)
def test_wrong_input(refused, line, text):
    assert text in refused(line)


def test_a_file_that_cannot_be_written(refused, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "write_text", denied)
    assert "out.csv cannot be written: Permission denied" in refused(
        "energy plain.keras --csv out.csv"
    )


def test_a_picture_needs_matplotlib(refused, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else find(n, *a)
    )
    assert "pip install matplotlib" in refused("formats --plot picture.png")


# --- tables --------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["tables", "tables list"])
def test_the_list_of_tables(tf_lns_command, line):
    from tf_lns.energy import tables

    code, out, err = tf_lns_command(line)
    assert (code, err) == (0, "")
    assert all(name in out for name in tables())


@pytest.mark.parametrize("name", ["horowitz-45nm", "jouppi-7nm", "lns-madam-paper"])
def test_a_table(tf_lns_command, name):
    from tf_lns.energy import tables

    code, out, err = tf_lns_command(f"tables show {name}")
    assert (code, err) == (0, "")
    assert "Source: " in out
    _, out, _ = tf_lns_command(f"tables show {name} --json")
    assert json.loads(out) == json.loads(json.dumps(tables()[name].to_dict()))


GOOD = """
name = "mine"
[source]
citation = "measured"
[[row]]
op = "mac"
format = "fp32"
pj = 1.0
origin = "published"
"""


def test_tables_are_checked(tf_lns_command, files, refused):
    (files / "good.toml").write_text(GOOD)
    (files / "bad.toml").write_text(GOOD.replace("1.0", "-1.0").replace('"mac"', '"mack"') + "x=1")
    (files / "cut.toml").write_text("name =")
    assert tf_lns_command("tables check good.toml") == (
        0,
        "good.toml: fine, 1 rows, table mine\n",
        "",
    )
    code, out, err = tf_lns_command("tables check bad.toml good.toml cut.toml gone.toml")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert sum(line.startswith("bad.toml: ") for line in lines) >= 2
    assert any(line.startswith("cut.toml: not valid TOML") for line in lines)
    assert any(line.startswith("gone.toml: ") for line in lines)
    assert "good.toml: fine" in out
    assert "`tf-lns tables check bad.toml` lists them" in refused(
        "energy plain.keras --table bad.toml"
    )
    code, out, _ = tf_lns_command("energy plain.keras --table good.toml")
    assert code == 0
    assert "Table mine" in out


# --- formats -------------------------------------------------------------------------


def test_formats_as_json(tf_lns_command):
    _, out, _ = tf_lns_command("formats lns8:8 --bits 5,6 --base-factor 1,2 --json")
    found = {fact["format"]: fact for fact in json.loads(out)}
    assert list(found) == ["lns8:8", "lns5:1", "lns5:2", "lns6:1", "lns6:2"]
    assert found["lns8:8"] == {
        "format": "lns8:8",
        "bits": 8,
        "base_factor": 8,
        "codes": 255,
        "octaves": 15.75,
        "decades": pytest.approx(4.7412, abs=1e-4),
        "gap": pytest.approx(2 ** (1 / 8) - 1),
        "max_relative_error": LNSFormat(8, 8).max_relative_error,
    }


def test_formats_for_people(tf_lns_command):
    code, out, err = tf_lns_command("formats")
    assert (code, err) == (0, "")
    assert all(name in out for name in (*formats_command.USUAL, "int8", "fp8"))
    assert "15.75" in out
    assert "4.43%" in out
    _, out, _ = tf_lns_command("formats --bits 8")
    assert [f"lns8:{g}" in out for g in (2, 4, 64, 128)] == [False, True, True, False]
    _, out, _ = tf_lns_command("formats --base-factor 2")
    assert "lns4:2" in out
    assert "…" in tf_lns_command("formats lns16:1")[1]
    assert tf_lns_command("formats lns2:1")[0] == 0


def test_the_picture_in_letters_that_any_terminal_has():
    text = formats_command.picture([LNSFormat(8, 8)], "ascii").plain
    assert text.isascii()
    assert "lns8:8  ================\n" in text
    assert "int8    #==--..\n" in text


@pytest.mark.parametrize("text", ["lns8:8", "lns5:1", "lns6:2", "lns16:2048", "lns16:1", "lns2:1"])
def test_worst_errors_of_lns_are_the_formula(text):
    format = LNSFormat.parse(text)
    reach = min(format.octaves, 40)
    places, errors = rounding.worst_errors(format, reach)
    assert len(places) == len(errors) == np.ceil(reach)
    assert errors[:-1] == pytest.approx(format.max_relative_error, rel=0.02)
    assert np.all(errors <= format.max_relative_error * 1.001)


def test_worst_errors_of_int8_and_fp8():
    _, errors = rounding.worst_errors("int8", rounding.octaves("int8"))
    assert len(errors) == 7
    assert errors[-1] == pytest.approx(1 / 3, rel=1e-4)  # 1.5 becomes 1 or 2
    assert errors[0] == pytest.approx(0.5 / 63.5, rel=1e-4)
    values = rounding.magnitudes("fp8")
    assert len(values) == 126
    assert 1 / values[0] == 448 * 2**9
    _, errors = rounding.worst_errors("fp8", 14)
    assert errors[:13] == pytest.approx(1 / 17, rel=1e-3)


def test_fp8_is_that_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(1, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(rounding.magnitudes("fp8") * 448, codes.astype("float64"))


def test_the_drawing_of_formats(tf_lns_command, files):
    pytest.importorskip("matplotlib")
    code, out, err = tf_lns_command("formats lns8:8 lns16:1 lns2:1 --plot f.png")
    assert (code, err) == (0, "")
    assert "Wrote f.png" in out
    assert (files / "f.png").read_bytes().startswith(b"\x89PNG")


# --- summary -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain.keras", "lns.keras", "plain.h5"])
def test_summary(tf_lns_command, loaded, name):
    from tf_lns import summary

    expected = summary(loaded(name), print_table=False)
    code, out, err = tf_lns_command(f"summary {name}")
    assert (code, err) == (0, "")
    assert expected._caption().splitlines()[-1] in out
    _, out, _ = tf_lns_command(f"summary {name} --json")
    assert json.loads(out) == json.loads(json.dumps(expected.to_dict()))


# --- The command itself --------------------------------------------------------------


def test_help_and_version(tf_lns_command):
    import tf_lns

    code, out, _ = tf_lns_command("")
    assert code == 0
    assert all(name in out for name in ("energy", "summary", "tables", "formats"))
    assert tf_lns_command("--help")[:2] == (0, out)
    assert tf_lns_command("--version")[:2] == (0, f"tf-lns {tf_lns.__version__}\n")
    for name in ("energy", "summary", "tables", "tables show", "tables check", "formats"):
        assert tf_lns_command(f"{name} --help")[0] == 0


@pytest.mark.parametrize(
    "line",
    [
        "nothing",
        "--unknown",
        "energy",
        "summary",
        "tables check",
        "energy plain.keras --batch 0",
        "energy plain.keras --batch many",
        "energy plain.keras --layers -1",
        "energy plain.keras --formats ,",
        "energy plain.keras --shape a,b",
        "energy plain.keras --shape 0",
        "energy plain.keras --shape 5:complex64",
        "formats --bits eight",
    ],
)
def test_wrong_usage(tf_lns_command, line):
    code, out, err = tf_lns_command(line)
    assert (code, out) == (2, "")
    assert err.startswith("usage: tf-lns")


def test_shapes_are_read():
    read = shape_arguments.parse
    assert read("384") == shape_arguments.Shape("", (384,))
    assert read("name=384,") == shape_arguments.Shape("name", (384,))
    assert read("a/b=2x3:int32") == shape_arguments.Shape("a/b", (2, 3), "int32")
    assert read(":int32") == shape_arguments.Shape("", (), "int32")


def test_an_interrupt_is_130(tf_lns_command, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_files, "load", interrupted)
    assert tf_lns_command("energy plain.keras") == (130, "", "tf-lns: interrupted\n")


def test_a_mistake_of_ours_is_a_line_unless_asked_for_more(tf_lns_command, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("not\nforeseen")

    monkeypatch.setattr(model_files, "load", failing)
    code, _, err = tf_lns_command("summary plain.keras")
    assert code == 1
    assert err == "tf-lns: unexpected RuntimeError: not foreseen; --traceback shows where\n"
    with pytest.raises(RuntimeError):
        main(["summary", "plain.keras", "--traceback"])


def test_a_process_is_silent_but_for_its_result(files, run_python):
    result = run_python(
        LAUNCHER + "sys.exit(main(sys.argv[1:]))", "energy", files / "lns.keras", "--json"
    )
    assert result.stderr == ""
    assert json.loads(result.stdout)["tally"]["name"] == "mlp"


def test_without_a_model_nothing_needs_tensorflow(files, run_python):
    result = run_python(
        LAUNCHER
        + """
for line in (["--help"], ["tables"], ["tables", "show", "horowitz-45nm"], ["formats"]):
    assert main(line) == 0
assert main(["energy", "missing.keras"]) == 1
heavy = {"tensorflow", "keras", "matplotlib", "h5py"} & set(sys.modules)
assert not heavy, heavy
import tf_lns.cli.library
tf_lns.cli.library.load()
assert tf_lns.energy.tally and tf_lns.quantize_model
"""
    )
    assert "missing.keras: no such file" in result.stderr


@pytest.mark.parametrize("line", ["tables", "formats"])
def test_a_reader_that_goes_away_is_no_error(line, run_python):
    source = LAUNCHER + (
        "import os\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    result = run_python(source, line, check=False)
    assert (result.returncode, result.stderr) == (141, "")


def test_the_module_runs_as_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "tf_lns.cli", "--version"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert result.stdout.startswith("tf-lns ")
