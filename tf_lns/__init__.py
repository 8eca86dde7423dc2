"""Train Keras models in a logarithmic number system (LNS-Madam, arXiv:2106.13914)."""

from tf_lns import ops, optimizers, reference
from tf_lns.formats import LNSFormat
from tf_lns.optimizers import InverseSqrtDecay, LNSMadam
from tf_lns.variable import LNSVariable

__version__ = "0.1.0"

__all__ = [
    "InverseSqrtDecay",
    "LNSFormat",
    "LNSMadam",
    "LNSVariable",
    "ops",
    "optimizers",
    "reference",
]
