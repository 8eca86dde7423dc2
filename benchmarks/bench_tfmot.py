"""Training step of a tf_keras model under tfmot: LNS against tfmot's own 8 bit, and float.

    python benchmarks/bench_tfmot.py [--rounds 60] [--jit] [--nets conv_net ...] [--json FILE]

All steps are tf_keras' own train functions on the same batch, run in turn; a figure is the median
ratio. `tfmot_again` is a second model of tfmot's own 8 bit: its distance from 1 is the noise
of the measurement. Schemes and optimizers are those of examples/tfmot_qat.py. A process of its own
is best: tfmot changes what `tf.keras` is in the one that imports it.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "examples"))

import numpy as np
from common import interleaved, ratio, write_json
from tfmot_qat import RECIPES, conv_net, layers, step_of, tf_keras


def separable_net() -> tf_keras.Model:
    """Depthwise and pointwise convolutions, each with BatchNormalization and ReLU."""
    model = tf_keras.Sequential([layers.Input((32, 32, 3)), layers.Conv2D(32, 3, strides=2)])
    for width, strides in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        for convolution in (
            layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False),
            layers.Conv2D(width, 1, use_bias=False),
        ):
            model.add(convolution)
            model.add(layers.BatchNormalization())
            model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    return model


def mlp() -> tf_keras.Model:
    """Four layers of 1024, 4.2 million parameters."""
    dense = [layers.Dense(1024, activation="relu") for _ in range(4)]
    return tf_keras.Sequential([layers.Input((1024,)), *dense, layers.Dense(10)])


NETS: dict[str, tuple[Callable[[], tf_keras.Model], int]] = {
    "conv_net": (conv_net, 64),
    "conv_net_wide": (lambda: conv_net((32, 64, 128)), 128),
    "separable_net": (separable_net, 32),
    "mlp_4m": (mlp, 32),
}
"""Each net, and the size of its batch."""

NAMES = ("float_adam", "tfmot_adam", "lns_adam", "lns_madam")


def rivals(net: str, jit: bool) -> dict[str, Callable[[], object]]:
    """A step of each rival."""
    make, batch = NETS[net]
    random = np.random.default_rng(0)
    shape = make().input_shape[1:]
    x = random.standard_normal((batch, *shape)).astype(np.float32)
    y = random.integers(0, 10, batch).astype(np.int32)
    recipes = dict(zip(NAMES, RECIPES, strict=True))
    recipes["tfmot_again"] = recipes["tfmot_adam"]
    work = {}
    for name, recipe in recipes.items():
        tf_keras.utils.set_random_seed(0)
        work[name] = step_of(recipe.compiled(make(), None, jit), x, y)
    return work


def run(rounds: int = 60, jit: bool = False, nets: Iterable[str] = NETS) -> dict:
    """Ratios to tfmot's own 8 bit and to float, and the time of its step in ms, for each net."""
    results = {}
    for net in nets:
        times = interleaved(rivals(net, jit), rounds, warmup=5)
        results[net] = {
            "to_tfmot": {name: ratio(times, name, "tfmot_adam") for name in times},
            "to_float": {name: ratio(times, name, "float_adam") for name in times},
            "tfmot_adam_ms": 1000 * statistics.median(times["tfmot_adam"]),
        }
    return results


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--nets", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--json")
    arguments = parser.parse_args()
    results = run(arguments.rounds, arguments.jit, arguments.nets)
    for net, figures in results.items():
        print(f"{net}: a step of tfmot's 8 bit takes {figures['tfmot_adam_ms']:.2f} ms")
        for name, value in figures["to_tfmot"].items():
            print(f"  {name:12s} {value:6.3f}x  ({figures['to_float'][name]:.3f}x float)")
    write_json(results, arguments.json)


if __name__ == "__main__":
    main()
