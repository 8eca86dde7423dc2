"""Convolutions of codes on a datapath, in NumPy: explicit patches and a product of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_lns.datapath import Datapath, pair_of_formats
from tf_lns.reference.codec import F32, checked_codes
from tf_lns.reference.product import lns_matmul
from tf_lns.reference.window import Window


def conv_patches(x, taps: tuple[int, ...], window: Window) -> np.ndarray:
    """What a filter meets at each output, 0 where it meets padding.

    Args:
        x: Codes ``[N, spatial..., C]``.
        taps: Size of the filter along each spatial axis.
        window: How it moves.

    Returns:
        ``[N, outputs..., taps..., C]``.
    """
    rank = len(taps)
    at = [window.positions(i, x.shape[1 + i], taps[i]) for i in range(rank)]
    x = np.pad(x, [(0, 0), *[(0, 1)] * rank, (0, 0)])  # position -1 is a zero
    for i in range(rank):  # an axis becomes two: outputs, taps
        x = np.take(x, at[i], axis=1 + 2 * i)
    order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1]
    return np.transpose(x, order)


def lns_conv(
    x,
    kernel,
    x_format,
    kernel_format=None,
    x_scale=1.0,
    kernel_scale=1.0,
    strides=1,
    padding="valid",
    dilations=1,
    input_dilations=1,
    groups: int = 1,
    datapath: Datapath | dict | None = None,
) -> np.ndarray:
    """Convolution of codes on a datapath, over 1 to 3 spatial axes, channels last.

    It is the product of the patches of x and the flattened filter: term k of an output is tap
    and channel in the order ``[spatial..., C / groups]``, and a vector is `vector_size` of them
    in a row. A position of padding is code 0 and has its place in the vector.

    Args:
        x: Codes ``[N, spatial..., C]``.
        kernel: Codes ``[spatial..., C / groups, O]``, as in TensorFlow not flipped.
        x_format: Format of `x`.
        kernel_format: Format of `kernel`, of the same base factor; None for that of `x`.
        x_scale: Scale of `x`, a scalar.
        kernel_scale: Scale of `kernel`: a scalar, or ``[O]`` for one per output channel.
        strides: See `Window`; a number for all axes or one for each.
        padding: "valid", "same" (of the dilated input) or a pair per axis.
        dilations: Steps between taps.
        input_dilations: Steps between elements of x.
        groups: Output channels and channels fall into so many groups, of which each sees its own.
        datapath: `Datapath`, its dict, or None for the defaults.

    Returns:
        float32 ``[N, outputs..., O]``, empty where the filter does not fit.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Arguments do not fit each other, or codes are out of range.
    """
    x_format, kernel_format = pair_of_formats(x_format, kernel_format)
    x, kernel = checked_codes(x, x_format), checked_codes(kernel, kernel_format)
    rank = kernel.ndim - 2
    check_conv_shapes(x.shape, kernel.shape, groups)
    window = Window.of(rank, strides, padding, dilations, input_dilations)
    inputs, outputs = kernel.shape[-2], kernel.shape[-1]
    x_scale, kernel_scale = np.asarray(x_scale, F32), np.asarray(kernel_scale, F32)
    if x_scale.ndim:
        raise ValueError(f"`x_scale` must be a scalar. Received: shape {x_scale.shape}")
    if kernel_scale.shape not in ((), (outputs,)):
        raise ValueError(
            f"`kernel_scale` must be a scalar or of shape [{outputs}]. "
            f"Received: shape {kernel_scale.shape}"
        )
    patches = conv_patches(x, kernel.shape[:-2], window)
    scales = np.broadcast_to(kernel_scale, outputs)[None, :]
    size = int(np.prod(kernel.shape[:-1]))
    lead = patches.shape[: 1 + rank]
    results = []
    for g in range(groups):
        mine = slice(g * outputs // groups, (g + 1) * outputs // groups)
        results.append(
            lns_matmul(
                patches[..., g * inputs : (g + 1) * inputs].reshape(int(np.prod(lead)), size),
                kernel[..., mine].reshape(size, -1 if size else outputs // groups),
                x_format,
                kernel_format,
                x_scale,
                scales[:, mine],
                datapath=datapath,
            )
        )
    return np.concatenate(results, axis=-1).reshape(*lead, outputs)


def lns_depthwise_conv(
    x,
    kernel,
    x_format,
    kernel_format=None,
    x_scale=1.0,
    kernel_scale=1.0,
    strides=1,
    padding="valid",
    dilations=1,
    input_dilations=1,
    datapath: Datapath | dict | None = None,
) -> np.ndarray:
    """Convolution of each channel with filters of its own, `lns_conv` of as many groups.

    Args:
        x: Codes ``[N, spatial..., C]``.
        kernel: Codes ``[spatial..., C, multiplier]``.
        x_format: Format of `x`.
        kernel_format: Format of `kernel`; None for that of `x`.
        x_scale: Scale of `x`, a scalar.
        kernel_scale: A scalar, or ``[C, multiplier]``.
        strides: As in `lns_conv`.
        padding: As in `lns_conv`.
        dilations: As in `lns_conv`.
        input_dilations: As in `lns_conv`.
        datapath: As in `lns_conv`.

    Returns:
        float32 ``[N, outputs..., C * multiplier]``, the multiplier running faster.
    """
    kernel, kernel_scale = np.asarray(kernel), np.asarray(kernel_scale, F32)
    channels, multiplier = kernel.shape[-2:]
    if kernel_scale.shape not in ((), (channels, multiplier)):
        raise ValueError(
            f"`kernel_scale` must be a scalar or of shape [{channels}, {multiplier}]. "
            f"Received: shape {kernel_scale.shape}"
        )
    return lns_conv(
        x,
        kernel.reshape(*kernel.shape[:-2], 1, channels * multiplier),
        x_format,
        kernel_format,
        x_scale,
        kernel_scale.reshape(-1) if kernel_scale.ndim else kernel_scale,
        strides,
        padding,
        dilations,
        input_dilations,
        channels,
        datapath,
    )


def check_conv_shapes(x: Any, kernel: Any, groups: Any) -> None:
    """Raises unless the shapes fit each other; None is a size that is not known yet.

    Raises:
        TypeError: `groups` is no integer.
        ValueError: A rank or a size is wrong.
    """
    if isinstance(groups, bool) or not isinstance(groups, int | np.integer):
        raise TypeError(f"`groups` must be an integer. Received: groups={groups!r}")
    x, kernel = tuple(x), tuple(kernel)
    if len(kernel) not in (3, 4, 5) or len(x) != len(kernel):
        raise ValueError(
            "`x` must be [N, spatial..., C] and `kernel` [spatial..., C / groups, O], with 1 to 3 "
            f"spatial axes. Received: x of shape {x}, kernel of shape {kernel}"
        )
    if groups < 1 or (kernel[-1] is not None and kernel[-1] % groups):
        raise ValueError(
            "`groups` must be positive and divide the output channels. "
            f"Received: groups={groups}, kernel of shape {kernel}"
        )
    if x[-1] is not None and kernel[-2] is not None and x[-1] != kernel[-2] * groups:
        raise ValueError(
            f"`x` must have {kernel[-2] * groups} channels, {groups} times those of `kernel`. "
            f"Received: x of shape {x}, kernel of shape {kernel}, groups={groups}"
        )
    if 0 in kernel[:-2]:
        raise ValueError(f"`kernel` must have a tap on each axis. Received: shape {kernel}")
