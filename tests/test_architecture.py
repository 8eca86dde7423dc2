"""ARCHITECTURE.md holds: imports go one way, core C++ knows no TensorFlow."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]', re.MULTILINE)
TENSORFLOW_HEADERS = ("tensorflow/", "xla/", "tsl/", "absl/", "unsupported/Eigen", "Eigen/")


def python_modules():
    """Names of the modules and packages directly in tf_lns that hold its subjects."""
    found = {p.stem for p in (ROOT / "tf_lns").glob("*.py")}
    found |= {p.parent.name for p in (ROOT / "tf_lns").glob("*/__init__.py")}
    return {name for name in found if not name.startswith("_")}


def documented(section):
    """The `names` in the second last column of a section's table."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    body = re.search(
        rf"^## {re.escape(section)}.*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )[1]
    rows = [line.split("|") for line in body.splitlines() if line.startswith("|")]
    names = [re.fullmatch(r"\s*`([\w./]+)`\s*", row[-3]) for row in rows]
    return [name[1] for name in names if name]


def test_import_contracts_hold():
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("section", "folder"), [("Python", "tf_lns"), ("C++", "custom_ops")])
def test_every_documented_module_exists(section, folder):
    names = documented(section)
    assert len(names) > 5
    missing = [name for name in names if not (ROOT / folder / name).exists()]
    assert not missing, f"ARCHITECTURE.md names what is not there: {missing}"


def test_every_module_is_documented():
    names = {name.removesuffix(".py").rstrip("/") for name in documented("Python")}
    assert python_modules() == names


def plain_cpp_files():
    core = [p for p in (ROOT / "custom_ops/core").iterdir() if p.suffix in (".h", ".inc")]
    kernels = [
        p
        for p in (ROOT / "custom_ops/kernels").glob("*.cc")
        if re.search(r"_(plain|avx2|avx512|avx512vbmi)$", p.stem)
    ]
    tests = list((ROOT / "custom_ops/tests").glob("*.cc"))
    return sorted([*core, *kernels, *tests])


def all_includes(path, seen=None):
    """Headers that a file includes, directly or through headers of this project."""
    seen = set() if seen is None else seen
    for name in INCLUDE.findall(path.read_text()):
        if name in seen:
            continue
        seen.add(name)
        for own in (ROOT / "custom_ops" / name, path.parent / name):
            if own.is_file():
                all_includes(own, seen)
                break
    return seen


@pytest.mark.parametrize(
    "path", plain_cpp_files(), ids=lambda p: str(p.relative_to(ROOT / "custom_ops"))
)
def test_plain_cpp_includes_no_tensorflow(path):
    wrong = [name for name in all_includes(path) if name.startswith(TENSORFLOW_HEADERS)]
    assert not wrong


def test_tensorflow_kernels_are_seen_as_such():
    """The check above can fail: a file with an OpKernel does include TensorFlow."""
    others = set((ROOT / "custom_ops/kernels").glob("*.cc")) - set(plain_cpp_files())
    assert others
    for path in others:
        assert any(n.startswith(TENSORFLOW_HEADERS) for n in all_includes(path)), path


def run_python(program):
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_leaves_tf_keras_alone():
    result = run_python(
        "import os, sys; os.environ.pop('TF_USE_LEGACY_KERAS', None); import tf_lns; "
        "bad = {'tensorflow_model_optimization', 'tf_keras'} & set(sys.modules); "
        "assert not bad, bad; assert 'TF_USE_LEGACY_KERAS' not in os.environ"
    )
    assert result.returncode == 0, result.stderr


def test_public_names_exist():
    result = run_python(
        "import tf_lns; assert tf_lns.__all__; "
        "missing = [n for n in tf_lns.__all__ if not hasattr(tf_lns, n)]; "
        "assert not missing, missing"
    )
    assert result.returncode == 0, result.stderr
