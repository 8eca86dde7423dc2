"""Keras layers with integer weights and LNS products.

Each takes the arguments of its Keras layer and `lns_config`.
"""

from tf_lns.layers.conv import (
    LNSConv1D,
    LNSConv1DTranspose,
    LNSConv2D,
    LNSConv2DTranspose,
    LNSConv3D,
    LNSConv3DTranspose,
    LNSDepthwiseConv1D,
    LNSDepthwiseConv2D,
    LNSSeparableConv1D,
    LNSSeparableConv2D,
)
from tf_lns.layers.core import LNSDense, LNSEinsumDense, LNSEmbedding
from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.registry import register_layer

__all__ = [
    "LNSConv1D",
    "LNSConv1DTranspose",
    "LNSConv2D",
    "LNSConv2DTranspose",
    "LNSConv3D",
    "LNSConv3DTranspose",
    "LNSDense",
    "LNSDepthwiseConv1D",
    "LNSDepthwiseConv2D",
    "LNSEinsumDense",
    "LNSEmbedding",
    "LNSMixin",
    "LNSSeparableConv1D",
    "LNSSeparableConv2D",
    "register_layer",
]
