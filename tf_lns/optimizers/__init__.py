"""Optimizers for weights in LNS."""

from tf_lns.optimizers.baselines import LNSSGD, LNSAdamW
from tf_lns.optimizers.madam import LNSMadam
from tf_lns.optimizers.schedules import InverseSqrtDecay
from tf_lns.optimizers.weights import bytes_per_parameter

__all__ = ["LNSSGD", "InverseSqrtDecay", "LNSAdamW", "LNSMadam", "bytes_per_parameter"]
