"""Quantization-aware training in LNS for tf_keras models."""

from tf_lns.tfmot.callback import EnergyCallback
from tf_lns.tfmot.optimizer import LNSSGD, InverseSqrtDecay, LNSAdamW, LNSMadam

__all__ = ["LNSSGD", "EnergyCallback", "InverseSqrtDecay", "LNSAdamW", "LNSMadam"]
