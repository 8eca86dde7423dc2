"""What a training step costs: counts of what is executed, priced with open tables."""

from tf_lns.energy.comparison import Comparison, compare, retarget
from tf_lns.energy.count import tally, tally_evaluation
from tf_lns.energy.counts import Tally
from tf_lns.energy.price import Energy, Price, unit_price
from tf_lns.energy.records import Operand, Record, Traffic, Unpriced
from tf_lns.energy.table import EnergyTable, tables

__all__ = [
    "Comparison",
    "Energy",
    "EnergyTable",
    "Operand",
    "Price",
    "Record",
    "Tally",
    "Traffic",
    "Unpriced",
    "compare",
    "retarget",
    "tables",
    "tally",
    "tally_evaluation",
    "unit_price",
]
