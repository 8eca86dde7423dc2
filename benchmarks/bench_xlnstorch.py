"""A linear layer's training step and the LNS-Madam update beside xlnstorch (PyTorch).

    python benchmarks/bench_xlnstorch.py --peer-python PATH/TO/python [--json FILE]

xlnstorch does another thing: it simulates every sum in LNS, element by element, on codes held in
float64, and its LNSMadam is not the authors' rule. The ratio says how long a step takes to
someone who wants to train, not that the two compute the same. It needs an environment of its own
(torch and xlnstorch), whose interpreter is `--peer-python`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from common import write_json

SIDE, BATCH = 256, 32


def ours() -> dict[str, Callable[[], object]]:
    """Our step and our update."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import numpy as np
    import tensorflow as tf

    import tf_lns

    model = keras.Sequential([keras.layers.Input((SIDE,)), tf_lns.layers.LNSDense(SIDE)])
    model.compile(tf_lns.LNSMadam(), "mse", jit_compile=False)
    x = tf.constant(np.random.default_rng(0).standard_normal((BATCH, SIDE)), tf.float32)
    data = iter(tf.data.Dataset.from_tensors((x, x)).repeat())
    model.make_train_function()
    model.train_function(data)
    weights = model.trainable_variables
    gradients = [tf.ones(v.shape) for v in weights]
    update = tf.function(lambda: model.optimizer.apply(gradients, weights))
    return {"step": lambda: float(model.train_function(data)["loss"]), "update": update}


def theirs() -> dict[str, Callable[[], object]]:
    """The same in xlnstorch."""
    import torch
    import xlnstorch as xl

    torch.set_num_threads(os.cpu_count() or 1)
    layer = xl.nn.LNSLinear(SIDE, SIDE)
    optimizer = xl.optim.LNSMadam(layer.lns_parameters(), lr=0.01)
    x = xl.lnstensor(torch.randn(BATCH, SIDE, dtype=torch.float64))

    def step() -> None:
        optimizer.zero_grad()
        y = layer(x)
        ((y - x) * (y - x)).sum().backward()
        optimizer.step()

    step()
    return {"step": step, "update": optimizer.step}


def milliseconds(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each piece of work."""
    figures = {}
    for name, run in work.items():
        run()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        figures[name] = 1000 * statistics.median(times)
    return figures


def measured(python: str, side: str) -> dict[str, float]:
    """The figures of one side, in a process of its own."""
    command = [python, __file__, "--side", side]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def run(peer_python: str) -> dict[str, dict[str, float]]:
    """Milliseconds of both sides and their ratios; sides take turns, the median of three."""
    pairs = [(measured(sys.executable, "ours"), measured(peer_python, "theirs")) for _ in range(3)]
    return {
        name: {
            "tf_lns_ms": statistics.median(a[name] for a, _ in pairs),
            "xlnstorch_ms": statistics.median(b[name] for _, b in pairs),
            "ratio": statistics.median(a[name] / b[name] for a, b in pairs),
        }
        for name in ("step", "update")
    }


def main() -> None:
    """Prints the table, or with --side the figures of this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python")
    parser.add_argument("--side", choices=("ours", "theirs"))
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.side == "ours":
        print(json.dumps(milliseconds(ours(), 200)))
        return
    if arguments.side == "theirs":
        print(json.dumps(milliseconds(theirs(), 5)))
        return
    if not arguments.peer_python:
        parser.error("--peer-python: the interpreter of an environment with xlnstorch")
    results = run(arguments.peer_python)
    for name, figures in results.items():
        print(f"linear {SIDE}x{SIDE}, batch {BATCH}: {name}", figures)
    write_json(results, arguments.json)


if __name__ == "__main__":
    main()
