"""Quantizers: a format plus where its scale comes from, as objects that stand alone.

q = LNSQuantizer("lns8:8")
y = q(x)                    # forward: nearest value of the format; gradient: straight through
y = q.error(x)              # forward: identity; gradient: quantized
"""

from __future__ import annotations

import numbers
from typing import Any

import keras
import tensorflow as tf

from tf_lns import ops
from tf_lns.formats import LNSFormat
from tf_lns.ops.call import (
    ROUNDINGS,
    UNDERFLOWS,
    axes_of,
    check_vector_size,
    choice,
    flag,
    integer,
)


@keras.saving.register_keras_serializable(package="tf_lns")
class LNSQuantizer:
    """Quantizes tensors to an LNS format.

    Forward: ``decode(encode(x, scale))``. Backward: the gradient passes straight through.

    Args:
        format: `LNSFormat`, or its short form such as "lns8:8".
        scale: Fixed scale (smallest magnitude), or None for the abs-max of each input.
            Errors always take their scale from themselves.
        axis: Axis or neighbouring axes with a scale per index; None for one scale.
        vector_size: With one `axis`: elements along it that share a scale.
        rounding: "nearest" or "stochastic".
        underflow: "clamp" or "flush".
        power_of_two: Round scales taken from the input up to a power of two.
        seed: Integer seed of stochastic rounding; None draws from `tf.random`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        format: LNSFormat | str,
        scale: float | None = None,
        axis: int | tuple[int, ...] | None = None,
        vector_size: int | None = None,
        rounding: str = "nearest",
        underflow: str = "clamp",
        power_of_two: bool = False,
        seed: int | None = None,
    ):
        self.format = LNSFormat.get(format)
        if scale is not None:
            if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
                raise TypeError(f"`scale` must be a number or None. Received: scale={scale!r}")
            if not 2.0**-126 <= scale < 2.0**128:
                raise ValueError(
                    "`scale` must be finite and at least 2**-126, or None. "
                    f"Received: scale={scale!r}"
                )
            scale = float(scale)
        check_vector_size(vector_size, axis)
        axes = axes_of(axis)
        self.scale = scale
        self.axis = axes if isinstance(axis, list | tuple) else axes[0] if axes else None
        self.vector_size = None if vector_size is None else integer(vector_size, "vector_size")
        self.rounding = choice(rounding, "rounding", ROUNDINGS)
        self.underflow = choice(underflow, "underflow", UNDERFLOWS)
        self.power_of_two = flag(power_of_two, "power_of_two")
        self.seed = None if seed is None else integer(seed, "seed")

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "vector_size": self.vector_size,
            "rounding": self.rounding,
            "underflow": self.underflow,
            "power_of_two": self.power_of_two,
        }

    def __call__(self, x: Any) -> tf.Tensor:
        """Moves x to the nearest values of the format; see `tf_lns.ops.quantize`."""
        if self.scale is None:
            return ops.quantize(x, self.format, seed=self.seed, **self._options)
        options = {**self._options, "axis": None, "vector_size": None}  # one scale for all
        return ops.quantize(x, self.format, scale=self.scale, seed=self.seed, **options)

    def error(self, x: Any) -> tf.Tensor:
        """Returns x itself, whose gradient is quantized; see `tf_lns.ops.quantize_gradient`."""
        return ops.quantize_gradient(x, self.format, **self._options)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "format": str(self.format),
            "scale": self.scale,
            "axis": self.axis,
            "vector_size": self.vector_size,
            "rounding": self.rounding,
            "underflow": self.underflow,
            "power_of_two": self.power_of_two,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LNSQuantizer:
        """Rebuilds a quantizer from `get_config`."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LNSQuantizer) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(str(self.get_config()))

    def __repr__(self) -> str:
        extra = [
            f"{key}={value!r}"
            for key, value in self.get_config().items()
            if key != "format" and value not in (None, False, "nearest", "clamp")
        ]
        return f"LNSQuantizer({', '.join([repr(str(self.format)), *extra])})"


def get(value: Any) -> LNSQuantizer | None:
    """Turns any accepted way of naming a quantizer into one.

    Args:
        value: None, an `LNSQuantizer`, an `LNSFormat`, a short form such as "lns8:8", or the
            dict of `serialize`.

    Returns:
        An `LNSQuantizer`, or None.

    Raises:
        TypeError: `value` is none of these.
    """
    if value is None or isinstance(value, LNSQuantizer):
        return value
    if isinstance(value, dict):
        if "class_name" not in value:
            return LNSQuantizer.from_config(value)
        quantizer = keras.saving.deserialize_keras_object(value)
        if not isinstance(quantizer, LNSQuantizer):
            raise TypeError(f"The dict is of no LNSQuantizer. Received: {value!r}")
        return quantizer
    return LNSQuantizer(LNSFormat.get(value))


def serialize(quantizer: LNSQuantizer | None) -> dict[str, Any] | None:
    """A JSON-able dict of a quantizer, for `get`."""
    return None if quantizer is None else keras.saving.serialize_keras_object(quantizer)
