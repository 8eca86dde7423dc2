"""What an LNS model is made of: formats, parameters, bytes and the use of the range."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from tf_lns.convert import _layers
from tf_lns.layers.mixin import LNSMixin
from tf_lns.variable import LNSVariable


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
        layers: Formats of A, E and G by layer name, for LNS layers.
        float_layers: Names of layers with weights that are not in LNS.
    """

    name: str
    weights: tuple[WeightSummary, ...]
    layers: dict[str, dict[str, str]]
    float_layers: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(w.parameters for w in self.weights)

    @property
    def bytes(self) -> int:
        """Bytes that the model's variables take."""
        return sum(w.bytes for w in self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts and lists."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "weights": [dataclasses.asdict(w) for w in self.weights],
            "layers": self.layers,
            "float_layers": list(self.float_layers),
        }

    def table(self) -> Table:
        """The summary as a rich table."""
        table = Table(title=f"LNS summary of {self.name}", caption=self._caption())
        for name in ("layer", "weight", "stored", "seen", "A / E / G"):
            table.add_column(name)
        for name in ("parameters", "bytes", "octaves", "top", "bottom", "zero"):
            table.add_column(name, justify="right")
        for w in self.weights:
            formats = self.layers.get(w.layer, {})
            aeg = " ".join(formats.get(k, "-") for k in ("activations", "errors", "gradients"))
            table.add_row(
                w.layer,
                w.weight,
                w.storage,
                w.seen,
                aeg if w.seen else "",
                f"{w.parameters:,}",
                f"{w.bytes:,}",
                "" if w.octaves_used is None else f"{w.octaves_used:.1f}",
                *("" if s is None else f"{s:.1%}" for s in (w.saturated, w.underflowed, w.zero)),
            )
        return table

    def _caption(self) -> str:
        caption = f"{self.parameters:,} parameters in {self.bytes:,} bytes"
        if self.float_layers:
            caption += f"; float32 kernels in: {', '.join(self.float_layers)}"
        return caption

    def __str__(self) -> str:
        console = Console(width=120, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()

    def __rich__(self) -> Table:
        return self.table()


def summary(model: keras.Model, print_table: bool = True) -> ModelSummary:
    """Formats, parameters, bytes and use of the range of every variable of a model.

    Args:
        model: Any built Keras model; LNS layers show their formats.
        print_table: Whether to print the table.

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
    seen: set[int] = set()
    for layer in _layers(model):
        if isinstance(layer, LNSMixin):
            config = layer.lns_config
            layers[layer.name] = {
                key: str(getattr(config, key) or "float32")
                for key in ("activations", "errors", "gradients")
            }
        own = [v for v in layer.weights if id(v) not in seen]
        if isinstance(layer, keras.Model):
            continue
        seen.update(id(v) for v in own)
        rows.extend(_row(layer.name, v) for v in own)
        if own and not isinstance(layer, LNSMixin) and any(v.ndim >= 2 for v in own):
            float_layers.append(layer.name)
    result = ModelSummary(model.name, tuple(rows), layers, tuple(float_layers))
    if print_table:
        Console().print(result.table())
    return result


def _row(layer: str, variable: keras.Variable) -> WeightSummary:
    count = int(np.prod(variable.shape))
    shape = tuple(variable.shape)
    if not isinstance(variable, LNSVariable):
        dtype = keras.backend.standardize_dtype(variable.dtype)
        size = count * np.dtype(dtype).itemsize if dtype != "bfloat16" else 2 * count
        return WeightSummary(layer, variable.name, shape, dtype, "", count, size)
    format = variable.format
    magnitude = np.abs(variable.codes.astype(np.int32))
    used = magnitude[magnitude > 0]
    octaves = float(used.max() - used.min()) / format.base_factor if used.size else 0.0
    return WeightSummary(
        layer,
        variable.name,
        shape,
        str(format),
        str(variable.cell.seen or format),
        count,
        variable.nbytes,
        octaves,
        float(np.mean(magnitude == format.max_code)),
        float(np.mean(magnitude == 1)),
        float(np.mean(magnitude == 0)),
    )
