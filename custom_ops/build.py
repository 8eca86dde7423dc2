#!/usr/bin/env python3
"""Compiles the C++ ops: the one place that knows how.

    python custom_ops/build.py                    the op library, in place
    python custom_ops/build.py --tests            the C++ unit tests, and run them
    python custom_ops/build.py --tests --sanitize  ... under ASan and UBSan
    python custom_ops/build.py --describe         the flags as JSON (read by bazel)

Sources are found by their place:

    kernels/ xla/ ops/   *.cc -> tf_lns/ops/_lns_ops.so (one library; xla lowerings
                         without the op definitions would abort the process; see
                         library_units)
    tests/               *_test.cc -> one program each, without TensorFlow, linked
                         with the kernels that know no TensorFlow

and flags by their name: `*_avx2.cc` is compiled for AVX2, and so on (see
INSTRUCTION_SETS). Such a file, and `*_plain.cc`, must not include TensorFlow.

Objects are kept in build/ and compiled again only when their command, their source
or a header they include has changed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE_DIR = ROOT / "custom_ops"
BUILD_DIR = ROOT / "build" / "ops"
LIBRARY_DIR = ROOT / "tf_lns" / "ops"
LIBRARY_NAME = "_lns_ops.so"
BUILD_INFO_NAME = "_build_info.py"

# The library uses symbols that TensorFlow renames with each minor version.
TENSORFLOW_RANGE = ((2, 21), (2, 22))  # from, below
OLDEST_GCC = 9

LIBRARY_FOLDERS = ("xla", "ops", "kernels")  # slowest first, to keep all cores busy

# The default for all code. No FMA contraction: the same bits everywhere is the point.
BASE_FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
)
FOLDER_FLAGS = {"kernels": ("-O3",)}

_AVX2 = ("-mavx2", "-mfma", "-mbmi2")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *_AVX2)
INSTRUCTION_SETS = {  # suffix of the file's stem -> flags, on x86-64
    "plain": (),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512vbmi": (*_AVX512, "-mavx512vbmi", "-mavx512vnni"),
}

SANITIZE_FLAGS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
)


class BuildError(Exception):
    """A failed build; the message says what to do about it."""


# --- What there is to build with --------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    description: str  # such as "g++ 12.2.0"


def find_compiler() -> Compiler:
    """Finds the C++ compiler ($CXX, else g++, else clang++) and checks its age."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    for candidate in candidates:
        command = tuple(shlex.split(candidate))
        if shutil.which(command[0]):
            break
    else:
        raise BuildError(
            f"no C++ compiler found (looked for: {', '.join(candidates)}). "
            f"Install g++ {OLDEST_GCC} or newer (Debian and Ubuntu: "
            "`apt-get install g++`), or name one in the variable CXX."
        )
    text = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=False
    ).stdout
    name = Path(command[-1]).name
    if "clang" in text:
        found = re.search(r"version (\d+[.\d]*)", text)
        return Compiler(command, f"{name} {found[1] if found else 'unknown'}")
    version = subprocess.run(
        [*command, "-dumpfullversion", "-dumpversion"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if version and int(version.split(".")[0]) < OLDEST_GCC:
        raise BuildError(
            f"{name} {version} is too old: g++ {OLDEST_GCC} or newer is needed "
            "(another one can be named in the variable CXX)."
        )
    return Compiler(command, f"{name} {version or 'unknown'}")


@dataclasses.dataclass(frozen=True)
class TensorFlow:
    version: str
    include_dir: str
    library_dir: str
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...]

    @property
    def include_dirs(self) -> tuple[str, ...]:
        """TensorFlow's own headers, and two its XLA headers include by short names."""
        external = f"{self.include_dir}/external"
        return (
            self.include_dir,
            f"{external}/highwayhash",
            f"{external}/farmhash_archive/src",
        )

    @property
    def definitions(self) -> tuple[str, ...]:
        """The compile flags but for the include directories and the C++ standard."""
        return tuple(f for f in self.compile_flags if f.startswith("-D"))

    @property
    def libraries(self) -> tuple[str, ...]:
        """The framework library, and libtensorflow_cc, in which XLA is."""
        framework = [f for f in self.link_flags if f.startswith("-l")]
        return (*framework, *(f.replace("framework", "cc") for f in framework))


def requirement() -> str:
    """The supported TensorFlow as pip writes it: tensorflow>=2.21,<2.22."""
    low, high = (".".join(map(str, v)) for v in TENSORFLOW_RANGE)
    return f"tensorflow>={low},<{high}"


def check_tensorflow_version(version: str | None) -> None:
    """Raises a BuildError unless the op library supports this TensorFlow."""
    advice = (
        f"The ops are compiled against it: install a supported one first "
        f"(pip install '{requirement()}')."
    )
    if version is None:
        raise BuildError(f"TensorFlow is not installed. {advice}")
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    low, high = TENSORFLOW_RANGE
    if not low <= numbers < high:
        raise BuildError(f"TensorFlow {version} is not supported. {advice}")


def find_tensorflow() -> TensorFlow:
    """Asks the installed TensorFlow for its flags (kept in build/: it takes seconds)."""
    version = None
    for name in ("tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            break
    check_tensorflow_version(version)

    kept = BUILD_DIR / "tensorflow.json"
    key = [version, sys.prefix, os.environ.get("PYTHONPATH", "")]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(kept.read_text())
        if record["key"] == key and Path(record["flags"]["library_dir"]).is_dir():
            return TensorFlow(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in record["flags"].items()}
            )

    program = (
        "import json, tensorflow as tf; c = tf.sysconfig; print(json.dumps(dict("
        "version=tf.__version__, include_dir=c.get_include(), library_dir=c.get_lib(), "
        "compile_flags=c.get_compile_flags(), link_flags=c.get_link_flags())))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    if result.returncode:
        raise BuildError(f"TensorFlow {version} cannot be imported:\n{result.stderr}")
    flags = json.loads(result.stdout.splitlines()[-1])
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"key": key, "flags": flags}, indent=1))
    return TensorFlow(**{k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()})


