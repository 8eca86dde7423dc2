"""Convolutions of any kind on a datapath: each of their derivatives is a convolution as well."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tf_lns import ops
from tf_lns.datapath import Datapath
from tf_lns.layers.operands import Coded, poisoned, sizes_of


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution of 1 to 3 dimensions with groups; a form of `products.multiply`.

    The terms of a sum are added in this order: forward the taps of the kernel, row by row, with
    the input channels of each; for dx the taps from the last to the first, with the output
    channels of each; for dw the positions of dy, with the samples of each.

    Args:
        strides: Of each dimension.
        dilations: Of each dimension.
        padding: "valid", "same" or "causal".
        channels_first: Whether channels stand before the dimensions.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: str
    channels_first: bool = False

    def forward(self, datapath: Datapath, a: Coded, b: Coded) -> Any:
        """See `products.Form`."""
        x = self._last(a)
        pads = self._pads(sizes_of(x.codes)[1:-1], b)
        groups = x.codes.shape[-1] // b.codes.shape[-2]
        if self.padding != "valid":
            x = x._replace(codes=_padded(x.codes, pads))
        y = _convolve(datapath, x, b, self.strides, self.dilations, groups=groups)
        return self._first(poisoned(y, _of_samples(x)))

    def left(self, datapath: Datapath, e: Coded, b: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        e = self._last(e)
        dims = self._dims(sizes)
        groups = self._channels(sizes) // b.codes.shape[-2]
        kernel = b._replace(codes=_turned(b.codes, groups))
        pads = self._pads(dims, b)
        full = [k - 1 for k in self._extents(b)]
        if all(isinstance(n, int) for n in (*dims, *sizes_of(e.codes)[1:-1])):
            reached = self._reached(sizes_of(e.codes)[1:-1], b)
            around = [
                (k - low, k + low + n - r)
                for k, (low, _), n, r in zip(full, pads, dims, reached, strict=True)
            ]
            x = _convolve(
                datapath, e, kernel, None, self.dilations, around, self.strides, groups=groups
            )
        else:  # with all that dy reaches, of which the padding is cut off
            around = [(k, k) for k in full]
            x = _convolve(
                datapath, e, kernel, None, self.dilations, around, self.strides, groups=groups
            )
            have = sizes_of(x)[1:-1]
            more = [
                (0, tf.maximum(low + n - r, 0))
                for (low, _), n, r in zip(pads, dims, have, strict=True)
            ]
            starts = [0, *(low for low, _ in pads), 0]
            x = tf.slice(_padded(x, more), starts, [-1, *dims, -1])
        return self._first(poisoned(x, _of_samples(e)))

    def right(self, datapath: Datapath, a: Coded, e: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        x, e = self._last(a), self._last(e)
        rank = len(self.strides)
        groups = x.codes.shape[-1] // sizes[-2]
        dims = sizes_of(x.codes)[1:-1]
        extents = [(k - 1) * d + 1 for k, d in zip(sizes[:-2], self.dilations, strict=True)]
        pads = self._pads_for(dims, extents)
        codes = _padded(x.codes, pads)
        reached = self._reached_for(sizes_of(e.codes)[1:-1], extents)
        codes = tf.slice(codes, [0] * (rank + 2), [-1, *reached, -1])
        # Samples become channels, and the channels of a group samples.
        codes = _grouped_samples(codes, groups)
        kernel = e._replace(codes=tf.transpose(e.codes, [*range(1, rank + 1), 0, rank + 1]))
        w = _convolve(
            datapath, x._replace(codes=codes), kernel, self.dilations, self.strides, groups=groups
        )
        w = tf.transpose(w, [*range(1, rank + 1), 0, rank + 1])
        return poisoned(w, _anywhere(x), _anywhere(e))

    # --- Sizes ---------------------------------------------------------------------------

    def _extents(self, b: Coded) -> list[int]:
        """How far the taps of a kernel reach."""
        taps = b.codes.shape[: len(self.strides)]
        return [(k - 1) * d + 1 for k, d in zip(taps, self.dilations, strict=True)]

    def _pads(self, dims: list[Any], b: Coded) -> list[tuple[Any, Any]]:
        return self._pads_for(dims, self._extents(b))

    def _pads_for(self, dims: list[Any], extents: list[int]) -> list[tuple[Any, Any]]:
        """Zeros before and behind each dimension, as TensorFlow pads."""
        if self.padding == "valid":
            return [(0, 0)] * len(dims)
        if self.padding == "causal":
            return [(k - 1, 0) for k in extents]
        pads = []
        for n, s, k in zip(dims, self.strides, extents, strict=True):
            largest = max if isinstance(n, int) else tf.maximum
            total = largest((-(-n // s) - 1) * s + k - n, 0)
            pads.append((total // 2, total - total // 2))
        return pads

    def _reached(self, dims: list[Any], b: Coded) -> list[Any]:
        return self._reached_for(dims, self._extents(b))

    def _reached_for(self, dims: list[Any], extents: list[int]) -> list[Any]:
        """How much of the padded input a result of these sizes depends on."""
        return [(n - 1) * s + k for n, s, k in zip(dims, self.strides, extents, strict=True)]

    def _dims(self, sizes: list[Any]) -> list[Any]:
        return sizes[2:] if self.channels_first else sizes[1:-1]

    def _channels(self, sizes: list[Any]) -> int:
        return sizes[1 if self.channels_first else -1]

    # --- Order of axes -------------------------------------------------------------------

    def _last(self, x: Coded) -> Coded:
        """Channels behind the dimensions."""
        if not self.channels_first:
            return x
        order = [0, *range(2, len(self.strides) + 2), 1]
        return x.moved(lambda part: tf.transpose(part, order))

    def _first(self, x: Any) -> Any:
        """Channels where the layer has them."""
        rank = len(self.strides)
        order = [0, rank + 1, *range(1, rank + 1)]
        return tf.transpose(x, order) if self.channels_first else x


@dataclasses.dataclass(frozen=True)
class Depthwise:
    """A convolution of each channel alone, of a kernel ``[..., channels, multiplier]``."""

    convolution: Convolution

    def forward(self, datapath: Datapath, a: Coded, b: Coded) -> Any:
        """See `products.Form`."""
        return self.convolution.forward(datapath, a, b.moved(_as_grouped))

    def left(self, datapath: Datapath, e: Coded, b: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        return self.convolution.left(datapath, e, b.moved(_as_grouped), sizes)

    def right(self, datapath: Datapath, a: Coded, e: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        *taps, channels, multiplier = sizes
        grouped = self.convolution.right(datapath, a, e, [*taps, 1, channels * multiplier])
        return tf.reshape(grouped, sizes)


@dataclasses.dataclass(frozen=True)
class Transposed:
    """A transposed convolution, of a kernel ``[..., output, input]``.

    It is the derivative of a convolution by its input, and that convolution is its own.

    Args:
        convolution: The convolution from outputs to inputs.
        dims: Sizes of the outputs, without samples and channels.
    """

    convolution: Convolution
    dims: tuple[Any, ...]

    def forward(self, datapath: Datapath, a: Coded, b: Coded) -> Any:
        """See `products.Form`."""
        samples, channels = sizes_of(a.codes)[0], b.codes.shape[-2]
        first = self.convolution.channels_first
        sizes = [samples, channels, *self.dims] if first else [samples, *self.dims, channels]
        return self.convolution.left(datapath, a, b, sizes)

    def left(self, datapath: Datapath, e: Coded, b: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        return self.convolution.forward(datapath, e, b)

    def right(self, datapath: Datapath, a: Coded, e: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        return self.convolution.right(datapath, e, a, sizes)


def _convolve(
    datapath: Datapath,
    x: Coded,
    kernel: Coded,
    strides: Any,
    dilations: Any,
    padding: Any = "valid",
    input_dilations: Any = None,
    groups: int = 1,
) -> Any:
    ones = (1,) * (len(x.codes.shape) - 2)
    return ops.lns_conv(
        x.codes,
        kernel.codes,
        x.format,
        kernel.format,
        x.scale,
        kernel.scale,
        strides=strides or ones,
        padding=padding,
        dilations=dilations or ones,
        input_dilations=input_dilations or ones,
        groups=groups,
        datapath=datapath,
    )


def _padded(x: Any, pads: list[tuple[Any, Any]]) -> Any:
    return tf.pad(x, [(0, 0), *pads, (0, 0)])


def _turned(kernel: Any, groups: int) -> Any:
    """A kernel upside down, its input and output channels exchanged within each group."""
    *taps, inputs, outputs = kernel.shape
    rank = len(taps)
    kernel = tf.reverse(kernel, list(range(rank)))
    kernel = tf.reshape(kernel, [*taps, inputs, groups, outputs // groups])
    kernel = tf.transpose(kernel, [*range(rank), rank + 2, rank + 1, rank])
    return tf.reshape(kernel, [*taps, outputs // groups, groups * inputs])


def _grouped_samples(x: Any, groups: int) -> Any:
    """``[samples, ..., groups * channels]`` as ``[channels, ..., groups * samples]``."""
    rank = len(x.shape) - 2
    samples, *dims, channels = sizes_of(x)
    x = tf.reshape(x, tf.stack([samples, *dims, groups, channels // groups]))
    x = tf.transpose(x, [rank + 2, *range(1, rank + 1), rank + 1, 0])
    return tf.reshape(x, tf.stack([channels // groups, *dims, groups * samples]))


def _as_grouped(kernel: Any) -> Any:
    *taps, channels, multiplier = kernel.shape
    return tf.reshape(kernel, [*taps, 1, channels * multiplier])


def _of_samples(x: Coded) -> Any:
    """Which samples have NaN, of a shape that broadcasts to results."""
    rank = len(x.codes.shape)
    return None if x.bad is None else tf.reduce_any(x.bad, range(1, rank), keepdims=True)


def _anywhere(x: Coded) -> Any:
    return None if x.bad is None else tf.reduce_any(x.bad)
