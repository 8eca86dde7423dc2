"""Test vectors: products of a real batch in folders that a testbench reads.

product.json   sizes, formats, datapath; where the product comes from; scales
a.hex          codes [M, K]
b.hex          codes [K, N]
acc.hex        accumulators [M, N]; with conversion="bins" [M, N, 2**lut_bits]
y.hex          output codes [M, N]: the product's value, encoded
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import keras
import numpy as np

from tf_lns import ops, reference
from tf_lns.datapath import Datapath
from tf_lns.export.capture import LayerProduct
from tf_lns.export.folder import Folder, Sealed
from tf_lns.export.matrices import Matrices, evenly, matrices_of, scale_as_json
from tf_lns.export.names import Names, layer_paths
from tf_lns.export.weights import ExportedWeight
from tf_lns.export.words import hex_text, words_of
from tf_lns.formats import LNSFormat
from tf_lns.layers.tree import all_layers
from tf_lns.ops.recording import ProductCall

ROWS = 256
"""Rows of a product at most."""

REPEATS = 8
"""Products of one kind in a layer at most: time steps, heads, groups, channels."""

_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedProduct:
    """A product of a layer for a batch, as hardware is to compute it.

    Attributes:
        name: Its folder below ``vectors``.
        layer: Path of its layer.
        a: Codes ``[M, K]``.
        b: Codes ``[K, N]``.
        accumulators: int32 ``[M, N]``; with conversion="bins" ``[M, N, 2**lut_bits]``.
        outputs: Codes ``[M, N]`` of the product's value (without bias and activation function)
            in `output_format` under `output_scale`.
        a_format: Format of `a`.
        b_format: Format of `b`.
        output_format: Format of `outputs`.
        a_scale: float32 scalar, or ``[M, 1]``.
        b_scale: float32 scalar, or ``[1, N]``.
        output_scale: float32 scalar: from the abs-max of the product for the batch.
        datapath: Where it was computed.
        record: What product.json says: the rows chosen, and of which product.
    """

    name: str
    layer: str
    a: np.ndarray
    b: np.ndarray
    accumulators: np.ndarray
    outputs: np.ndarray
    a_format: LNSFormat
    b_format: LNSFormat
    output_format: LNSFormat
    a_scale: np.ndarray
    b_scale: np.ndarray
    output_scale: np.float32
    datapath: Datapath
    record: dict[str, Any]

    def differing(self) -> int:
        """How many accumulators and outputs the NumPy reference computes otherwise."""
        M, N = self.outputs.shape
        size = max(1, _CHUNK // max(1, N * self.datapath.vector_size))
        count = 0
        for start in range(0, M, size):
            rows = slice(start, start + size)
            product = reference.lns_matmul(
                self.a[rows],
                self.b,
                self.a_format,
                self.b_format,
                self.a_scale[rows] if self.a_scale.ndim else self.a_scale,
                self.b_scale,
                datapath=self.datapath,
                return_details=True,
            )
            codes = reference.encode(product.values, self.output_scale, self.output_format)
            count += np.count_nonzero(product.accumulators != self.accumulators[rows])
            count += np.count_nonzero(codes != self.outputs[rows])
        return count

    def __repr__(self) -> str:
        (M, K), N = self.a.shape, self.b.shape[1]
        return (
            f"<ExportedProduct {self.name}: {self.a_format} [{M}, {K}] x "
            f"{self.b_format} [{K}, {N}]>"
        )


def write_vectors(
    folder: Folder,
    model: keras.Model,
    weights: list[ExportedWeight],
    products: list[LayerProduct],
    reasons: dict[int, str],
) -> dict[str, Any]:
    """Writes the products of a batch; returns what the manifest says of them.

    Args:
        folder: Where to.
        model: The model.
        weights: Its weights.
        products: Its products.
        reasons: Why a layer has none, by its id.
    """
    paths, names = layer_paths(model), Names()
    written: list[dict[str, Any]] = []
    left = [
        {"layer": paths[id(layer)], "reason": reasons[id(layer)]}
        for layer in all_layers(model)
        if id(layer) in reasons
    ]
    by_layer: dict[str, list[LayerProduct]] = {}
    for product in products:
        by_layer.setdefault(paths.get(id(product.layer), ""), []).append(product)
    for path, mine in by_layer.items():
        chosen, count = _chosen(path, mine, left)
        for number, (index, matrices, batch) in enumerate(chosen):
            name = path if count == 1 else f"{path}/{number}".lstrip("/")
            name = names.unique(name or "model")
            place = {"layer": path, "call": index, "batch": list(batch)}
            _write(folder, name, place, mine[index], matrices, weights)
            written.append({"name": name, **place})
    return {"products": written, "left_out": left}


def _chosen(
    path: str, products: list[LayerProduct], left: list[dict[str, str]]
) -> tuple[list[tuple[int, Matrices, tuple[int, ...]]], int]:
    """Of each kind of product some, in their order; and how many there were."""
    kinds: dict[Any, list[tuple[int, Matrices, tuple[int, ...]]]] = {}
    for index, product in enumerate(products):
        call = product.call
        if index and _same(call, products[index - 1].call):  # Keras tries a loop's first step
            continue
        try:
            matrices = matrices_of(call)
        except ValueError as error:
            left.append({"layer": path, "reason": f"product {index}: {error}"})
            continue
        sizes = matrices.terms, matrices.columns, matrices.row_shape
        kind = call.operation, sizes, call.a_format, call.b_format, call.datapath
        if 0 not in (*sizes[:2], *matrices.row_shape):
            kinds.setdefault(kind, []).extend((index, matrices, b) for b in matrices.batches)
    chosen = []
    for found in kinds.values():
        chosen += [found[i] for i in evenly(len(found), REPEATS)]
        if len(found) > REPEATS:
            reason = f"{len(found) - REPEATS} of {len(found)} products of one kind"
            left.append({"layer": path, "reason": reason})
    return sorted(chosen, key=lambda c: (c[0], c[2])), sum(map(len, kinds.values()))


def _same(call: ProductCall, other: ProductCall) -> bool:
    """Whether two products have the same operands."""
    parts = ("a", "b", "a_scale", "b_scale")
    return call.operation == other.operation and all(
        np.array_equal(np.asarray(getattr(call, part)), np.asarray(getattr(other, part)))
        for part in parts
    )


def _write(
    folder: Folder,
    name: str,
    place: dict[str, Any],
    product: LayerProduct,
    matrices: Matrices,
    weights: list[ExportedWeight],
) -> None:
    """Writes the folder of one product of matrices."""
    batch = tuple(place["batch"])
    call, config = product.call, getattr(product.layer, "lns_config", None)
    total = int(np.prod(matrices.row_shape))
    rows = evenly(total, ROWS)
    piece = matrices.piece(batch, rows)
    a_scale = piece.a_scale[:, None] if piece.a_scale.ndim else piece.a_scale
    b_scale = piece.b_scale[None, :] if piece.b_scale.ndim else piece.b_scale
    details = ops.lns_matmul(
        piece.a,
        piece.b,
        call.a_format,
        call.b_format,
        a_scale,
        b_scale,
        datapath=call.datapath,
        return_details=True,
    )
    if not np.array_equal(np.asarray(details.values), piece.values):
        raise RuntimeError(f"A product of layer {place['layer']!r} is not what its matrices give.")
    y_format = getattr(config, "activations", None) or call.a_format
    y_scale = reference.scale_of(
        np.asarray(call.result),
        y_format,
        power_of_two=getattr(config, "power_of_two_scales", False),
    )
    record = {
        "m": len(rows),
        "k": matrices.terms,
        "n": matrices.columns,
        "a_format": str(call.a_format),
        "b_format": str(call.b_format),
        "datapath": call.datapath.get_config(),
        **place,
        "operation": call.operation,
        "row_shape": list(matrices.row_shape),
        "rows": rows.tolist(),
        "a_scale": scale_as_json(piece.a_scale),
        "b_scale": scale_as_json(piece.b_scale),
        "y_format": str(y_format),
        "y_scale": float(y_scale),
        "weight": _weight(weights, place["layer"], piece.b, call.b_format, batch),
    }
    outputs = reference.encode(piece.values, y_scale, y_format)
    accumulators = np.asarray(details.accumulators)
    for file, values, bits in (
        ("a", piece.a, call.a_format.bits),
        ("b", piece.b, call.b_format.bits),
        ("acc", accumulators, call.datapath.accumulator_bits),
        ("y", outputs, y_format.bits),
    ):
        folder.write(f"vectors/{name}/{file}.hex", hex_text(values, bits))
    folder.write(f"vectors/{name}/product.json", (json.dumps(record, indent=1) + "\n").encode())


def _weight(
    weights: list[ExportedWeight], layer: str, b: np.ndarray, format: LNSFormat, batch: tuple
) -> str | None:
    """Name of the layer's weight that b is, with the axes that are summed first."""
    K, N = b.shape
    at = batch[0] * N if batch else 0
    for weight in weights:
        codes = weight.forward_codes
        if not f"{weight.layer}/".startswith(f"{layer}/") or weight.forward_format != format:
            continue
        if codes.size and codes.size % K == 0:
            columns = codes.reshape(K, -1)
            if np.array_equal(columns[:, at : at + N], b) and (batch or columns.shape[1] == N):
                return weight.name
        if codes.shape == (N, K) and np.array_equal(codes.T, b):  # a table of embeddings
            return weight.name
    return None


