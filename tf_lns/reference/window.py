"""Where the windows of a convolution lie: strides, padding and dilations, checked."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

_LIMIT = 1 << 31


@dataclasses.dataclass(frozen=True)
class Window:
    """How a filter moves over 1 to 3 axes; one number per axis in each tuple.

    Attributes:
        strides: Steps from one output to the next.
        padding: "valid", "same", or for each axis how many positions are added before and after
            it; negative numbers cut off.
        dilations: Steps from one tap of the filter to the next.
        input_dilations: Steps from one element of the input to the next; what lies between two
            elements is padding.
    """

    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    input_dilations: tuple[int, ...]

    @classmethod
    def of(
        cls,
        rank: int,
        strides: Any = 1,
        padding: Any = "valid",
        dilations: Any = 1,
        input_dilations: Any = 1,
    ) -> Window:
        """A window from arguments of which a single number goes for all axes.

        Raises:
            TypeError: An argument is not made of integers.
            ValueError: An argument is out of range or has the wrong length.
        """
        return cls(
            _steps(strides, "strides", rank),
            _padding(padding, rank),
            _steps(dilations, "dilations", rank),
            _steps(input_dilations, "input_dilations", rank),
        )

    def pads(self, axis: int, size: int, taps: int) -> tuple[int, int]:
        """Positions added before and after an axis of an input.

        Args:
            axis: Which axis of the window.
            size: Elements of the input along it.
            taps: Taps of the filter along it.
        """
        if not isinstance(self.padding, str):
            return self.padding[axis]
        if self.padding == "valid":
            return 0, 0
        dilated = self._dilated(axis, size)
        outputs = -(-dilated // self.strides[axis])
        needed = (outputs - 1) * self.strides[axis] + (taps - 1) * self.dilations[axis] + 1
        total = max(0, needed - dilated)
        return total // 2, total - total // 2

    def positions(self, axis: int, size: int, taps: int) -> np.ndarray:
        """Which element of the input each tap of each output meets, -1 for padding.

        Returns:
            int64 ``[outputs, taps]``. There is no output where the filter does not fit.
        """
        low, high = self.pads(axis, size, taps)
        dilated, reach = self._dilated(axis, size), (taps - 1) * self.dilations[axis] + 1
        outputs = max(0, (dilated + low + high - reach) // self.strides[axis] + 1)
        at = np.arange(outputs)[:, None] * self.strides[axis] - low
        at = at + np.arange(taps) * self.dilations[axis]
        step = self.input_dilations[axis]
        return np.where((at >= 0) & (at < dilated) & (at % step == 0), at // step, -1)

    def _dilated(self, axis: int, size: int) -> int:
        return 0 if size == 0 else (size - 1) * self.input_dilations[axis] + 1


def _steps(value: Any, name: str, rank: int) -> tuple[int, ...]:
    """A positive number for each axis."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value] * rank
    steps = tuple(_integer(v, name, value) for v in values)
    if len(steps) != rank or not all(1 <= v < _LIMIT for v in steps):
        raise ValueError(
            f"`{name}` must be a positive integer, or {rank} of them, one for each spatial axis. "
            f"Received: {name}={value!r}"
        )
    return steps


def _padding(value: Any, rank: int) -> str | tuple[tuple[int, int], ...]:
    if isinstance(value, str) and value in ("valid", "same"):
        return value
    try:
        pairs = [tuple(pair) for pair in value]
        if isinstance(value, str) or len(pairs) != rank or any(len(p) != 2 for p in pairs):
            raise TypeError
    except TypeError:
        raise ValueError(
            f'`padding` must be "valid", "same" or a pair of integers for each of {rank} spatial '
            f"axes. Received: padding={value!r}"
        ) from None
    padding = tuple(
        (_integer(a, "padding", value), _integer(b, "padding", value)) for a, b in pairs
    )
    if any(abs(p) >= _LIMIT for pair in padding for p in pair):
        raise ValueError(f"`padding` must fit 32 bits. Received: padding={value!r}")
    return padding


def _integer(value: Any, name: str, whole: Any) -> int:
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be made of integers. Received: {name}={whole!r}") from None
