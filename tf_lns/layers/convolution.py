"""Convolutions of any kind on a datapath: each of their derivatives is a convolution as well."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tf_lns import ops
from tf_lns.datapath import Datapath
from tf_lns.layers.operands import Coded, poisoned, reshaped, sizes_of


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution of 1 to 3 dimensions with groups; a form of `products.multiply`.

    The terms of a sum are added in this order: forward the taps of the kernel, row by row, with
    the input channels of each; for dx the taps from the last to the first, with the output
    channels of each; for dw the positions of dy, with the samples of each. (Of a depthwise
    kernel: for dw the samples, with the positions of each.)

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
        padding: Any = self.padding
        if padding == "causal":
            padding = [(k - 1, 0) for k in self._extents(b.codes.shape)]
        y = self._convolve(datapath, x, b, padding, strides=self.strides, dilations=self.dilations)
        return self._first(poisoned(y, _of_samples(x)))

    def left(self, datapath: Datapath, e: Coded, b: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        e = self._last(e)
        dims, outputs = self._dims(sizes), sizes_of(e.codes)[1:-1]
        extents = self._extents(b.codes.shape)
        channels = sizes[1 if self.channels_first else -1]
        kernel = b._replace(codes=_turned(b.codes, channels // b.codes.shape[-2]))
        steps: Any = {"dilations": self.dilations, "input_dilations": self.strides}
        pads = self._pads(dims, extents)
        reached = self._reached(outputs, extents)
        around = [
            (k - 1 - low, k - 1 + low + n - r)
            for k, (low, _), n, r in zip(extents, pads, dims, reached, strict=True)
        ]
        if _are_known(around):
            x = self._convolve(datapath, e, kernel, around, **steps)
        else:  # with all that dy reaches, of which the padding is cut off
            around = [(k - 1, k - 1) for k in extents]
            x = self._convolve(datapath, e, kernel, around, **steps)
            more = [
                (0, tf.maximum(low + n - r, 0))
                for (low, _), n, r in zip(pads, dims, reached, strict=True)
            ]
            x = tf.pad(x, [(0, 0), *more, (0, 0)])
            x = tf.slice(x, [0, *(low for low, _ in pads), 0], [-1, *dims, -1])
        return self._first(poisoned(x, _of_samples(e)))

    def right(self, datapath: Datapath, a: Coded, e: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        x, e = self._last(a), self._last(e)
        rank = len(self.strides)
        # Samples become channels, and the channels of a group samples.
        x, padding = self._windows(x, e, sizes)
        groups = sizes_of(x.codes)[-1] // sizes[-2]
        samples = x._replace(codes=_exchanged(x.codes, groups))
        kernel = e._replace(codes=tf.transpose(e.codes, [*range(1, rank + 1), 0, rank + 1]))
        w = self._convolve(
            datapath,
            samples,
            kernel,
            padding,
            strides=self.dilations,
            dilations=self.strides,
            groups=groups,
        )
        w = tf.transpose(w, [*range(1, rank + 1), 0, rank + 1])
        return poisoned(w, _anywhere(x), _anywhere(e))

    def right_depthwise(self, datapath: Datapath, a: Coded, e: Coded, sizes: list[Any]) -> Any:
        """`right` of a kernel ``[..., channels, multiplier]`` of one or two dimensions."""
        x, e = self._last(a), self._last(e)
        x, padding = self._windows(x, e, sizes)
        *outputs, _ = sizes_of(e.codes)
        kernel = reshaped(e.codes, [*outputs, *sizes[-2:]])
        w = ops.lns_depthwise_conv(
            x.codes[None],
            kernel,
            x.format,
            e.format,
            x.scale,
            e.scale,
            strides=(1, *self.dilations),
            padding=[(0, 0), *padding],
            dilations=(1, *self.strides),
            datapath=datapath,
        )
        return poisoned(tf.reshape(w, sizes), _anywhere(x), _anywhere(e))

    # --- Sizes ---------------------------------------------------------------------------

    def _extents(self, kernel: Any) -> list[int]:
        """How far the taps of a kernel of this shape reach."""
        taps = list(kernel)[: len(self.strides)]
        return [(k - 1) * d + 1 for k, d in zip(taps, self.dilations, strict=True)]

    def _pads(self, dims: list[Any], extents: list[int]) -> list[tuple[Any, Any]]:
        """Zeros before and behind each dimension, as TensorFlow pads."""
        if self.padding == "valid":
            return [(0, 0)] * len(dims)
        if self.padding == "causal":
            return [(k - 1, 0) for k in extents]
        pads = []
        for n, s, k in zip(dims, self.strides, extents, strict=True):
            largest: Any = max if isinstance(n, int) else tf.maximum
            total = largest((-(-n // s) - 1) * s + k - n, 0)
            pads.append((total // 2, total - total // 2))
        return pads

    def _reached(self, outputs: list[Any], extents: list[int]) -> list[Any]:
        """How much of the padded input results of these sizes depend on."""
        return [(n - 1) * s + k for n, s, k in zip(outputs, self.strides, extents, strict=True)]

    def _windows(self, x: Coded, e: Coded, kernel: list[Any]) -> tuple[Coded, Any]:
        """What of x the results depend on, and how it is padded."""
        dims, extents = sizes_of(x.codes)[1:-1], self._extents(kernel)
        pads = self._pads(dims, extents)
        reached = self._reached(sizes_of(e.codes)[1:-1], extents)
        padding = [(low, r - n - low) for (low, _), n, r in zip(pads, dims, reached, strict=True)]
        if _are_known(padding):
            return x, padding
        codes = tf.pad(x.codes, [(0, 0), *pads, (0, 0)])
        codes = tf.slice(codes, [0] * len(codes.shape), [-1, *reached, -1])
        codes.set_shape([x.codes.shape[0], *[None] * len(dims), x.codes.shape[-1]])
        return x._replace(codes=codes), [(0, 0)] * len(dims)

    def _dims(self, sizes: list[Any]) -> list[Any]:
        return sizes[2:] if self.channels_first else sizes[1:-1]

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

    def _convolve(
        self,
        datapath: Datapath,
        x: Coded,
        kernel: Coded,
        padding: Any,
        groups: int | None = None,
        **steps: Any,
    ) -> Any:
        if groups is None:
            groups = x.codes.shape[-1] // kernel.codes.shape[-2]
        return ops.lns_conv(
            x.codes,
            kernel.codes,
            x.format,
            kernel.format,
            x.scale,
            kernel.scale,
            padding=padding,
            groups=groups,
            datapath=datapath,
            **steps,
        )


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
        return self.convolution.right_depthwise(datapath, a, e, sizes)


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


def _are_known(pads: list[tuple[Any, Any]]) -> bool:
    return all(isinstance(pad, int) for pair in pads for pad in pair)


def _turned(kernel: Any, groups: int) -> Any:
    """A kernel upside down, its input and output channels exchanged within each group."""
    *taps, inputs, outputs = kernel.shape
    rank = len(taps)
    kernel = tf.reverse(kernel, list(range(rank)))
    kernel = tf.reshape(kernel, [*taps, inputs, groups, outputs // groups])
    kernel = tf.transpose(kernel, [*range(rank), rank + 2, rank + 1, rank])
    return tf.reshape(kernel, [*taps, outputs // groups, groups * inputs])


def _exchanged(x: Any, groups: int) -> Any:
    """``[samples, ..., groups * channels]`` as ``[channels, ..., groups * samples]``."""
    rank = len(x.shape) - 2
    samples, *dims, channels = sizes_of(x)
    x = reshaped(x, [samples, *dims, groups, channels // groups])
    x = tf.transpose(x, [rank + 2, *range(1, rank + 1), rank + 1, 0])
    return reshaped(x, [channels // groups, *dims, groups * samples])


def _as_grouped(kernel: Any) -> Any:
    *taps, channels, multiplier = kernel.shape
    return tf.reshape(kernel, [*taps, 1, channels * multiplier])


def _of_samples(x: Coded) -> Any:
    """Which samples have NaN, of a shape that broadcasts to results."""
    rank = len(x.codes.shape)
    return None if x.bad is None else tf.reduce_any(x.bad, range(1, rank), keepdims=True)


def _anywhere(x: Coded) -> Any:
    return None if x.bad is None else tf.reduce_any(x.bad)
