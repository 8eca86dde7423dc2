"""Number formats of the logarithmic number system (LNS).

A format is a plain immutable record; everything that depends on it (tables, kernels,
energy) is derived from its two numbers, ``bits`` and ``base_factor``.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from typing import TypeVar

T = TypeVar("T")

MIN_BITS = 2
MAX_BITS = 16
MAX_BASE_FACTOR = 4096


@dataclasses.dataclass(frozen=True, order=True)
class LNSFormat:
    """A signed logarithmic number format.

    A value is stored as a plain signed integer, its *code* ``c`` in ``-L..L`` with
    ``L = 2**(bits - 1) - 1``::

        c = 0      the value zero
        otherwise  sign(c) * scale * 2**(e / base_factor),  e = |c| - 1 in 0..L-1

    The scale is the smallest non-zero magnitude and belongs to the tensor, not to the
    format. The paper (arXiv:2106.13914, section 3) has no zero; the exact zero, which costs
    one magnitude, is ours.

    Values and scale are float32: a format of more than about 120 octaves reaches beyond its
    range, where large values decode to Inf.

    Args:
        bits: Width of a code in bits, sign included; 2 to 16.
        base_factor: Codes per octave (the paper's gamma); a power of two, 1 to 4096.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: An argument is out of range.

    Example:
        >>> fmt = LNSFormat(8, 8)
        >>> fmt.max_code, fmt.octaves, fmt.dtype
        (127, 15.75, 'int8')
        >>> LNSFormat.parse("lns16:2048")
        LNSFormat(bits=16, base_factor=2048)
    """

    bits: int
    base_factor: int

    def __post_init__(self) -> None:
        for name in ("bits", "base_factor"):
            value = getattr(self, name)
            if isinstance(value, bool):
                raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r}")
            try:
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise TypeError(
                    f"`{name}` must be an integer. Received: {name}={value!r}"
                ) from None
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"`bits` must be {MIN_BITS} to {MAX_BITS}. Received: bits={self.bits}")
        factor = self.base_factor
        if not 1 <= factor <= MAX_BASE_FACTOR or factor & (factor - 1):
            raise ValueError(
                f"`base_factor` must be a power of two, 1 to {MAX_BASE_FACTOR}. "
                f"Received: base_factor={factor}"
            )

    @property
    def max_code(self) -> int:
        """Largest code, ``L = 2**(bits - 1) - 1``."""
        return (1 << (self.bits - 1)) - 1

    @property
    def max_exponent(self) -> int:
        """Largest exponent, ``L - 1``, in units of ``1 / base_factor`` octaves."""
        return self.max_code - 1

    @property
    def octaves(self) -> float:
        """Dynamic range in octaves, ``(L - 1) / base_factor``."""
        return self.max_exponent / self.base_factor

    @property
    def log2_base_factor(self) -> int:
        """``log2(base_factor)``, the number of fraction bits of the exponent."""
        return self.base_factor.bit_length() - 1

    @property
    def dtype(self) -> str:
        """Storage dtype of a code: ``"int8"`` up to 8 bits, else ``"int16"``."""
        return "int8" if self.bits <= 8 else "int16"

    @property
    def itemsize(self) -> int:
        """Bytes that a stored code takes."""
        return 1 if self.bits <= 8 else 2

    @property
    def max_relative_error(self) -> float:
        """Largest relative error of rounding in range, ``2**(1 / (2 base_factor)) - 1``."""
        return 2.0 ** (0.5 / self.base_factor) - 1.0

    @classmethod
    def parse(cls, text: str) -> LNSFormat:
        """Reads the short form ``"lns<bits>:<base_factor>"``, as ``str(format)`` writes it.

        Args:
            text: For example ``"lns8:8"``; case and surrounding blanks do not matter.

        Returns:
            The format.

        Raises:
            TypeError: `text` is not a string.
            ValueError: `text` is not of that form, or names a format out of range.
        """
        if not isinstance(text, str):
            raise TypeError(f'`text` must be a string such as "lns8:8". Received: {text!r}')
        match = re.fullmatch(r"\s*lns(\d{1,9}):(\d{1,9})\s*", text, re.IGNORECASE | re.ASCII)
        if match is None:
            raise ValueError(
                f'`text` must look like "lns8:8" (bits, then base factor). Received: {text!r}'
            )
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def get(cls, value: LNSFormat | str | dict | tuple | list) -> LNSFormat:
        """Turns any accepted way of naming a format into an `LNSFormat`.

        Args:
            value: An `LNSFormat`, a string (`parse`), a ``(bits, base_factor)`` pair or
                the dict of `get_config`.

        Returns:
            The format.

        Raises:
            TypeError: `value` is none of these.
            ValueError: `value` names no valid format.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, dict):
            return cls.from_config(value)
        if isinstance(value, tuple | list) and len(value) == 2:
            return cls(*value)
        raise TypeError(
            'A format must be an LNSFormat, a string such as "lns8:8" or a pair '
            f"(bits, base_factor). Received: {value!r}"
        )

    def get_config(self) -> dict:
        """Returns the constructor's arguments as a JSON-able dict."""
        return {"bits": self.bits, "base_factor": self.base_factor}

    @classmethod
    def from_config(cls, config: dict) -> LNSFormat:
        """Rebuilds a format from `get_config`.

        Raises:
            ValueError: A key is missing or unknown.
        """
        if set(config) != {"bits", "base_factor"}:
            raise ValueError(
                f'A format\'s config needs the keys "bits" and "base_factor". Received: {config!r}'
            )
        return cls(**config)

    def __str__(self) -> str:
        return f"lns{self.bits}:{self.base_factor}"


def from_arguments(cls: type[T], config: dict) -> T:
    """A dataclass from a dict of arguments; those that are missing get their defaults.

    Raises:
        ValueError: A key is unknown.
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = set(config) - known
    if unknown:
        raise ValueError(
            f"Unknown argument(s) of {cls.__name__}: {sorted(unknown)}. Known: {sorted(known)}"
        )
    return cls(**config)
