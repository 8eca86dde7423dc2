"""Weights of an export: codes as stored, codes as products see them, and float variables."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tf_lns import keras_hooks, reference
from tf_lns.export.folder import Folder, Sealed
from tf_lns.export.names import Names, layer_paths, plain_name
from tf_lns.export.words import hex_text, raw_bits
from tf_lns.formats import LNSFormat
from tf_lns.layers.tree import all_layers
from tf_lns.variable import LNSVariable

ARRAYS = "weights.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedWeight:
    """A weight in integers.

    Attributes:
        name: Path of its layer and its own name: ``hidden/kernel``.
        layer: Path of its layer.
        codes: Codes as they are stored and trained.
        scale: Their scale.
        format: Their format.
        forward_codes: Codes that products see, Q_W of the stored ones.
        forward_scale: Their scale.
        forward_format: Their format; the stored one where the layer has no Q_W.
    """

    name: str
    layer: str
    codes: np.ndarray
    scale: np.float32
    format: LNSFormat
    forward_codes: np.ndarray
    forward_scale: np.float32
    forward_format: LNSFormat

    def values(self, forward: bool = False) -> np.ndarray:
        """The weight in float32, as stored or as products see it."""
        if forward:
            return reference.decode(self.forward_codes, self.forward_scale, self.forward_format)
        return reference.decode(self.codes, self.scale, self.format)

    def __repr__(self) -> str:
        return (
            f"<ExportedWeight {self.name} {list(self.codes.shape)}: stored {self.format}, "
            f"seen as {self.forward_format}>"
        )


def weights_of(model: keras.Model) -> tuple[list[ExportedWeight], dict[str, tuple[str, Any]]]:
    """The integer weights of a model, and layer and value of each other variable by name."""
    weights, others = [], {}
    for layer, name, variable in _variables(model):
        if not isinstance(variable, LNSVariable):
            others[name] = layer, np.asarray(keras.ops.convert_to_numpy(variable.value))
            continue
        stored, seen = variable.format, variable.cell.seen or variable.format
        codes, scale = variable.codes, variable.scale
        weights.append(
            ExportedWeight(
                name=name,
                layer=layer,
                codes=codes,
                scale=np.float32(scale),
                format=stored,
                forward_codes=reference.requantize(codes, stored, seen),
                forward_scale=np.float32(reference.requantize_scale(scale, stored, seen)),
                forward_format=seen,
            )
        )
    return weights, others


def _variables(model: keras.Model) -> Iterator[tuple[str, str, Any]]:
    """Layer, name and variable, each once."""
    paths, names, seen = layer_paths(model), Names(), set()
    for layer in [model, *all_layers(model)]:
        path = paths[id(layer)]
        for variable in keras_hooks.own_variables(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                name = plain_name(variable.name)
                yield path, names.unique(f"{path}/{name}" if path else name), variable


def write_weights(
    folder: Folder, weights: list[ExportedWeight], others: dict[str, tuple[str, Any]]
) -> dict[str, Any]:
    """Writes all arrays as weights.npz and as words; returns what the manifest says of them."""
    arrays: dict[str, np.ndarray] = {}
    files = Names()
    described: dict[str, Any] = {"weights": {}, "variables": {}}
    for weight in weights:
        entry: dict[str, Any] = {"layer": weight.layer, "shape": list(weight.codes.shape)}
        for kind, codes, scale, format in _kinds(weight):
            arrays[f"{weight.name}.{kind}"] = codes
            arrays[f"{weight.name}.{kind}_scale"] = np.asarray(scale)
            entry[kind] = {
                "format": str(format),
                "scale": float(scale),
                "file": folder.write(
                    _file(files, weight.name, ".stored" if kind == "stored" else ""),
                    hex_text(codes, format.bits),
                ),
            }
        described["weights"][weight.name] = entry
    for name, (layer, value) in others.items():
        bits = raw_bits(value)
        # NumPy's files know no bfloat16; its bits they do.
        native = value.dtype.isbuiltin == 1
        arrays[f"{name}.value"] = value if native else bits
        described["variables"][name] = {
            "layer": layer,
            "shape": list(value.shape),
            "dtype": value.dtype.name,
            "file": folder.write(_file(files, name), hex_text(bits, 8 * value.dtype.itemsize)),
        }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    folder.write(ARRAYS, buffer.getvalue())
    return described


def _kinds(weight: ExportedWeight) -> tuple[tuple[str, np.ndarray, np.float32, LNSFormat], ...]:
    return (
        ("stored", weight.codes, weight.scale, weight.format),
        ("forward", weight.forward_codes, weight.forward_scale, weight.forward_format),
    )


def _file(files: Names, name: str, suffix: str = "") -> str:
    return f"weights/{files.unique(name.replace('/', '.') + suffix)}.hex"


def read_weights(sealed: Sealed) -> tuple[dict[str, ExportedWeight], dict[str, np.ndarray]]:
    """Reads what `write_weights` wrote, and compares the words with the arrays.

    Raises:
        ValueError: A file is damaged, or does not hold what another one does.
    """
    with np.load(io.BytesIO(sealed.read(ARRAYS)), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for array in arrays.values():
        array.flags.writeable = False
    weights: dict[str, ExportedWeight] = {}
    for name, entry in sealed.manifest["weights"].items():
        found = {}
        for kind in ("stored", "forward"):
            format = LNSFormat.parse(entry[kind]["format"])
            codes = arrays[f"{name}.{kind}"]
            scale = np.float32(arrays[f"{name}.{kind}_scale"])
            _same(sealed, entry[kind]["file"], hex_text(codes, format.bits))
            found[kind] = codes, scale, format
        weights[name] = ExportedWeight(name, entry["layer"], *found["stored"], *found["forward"])
    variables = {}
    for name, entry in sealed.manifest["variables"].items():
        value = arrays[f"{name}.value"]
        _same(sealed, entry["file"], hex_text(raw_bits(value), 8 * value.dtype.itemsize))
        variables[name] = value.view(np.dtype(entry["dtype"])).reshape(entry["shape"])
    return weights, variables


def _same(sealed: Sealed, name: str, expected: bytes) -> None:
    if sealed.read(name) != expected:
        raise ValueError(
            f"The file {str(sealed.path / name)!r} does not hold the words that {ARRAYS} beside "
            "it does; export the model again."
        )
