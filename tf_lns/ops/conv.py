"""Convolutions of codes on a datapath: the compiled op behind checked wrappers.

They equal `tf_lns.reference.lns_conv` bit for bit.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_lns.datapath import Datapath, pair_of_formats
from tf_lns.ops.call import call, code_tensor, scale_tensor
from tf_lns.ops.product import product_attributes, refuse_gradient
from tf_lns.ops.recording import show
from tf_lns.reference import Window, check_conv_shapes

_AXES = 3  # the op's spatial axes


def lns_conv(
    x: Any,
    kernel: Any,
    x_format: Any,
    kernel_format: Any = None,
    x_scale: Any = 1.0,
    kernel_scale: Any = 1.0,
    strides: Any = 1,
    padding: Any = "valid",
    dilations: Any = 1,
    input_dilations: Any = 1,
    groups: int = 1,
    datapath: Any = None,
) -> tf.Tensor:
    """Convolution of codes over 1 to 3 spatial axes, as a datapath computes it, bit for bit.

    It is `lns_matmul` of the patches of x and the flattened filter: the terms of an output come
    in the order ``[spatial..., C / groups]`` of the filter, and `vector_size` of them in a row
    are a vector. A position of padding is code 0 and has its place in the vector.

    The other two products of training are convolutions too. With ``s``, ``d`` and ``(low, high)``
    the strides, dilations and pads of ``y = lns_conv(x, kernel)`` over ``size`` elements::

        dx: of dy and the filter, flipped and its channels swapped, with input_dilations=s,
            dilations=d, padding ((taps-1) d - low,  size + low - 1 - (outputs-1) s)
        dw: of x as [C, spatial..., N] and dy as [outputs..., N, O], with strides=d, dilations=s,
            padding (low,  (taps-1) d + (outputs-1) s + 1 - size - low)

    Args:
        x: Codes ``[N, spatial..., C]``.
        kernel: Codes ``[spatial..., C / groups, O]``, as in TensorFlow not flipped.
        x_format: `LNSFormat` of `x`, or its short form.
        kernel_format: Format of `kernel`, of the same base factor; None for that of `x`.
        x_scale: Scale of `x`, a scalar.
        kernel_scale: Scale of `kernel`: a scalar, or ``[O]`` for one per output channel.
        strides: Steps from one output to the next: a number for all axes or one for each.
        padding: "valid", "same" (as TensorFlow pads, for the dilated input), or for each axis a
            pair of how many positions are added before and after; negative ones cut off.
        dilations: Steps from one tap of the filter to the next.
        input_dilations: Steps from one element of x to the next, with padding in between.
        groups: Channels and output channels fall into so many groups; one sees only its own.
            With as many groups as channels this is a depthwise convolution, which has loops of
            its own that are fast.
        datapath: `Datapath`, its dict, or None for the defaults.

    Returns:
        float32 ``[N, outputs..., O]``, empty where the filter does not fit. There is no gradient:
        codes are integers.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes do not fit, an argument is out of range, base factors differ, or the
            datapath does not fit them.
        tf.errors.InvalidArgumentError: A code lies outside of its format, a scale is no finite
            normal number, or shapes do not fit where they were not known before.
    """
    datapath = Datapath.get(datapath)
    x_format, kernel_format = pair_of_formats(x_format, kernel_format)
    x = code_tensor(x, x_format, "x")
    kernel = code_tensor(kernel, kernel_format, "kernel")
    x_scale = scale_tensor(x_scale, "x_scale")
    kernel_scale = scale_tensor(kernel_scale, "kernel_scale")
    _check_rank(x, "x")
    _check_rank(kernel, "kernel")
    check_conv_shapes(x.shape, kernel.shape, groups)
    rank = len(kernel.shape) - 2
    window = Window.of(rank, strides, padding, dilations, input_dilations)
    result = call(
        "lns_conv",
        _with_axes(x, 1, _AXES - rank),
        _with_axes(kernel, 0, _AXES - rank),
        x_scale,
        kernel_scale,
        groups=int(groups),
        **_window_attributes(window, _AXES - rank),
        **product_attributes(datapath, x_format, kernel_format),
    )
    if rank < _AXES:
        result = tf.squeeze(result, list(range(1, 1 + _AXES - rank)))
    show(
        operation="conv",
        a=x,
        b=kernel,
        a_format=x_format,
        b_format=kernel_format,
        a_scale=x_scale,
        b_scale=kernel_scale,
        datapath=datapath,
        result=result,
        options={"window": window, "groups": int(groups)},
    )
    return result


def lns_conv2d(x: Any, kernel: Any, *arguments: Any, **named: Any) -> tf.Tensor:
    """`lns_conv` over two spatial axes: x ``[N, H, W, C]``, kernel ``[h, w, C / groups, O]``.

    Args:
        x: Codes.
        kernel: Codes.
        *arguments: As of `lns_conv`.
        **named: As of `lns_conv`.

    Returns:
        float32 ``[N, outputs..., O]``.

    Raises:
        ValueError: `kernel` has another rank than 4, or as `lns_conv`.
    """
    _check_two_axes(kernel)
    return lns_conv(x, kernel, *arguments, **named)


def lns_depthwise_conv(
    x: Any,
    kernel: Any,
    x_format: Any,
    kernel_format: Any = None,
    x_scale: Any = 1.0,
    kernel_scale: Any = 1.0,
    strides: Any = 1,
    padding: Any = "valid",
    dilations: Any = 1,
    input_dilations: Any = 1,
    datapath: Any = None,
) -> tf.Tensor:
    """Convolution of each channel with filters of its own: `lns_conv` of as many groups.

    The gradient of a filter over one or two axes is this too, without any transposed copy: of
    x as ``[1, N, spatial..., C]`` and dy as ``[N, outputs..., C, multiplier]``, with the strides
    and dilations of `lns_conv` and 1 along N.

    Args:
        x: Codes ``[N, spatial..., C]``.
        kernel: Codes ``[spatial..., C, multiplier]``; the last two sizes must be known.
        x_format: `LNSFormat` of `x`, or its short form.
        kernel_format: Format of `kernel`, of the same base factor; None for that of `x`.
        x_scale: Scale of `x`, a scalar.
        kernel_scale: Scale of `kernel`: a scalar, or ``[C, multiplier]``.
        strides: As in `lns_conv`.
        padding: As in `lns_conv`.
        dilations: As in `lns_conv`.
        input_dilations: As in `lns_conv`.
        datapath: As in `lns_conv`.

    Returns:
        float32 ``[N, outputs..., C * multiplier]``, the multiplier running faster.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: As `lns_conv`.
        tf.errors.InvalidArgumentError: As `lns_conv`.
    """
    _, kernel_format = pair_of_formats(x_format, kernel_format)
    kernel = code_tensor(kernel, kernel_format, "kernel")
    _check_rank(kernel, "kernel")
    channels, multiplier = kernel.shape[-2:]
    if channels is None or multiplier is None:
        raise ValueError(
            f"`kernel` must have known channels. Received: kernel of shape {kernel.shape}"
        )
    kernel_scale = scale_tensor(kernel_scale, "kernel_scale")
    if kernel_scale.shape.rank != 0:
        if not kernel_scale.shape.is_compatible_with([channels, multiplier]):
            raise ValueError(
                f"`kernel_scale` must be a scalar or of shape [{channels}, {multiplier}]. "
                f"Received: shape {kernel_scale.shape}"
            )
        kernel_scale = tf.reshape(kernel_scale, [channels * multiplier])
    taps = tf.shape(kernel)[:-2]
    if kernel.shape[:-2].is_fully_defined():
        taps = list(kernel.shape[:-2])
    return lns_conv(
        x,
        tf.reshape(kernel, tf.concat([taps, [1, channels * multiplier]], 0)),
        x_format,
        kernel_format,
        x_scale,
        kernel_scale,
        strides,
        padding,
        dilations,
        input_dilations,
        channels,
        datapath,
    )


def lns_depthwise_conv2d(x: Any, kernel: Any, *arguments: Any, **named: Any) -> tf.Tensor:
    """`lns_depthwise_conv` over two spatial axes: kernel ``[h, w, C, multiplier]``.

    Args:
        x: Codes ``[N, H, W, C]``.
        kernel: Codes.
        *arguments: As of `lns_depthwise_conv`.
        **named: As of `lns_depthwise_conv`.

    Returns:
        float32 ``[N, outputs..., C * multiplier]``.

    Raises:
        ValueError: `kernel` has another rank than 4, or as `lns_depthwise_conv`.
    """
    _check_two_axes(kernel)
    return lns_depthwise_conv(x, kernel, *arguments, **named)


def _check_rank(tensor: tf.Tensor, name: str) -> None:
    if tensor.shape.rank is None:
        raise ValueError(f"`{name}` must have a known rank. Received: {name}={tensor}")


def _check_two_axes(kernel: Any) -> None:
    rank = getattr(getattr(kernel, "shape", None), "rank", None)
    rank = len(tf.convert_to_tensor(kernel).shape) if rank is None else rank
    if rank != 4:
        raise ValueError(f"`kernel` must have rank 4. Received: kernel of rank {rank}")


def _with_axes(tensor: tf.Tensor, at: int, count: int) -> tf.Tensor:
    """The tensor with `count` axes of size 1 from `at` on."""
    for _ in range(count):
        tensor = tf.expand_dims(tensor, at)
    return tensor


def _window_attributes(window: Window, missing: int) -> dict[str, Any]:
    """Attributes of the op, for `missing` axes in front that have size 1."""
    ones, pads = [1] * missing, [0] * (2 * missing)
    explicit = not isinstance(window.padding, str)
    return {
        "strides": ones + list(window.strides),
        "dilations": ones + list(window.dilations),
        "input_dilations": ones + list(window.input_dilations),
        "padding": "EXPLICIT" if explicit else str(window.padding).upper(),
        "explicit_paddings": [*pads, *(p for pair in window.padding for p in pair)]
        if explicit
        else [],
    }


tf.RegisterGradient("LnsConv")(refuse_gradient)
