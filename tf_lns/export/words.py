"""Words of hardware: integers as lines of hexadecimal digits, as `$readmemh` reads them."""

from __future__ import annotations

import numpy as np

_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_NOT_A_DIGIT = 255
_VALUES = np.full(256, _NOT_A_DIGIT, np.uint8)
_VALUES[_DIGITS] = np.arange(16)
_NEWLINE = 10
_PIECE = 1 << 20


def hex_text(values: np.ndarray, bits: int) -> bytes:
    r"""Integers as one word a line, row-major, two's complement in ``ceil(bits / 4)`` digits.

    Args:
        values: Integers of any shape that fit `bits`.
        bits: 2 to 64.

    Example:
        >>> hex_text(np.array([1, -1]), 6)
        b'01\n3f\n'
    """
    flat = np.asarray(values).reshape(-1)
    mask = np.uint64((1 << bits) - 1)
    shifts = np.arange(4 * (digits_of(bits) - 1), -1, -4, dtype=np.uint64)
    parts = []
    for start in range(0, flat.size, _PIECE):
        words = flat[start : start + _PIECE]
        words = words if words.dtype == np.uint64 else words.astype(np.int64).view(np.uint64)
        digits = ((words & mask)[:, None] >> shifts) & np.uint64(15)
        lines = np.full((words.size, shifts.size + 1), _NEWLINE, np.uint8)
        lines[:, :-1] = _DIGITS[digits.astype(np.int64)]
        parts.append(lines.tobytes())
    return b"".join(parts)


def words_of(text: bytes, bits: int) -> np.ndarray:
    """The integers that `hex_text` wrote, as int64.

    Raises:
        ValueError: It is not what `hex_text` writes for `bits`.
    """
    width = digits_of(bits) + 1
    raw = np.frombuffer(text, np.uint8)
    lines = raw.reshape(-1, width) if raw.size % width == 0 else raw[:0].reshape(-1, width)
    digits = _VALUES[lines[:, :-1]]
    if lines.size != raw.size or np.any(lines[:, -1] != _NEWLINE) or np.any(digits > 15):
        raise ValueError(f"not words of {bits} bits, {width - 1} hexadecimal digits a line")
    words = np.zeros(len(lines), np.int64)
    for column in range(width - 1):
        words = (words << 4) | digits[:, column]
    if np.any(words >> bits) and bits < 64:
        raise ValueError(f"not words of {bits} bits")
    negative = (words >> (bits - 1)) & 1 if bits < 64 else np.zeros_like(words)
    return words - (negative << bits) if bits < 64 else words


def digits_of(bits: int) -> int:
    """Hexadecimal digits of a word."""
    return -(-bits // 4)


def raw_bits(values: np.ndarray) -> np.ndarray:
    """The bits of an array's elements as unsigned integers: float32 as IEEE words."""
    values = np.ascontiguousarray(values)
    return values.view(np.dtype(f"uint{8 * values.dtype.itemsize}"))
