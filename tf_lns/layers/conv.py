"""Convolution layers in LNS. Each is Keras' own on the shared mixin."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as keras_ops

from tf_lns.config import LNSConfig
from tf_lns.layers.convolution import Convolution, Depthwise, Transposed
from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.operands import sizes_of
from tf_lns.layers.registry import register_layer


def convolution_of(layer: Any, **changes: Any) -> Convolution:
    """The convolution that a Keras layer's arguments say."""
    arguments = {
        "strides": tuple(layer.strides),
        "dilations": tuple(layer.dilation_rate),
        "padding": layer.padding,
        "channels_first": layer.data_format == "channels_first",
    }
    return Convolution(**{**arguments, **changes})


def channel_bias(layer: Any) -> Any:
    """A layer's bias, of a shape that broadcasts to its outputs; None if it has none."""
    if not layer.use_bias:
        return None
    ones = (1,) * layer.rank
    first = layer.data_format == "channels_first"
    return keras_ops.reshape(layer.bias, (1, -1, *ones) if first else (1, *ones, -1))


class _Convolution(LNSMixin):
    """Keras' convolutions, whose product is on the datapath where there is one."""

    def datapath_call(self, inputs: Any) -> Any:
        """Keras' call, its product on the datapath."""
        outputs = self.multiply(self.form(inputs), inputs, self.kernel, channel_bias(self))
        return outputs if self.activation is None else self.activation(outputs)

    def form(self, inputs: Any) -> Any:
        """What is summed over what; see `products.Form`."""
        return convolution_of(self)

    @classmethod
    def check_datapath(cls, config: LNSConfig, name: str) -> None:
        """As in `LNSMixin`; a subclass's own `convolution_op` would be left out, too."""
        super().check_datapath(config, name)
        (definer, *_) = [c for c in cls.__mro__ if "convolution_op" in vars(c)] or [keras.Layer]
        if config.datapath is not None and definer.__module__.split(".")[0] != "keras":
            raise ValueError(
                f"Layer {name!r} ({cls.__name__}) has a `convolution_op` of its own, which cannot "
                f"be moved to a datapath. Received: datapath={config.datapath!r}. Use a config "
                "with datapath=None for it, in `overrides`."
            )


@register_layer(keras.layers.Conv1D)
class LNSConv1D(_Convolution, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with an integer kernel; one more argument, `lns_config`."""


@register_layer(keras.layers.Conv2D)
class LNSConv2D(_Convolution, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with an integer kernel; one more argument, `lns_config`."""


@register_layer(keras.layers.Conv3D)
class LNSConv3D(_Convolution, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with an integer kernel; one more argument, `lns_config`."""


class _Depthwise(_Convolution):
    """An output channel of a depthwise kernel is a pair (input channel, multiplier)."""

    def form(self, inputs: Any) -> Any:
        """Each channel alone."""
        return Depthwise(convolution_of(self))

    def gradient_axis(self, variable: Any) -> tuple[int, ...]:
        """The last two axes."""
        rank = len(variable.shape)
        return (rank - 2, rank - 1)


@register_layer(keras.layers.DepthwiseConv1D)
class LNSDepthwiseConv1D(_Depthwise, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with an integer kernel; one more argument, `lns_config`."""


@register_layer(keras.layers.DepthwiseConv2D)
class LNSDepthwiseConv2D(_Depthwise, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with an integer kernel; one more argument, `lns_config`."""


class _Transposed(_Convolution):
    """A transposed convolution's kernel is ``[..., output, input]``."""

    def form(self, inputs: Any) -> Any:
        """The convolution from outputs to inputs, the wrong way round."""
        sizes = sizes_of(inputs)
        dims = sizes[2:] if self.data_format == "channels_first" else sizes[1:-1]
        extra = self.output_padding
        extra = (extra,) * self.rank if extra is None or isinstance(extra, int) else extra
        arguments = zip(
            dims, self.kernel_size, self.strides, self.dilation_rate, extra, strict=True
        )
        outputs = tuple(self._size(*one) for one in arguments)
        return Transposed(convolution_of(self), outputs)

    def _size(self, n: Any, kernel: int, stride: int, dilation: int, extra: int | None) -> Any:
        """Size of an output dimension, as Keras reckons it."""
        reach = (kernel - 1) * dilation + 1
        if self.padding == "valid":
            more = max(reach, stride) - reach if extra is None else extra
            return (n - 1) * stride + reach + more
        return n * stride if extra is None else (n - 1) * stride + reach % 2 + extra

    def gradient_axis(self, variable: Any) -> tuple[int, ...]:
        """The axis before the last."""
        return (len(variable.shape) - 2,)


@register_layer(keras.layers.Conv1DTranspose)
class LNSConv1DTranspose(_Transposed, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` with an integer kernel; one more argument, `lns_config`."""


@register_layer(keras.layers.Conv2DTranspose)
class LNSConv2DTranspose(_Transposed, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with an integer kernel; one more argument, `lns_config`."""


@register_layer(keras.layers.Conv3DTranspose)
class LNSConv3DTranspose(_Transposed, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` with an integer kernel; one more argument, `lns_config`."""


class SeparableArithmetic(LNSMixin):
    """Two products, so two activations: the input, and what lies between the two kernels."""

    def gradient_axis(self, variable: Any) -> tuple[int, ...]:
        """As of a depthwise kernel, and the last axis of the pointwise one."""
        rank = len(variable.shape)
        return (rank - 2, rank - 1) if variable.name == "depthwise_kernel" else (rank - 1,)

    recorded_ranges = 2

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Depthwise, then pointwise convolution, each quantized on its own."""
        between = keras_ops.depthwise_conv(
            inputs,
            self.depthwise_kernel,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )
        between = self.quantize_activation(self.quantize_error(between), 1, training)
        outputs = keras_ops.conv(
            between,
            self.pointwise_kernel,
            strides=1,
            padding="valid",
            data_format=self.data_format,
        )
        if self.use_bias:
            outputs = keras_ops.add(outputs, channel_bias(self))
        return self.activation(outputs) if self.activation is not None else outputs

    def datapath_call(self, inputs: Any, training: Any = None) -> Any:
        """The same, both products on the datapath."""
        between = self.multiply(Depthwise(convolution_of(self)), inputs, self.depthwise_kernel)
        between = self.quantize_activation(between, 1, training)
        ones = (1,) * self.rank
        pointwise = convolution_of(self, strides=ones, dilations=ones, padding="valid")
        outputs = self.multiply(pointwise, between, self.pointwise_kernel, channel_bias(self))
        return self.activation(outputs) if self.activation is not None else outputs


@register_layer(keras.layers.SeparableConv1D)
class LNSSeparableConv1D(SeparableArithmetic, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` with integer kernels; one more argument, `lns_config`."""


@register_layer(keras.layers.SeparableConv2D)
class LNSSeparableConv2D(SeparableArithmetic, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with integer kernels; one more argument, `lns_config`."""
