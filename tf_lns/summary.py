"""What an LNS model is made of: formats, parameters, bytes and the use of the range."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

from tf_lns import keras_hooks
from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.tree import all_layers
from tf_lns.variable import LNSVariable

_LETTERS = {"weights": "W", "activations": "A", "errors": "E", "gradients": "G"}


@dataclasses.dataclass(frozen=True)
class WeightSummary:
    """One variable of a model.

    Attributes:
        layer: Name of its layer.
        weight: Name of the variable.
        shape: Its shape.
        storage: Storage format, or the dtype of a float variable.
        seen: Format in which products see it, or "".
        parameters: Number of elements.
        bytes: Bytes stored, the scale included.
        octaves_used: Distance from the smallest to the largest magnitude in use.
        saturated: Share of elements at the largest magnitude.
        underflowed: Share at the smallest.
        zero: Share of zeros.
    """

    layer: str
    weight: str
    shape: tuple[int, ...]
    storage: str
    seen: str
    parameters: int
    bytes: int
    octaves_used: float | None = None
    saturated: float | None = None
    underflowed: float | None = None
    zero: float | None = None


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """Summary of a model; prints as a table, `to_dict` for programs.

    Attributes:
        name: The model's name.
        weights: One `WeightSummary` per variable.
        layers: Formats of W, A, E and G by layer name, for LNS layers.
        float_layers: Names of layers with kernels that are not in LNS.
        recorded_bytes: Bytes of the recorded ranges of activations.
    """

    name: str
    weights: tuple[WeightSummary, ...]
    layers: dict[str, dict[str, str]]
    float_layers: tuple[str, ...]
    recorded_bytes: int = 0

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(w.parameters for w in self.weights)

    @property
    def bytes(self) -> int:
        """Bytes that the model's variables take, scales and recorded ranges included."""
        return sum(w.bytes for w in self.weights) + self.recorded_bytes

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts and lists."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "recorded_bytes": self.recorded_bytes,
            "weights": [dataclasses.asdict(w) for w in self.weights],
            "layers": self.layers,
            "float_layers": list(self.float_layers),
        }

    def table(self) -> Table:
        """The summary as a rich table; 80 columns hold usual names."""
        table = Table(
            title=f"LNS summary of {self.name}",
            caption=self._caption(),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("weight", overflow="fold")
        table.add_column("stored as", no_wrap=True)
        for name in ("params", "bytes", "octaves", "top", "bottom", "zero"):
            table.add_column(name, justify="right", no_wrap=True)
        layer = None
        for w in self.weights:
            if w.layer != layer:
                layer = w.layer
                table.add_row(layer, style="bold")
            table.add_row(
                f"  {w.weight}",
                w.storage,
                f"{w.parameters:,}",
                human_bytes(w.bytes),
                "" if w.octaves_used is None else f"{w.octaves_used:.1f}",
                *("" if s is None else _percent(s) for s in (w.saturated, w.underflowed, w.zero)),
            )
        return table

    def _caption(self) -> str:
        groups: dict[str, list[str]] = {}
        for layer, formats in self.layers.items():
            text = ", ".join(f"{_LETTERS[name]} {format}" for name, format in formats.items())
            groups.setdefault(text, []).append(layer)
        lines = [
            f"{text}: {'all LNS layers' if len(groups) == 1 else ', '.join(layers)}"
            for text, layers in groups.items()
        ]
        if self.float_layers:
            lines.append(f"float kernels: {', '.join(self.float_layers)}")
        lines.append(
            f"{self.parameters:,} parameters in {human_bytes(self.bytes)} "
            f"({human_bytes(4 * self.parameters)} in float32)"
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()

    def __rich__(self) -> Table:
        return self.table()


def summary(model: keras.Model, print_table: bool = True) -> ModelSummary:
    """Formats, parameters, bytes and use of the range of every variable of a model.

    Args:
        model: Any built Keras model; LNS layers show their formats.
        print_table: Whether to print the table. "octaves" is the distance from the smallest
            to the largest magnitude in use; "top" and "bottom" are the shares of weights at
            the ends of the range.

    Returns:
        A `ModelSummary`.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: `model` has not been built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    if not model.built:
        raise ValueError("`model` has no variables yet; build it, or call it on a batch, first.")
    rows: list[WeightSummary] = []
    layers: dict[str, dict[str, str]] = {}
    float_layers: list[str] = []
    recorded = 0
    for layer in [model, *all_layers(model)]:
        own = keras_hooks.own_variables(layer)
        rows.extend(_row(layer.name, v) for v in own)
        if isinstance(layer, LNSMixin):
            config = layer.lns_config
            layers[layer.name] = {key: str(getattr(config, key) or "float") for key in _LETTERS}
            recorded += 4 * len(layer.input_ranges)
        elif any(len(v.shape) >= 2 for v in own):
            float_layers.append(layer.name)
    result = ModelSummary(model.name, tuple(rows), layers, tuple(float_layers), recorded)
    if print_table:
        Console(highlight=False).print(result.table())
    return result


def human_bytes(count: int) -> str:
    """A number of bytes to three digits: 292 B, 32.8 kB, 100 MB; kB is 1000 bytes."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def _percent(share: float) -> str:
    """A share with one digit; what is not quite nothing does not read as nothing."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _row(layer: str, variable: keras.Variable) -> WeightSummary:
    shape = tuple(variable.shape)
    count = int(np.prod(shape))
    if not isinstance(variable, LNSVariable):
        dtype = tf.as_dtype(keras.backend.standardize_dtype(variable.dtype))
        return WeightSummary(layer, variable.name, shape, dtype.name, "", count, count * dtype.size)
    format = variable.format
    # Counts of each magnitude: no float or int32 array of the weight's size.
    counts = np.bincount(np.abs(variable.codes).reshape(-1), minlength=format.max_code + 1)
    used = np.flatnonzero(counts[1:])
    octaves = float(used[-1] - used[0]) / format.base_factor if used.size else 0.0
    total = max(count, 1)
    return WeightSummary(
        layer,
        variable.name,
        shape,
        str(format),
        str(variable.cell.seen or format),
        count,
        variable.nbytes,
        octaves,
        float(counts[-1] / total),
        float(counts[1] / total),
        float(counts[0] / total),
    )
