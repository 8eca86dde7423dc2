"""Shows to a listener the products of codes that a thread computes eagerly."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tf_lns.datapath import Datapath
from tf_lns.formats import LNSFormat


@dataclasses.dataclass(frozen=True)
class ProductCall:
    """A product as an op was asked for it.

    Attributes:
        operation: "matmul" or "conv".
        a: Codes of the left operand.
        b: Codes of the right operand.
        a_format: Format of `a`.
        b_format: Format of `b`.
        a_scale: Scale of `a`.
        b_scale: Scale of `b`.
        datapath: Where it was computed.
        result: float32 values.
        options: Further arguments of the op.
    """

    operation: str
    a: Any
    b: Any
    a_format: LNSFormat
    b_format: LNSFormat
    a_scale: Any
    b_scale: Any
    datapath: Datapath
    result: Any
    options: dict[str, Any]


_state = threading.local()


@contextlib.contextmanager
def listening(listener: Callable[[ProductCall], None]) -> Iterator[None]:
    """Inside, each product that this thread computes eagerly is shown to the listener."""
    previous = getattr(_state, "listener", None)
    _state.listener = listener
    try:
        yield
    finally:
        _state.listener = previous


def show(**parts: Any) -> None:
    """Shows a `ProductCall` of these parts to the listener, if there is one."""
    listener = getattr(_state, "listener", None)
    if listener is not None and tf.executing_eagerly():
        listener(ProductCall(**parts))
