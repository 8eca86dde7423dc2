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

__all__ = [
    "decode",
    "encode",
    "quantize",
    "quantize_gradient",
    "quantize_with_scale",
    "requantize",
    "requantize_scale",
    "scale_of",
]
