"""Which variables are LNS weights: those that multiply activations, and embedding tables."""

from __future__ import annotations

import re
from typing import Any

_ADDITIVE = re.compile(
    r"(^|_)(bias(es)?|gamma|beta|alpha|scale|offset|shift|moving_\w+|mean|variance|std|"
    r"temperature|count)$"
)


def multiplies_activations(variable: Any) -> bool:
    """Whether a variable is a kernel, a projection or an embedding table.

    By its name and rank: Keras layers name what they add (bias, gamma, beta, ...), and a
    variable of rank 0 or 1 is never a product's operand. Rank alone is no test: the biases of
    `MultiHeadAttention` and `GRU` have rank 2.

    Args:
        variable: Anything with `shape` and `name`.
    """
    return role_of(variable.name, variable.shape)


def keeps_grid(constraint: Any) -> bool:
    """Whether a weight on a grid may have this constraint: none, or one that says so itself."""
    return constraint is None or getattr(constraint, "keeps_lns_grid", False)


def role_of(name: str | None, shape: Any) -> bool:
    """`multiplies_activations` of a variable that is still to be made."""
    last = (name or "").split(":")[0].rsplit("/", 1)[-1]  # tf_keras: "dense/kernel:0"
    return len(shape) >= 2 and not _ADDITIVE.search(last)
