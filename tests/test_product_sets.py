"""Each instruction set and number of threads gives the products of the reference."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.test_instruction_sets import NEEDS, cpu_flags
from tf_lns import Datapath, LNSFormat, reference

ROOT = pathlib.Path(__file__).resolve().parent.parent

DATAPATHS = [
    Datapath(),
    Datapath(lut_bits=1, accumulator_bits=16),
    Datapath(lut_bits=0, accumulator_bits=32, vector_size=5),
    Datapath(accumulator_bits=12, headroom_bits=0, vector_size=1),
    Datapath(accumulator_bits=20, headroom_bits=1, vector_size=1000, fraction_bits=12),
    Datapath(lut_bits=2, conversion="bins"),
]
# Two threads or seven share columns, rows or matrices.
CASES = [
    ("lns8:8", (70, 150), (150, 201), {}),
    ("lns8:8", (300, 100), (100, 64), {"transpose_a": True}),
    ("lns8:8", (1, 150), (150, 700), {"transpose_b": True}),
    ("lns8:8", (9, 20, 40), (9, 40, 30), {}),
    ("lns8:8", (3, 1, 20, 40), (2, 40, 30), {}),
    ("lns8:1", (20, 50), (50, 40), {}),
    ("lns5:4", (20, 50), (50, 40), {}),
    ("lns8:16", (20, 50), (50, 40), {}),
    ("lns16:2048", (40, 100), (100, 90), {}),
    ("lns16:2048", (3, 100), (100, 90), {}),
]


def results(lns_matmul):
    """A line for each product: what it is, and its digest."""
    rng = np.random.default_rng(6)
    lines = []
    for name, a_shape, b_shape, options in CASES:
        format = LNSFormat.get(name)
        top = format.max_code
        a = rng.integers(-top, top + 1, a_shape).astype(format.dtype)
        b = rng.integers(-top, top + 1, b_shape).astype(format.dtype)
        large = np.clip(np.abs(b), top * 3 // 4, top).astype(format.dtype)  # saturates
        b_scale = np.exp2(rng.normal(size=(1, b.shape[-1]))).astype(np.float32)
        if options.get("transpose_a"):
            a = np.swapaxes(a, -1, -2)
        if options.get("transpose_b"):
            b, large = np.swapaxes(b, -1, -2), np.swapaxes(large, -1, -2)
        for datapath in DATAPATHS:
            if (datapath.lut_bits or 0) > format.log2_base_factor:
                continue
            for codes in (b, large):
                product = np.asarray(
                    lns_matmul(
                        a, codes, name, b_scale=b_scale, a_scale=0.3, datapath=datapath, **options
                    )
                )
                digest = hashlib.sha256(product.tobytes()).hexdigest()[:16]
                lines.append(f"{name} {a_shape} {b_shape} {datapath} {digest}")
    return lines


@functools.cache
def expected():
    return results(reference.lns_matmul)


CHILD = f"""
import importlib.util, os, sys
sys.path.insert(0, {str(ROOT)!r})
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(os.environ["THREADS"]))
spec = importlib.util.spec_from_file_location("sets", {__file__!r})
sets = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sets)
from tf_lns import ops
print("\\n".join(sets.results(ops.lns_matmul)))
"""


@pytest.mark.parametrize(
    ("instruction_set", "threads"),
    [
        ("plain", 2),
        ("avx2", 1),
        ("avx2", 7),
        ("avx512", 2),
        ("avx512vbmi", 1),
        ("avx512vbmi", 2),
        ("avx512vbmi", 7),
    ],
)
def test_equals_the_reference(instruction_set, threads):
    missing = NEEDS[instruction_set] - cpu_flags()
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
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
    assert child.stdout.splitlines() == expected()
