"""Optimizers for weights in LNS."""

from tf_lns.optimizers.madam import LNSMadam
from tf_lns.optimizers.schedules import InverseSqrtDecay

__all__ = ["InverseSqrtDecay", "LNSMadam"]
