"""custom_ops/build.py: flags by name, objects kept by content, clear messages."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("build_under_test", ROOT / "custom_ops/build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def tree(build, tmp_path, monkeypatch):
    """A small source tree, and `build` pointed at it."""
    for name in ("core", "kernels", "tests"):
        (tmp_path / "custom_ops" / name).mkdir(parents=True)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "SOURCE_DIR", tmp_path / "custom_ops")
    monkeypatch.setattr(build, "BUILD_DIR", tmp_path / "build")
    write = lambda name, text: (tmp_path / "custom_ops" / name).write_text(text)  # noqa: E731
    write("core/answer.h", "int Answer();\n#define WANTED 42\n")
    write("kernels/answer_plain.cc", '#include "core/answer.h"\nint Answer() { return 42; }\n')
    write("kernels/with_tensorflow.cc", "#error not part of a test\n")
    write(
        "tests/answer_test.cc",
        '#include <cstdio>\n#include "core/answer.h"\n'
        "int main() { int good = Answer() == WANTED;\n"
        '  std::printf("%d passed, %d failed\\n", good, !good); return !good; }\n',
    )
    return tmp_path / "custom_ops"


def test_flags_follow_the_name(build, monkeypatch):
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    flags = lambda name: build.flags_for(ROOT / "custom_ops" / name)  # noqa: E731
    assert "-mavx2" in flags("kernels/a_avx2.cc")
    assert "-mavx512f" not in flags("kernels/a_avx2.cc")
    assert "-mavx512bw" in flags("kernels/a_avx512.cc")
    assert "-mavx512vbmi" not in flags("kernels/a_avx512.cc")
    assert {"-mavx512vbmi", "-mavx512vnni"} <= set(flags("kernels/a_avx512vbmi.cc"))
    for name in ("kernels/a_plain.cc", "kernels/a.cc", "kernels/avx2.cc", "xla/a.cc"):
        assert not any(f.startswith("-m") for f in flags(name)), name
    for name in ("kernels/a_avx512.cc", "xla/a.cc", "ops/a.cc", "tests/a_test.cc"):
        assert "-ffp-contract=off" in flags(name)
        assert "-march=native" not in flags(name)


def test_other_cpus_get_no_x86_flags(build, monkeypatch):
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    flags = build.flags_for(ROOT / "custom_ops/kernels/a_avx512.cc")
    assert not any(f.startswith("-m") for f in flags)


def test_one_tensorflow_range_everywhere(build):
    text = (ROOT / "pyproject.toml").read_text()
    ranges = re.findall(r'"(tensorflow[<>=][^"]*)"', text)
    assert ranges == [build.requirement()] * 2


@pytest.mark.parametrize("version", ["2.20.1", "2.22.0", "3.0.0", "1.15"])
def test_unsupported_tensorflow(build, version):
    with pytest.raises(build.BuildError, match=re.escape(version)) as error:
        build.check_tensorflow_version(version)
    assert build.requirement() in str(error.value)


def test_missing_tensorflow(build):
    with pytest.raises(build.BuildError, match="not installed") as error:
        build.check_tensorflow_version(None)
    assert f"pip install '{build.requirement()}'" in str(error.value)


@pytest.mark.parametrize("version", ["2.21.0", "2.21.3", "2.21.0rc1"])
def test_supported_tensorflow(build, version):
    build.check_tensorflow_version(version)


def test_no_compiler(build, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match=r"apt-get install g\+\+"):
        build.find_compiler()


def test_old_compiler(build, monkeypatch, tmp_path):
    fake = tmp_path / "g++"
    fake.write_text("#!/bin/sh\necho 8.3.0\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(build.BuildError, match=r"8\.3\.0 is too old"):
        build.find_compiler()


def test_error_is_one_line_for_the_user(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "custom_ops/build.py")],
        env={"PATH": str(tmp_path), "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: no C++ compiler found")
    assert "Traceback" not in result.stderr


def test_cpp_tests_run_and_objects_are_kept(build, tree, capfd):
    assert build.run_tests() == 0
    first = capfd.readouterr().out
    assert "answer_plain.cc" in first
    assert "with_tensorflow" not in first
    assert "1 passed, 0 failed" in first

    (tree / "kernels/answer_plain.cc").touch()  # a new date is no new content
    assert build.run_tests() == 0
    assert "answer_plain.cc" not in capfd.readouterr().out

    header = tree / "core/answer.h"
    header.write_text(header.read_text().replace("42", "43"))
    assert build.run_tests() == 1
    third = capfd.readouterr().out
    assert "answer_plain.cc" in third
    assert "0 passed, 1 failed" in third


def test_compile_errors_name_the_file(build, tree, capfd):
    (tree / "kernels/broken_avx2.cc").write_text("int x = ;\n")
    with pytest.raises(build.BuildError, match=r"kernels/broken_avx2\.cc"):
        build.run_tests()
    assert "expected primary-expression" in capfd.readouterr().out


def test_a_test_without_closing_line_fails(build, tree):
    (tree / "tests/silent_test.cc").write_text("int main() { return 0; }\n")
    assert build.run_tests(only="silent") == 1


def test_depfile(build, tmp_path):
    depfile = tmp_path / "a.d"
    depfile.write_text("out/a.o: a.cc core/b.h \\\n  /with\\ space/c.h \\\n d.inc\n")
    assert [str(p) for p in build.read_depfile(depfile)] == [
        "core/b.h",
        "/with space/c.h",
        "d.inc",
    ]


def test_library_names_its_build(build):
    library = ROOT / "tf_lns/ops/_lns_ops.so"
    note = ROOT / "tf_lns/ops/_build_info.py"
    if not library.exists():
        pytest.skip("the op library is not built in place")
    facts = {}
    exec(note.read_text(), facts)
    build.check_tensorflow_version(facts["TENSORFLOW_VERSION"])
    assert "-ffp-contract=off" in facts["FLAGS"]


def test_library_holds_no_path_of_this_machine():
    library = ROOT / "tf_lns/ops/_lns_ops.so"
    if not library.exists():
        pytest.skip("the op library is not built in place")
    content = library.read_bytes()
    assert str(ROOT).encode() not in content
    assert sys.prefix.encode() not in content
