"""Einsum on a datapath, as a batch of matrix products."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_lns import ops
from tf_lns.datapath import Datapath
from tf_lns.layers.operands import Coded, poisoned, reshaped, sizes_of

Labels = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Einsum:
    """An einsum of two operands; a form of `products.multiply`.

    The terms of a sum are added in the order of the summed axes as the left operand has them:
    x forward, dy for dx, x for dw.

    Args:
        equation: As of `tf.einsum`, such as "...k,kn->...n". Each letter stands once in an
            operand, and none is summed in one operand alone.
    """

    equation: str

    def forward(self, datapath: Datapath, a: Coded, b: Coded) -> Any:
        """See `products.Form`."""
        x, w, y = labels_of(self.equation, len(a.codes.shape), len(b.codes.shape))
        return contract(datapath, a, x, b, w, y)

    def left(self, datapath: Datapath, e: Coded, b: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        x, w, y = labels_of(self.equation, len(sizes), len(b.codes.shape))
        return contract(datapath, e, y, b, w, x)

    def right(self, datapath: Datapath, a: Coded, e: Coded, sizes: list[Any]) -> Any:
        """See `products.Form`."""
        x, w, y = labels_of(self.equation, len(a.codes.shape), len(sizes))
        return contract(datapath, a, x, e, y, w)


def labels_of(equation: str, a_rank: int, b_rank: int) -> tuple[Labels, Labels, Labels]:
    """The labels of each axis of both operands and of the result.

    Raises:
        ValueError: It is no equation that is one batch of matrix products.
    """
    terms, arrow, result = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    if not arrow or len(operands) != 2:
        raise ValueError(
            "On a datapath an einsum has two operands and says its result, as in "
            f'"...k,kn->...n". Received: equation={equation!r}'
        )
    a, b = (_expanded(t, r, equation) for t, r in zip(operands, (a_rank, b_rank), strict=True))
    dots = max(sum(x.startswith(".") for x in labels) for labels in (a, b))
    y = _expanded(result, len(result.replace("...", "")) + dots, equation)
    for labels in (a, b, y):
        if len(set(labels)) < len(labels):
            raise ValueError(
                "On a datapath each letter of an einsum stands once in an operand. "
                f"Received: equation={equation!r}"
            )
    alone = [x for x in (*a, *b) if (x in a) + (x in b) + (x in y) < 2]
    if alone or not set(y) <= {*a, *b}:
        raise ValueError(
            "On a datapath an einsum sums over letters that both operands have. "
            f"Received: equation={equation!r}"
        )
    return a, b, y


def _expanded(term: str, rank: int, equation: str) -> Labels:
    """One label for each axis; those under "..." are counted from the end."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        raise ValueError(
            f"{equation!r} does not fit operands of these ranks. Received: {term!r} for an "
            f"operand of rank {rank}"
        )
    return (*before, *(f".{i}" for i in reversed(range(hidden))), *after)


def contract(
    datapath: Datapath, a: Coded, a_labels: Labels, b: Coded, b_labels: Labels, y_labels: Labels
) -> Any:
    """The einsum of two operands of codes: float32, axes as in `y_labels`."""
    both = [x for x in y_labels if x in a_labels and x in b_labels]
    rows = [x for x in a_labels if x not in b_labels]
    columns = [x for x in b_labels if x not in a_labels]
    summed = [x for x in a_labels if x in b_labels and x not in y_labels]
    a_matrix, transpose_a = _matrices(a.codes, a_labels, both, rows, summed)
    b_matrix, transpose_b = _matrices(b.codes, b_labels, both, summed, columns)
    product = ops.lns_matmul(
        a_matrix,
        b_matrix,
        a.format,
        b.format,
        a.scale,
        b.scale,
        transpose_a=transpose_a,
        transpose_b=transpose_b,
        datapath=datapath,
    )
    sizes = dict(zip(a_labels, sizes_of(a.codes), strict=True))
    sizes |= dict(zip(b_labels, sizes_of(b.codes), strict=True))
    found = [*both, *rows, *columns]
    y = _transposed(reshaped(product, [sizes[x] for x in found]), found, y_labels)
    return poisoned(y, _spread(a, a_labels, y_labels), _spread(b, b_labels, y_labels))


def _matrices(
    x: Any, labels: Labels, both: list[str], first: list[str], second: list[str]
) -> tuple[Any, bool]:
    """A batch of matrices, and whether they stand transposed: then no axis need be moved."""
    flipped = [*both, *second, *first]
    transpose = list(labels) == flipped and bool(first) and bool(second)
    order = flipped if transpose else [*both, *first, *second]
    sizes = dict(zip(labels, sizes_of(x), strict=True))
    parts = (both, second, first) if transpose else (both, first, second)
    shape = [_product([sizes[label] for label in part]) for part in parts]
    return reshaped(_transposed(x, labels, order), shape if both else shape[1:]), transpose


def _transposed(x: Any, labels: Sequence[str], order: Sequence[str]) -> Any:
    order = list(order)
    labels = list(labels)
    return x if labels == order else tf.transpose(x, [labels.index(label) for label in order])


def _product(sizes: list[Any]) -> Any:
    return functools.reduce(operator.mul, sizes, 1)


def _spread(x: Coded, labels: Labels, y_labels: Labels) -> Any:
    """Which results an operand's NaN reach, of a shape that broadcasts to them."""
    if x.bad is None:
        return None
    bad = tf.reduce_any(x.bad, [i for i, label in enumerate(labels) if label not in y_labels])
    kept = [label for label in labels if label in y_labels]
    bad = _transposed(bad, kept, [label for label in y_labels if label in kept])
    for i, label in enumerate(y_labels):
        if label not in kept:
            bad = tf.expand_dims(bad, i)
    return bad
