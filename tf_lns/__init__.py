"""Train Keras models in a logarithmic number system (LNS-Madam, arXiv:2106.13914)."""

from tf_lns import energy, layers, ops, optimizers, quantizers, reference
from tf_lns.calibrate import calibrate
from tf_lns.config import LNSConfig
from tf_lns.convert import quantize_model, strip
from tf_lns.datapath import Datapath
from tf_lns.energy.callback import EnergyCallback
from tf_lns.export import export_model, load_export
from tf_lns.files import load_weights
from tf_lns.formats import LNSFormat
from tf_lns.layers.registry import register_layer
from tf_lns.optimizers import LNSSGD, InverseSqrtDecay, LNSAdamW, LNSMadam
from tf_lns.quantizers import LNSQuantizer
from tf_lns.scope import scope
from tf_lns.summary import summary
from tf_lns.variable import LNSVariable

__version__ = "0.1.0"

__all__ = [
    "LNSSGD",
    "Datapath",
    "EnergyCallback",
    "InverseSqrtDecay",
    "LNSAdamW",
    "LNSConfig",
    "LNSFormat",
    "LNSMadam",
    "LNSQuantizer",
    "LNSVariable",
    "calibrate",
    "energy",
    "export_model",
    "layers",
    "load_export",
    "load_weights",
    "ops",
    "optimizers",
    "quantize_model",
    "quantizers",
    "reference",
    "register_layer",
    "scope",
    "strip",
    "summary",
]
