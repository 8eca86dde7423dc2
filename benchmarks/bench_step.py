"""Training step with W, A, E and G quantized against the FP32 step with Keras' Adam.

    python benchmarks/bench_step.py [--rounds 60] [--jit] [--json FILE]

Both steps are Keras' own train functions on the same batch, run in turn; the figure is the
median ratio. `parts` shows what each piece of the LNS step adds.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from common import interleaved, ratio, write_json

import tf_lns

layers = keras.layers


Net = tuple[keras.Model, np.ndarray]
"""A model and the batch that it trains on."""


def normal(*shape: int) -> np.ndarray:
    """Inputs of a batch."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def conv_net() -> Net:
    """Two convolutions on 28x28 images, batch 128."""
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ]
    )
    return model, normal(128, 28, 28, 1)


def mlp() -> Net:
    """Four layers of 1024, 4.2 million parameters, batch 32."""
    dense = [layers.Dense(1024, activation="relu") for _ in range(4)]
    model = keras.Sequential([layers.Input((1024,)), *dense, layers.Dense(10)])
    return model, normal(32, 1024)


def transformer() -> Net:
    """Four encoder blocks of width 128 on 64 tokens, batch 32."""
    tokens = layers.Input((64,), dtype="int32")
    x = layers.Embedding(1000, 128)(tokens)
    for _ in range(4):
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 32)(h, h)
        h = layers.Dense(512, activation="relu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(128)(h)
    outputs = layers.Dense(10)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(tokens, outputs), np.random.default_rng(0).integers(0, 1000, (32, 64))


def recurrent(kind: type[layers.Layer]) -> Net:
    """128 units on 50 steps of 64 features, batch 32."""
    model = keras.Sequential([layers.Input((50, 64)), kind(128), layers.Dense(10)])
    return model, normal(32, 50, 64)


NETS = {
    "conv_net": conv_net,
    "mlp_4m": mlp,
    "transformer": transformer,
    "lstm": lambda: recurrent(layers.LSTM),
    "gru": lambda: recurrent(layers.GRU),
}


def step_of(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, inputs: np.ndarray, jit: bool
) -> Callable[[], object]:
    """A function that runs one training step of Keras' own train function."""
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit
    )
    x = tf.constant(inputs)
    y = tf.constant(np.random.default_rng(0).integers(0, 10, len(inputs)), tf.int32)
    data = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    model.make_train_function()
    return lambda: float(model.train_function(data)["loss"])


def rivals(net: Callable, jit: bool, parts: bool) -> dict[str, Callable[[], object]]:
    """The FP32 step, the LNS step and, with `parts`, the LNS step without some quantizers."""
    keras.utils.set_random_seed(0)
    model, inputs = net()

    def lns(optimizer=None, **config):
        converted = tf_lns.quantize_model(model, tf_lns.LNSConfig(**config))
        return step_of(converted, optimizer or tf_lns.LNSMadam(), inputs, jit)

    def plain(optimizer):
        return step_of(keras.models.clone_model(model), optimizer, inputs, jit)

    work = {"fp32_adam": plain(keras.optimizers.Adam(1e-3)), "lns": lns()}
    work["lns_1_byte_v"] = lns(tf_lns.LNSMadam(second_moment="lns8:4"))
    if parts:
        work["fp32_sgd"] = plain(keras.optimizers.SGD(1e-3))
        work["weights_only"] = lns(activations=None, errors=None, gradients=None)
        work["weights_and_gradients"] = lns(activations=None, errors=None)
        work["without_errors"] = lns(errors=None)
        work["without_activations"] = lns(activations=None)
    return work


def run(
    rounds: int = 60, jit: bool = False, parts: bool = False, nets: Iterable[str] = NETS
) -> dict[str, dict[str, float]]:
    """Ratios to FP32 with Adam, and the FP32 step's time in ms, for each net."""
    results = {}
    for name in nets:
        times = interleaved(rivals(NETS[name], jit, parts), rounds, warmup=5)
        results[name] = {rival: ratio(times, rival, "fp32_adam") for rival in times}
        results[name]["fp32_adam_ms"] = 1000 * statistics.median(times["fp32_adam"])
    return results


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--nets", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--json")
    arguments = parser.parse_args()
    results = run(arguments.rounds, arguments.jit, arguments.parts, arguments.nets)
    for net, figures in results.items():
        print(net)
        for name, value in figures.items():
            print(f"  {name:24s} {value:8.3f}{' ms' if name.endswith('_ms') else 'x'}")
    write_json(results, arguments.json)


if __name__ == "__main__":
    main()
