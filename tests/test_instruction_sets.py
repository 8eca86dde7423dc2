"""Each instruction set and number of threads gives the bits of the reference; no object
compiled for one set defines a symbol that a file for every CPU could end up with."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tf_lns import LNSFormat, reference

ROOT = pathlib.Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build" / "ops" / "objects" / "kernels"

NEEDS = {
    "plain": set(),
    "avx2": {"avx2", "fma", "bmi2"},
    "avx512": {"avx2", "fma", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
}
NEEDS["avx512vbmi"] = NEEDS["avx512"] | {"avx512vbmi", "avx512_vnni"}
FORMATS = ["lns8:8", "lns5:1", "lns8:16", "lns11:64", "lns16:2048"]
SHAPES = [((300, 700), None), ((300, 700), 1), ((9000, 10), 1), ((7, 31, 300), 1)]


@functools.cache
def cpu_flags():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def results(module, threads=None):
    """A line for each array that the codec of `module` makes: what it is and its digest."""
    rng = np.random.default_rng(5)
    lines = []
    for name in FORMATS:
        format = LNSFormat.get(name)
        for shape, axis in SHAPES:
            x = rng.normal(size=shape).astype(np.float32)
            x.reshape(-1)[::97] = (
                rng.integers(0, 2**31, x.reshape(-1)[::97].size).astype(np.uint32).view(np.float32)
            )
            numbers = np.where(np.isnan(x), np.float32(0), x)
            scale = np.asarray(module.scale_of(x, format, axis))
            for how in ({}, {"rounding": "stochastic", "seed": 11}, {"underflow": "flush"}):
                codes = np.asarray(module.encode(numbers, scale, format, axis=axis, **how))
                made = {
                    "scale": scale,
                    "codes": codes,
                    "decode": module.decode(codes, scale, format, axis=axis),
                    "quantize": module.quantize(x, format, scale, axis, **how),
                    "dynamic": module.quantize(x, format, None, axis, **how),
                    "requantize": module.requantize(codes, format, "lns8:8"),
                }
                for what, array in made.items():
                    digest = hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:16]
                    lines.append(f"{name} {shape} {axis} {how} {what} {digest}")
    return lines


@functools.cache
def expected():
    return results(reference)


CHILD = f"""
import importlib.util, os, sys
sys.path.insert(0, {str(ROOT)!r})
import tensorflow as tf
threads = int(os.environ["THREADS"])
tf.config.threading.set_intra_op_parallelism_threads(threads)
spec = importlib.util.spec_from_file_location("sets", {__file__!r})
sets = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sets)
from tf_lns.ops import codec
print("\\n".join(sets.results(codec)))
"""


def run(instruction_set, threads):
    environment = {
        **os.environ,
        "TF_LNS_CPU": instruction_set,
        "THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    child = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.splitlines()


@pytest.mark.parametrize(
    ("instruction_set", "threads"),
    [("plain", 2), ("avx2", 7), ("avx512", 1), ("avx512", 2), ("avx512", 7)],
)
def test_equals_the_reference(instruction_set, threads):
    missing = NEEDS[instruction_set] - cpu_flags()
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    assert run(instruction_set, threads) == expected()


def objects():
    return sorted(OBJECTS.glob("*_avx*.o")) if OBJECTS.exists() else []


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of binutils")
def test_objects_of_one_instruction_set_define_no_shared_symbols():
    if not objects():
        pytest.skip("no objects: the library was not built in this tree")
    for item in objects():
        listing = subprocess.run(
            ["nm", "-C", "--defined-only", str(item)], capture_output=True, text=True, check=True
        ).stdout
        # W, V, u: weak or unique, of which the linker keeps any one copy. T: external code.
        shared = [line for line in listing.splitlines() if re.match(r"[0-9a-f]* [WVuTw] ", line)]
        assert not shared, f"{item.name} must give its functions internal linkage:\n" + "\n".join(
            shared
        )