# --- Which flags a file gets ------------------------------------------------------


def instruction_set(source: Path) -> str | None:
    """The instruction set in a file's name: "avx2" for kernels/madam_avx2.cc."""
    suffix = source.stem.rpartition("_")[2]
    return suffix if "_" in source.stem and suffix in INSTRUCTION_SETS else None


def knows_tensorflow(source: Path) -> bool:
    """Whether a file may include TensorFlow: tests and instruction-set files do not."""
    return source.parent.name != "tests" and instruction_set(source) is None


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def flags_for(source: Path) -> tuple[str, ...]:
    """Flags that follow from a file's folder and name (no paths in them)."""
    flags = [*BASE_FLAGS, *FOLDER_FLAGS.get(source.parent.name, ())]
    name = instruction_set(source)
    if name and is_x86():
        flags += INSTRUCTION_SETS[name]
    return tuple(flags)


def library_sources() -> list[Path]:
    return [s for folder in LIBRARY_FOLDERS for s in sorted(SOURCE_DIR.glob(f"{folder}/*.cc"))]


def library_units() -> list[Path]:
    """What is compiled for the library, one object each.

    A file for an instruction set is a unit. The others of a folder are joined into one, a
    generated file that includes them: nearly all of their time is spent on TensorFlow's
    headers, once for each unit.
    """
    units = []
    for folder in LIBRARY_FOLDERS:
        sources = [s for s in library_sources() if s.parent.name == folder]
        joined = [s for s in sources if knows_tensorflow(s)]
        if joined:
            unit = BUILD_DIR / "units" / folder / "joined.cc"
            text = "".join(f'#include "{s.relative_to(SOURCE_DIR)}"\n' for s in joined)
            if not unit.exists() or unit.read_text() != text:
                unit.parent.mkdir(parents=True, exist_ok=True)
                unit.write_text(text)
            units.append(unit)
        units += [s for s in sources if not knows_tensorflow(s)]
    return units


