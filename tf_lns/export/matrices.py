"""A product of any kind as products of matrices [M, K] [K, N], as a testbench takes them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import numpy as np

from tf_lns.ops.recording import ProductCall
from tf_lns.reference import conv_patches


class Piece(NamedTuple):
    """Some rows of a product of two matrices.

    Attributes:
        a: Codes ``[rows, K]``.
        b: Codes ``[K, N]``.
        a_scale: float32 ``[]`` or ``[rows]``.
        b_scale: float32 ``[]`` or ``[N]``.
        values: What the model computed, float32 ``[rows, N]``.
    """

    a: np.ndarray
    b: np.ndarray
    a_scale: np.ndarray
    b_scale: np.ndarray
    values: np.ndarray


class Matrices(Protocol):
    """A product as one or several products of matrices."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """What the rows of each count: ``(samples, height, width)``."""

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """Index of each; ``()`` where there is but one."""

    @property
    def terms(self) -> int:
        """K."""

    @property
    def columns(self) -> int:
        """N."""

    def piece(self, batch: tuple[int, ...], rows: np.ndarray) -> Piece:
        """Some rows of one of them."""


def matrices_of(call: ProductCall) -> Matrices:
    """The matrices of a product.

    Raises:
        ValueError: It has a scale per vector, so no accumulator for the whole of a sum.
    """
    return _of_conv(call) if call.operation == "conv" else _of_matmul(call)


@dataclasses.dataclass
class _Batched:
    """``[*lead, M, K] [*lead, K, N]``."""

    a: np.ndarray
    b: np.ndarray
    a_scale: np.ndarray  # [*lead, M, 1] or a scalar
    b_scale: np.ndarray  # [*lead, 1, N] or a scalar
    values: np.ndarray
    row_shape: tuple[int, ...]

    @property
    def batches(self) -> list[tuple[int, ...]]:
        return list(np.ndindex(self.b.shape[:-2]))

    @property
    def terms(self) -> int:
        return self.b.shape[-2]

    @property
    def columns(self) -> int:
        return self.b.shape[-1]

    def piece(self, batch: tuple[int, ...], rows: np.ndarray) -> Piece:
        a_scale = self.a_scale[batch][rows, 0] if self.a_scale.ndim else self.a_scale
        b_scale = self.b_scale[batch][0] if self.b_scale.ndim else self.b_scale
        return Piece(self.a[batch][rows], self.b[batch], a_scale, b_scale, self.values[batch][rows])


def _of_matmul(call: ProductCall) -> Matrices:
    a, b, values = np.asarray(call.a), np.asarray(call.b), np.asarray(call.result)
    a = np.swapaxes(a, -1, -2) if call.options["transpose_a"] else a
    b = np.swapaxes(b, -1, -2) if call.options["transpose_b"] else b
    a_scale, b_scale = np.asarray(call.a_scale), np.asarray(call.b_scale)
    if (a_scale.ndim and a_scale.shape[-1] > 1) or (b_scale.ndim and b_scale.shape[-2] > 1):
        raise ValueError("it has a scale for each vector of terms")
    lead, (M, K), N = values.shape[:-2], a.shape[-2:], b.shape[-1]
    if a_scale.ndim:
        a_scale = np.broadcast_to(a_scale, (*lead, M, 1))
    a = np.broadcast_to(a, (*lead, M, K))
    if any(size > 1 for size in (*b.shape[:-2], *b_scale.shape[:-2])):
        b = np.broadcast_to(b, (*lead, K, N))
        b_scale = np.broadcast_to(b_scale, (*lead, 1, N)) if b_scale.ndim else b_scale
        return _Batched(a, b, a_scale, b_scale, values, (M,))
    return _Batched(  # the axes before are rows as well
        a.reshape(-1, K),
        b.reshape(K, N),
        a_scale.reshape(-1, 1) if a_scale.ndim else a_scale,
        b_scale.reshape(1, N) if b_scale.ndim else b_scale,
        values.reshape(-1, N),
        (*lead, M),
    )


@dataclasses.dataclass
class _Patches:
    """The patches of a convolution and its flattened filter, of each group."""

    call: ProductCall
    kernel: np.ndarray  # [taps, C / groups, O]
    a_scale: np.ndarray
    b_scale: np.ndarray
    values: np.ndarray  # [M, O]
    row_shape: tuple[int, ...]
    groups: int

    @functools.cached_property
    def patches(self) -> np.ndarray:
        """``[M, taps, C]``; large, so not before they are needed."""
        x, taps = np.asarray(self.call.a), self.call.b.shape[:-2]
        patches = conv_patches(x, tuple(taps), self.call.options["window"])
        return patches.reshape(-1, self.kernel.shape[0], x.shape[-1])

    @property
    def batches(self) -> list[tuple[int, ...]]:
        return [()] if self.groups == 1 else [(g,) for g in range(self.groups)]

    @property
    def terms(self) -> int:
        return self.kernel.shape[0] * self.kernel.shape[1]

    @property
    def columns(self) -> int:
        return self.kernel.shape[2] // self.groups

    def piece(self, batch: tuple[int, ...], rows: np.ndarray) -> Piece:
        g = batch[0] if batch else 0
        inputs = self.kernel.shape[1]
        channels = slice(g * inputs, (g + 1) * inputs)
        mine = slice(g * self.columns, (g + 1) * self.columns)
        return Piece(
            self.patches[rows][..., channels].reshape(len(rows), self.terms),
            self.kernel[..., mine].reshape(self.terms, self.columns),
            self.a_scale,
            self.b_scale[mine] if self.b_scale.ndim else self.b_scale,
            self.values[rows][:, mine],
        )


def _of_conv(call: ProductCall) -> Matrices:
    kernel, values = np.asarray(call.b), np.asarray(call.result)
    inputs, outputs = kernel.shape[-2:]
    return _Patches(
        call,
        kernel.reshape(-1, inputs, outputs),
        np.asarray(call.a_scale),
        np.asarray(call.b_scale),
        values.reshape(-1, outputs),
        values.shape[:-1],
        call.options["groups"],
    )


def evenly(count: int, most: int) -> np.ndarray:
    """At most so many of 0 to count - 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def scale_as_json(scale: np.ndarray) -> Any:
    """A scale as a number or a list of numbers, of float32's very value."""
    return scale.astype(np.float64).tolist()