def read_vectors(sealed: Sealed) -> dict[str, ExportedProduct]:
    """Reads what `write_vectors` wrote.

    Raises:
        ValueError: A file is missing or damaged.
    """
    return {
        entry["name"]: _read(sealed, entry["name"])
        for entry in sealed.manifest["vectors"]["products"]
    }


def _read(sealed: Sealed, name: str) -> ExportedProduct:
    place = f"vectors/{name}"
    record = json.loads(sealed.read(f"{place}/product.json"))
    datapath = Datapath.from_config(record["datapath"])
    a_format, b_format = LNSFormat.parse(record["a_format"]), LNSFormat.parse(record["b_format"])
    y_format = LNSFormat.parse(record["y_format"])
    m, k, n = record["m"], record["k"], record["n"]
    bins = [1 << datapath.table_bits(a_format.base_factor)]
    bins = bins if datapath.conversion == "bins" else []

    def words(file: str, bits: int, shape: list[int], dtype: Any) -> np.ndarray:
        try:
            found = words_of(sealed.read(f"{place}/{file}"), bits).reshape(shape).astype(dtype)
        except ValueError as error:
            raise ValueError(f"{str(sealed.path / place / file)!r}: {error}") from error
        found.flags.writeable = False
        return found

    a_scale, b_scale = (np.asarray(record[f"{x}_scale"], np.float32) for x in "ab")
    return ExportedProduct(
        name=name,
        layer=record["layer"],
        a=words("a.hex", a_format.bits, [m, k], a_format.dtype),
        b=words("b.hex", b_format.bits, [k, n], b_format.dtype),
        accumulators=words("acc.hex", datapath.accumulator_bits, [m, n, *bins], np.int32),
        outputs=words("y.hex", y_format.bits, [m, n], y_format.dtype),
        a_format=a_format,
        b_format=b_format,
        output_format=y_format,
        a_scale=a_scale[:, None] if a_scale.ndim else a_scale,
        b_scale=b_scale[None, :] if b_scale.ndim else b_scale,
        output_scale=np.float32(record["y_scale"]),
        datapath=datapath,
        record=record,
    )
