"""Keras layers with integer weights and LNS products.

Each takes the arguments of its Keras layer and `lns_config`.
"""

from tf_lns.layers.attention import LNSGroupQueryAttention, LNSMultiHeadAttention
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
from tf_lns.layers.recurrent import (
    LNSGRU,
    LNSLSTM,
    LNSRNN,
    LNSConvLSTM1D,
    LNSConvLSTM2D,
    LNSConvLSTM3D,
    LNSConvLSTMCell,
    LNSGRUCell,
    LNSLSTMCell,
    LNSSimpleRNN,
    LNSSimpleRNNCell,
)
from tf_lns.layers.registry import register_layer
from tf_lns.layers.wrapper import LNSWrapper

__all__ = [
    "LNSGRU",
    "LNSLSTM",
    "LNSRNN",
    "LNSConv1D",
    "LNSConv1DTranspose",
    "LNSConv2D",
    "LNSConv2DTranspose",
    "LNSConv3D",
    "LNSConv3DTranspose",
    "LNSConvLSTM1D",
    "LNSConvLSTM2D",
    "LNSConvLSTM3D",
    "LNSConvLSTMCell",
    "LNSDense",
    "LNSDepthwiseConv1D",
    "LNSDepthwiseConv2D",
    "LNSEinsumDense",
    "LNSEmbedding",
    "LNSGRUCell",
    "LNSGroupQueryAttention",
    "LNSLSTMCell",
    "LNSMixin",
    "LNSMultiHeadAttention",
    "LNSSeparableConv1D",
    "LNSSeparableConv2D",
    "LNSSimpleRNN",
    "LNSSimpleRNNCell",
    "LNSWrapper",
    "register_layer",
]