def plain_kernels() -> list[Path]:
    """The kernels that know no TensorFlow: C++ tests are linked with them."""
    return [s for s in sorted(SOURCE_DIR.glob("kernels/*.cc")) if not knows_tensorflow(s)]


def test_sources() -> list[Path]:
    return sorted(SOURCE_DIR.glob("tests/*_test.cc"))


# --- Compiling and linking --------------------------------------------------------


class Toolchain:
    """Compiles files to objects and links them; objects are kept between runs."""

    def __init__(self, compiler: Compiler, tensorflow: TensorFlow | None, sanitize=False):
        self.compiler = compiler
        self.tensorflow = tensorflow
        self.extra = (
            *(SANITIZE_FLAGS if sanitize else ()),
            *shlex.split(os.environ.get("CXXFLAGS", "")),
        )
        self.object_dir = BUILD_DIR / ("objects-sanitized" if sanitize else "objects")

    def command(self, source: Path) -> list[str]:
        """The compile command without input and output."""
        command = [*self.compiler.command, *flags_for(source), *self.extra]
        # Paths that end up in the object (in messages with __FILE__) are cut short.
        command += [f"-ffile-prefix-map={ROOT}/=", "-I", str(SOURCE_DIR)]
        if knows_tensorflow(source):
            assert self.tensorflow is not None
            tf = self.tensorflow
            command.append(f"-ffile-prefix-map={tf.include_dir}/=")
            command += tf.definitions
            # As system headers: no warnings from there, no place in the depfile.
            for directory in tf.include_dirs:
                command += ["-isystem", directory]
        return command

    def fingerprint(self, source: Path, depfile: Path) -> str:
        """A digest of all that an object depends on; "" if a header is gone.

        TensorFlow counts with its version, not with its place: an isolated build
        has it somewhere else each time.
        """
        parts = [self.compiler.description, *self.command(source)]
        if knows_tensorflow(source):
            assert self.tensorflow is not None
            root = self.tensorflow.include_dir
            parts = [p.replace(root, "<tensorflow>") for p in parts]
            parts.append(self.tensorflow.version)
        digest = hashlib.sha256(repr(parts).encode())
        try:
            for path in [source, *read_depfile(depfile)]:
                digest.update(path.read_bytes())
        except OSError:
            return ""
        return digest.hexdigest()

    def paths(self, source: Path) -> tuple[Path, Path, Path]:
        base = self.object_dir / source.parent.name / source.name
        return base.with_suffix(".o"), base.with_suffix(".d"), base.with_suffix(".key")

    def is_fresh(self, source: Path) -> bool:
        output, depfile, key = self.paths(source)
        if not (output.exists() and depfile.exists() and key.exists()):
            return False
        return key.read_text() == self.fingerprint(source, depfile)

    def compile(self, source: Path) -> tuple[float, str]:
        """Compiles one file. Returns the seconds it took and the compiler's output."""
        output, depfile, key = self.paths(source)
        output.parent.mkdir(parents=True, exist_ok=True)
        key.unlink(missing_ok=True)
        started = time.monotonic()
        result = subprocess.run(
            [
                *self.command(source),
                *("-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(output)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            raise BuildError(result.stdout or f"the compiler ended with {result.returncode}")
        key.write_text(self.fingerprint(source, depfile))
        return time.monotonic() - started, result.stdout

    def compile_all(self, sources: Sequence[Path], jobs: int) -> list[Path]:
        """Compiles what is out of date, several files at once, a line for each."""
        stale = [s for s in sources if not self.is_fresh(s)]
        failed = []
        with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
            running = {pool.submit(self.compile, s): s for s in stale}
            for done, future in enumerate(concurrent.futures.as_completed(running), 1):
                name = name_of(running[future])
                count = f"[{done:{len(str(len(stale)))}}/{len(stale)}]"
                try:
                    seconds, output = future.result()
                except BuildError as error:
                    failed.append(name)
                    say(f"{count} {name}  FAILED\n{error}")
                else:
                    say(f"{count} {name}  {seconds:.1f} s")
                    if output:
                        say(output)
        if failed:
            raise BuildError(f"could not compile {', '.join(failed)} (messages above)")
        return [self.paths(s)[0] for s in sources]

    def link(self, objects: Sequence[Path], output: Path, flags: Sequence[str]) -> None:
        """Links into a new file and moves it into place: users of the old keep it."""
        output.parent.mkdir(parents=True, exist_ok=True)
        new = output.with_name(f"{output.name}.{os.getpid()}.new")
        command = [*self.compiler.command, *self.extra]
        command += [*map(str, objects), "-o", str(new), *flags]
        result = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            new.unlink(missing_ok=True)
            raise BuildError(f"could not link {output.name}:\n{result.stdout}")
        os.replace(new, output)


def read_depfile(depfile: Path) -> list[Path]:
    """The headers in a Makefile rule that the compiler wrote (`x.o: x.cc a.h ...`)."""
    _, _, dependencies = depfile.read_text().partition(": ")
    words = re.findall(r"(?:\\ |[^\s\\])+", dependencies.replace("\\\n", " "))
    return [Path(w.replace("\\ ", " ")) for w in words[1:]]


def name_of(unit: Path) -> str:
    """What to call a unit: custom_ops/xla/*.cc for the joined files of a folder."""
    if unit.is_relative_to(ROOT / "custom_ops"):
        return str(unit.relative_to(ROOT))
    return f"custom_ops/{unit.parent.name}/*.cc"


def say(text: str) -> None:
    print(text.rstrip(), flush=True)


def available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def one_build_at_a_time() -> Iterator[None]:
    """Waits for another build in this tree to end."""
    import fcntl

    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    with open(BUILD_DIR / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build of the ops to end ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- The two things to build ------------------------------------------------------


def build_library(output_dir: Path = LIBRARY_DIR, jobs: int | None = None) -> Path:
    """Builds the op library and the note on how it was built. Returns its path."""
    compiler = find_compiler()
    tensorflow = find_tensorflow()
    toolchain = Toolchain(compiler, tensorflow)
    if not library_sources():
        raise BuildError(f"no sources in {SOURCE_DIR.name}/{{{','.join(LIBRARY_FOLDERS)}}}/")
    library = output_dir / LIBRARY_NAME
    with one_build_at_a_time():
        started = time.monotonic()
        objects = toolchain.compile_all(library_units(), jobs or available_cores())
        flags = [
            "-shared",
            "-Wl,-z,defs",  # an undefined symbol is an error now, not at load time
            f"-L{tensorflow.library_dir}",
            *tensorflow.libraries,
            # From site-packages/tf_lns/ops to site-packages/tensorflow. Elsewhere (an
            # editable install) TensorFlow, imported first, has its libraries loaded.
            "-Wl,-rpath,$ORIGIN/../../tensorflow",
        ]
        stamp = hashlib.sha256(
            repr([flags[:2], flags[3:], tensorflow.version, compiler.description]).encode()
        )
        for item in objects:
            stamp.update(item.read_bytes())
        info = build_info(compiler, tensorflow, toolchain.extra, stamp.hexdigest()[:16])
        note = output_dir / BUILD_INFO_NAME
        if library.exists() and note.exists() and note.read_text() == info:
            say(f"{LIBRARY_NAME} is up to date")
            return library
        toolchain.link(objects, library, flags)
        note.write_text(info)
    say(
        f"built {LIBRARY_NAME} for TensorFlow {tensorflow.version} with "
        f"{compiler.description} in {time.monotonic() - started:.0f} s"
    )
    return library


def build_info(
    compiler: Compiler, tensorflow: TensorFlow, extra: Sequence[str], digest: str
) -> str:
    flags = (*BASE_FLAGS, *extra, *tensorflow.definitions)
    return (
        '"""How _lns_ops.so was built. Written by custom_ops/build.py; do not edit."""\n\n'
        f'TENSORFLOW_VERSION = "{tensorflow.version}"\n'
        f'COMPILER = "{compiler.description}"\n'
        f'FLAGS = "{" ".join(flags)}"\n'
        f'DIGEST = "{digest}"  # of the objects in it\n'
    )


def run_tests(jobs: int | None = None, sanitize: bool = False, only: str = "") -> int:
    """Builds and runs the C++ unit tests. Returns how many programs failed."""
    toolchain = Toolchain(find_compiler(), None, sanitize)
    tests = [t for t in test_sources() if only in t.stem]
    if not tests:
        say(f"no C++ tests match {only!r}" if only else "no C++ tests")
        return 1 if only else 0
    with one_build_at_a_time():
        kernels = plain_kernels()
        objects = toolchain.compile_all([*tests, *kernels], jobs or available_cores())
        shared = objects[len(tests) :]
        programs = []
        for test, item in zip(tests, objects, strict=False):
            program = item.with_suffix("")
            if not program.exists() or any(
                o.stat().st_mtime >= program.stat().st_mtime for o in (item, *shared)
            ):
                toolchain.link([item, *shared], program, ["-pthread"])
            programs.append((test, program))
    passed = failed = broken = 0
    for test, program in programs:
        started = time.monotonic()
        result = subprocess.run(
            [str(program)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        lines = result.stdout.strip().splitlines()
        counts = re.search(r"(\d+) passed, (\d+) failed", lines[-1]) if lines else None
        if counts:
            passed, failed = passed + int(counts[1]), failed + int(counts[2])
        good = result.returncode == 0 and counts is not None
        broken += not good
        if not good:
            say(result.stdout)
            why = f"exit status {result.returncode}" + ("" if counts else ", no closing line")
            say(f"FAILED {test.stem} ({why})")
        else:
            say(f"ok     {test.stem}: {lines[-1]}  {time.monotonic() - started:.1f} s")
    say(
        f"C++ tests{' under ASan and UBSan' if sanitize else ''}: {passed} passed, "
        f"{failed} failed in {len(programs)} programs ({broken} broken)"
        if broken
        else f"C++ tests{' under ASan and UBSan' if sanitize else ''}: {passed} passed, "
        f"{failed} failed"
    )
    return broken


def describe() -> dict[str, object]:
    """All flags as plain data: tools/tf_configure.bzl hands them to bazel."""
    tensorflow = find_tensorflow()
    return {
        "tensorflow_version": tensorflow.version,
        "include_dir": tensorflow.include_dir,
        "library_dir": tensorflow.library_dir,
        "include_subdirs": [
            os.path.relpath(d, tensorflow.include_dir) for d in tensorflow.include_dirs
        ],
        "definitions": tensorflow.definitions,
        "libraries": tensorflow.libraries,
        "base_flags": BASE_FLAGS,
        "folder_flags": FOLDER_FLAGS,
        "instruction_sets": INSTRUCTION_SETS if is_x86() else dict.fromkeys(INSTRUCTION_SETS, ()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", action="store_true", help="build and run the C++ tests")
    parser.add_argument("--sanitize", action="store_true", help="tests under ASan and UBSan")
    parser.add_argument("--only", default="", metavar="WORD", help="tests with WORD in the name")
    parser.add_argument("--jobs", type=int, default=None, help="files compiled at once")
    parser.add_argument("--output", type=Path, default=LIBRARY_DIR, help="folder for the library")
    parser.add_argument("--describe", action="store_true", help="print the flags as JSON")
    options = parser.parse_args(arguments)
    if (options.sanitize or options.only) and not options.tests:
        parser.error("--sanitize and --only go with --tests")
    try:
        if options.describe:
            print(json.dumps(describe(), indent=2))
            return 0
        if options.tests:
            return 1 if run_tests(options.jobs, options.sanitize, options.only) else 0
        build_library(options.output.resolve(), options.jobs)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
