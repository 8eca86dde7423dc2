"""A folder with a product of matrices of codes: what the testbench reads.

    product.json   {"m", "k", "n", "a_format", "b_format", "datapath": Datapath.get_config()}
    a.hex          codes [M, K]
    b.hex          codes [K, N]
    acc.hex        expected accumulators [M, N]; with conversion="bins" [M, N, 2**lut_bits]

One word a line, row-major, two's complement in as many hexadecimal digits as the width needs.
`tf-lns export` writes such folders of a model's layers, `write_random` of random codes.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np

from tf_lns.datapath import Datapath, pair_of_formats
from tf_lns.formats import LNSFormat
from tf_lns.reference import lns_matmul


@dataclasses.dataclass(frozen=True)
class Product:
    """Sizes, formats and datapath of a product."""

    m: int
    k: int
    n: int
    a_format: LNSFormat
    b_format: LNSFormat
    datapath: Datapath

    @classmethod
    def read(cls, folder) -> Product:
        """Reads product.json, and sees that the files beside it have as many words as it says."""
        folder = pathlib.Path(folder)
        record = json.loads((folder / "product.json").read_text())
        product = cls(
            *(record[size] for size in ("m", "k", "n")),
            *pair_of_formats(record["a_format"], record["b_format"]),
            Datapath.get(record["datapath"]),
        )
        for name, words in product.words().items():
            found = len((folder / name).read_text().split())
            if found != words:
                raise ValueError(
                    f"{folder / name} must hold {words} words for {record}. Received: {found}"
                )
        return product

    @property
    def lut_bits(self) -> int:
        return self.datapath.table_bits(self.a_format.base_factor)

    @property
    def accumulators(self) -> int:
        """Accumulators of each output."""
        return 1 << self.lut_bits if self.datapath.conversion == "bins" else 1

    def words(self) -> dict[str, int]:
        """How many words each file holds."""
        outputs = self.m * self.n * self.accumulators
        return {"a.hex": self.m * self.k, "b.hex": self.k * self.n, "acc.hex": outputs}

    def parameters(self) -> dict[str, int]:
        """Parameters of `lns_array` and `lns_mac`, but for the table."""
        return {
            "A_BITS": self.a_format.bits,
            "B_BITS": self.b_format.bits,
            "LOG2_BASE_FACTOR": self.a_format.log2_base_factor,
            "LUT_BITS": self.lut_bits,
            "ACC_BITS": self.datapath.accumulator_bits,
            "HEADROOM": self.datapath.headroom_bits,
            "FRACTION_BITS": self.datapath.fraction_bits,
            "VECTOR": self.datapath.vector_size,
            "BINS": int(self.datapath.conversion == "bins"),
        }

    def table(self) -> str:
        """The parameter TABLE as a constant of Verilog: entry 0 in the lowest bits."""
        width = self.datapath.fraction_bits + 2
        entries = self.datapath.table(self.a_format.base_factor)
        value = sum(entry << (h * width) for h, entry in enumerate(entries))
        return f"{len(entries) * width}'h{value:x}"

    def header(self) -> str:
        """Text of product.svh."""
        sizes = {"M": self.m, "K": self.k, "N": self.n, **self.parameters()}
        lines = [f"localparam int {name} = {value};" for name, value in sizes.items()]
        lines.append("localparam [(FRACTION_BITS + 2) * 2**LUT_BITS - 1:0] TABLE =")
        lines.append(f"    {self.table()};")
        return "\n".join(["// Written by product.py from product.json.", *lines, ""])


def hex_words(values, bits: int) -> str:
    """Integers as words of `bits` bits, one a line."""
    digits, mask = -(-bits // 4), (1 << bits) - 1
    return "".join(f"{int(v) & mask:0{digits}x}\n" for v in np.ravel(values))


def write_product(folder, a, b, a_format, b_format=None, datapath=None) -> Product:
    """Writes codes [M, K] and [K, N] with the accumulators of the NumPy reference."""
    a_format, b_format = pair_of_formats(a_format, b_format)
    datapath = Datapath.get(datapath)
    product = Product(*a.shape, b.shape[1], a_format, b_format, datapath)
    expected = lns_matmul(
        a, b, a_format, b_format, datapath=datapath, return_details=True
    ).accumulators
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "m": product.m,
        "k": product.k,
        "n": product.n,
        "a_format": str(a_format),
        "b_format": str(b_format),
        "datapath": datapath.get_config(),
    }
    (folder / "product.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "a.hex").write_text(hex_words(a, a_format.bits))
    (folder / "b.hex").write_text(hex_words(b, b_format.bits))
    (folder / "acc.hex").write_text(hex_words(expected, datapath.accumulator_bits))
    return product


def random_codes(rng, shape, fmt: LNSFormat, zeros: float = 0.1, smallest: int = 1) -> np.ndarray:
    """Codes of random signs and magnitudes `smallest` to the largest, some of them zero."""
    codes = rng.integers(min(smallest, fmt.max_code), fmt.max_code + 1, shape)
    codes *= rng.choice([-1, 1], shape)
    return np.where(rng.random(shape) < zeros, 0, codes)


def write_random(folder, outputs: int, k: int, formats, datapath, seed: int = 0) -> Product:
    """Writes a product of about `outputs` outputs, a square of them; at least so many."""
    a_format, b_format = pair_of_formats(*formats)
    rng = np.random.default_rng(seed)
    m = int(np.ceil(np.sqrt(outputs)))
    n = -(-outputs // m)
    return write_product(
        folder,
        random_codes(rng, (m, k), a_format),
        random_codes(rng, (k, n), b_format),
        a_format,
        b_format,
        datapath,
    )
