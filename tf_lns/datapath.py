"""The multiply-accumulate unit of LNS hardware, as five numbers and a word."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import numpy as np

from tf_lns.formats import MAX_BITS, LNSFormat, from_arguments

CONVERSIONS = ("table", "bins")

_RANGES = {
    "lut_bits": (0, 12),
    "accumulator_bits": (8, 32),
    "headroom_bits": (0, 32),
    "fraction_bits": (0, 16),
    "vector_size": (1, 2**20),
}


@dataclasses.dataclass(frozen=True)
class Datapath:
    """How hardware multiplies and accumulates codes, bit for bit.

    Exponents are added, the sum is made linear by a small table and a shifter, and integers are
    accumulated::

        p = e_a + e_b;  q = p >> g;  r = p mod base_factor;  g = log2(base_factor)
        h = r >> (g - m);  l = r mod 2**(g - m);  m = lut_bits
        term = sign * (T[h] (base_factor + l)  shifted by  q - lsb - F - g),  towards zero
        acc  = clamp(acc + the exact sum of `vector_size` terms),  in ascending k

    With ``T[h] = round(2**(h / 2**m) * 2**F)``: the table holds ``2**m`` values, and between them
    runs Mitchell's straight line ``2**(l / base_factor) ~ 1 + l / base_factor`` (Mitchell, IRE
    Trans. Electronic Computers EC-11, 1962; the hybrid with a table after the paper, section 5).

    Args:
        lut_bits: m, logarithm of the table's size; 0 is a straight line only, log2(base_factor)
            a table without any line. None for the latter, whatever the base factor.
        accumulator_bits: A, bits of the accumulator with its sign; 8 to 32.
        headroom_bits: Octaves that the accumulator reaches above the largest term. Fewer than
            log2(vector_size) are allowed: a vector's sum is exact, the accumulator saturates.
        fraction_bits: F, bits of the table's entries behind the point.
        vector_size: Terms that are added exactly before the accumulator sees them.
        conversion: "table" makes each term linear; "bins" has an accumulator for each entry of
            the table, which is multiplied in once at the end.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> print(Datapath(lut_bits=1, accumulator_bits=16))
        2-entry table (8 fraction bits), 16-bit accumulator with 4 bits of headroom, \
