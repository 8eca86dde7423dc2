"""Convolution layers in LNS. Each is Keras' own on the shared mixin."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as keras_ops

from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.registry import register_layer


@register_layer(keras.layers.Conv1D)
class LNSConv1D(LNSMixin, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with an integer kernel; one more argument, `lns_config`."""


@register_layer(keras.layers.Conv2D)
class LNSConv2D(LNSMixin, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with an integer kernel; one more argument, `lns_config`."""


@register_layer(keras.layers.Conv3D)
class LNSConv3D(LNSMixin, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with an integer kernel; one more argument, `lns_config`."""


class _Depthwise(LNSMixin):
    """An output channel of a depthwise kernel is a pair (input channel, multiplier)."""

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


class _Transposed(LNSMixin):
    """A transposed convolution's kernel is ``[..., output, input]``."""

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
            channels_last = self.data_format == "channels_last"
            ones = (1,) * self.rank
            shape = (1, *ones, self.filters) if channels_last else (1, self.filters, *ones)
            outputs = keras_ops.add(outputs, keras_ops.reshape(self.bias, shape))
        return self.activation(outputs) if self.activation is not None else outputs


@register_layer(keras.layers.SeparableConv1D)
class LNSSeparableConv1D(SeparableArithmetic, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` with integer kernels; one more argument, `lns_config`."""


@register_layer(keras.layers.SeparableConv2D)
class LNSSeparableConv2D(SeparableArithmetic, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with integer kernels; one more argument, `lns_config`."""
