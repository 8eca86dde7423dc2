"""Quantization-aware training in LNS for tf_keras models."""

from tf_lns.tfmot.callback import EnergyCallback
from tf_lns.tfmot.optimizer import InverseSqrtDecay, LNSMadam

__all__ = ["EnergyCallback", "InverseSqrtDecay", "LNSMadam"]
