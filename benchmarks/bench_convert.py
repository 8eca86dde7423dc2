"""Converting a published net, and tracing its first training step.

    python benchmarks/bench_convert.py [--rounds 3] [--json FILE]

`quantize_model` copies ResNet-50, builds the copy and turns its 53 kernels into integers. The
first training step is mostly TensorFlow's tracing; it is compared with that of the FP32 model
with Keras' Adam.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from common import write_json

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import tf_lns


def first_step(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> float:
    """Seconds until a compiled model has trained on its first batch of two."""
    model.compile(optimizer, "mse")
    x, y = np.ones((2, 32, 32, 3), np.float32), np.ones((2, model.output_shape[-1]), np.float32)
    start = time.perf_counter()
    model.train_on_batch(x, y)
    return time.perf_counter() - start


def run(rounds: int = 3) -> dict[str, float]:
    """Medians of seconds to convert, and of the ratio of the first steps."""
    model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(model.output))
    model = keras.Model(model.input, outputs)
    seconds, ratios = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        lns = tf_lns.quantize_model(model)
        seconds.append(time.perf_counter() - start)
        plain = keras.models.clone_model(model)
        fp32 = first_step(plain, keras.optimizers.Adam(1e-3))
        ratios.append(first_step(lns, tf_lns.LNSMadam()) / fp32)
    return {"seconds": statistics.median(seconds), "tracing": statistics.median(ratios)}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    results = run(arguments.rounds)
    print(f"quantize_model(ResNet50)        {results['seconds']:6.2f} s")
    print(f"first training step over FP32   {results['tracing']:6.2f}x")
    write_json(results, arguments.json)


if __name__ == "__main__":
    main()
