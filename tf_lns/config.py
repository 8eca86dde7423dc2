"""Which format each tensor of a layer has: W, A, E, G and the storage of the weights."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

import keras

from tf_lns.datapath import Datapath
from tf_lns.formats import LNSFormat, from_arguments
from tf_lns.ops.call import UNDERFLOWS, choice, flag

_FORMATS = ("weights", "storage", "activations", "errors", "gradients")

_OPERANDS = ("weights", "activations", "errors")
"""What products multiply."""


_LARGEST_RANGE = dict.fromkeys(_FORMATS, 126) | {"weights": 64, "storage": 64}
"""Octaves; a weight's scale follows from its largest value and must not fall below 2**-126."""


@keras.saving.register_keras_serializable(package="tf_lns")
@dataclasses.dataclass(frozen=True)
class LNSConfig:
    """Formats of a layer, each arrow of a training step with its own (paper, section 4).

    ::

        y  = op(Q_A(x), Q_W(w))             errors:  dx = op'(Q_E(dy), Q_W(w))
        dw = Q_G(op'(Q_A(x), Q_E(dy)))      straight-through through Q_A and Q_W

    Args:
        weights: Q_W, the format in which a product sees the stored weight.
        storage: Format of the integers that are the weight.
        activations: Q_A. None leaves activations in float.
        errors: Q_E, of dL/dy. None leaves them in float.
        gradients: Q_G, of dL/dw; acts once per step on the summed gradient, when the
            optimizer of tf_lns takes it. None leaves them in float.
        activation_scale: Scale of Q_A outside of training: "moving" for a recorded one (the
            moving abs-max of training or of `tf_lns.calibrate`; the batch's own before
            either), "batch" always for the batch's own, or a positive float, the largest
            magnitude that is represented (then in training too). A layer learns of training as
            `Dropout` does: `fit` tells it (a subclassed model of your own that is built of LNS
            layers must take `training` in its `call`; `quantize_model` and `scope` see to it),
            a loop of your own calls `model(x, training=True)`. Recorded ranges are saved with
            a model but are no weights: `get_weights`, and so `EarlyStopping` when it restores
            the best weights, leaves them; `tf_lns.calibrate` records them anew.
        gradient_scale: "channel" for one scale of G per output channel, or "tensor".
        error_underflow: "clamp" keeps small errors at the smallest magnitude (the paper),
            "flush" makes them zero.
        gradient_underflow: The same for gradients.
        power_of_two_scales: Round the scales of A, E and G up to powers of two.
        datapath: `Datapath` (or its dict) on which the layer's products are computed, bit for
            bit, forward and backward: of codes, as hardware does. Weights, activations and
            errors must have formats of one base factor. None computes them in float32 on the
            same values.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> LNSConfig(gradients="lns5:2").gradients
        LNSFormat(bits=5, base_factor=2)
    """

    weights: Any = LNSFormat(8, 8)
    storage: Any = LNSFormat(16, 2048)
    activations: Any = LNSFormat(8, 8)
    errors: Any = LNSFormat(8, 8)
    gradients: Any = LNSFormat(8, 8)
    activation_scale: Any = "moving"
    gradient_scale: str = "channel"
    error_underflow: str = "clamp"
    gradient_underflow: str = "clamp"
    power_of_two_scales: bool = False
    datapath: Any = None

    def __post_init__(self) -> None:
        for name in _FORMATS:
            value = getattr(self, name)
            if value is None:
                if name == "storage":
                    raise ValueError("`storage` must be a format. Received: storage=None")
                continue
            try:
                object.__setattr__(self, name, LNSFormat.get(value))
            except (TypeError, ValueError) as error:
                raise type(error)(f"`{name}`: {error}") from None
            format = getattr(self, name)
            if format.octaves > _LARGEST_RANGE[name]:
                raise ValueError(
                    f"`{name}` may span at most {_LARGEST_RANGE[name]} octaves, as values and "
                    f"scale must fit into float32. Received: {name}={format}, which spans "
                    f"{format.octaves:g}"
                )
        scale = self.activation_scale
        if isinstance(scale, str):
            choice(scale, "activation_scale", ("moving", "batch"))
        elif isinstance(scale, bool) or not isinstance(scale, numbers.Real):
            raise TypeError(
                '`activation_scale` must be "moving", "batch" or a number. '
                f"Received: activation_scale={scale!r}"
            )
        elif not 2.0**-126 <= float(scale) < 2.0**128:
            raise ValueError(
                "`activation_scale` must be positive and finite in float32. "
                f"Received: activation_scale={scale!r}"
            )
        else:
            object.__setattr__(self, "activation_scale", float(scale))
        choice(self.gradient_scale, "gradient_scale", ("channel", "tensor"))
        choice(self.error_underflow, "error_underflow", UNDERFLOWS)
        choice(self.gradient_underflow, "gradient_underflow", UNDERFLOWS)
        flag(self.power_of_two_scales, "power_of_two_scales")
        if self.datapath is not None:
            self._check_datapath()

    def _check_datapath(self) -> None:
        """Makes `datapath` a `Datapath`, and checks that the operands' formats fit it."""
        try:
            object.__setattr__(self, "datapath", Datapath.get(self.datapath))
        except (TypeError, ValueError) as error:
            raise type(error)(f"`datapath`: {error}") from None
        operands = {name: getattr(self, name) for name in _OPERANDS}
        missing = [name for name, format in operands.items() if format is None]
        if missing:
            raise ValueError(
                "A `datapath` multiplies codes, so weights, activations and errors must have "
                f"formats. Received: {', '.join(f'{name}=None' for name in missing)}. Give "
                'formats such as "lns8:8", or datapath=None.'
            )
        if len({format.base_factor for format in operands.values()}) > 1:
            raise ValueError(
                "A `datapath` adds exponents, so weights, activations and errors must share one "
                "base factor. Received: "
                f"{', '.join(f'{name}={format}' for name, format in operands.items())}"
            )
        try:
            self.datapath.table_bits(operands["weights"].base_factor)
        except ValueError as error:
            raise ValueError(f"`datapath`: {error}") from None

    @classmethod
    def get(cls, value: LNSConfig | dict | None) -> LNSConfig:
        """Turns None (the defaults), a dict of arguments or a config into a config.

        Raises:
            TypeError: `value` is none of these.
        """
        if value is None:
            return cls()
        if isinstance(value, cls):
            return value
        if isinstance(value, dict):
            if "class_name" not in value:
                return cls.from_config(value)
            config = keras.saving.deserialize_keras_object(value)
            if isinstance(config, cls):
                return config
        raise TypeError(f"A config must be an LNSConfig, a dict or None. Received: {value!r}")

    def replace(self, **changes: Any) -> LNSConfig:
        """A config with some arguments changed."""
        return dataclasses.replace(self, **changes)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as a JSON-able dict."""
        config = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in _FORMATS:
            config[name] = None if config[name] is None else str(config[name])
        if self.datapath is not None:
            config["datapath"] = self.datapath.get_config()
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LNSConfig:
        """Rebuilds a config from `get_config`; keys that an older version lacks get defaults.

        Raises:
            ValueError: A key is unknown.
        """
        return from_arguments(cls, config)

    def __repr__(self) -> str:
        """Formats always, other arguments where they differ from the default."""
        parts = [f"{name}={getattr(self, name)}" for name in _FORMATS]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _FORMATS and value != field.default:
                parts.append(f"{field.name}={value!r}")
        return f"LNSConfig({', '.join(parts)})"
