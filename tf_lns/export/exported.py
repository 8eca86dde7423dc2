"""What an export holds, read back to the same bits."""

from __future__ import annotations

import dataclasses
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lns.datapath import Datapath
from tf_lns.export.folder import Sealed
from tf_lns.export.vectors import ExportedProduct, read_vectors
from tf_lns.export.weights import ExportedWeight, read_weights


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """A model as it was handed over to hardware.

    Attributes:
        directory: Where it was read from.
        manifest: What manifest.json says: the model's layers and formats, files and checksums.
        datapath: The datapath that the constants are of; None where none was stated.
        weights: `ExportedWeight` by name, such as ``hidden/kernel``.
        variables: Arrays of the float variables (biases, norms) by name.
        vectors: `ExportedProduct` by name, such as ``hidden`` or ``attention/0``.
    """

    directory: pathlib.Path
    manifest: Mapping[str, Any]
    datapath: Datapath | None
    weights: Mapping[str, ExportedWeight]
    variables: Mapping[str, np.ndarray]
    vectors: Mapping[str, ExportedProduct]

    def check(self) -> int:
        """Computes all accumulators and outputs of the test vectors with the NumPy reference.

        Returns:
            How many accumulators there are, all of them equal.

        Raises:
            ValueError: A product has others.
        """
        for name, product in self.vectors.items():
            differing = product.differing()
            if differing:
                raise ValueError(
                    f"{differing} accumulators and outputs of the product {name!r} in "
                    f"{str(self.directory)!r} are not those of the reference."
                )
        return sum(product.accumulators.size for product in self.vectors.values())

    def __repr__(self) -> str:
        codes = sum(weight.codes.size for weight in self.weights.values())
        return (
            f"<Export of {self.manifest['model']['name']!r} in {str(self.directory)!r}: "
            f"{len(self.weights)} weights with {codes:,} codes, "
            f"{len(self.variables)} float variables, {len(self.vectors)} products; "
            f"{self.datapath if self.datapath is not None else 'no datapath'}>"
        )


def load_export(directory: Any) -> Export:
    """Reads an export to the bits that were written, every file against its checksum.

    Args:
        directory: Folder that `export_model` or ``tf-lns export`` wrote.

    Returns:
        An `Export`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is no export, a newer version wrote it, or a file is missing or damaged;
            the message names the file.
    """
    sealed = Sealed(directory)
    weights, variables = read_weights(sealed)
    vectors = read_vectors(sealed)
    sealed.check_rest()
    units = sealed.manifest["units"]
    return Export(
        sealed.path,
        types.MappingProxyType(sealed.manifest),
        Datapath.from_config(units[0]["datapath"]) if units else None,
        types.MappingProxyType(weights),
        types.MappingProxyType(variables),
        types.MappingProxyType(vectors),
    )
