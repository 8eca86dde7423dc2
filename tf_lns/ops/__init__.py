"""The compiled operations of tf_lns on TensorFlow tensors."""

from tf_lns.ops.codec import (
    decode,
    encode,
    quantize,
    quantize_gradient,
    quantize_with_scale,
    requantize,
    requantize_scale,
    scale_of,
)
from tf_lns.ops.conv import lns_conv, lns_conv2d, lns_depthwise_conv, lns_depthwise_conv2d
from tf_lns.ops.product import lns_matmul

__all__ = [
    "decode",
    "encode",
    "lns_conv",
    "lns_conv2d",
    "lns_depthwise_conv",
    "lns_depthwise_conv2d",
    "lns_matmul",
    "quantize",
    "quantize_gradient",
    "quantize_with_scale",
    "requantize",
    "requantize_scale",
    "scale_of",
]