vectors of 16
    """

    lut_bits: int | None = None
    accumulator_bits: int = 24
    headroom_bits: int = 4
    fraction_bits: int = 8
    vector_size: int = 16
    conversion: str = "table"

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if name == "lut_bits" and value is None:
                continue
            try:
                if isinstance(value, bool | np.bool_):
                    raise TypeError
                value = operator.index(value)
            except TypeError:
                raise TypeError(
                    f"`{name}` must be an integer. Received: {name}={value!r}"
                ) from None
            if not low <= value <= high:
                raise ValueError(f"`{name}` must be {low} to {high}. Received: {name}={value}")
            object.__setattr__(self, name, value)
        if not isinstance(self.conversion, str) or self.conversion not in CONVERSIONS:
            raise ValueError(
                f'`conversion` must be "table" or "bins". Received: conversion={self.conversion!r}'
            )

    # --- With a format -------------------------------------------------------------------

    def table_bits(self, base_factor: int) -> int:
        """`lut_bits`, or what None means, for a base factor.

        Raises:
            TypeError: `base_factor` is no integer.
            ValueError: It is no power of two from 1 to 4096, or the table would have more entries
                than there are remainders.
        """
        g = _log2_of(base_factor)
        if self.lut_bits is None:
            return g
        if self.lut_bits > g:
            raise ValueError(
                f"`lut_bits` may be at most log2(base_factor) = {g} for base factor "
                f"{base_factor}. Received: lut_bits={self.lut_bits}. None takes {g}."
            )
        return self.lut_bits

    def table(self, base_factor: int = 8) -> tuple[int, ...]:
        """``T[h] = round(2**(h / 2**m) * 2**F)``, the constants of the table."""
        size = 1 << self.table_bits(base_factor)
        return tuple(round(2.0 ** (h / size) * (1 << self.fraction_bits)) for h in range(size))

    def lsb(self, a_format: Any = "lns8:8", b_format: Any = None) -> int:
        """Weight of the accumulator's last bit: 2**lsb, in units of the two scales' product.

        ``lsb = Qmax + 1 + headroom_bits - (accumulator_bits - 1)``, where Qmax is the largest
        whole exponent of a product.

        Args:
            a_format: Format of one operand.
            b_format: Format of the other one; None for the same.

        Raises:
            ValueError: The base factors differ.
        """
        a, b = pair_of_formats(a_format, b_format)
        largest = (a.max_exponent + b.max_exponent) // a.base_factor
        return largest + 1 + self.headroom_bits - (self.accumulator_bits - 1)

    def max_relative_error(self, base_factor: int = 8, fraction_rounding: bool = False) -> float:
        """Largest relative error of a term before the shifter drops bits.

        Args:
            base_factor: Base factor of the operands.
            fraction_rounding: Whether rounding of the table's entries to `fraction_bits` counts.

        Returns:
            ``max |2**(h / 2**m) (1 + l / base_factor) / 2**(r / base_factor) - 1|`` over all r.
        """
        g, m = _log2_of(base_factor), self.table_bits(base_factor)
        r = np.arange(base_factor)
        h, rest = r >> (g - m), r % (1 << (g - m))
        entry = np.exp2(h / (1 << m))
        if fraction_rounding:
            entry = np.array(self.table(base_factor))[h] / (1 << self.fraction_bits)
        if m == g and not fraction_rounding:
            return 0.0
        return float(
            np.max(np.abs(entry * (1 + rest / base_factor) / np.exp2(r / base_factor) - 1))
        )

    # --- Records -------------------------------------------------------------------------

    @classmethod
    def get(cls, value: Datapath | dict | None) -> Datapath:
        """Turns None (the defaults), a dict of arguments or a datapath into a datapath.

        Raises:
            TypeError: `value` is none of these.
        """
        if value is None:
            return cls()
        if isinstance(value, cls):
            return value
        if isinstance(value, dict):
            return cls.from_config(value)
        raise TypeError(f"A datapath must be a Datapath, a dict or None. Received: {value!r}")

    def replace(self, **changes: Any) -> Datapath:
        """A datapath with some arguments changed."""
        return dataclasses.replace(self, **changes)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as a JSON-able dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Datapath:
        """Rebuilds a datapath from `get_config`.

        Raises:
            ValueError: A key is unknown.
        """
        return from_arguments(cls, config)

    def __str__(self) -> str:
        if self.lut_bits is None:
            entries = "exact table"
        elif self.lut_bits == 0:
            entries = "no table but a straight line"
        else:
            entries = f"{1 << self.lut_bits}-entry table"
        parts = [
            f"{entries} ({_bits(self.fraction_bits, 'fraction bit')})",
            f"{self.accumulator_bits}-bit accumulator with {_bits(self.headroom_bits, 'bit')} "
            "of headroom",
            f"vectors of {self.vector_size}",
        ]
        if self.conversion == "bins":
            parts.append("an accumulator for each entry")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"<Datapath: {self}>"


def _log2_of(base_factor: Any) -> int:
    return LNSFormat(MAX_BITS, base_factor).log2_base_factor  # which checks it


def _bits(count: int, unit: str) -> str:
    return f"{count} {unit}" + ("" if count == 1 else "s")


def pair_of_formats(a_format: Any, b_format: Any = None) -> tuple[LNSFormat, LNSFormat]:
    """The formats of two operands; None for b is that of a.

    Raises:
        ValueError: The base factors differ.
    """
    a = LNSFormat.get(a_format)
    b = a if b_format is None else LNSFormat.get(b_format)
    if a.base_factor != b.base_factor:
        raise ValueError(
            "Operands of a product must have the same base factor; `requantize` one of them. "
            f"Received: a_format={a}, b_format={b}"
        )
    return a, b
