"""Operands of products on a datapath: float32 tensors that lie on a grid, and their codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_lns import ops
from tf_lns.formats import LNSFormat


class Coded(NamedTuple):
    """An operand as codes.

    Attributes:
        codes: The codes; 0 where the value is NaN.
        scale: float32 scalar.
        format: Their format.
        bad: Where the value is NaN, a bool tensor; None where that cannot be.
    """

    codes: Any
    scale: Any
    format: LNSFormat
    bad: Any

    def moved(self, move: Callable[[Any], Any]) -> Coded:
        """The operand after a rearrangement of its elements."""
        bad = None if self.bad is None else move(self.bad)
        return self._replace(codes=move(self.codes), bad=bad)


class _Grid(NamedTuple):
    scale: Any
    format: LNSFormat
    may_be_nan: bool
    coded: Coded | None = None


def on_grid(x: Any, scale: Any, format: LNSFormat, may_be_nan: bool = True) -> Any:
    """Notes on a tensor that its values are those of a format, or NaN.

    Args:
        x: float32 tensor.
        scale: Scale of the format.
        format: The format.
        may_be_nan: Whether NaN can occur.
    """
    x._lns_grid = _Grid(scale, format, may_be_nan)
    return x


def rearranged(x: Any, source: Any) -> Any:
    """Notes on a tensor that its values are values of another one."""
    grid = getattr(source, "_lns_grid", None)
    return x if grid is None else on_grid(x, grid.scale, grid.format, grid.may_be_nan)


def encoded(x: Any) -> Any:
    """Makes the codes of a tensor now, that products in a loop need not."""
    x._lns_grid = x._lns_grid._replace(coded=coded(x))
    return x


def coded(x: Any) -> Coded:
    """A tensor that lies on a grid as codes.

    Raises:
        ValueError: Nothing is noted on it.
    """
    grid = getattr(x, "_lns_grid", None)
    if grid is None:
        raise ValueError(
            "An operand of a product on a datapath must come from `quantize_activation` or be a "
            f"weight of the layer. Received: {x!r}"
        )
    if grid.coded is not None:
        return grid.coded
    bad = tf.math.is_nan(x) if grid.may_be_nan else None
    clean = x if bad is None else tf.where(bad, 0.0, x)
    return Coded(ops.encode(clean, grid.scale, grid.format), grid.scale, grid.format, bad)


def poisoned(y: Any, *bad: Any) -> Any:
    """Y, NaN where a bool tensor says so: codes have no NaN, but `TerminateOnNaN` must see it."""
    for where in bad:
        if where is not None:
            y = tf.where(where, float("nan"), y)
    return y


def sizes_of(x: Any) -> list[Any]:
    """The sizes of a tensor's axes: integers, scalar tensors where they are not known yet."""
    known = x.shape.as_list()
    if None not in known:
        return known
    sizes = tf.shape(x)
    return [sizes[i] if size is None else size for i, size in enumerate(known)]


def reshaped(x: Any, sizes: Sequence[Any]) -> Any:
    """`tf.reshape`, for which sizes may be scalar tensors."""
    if all(isinstance(size, int) for size in sizes):
        return tf.reshape(x, sizes)
    return tf.reshape(x, tf.stack([tf.cast(size, tf.int32) for size in sizes]))
