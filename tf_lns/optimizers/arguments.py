"""Checks of the arguments that optimizers have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tf_lns.formats import LNSFormat


def check_number(
    name: str, value: Any, holds: Callable[[float], bool], wanted: str, optional: bool = False
) -> float | None:
    """`value` as a float, if it is a number for which `holds` is true.

    Raises:
        TypeError: `value` is no number.
        ValueError: `holds` is false.
    """
    if value is None and optional:
        return None
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"`{name}` must be a number, {wanted}. Received: {name}={value!r}")
    number = float(value)
    if not holds(number):
        raise ValueError(f"`{name}` must be {wanted}. Received: {name}={value!r}")
    return number


def check_flag(name: str, value: Any) -> bool:
    """`value`, which must be True or False.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)


def check_format(name: str, value: Any, optional: bool = True) -> LNSFormat | None:
    """A format from any way of naming it; None where that is allowed.

    Raises:
        TypeError: `value` names no format.
        ValueError: The format is out of range.
    """
    if value is None and optional:
        return None
    try:
        return LNSFormat.get(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}` is no format. {error}") from error


def check_rate(name: str, value: Any) -> Any:
    """A learning rate: a schedule, a callable or a finite number of at least 0, as a float.

    Raises:
        TypeError: `value` is none of these.
        ValueError: The number is negative or not finite.
    """
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule) or callable(value):
        return value
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(
            f"`{name}` must be a number, a LearningRateSchedule or a callable. "
            f"Received: {name}={value!r}"
        )
    return check_number(name, value, lambda x: 0 <= x < np.inf, "finite and at least 0")


def check_decay(value: Any) -> float | None:
    """A weight decay: None or a finite number of at least 0."""
    wanted = "finite and at least 0, or None"
    return check_number("weight_decay", value, lambda x: 0 <= x < np.inf, wanted, optional=True)
