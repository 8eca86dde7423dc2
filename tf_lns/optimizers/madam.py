"""LNS-Madam: a multiplicative update, which on logarithms is an integer addition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks, ops
from tf_lns.formats import LNSFormat
from tf_lns.ops.madam import NO_EXPONENT, apply_madam, apply_madam_additive
from tf_lns.optimizers.arguments import (
    check_decay,
    check_flag,
    check_format,
    check_number,
    check_rate,
)
from tf_lns.optimizers.base import LNSOptimizer
from tf_lns.optimizers.core import OptimizerCore
from tf_lns.optimizers.schedules import InverseSqrtDecay
from tf_lns.optimizers.weights import WeightState, exponent_of, label_of, name_of, tensor_of


@dataclasses.dataclass
class _Slot:
    """What LNS-Madam keeps for one variable."""

    moment: Any  # these are variables of the Keras that the optimizer belongs to
    exponent: Any = None  # of a one-byte moment
    limits: dict[str, Any] = dataclasses.field(default_factory=dict)


class MadamRule(OptimizerCore):
    """Mixin: the arguments, the state and the step of LNS-Madam, whichever Keras calls it."""

    _slots: list[_Slot]

    def _configure_rule(
        self,
        *,
        beta: Any,
        g_bound: Any,
        p_scale: Any,
        additive_learning_rate: Any,
        second_moment: Any,
        sign_crossing: Any,
        floor_octaves: Any,
        round_gradient: Any,
    ) -> None:
        """Checks and keeps the arguments of the rule."""
        self.beta = check_number("beta", beta, lambda x: 0 < x < 1, "between 0 and 1")
        self.g_bound = check_number(
            "g_bound", g_bound, lambda x: 0 < x < np.inf, "positive and finite"
        )
        self.p_scale = check_number(
            "p_scale", p_scale, lambda x: 0 < x < np.inf, "positive, or None", optional=True
        )
        self.additive_learning_rate = (
            None
            if additive_learning_rate is None
            else self._check_rate("additive_learning_rate", additive_learning_rate)
        )
        self.second_moment = check_format("second_moment", second_moment)
        if self.second_moment not in (None, LNSFormat(8, 4)):
            raise ValueError(
                "`second_moment` must be None (float32) or LNSFormat(8, 4). "
                f"Received: second_moment={second_moment}"
            )
        self.sign_crossing = check_flag("sign_crossing", sign_crossing)
        self.floor_octaves: Any = check_number(
            "floor_octaves", floor_octaves, lambda x: 0 < x <= 8, "above 0, at most 8"
        )
        self.round_gradient = check_flag("round_gradient", round_gradient)

    @classmethod
    def paper(cls: Any, learning_rate: Any = 2.0**-7, p_scale: float = 3.0, **kwargs) -> Any:
        """The authors' settings: rate 2**-7, growth bounded at 3 RMS, g' rounded to integers.

        With `storage` of base factor 128 each step is the authors' code's: the learning rate
        times the base factor is 1 and the exponent moves by g' rounded half to even.
        """
        settings = {"storage": LNSFormat(12, 128), "round_gradient": True, **kwargs}
        return cls(learning_rate, p_scale=p_scale, **settings)

    def _create_slots(self, states: list[WeightState]) -> None:
        slots = [self._slot(v, s) for v, s in zip(self._trained(), states, strict=True)]
        keras_hooks.set_untracked(self, "_slots", slots)

    def _slot(self, variable: Any, state: WeightState) -> _Slot:
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if dtype != "float32" and "float" in dtype:
            raise TypeError(
                f"LNSMadam trains float32 variables. Received: {name_of(variable)} of dtype "
                f'{dtype}. A dtype policy such as "mixed_float16" computes in float16 and keeps '
                "variables in float32."
            )
        label = label_of(variable)
        compact = state.is_lns and self.second_moment is not None
        name = f"{label}_second_moment"
        dtype = "int8" if compact else "float32"
        slot = _Slot(self._new_state(variable, name, variable.shape, dtype))
        if compact:
            slot.exponent = self._new_state(
                variable, f"{name}_exponent", dtype="int32", value=NO_EXPONENT
            )
        # Magnitudes, so that they outlive a change of the scale.
        if state.is_lns and self.p_scale is not None:
            slot.limits["cap"] = self._new_state(
                variable, f"{label}_cap", value=self.p_scale * state.rms
            )
        if state.is_lns and self.sign_crossing:
            floor = state.rms * 2.0**-self.floor_octaves
            slot.limits["floor"] = self._new_state(variable, f"{label}_floor", value=floor)
        return slot

    def _update(
        self, index: int, gradient: Any, variable: Any, learning_rate: tf.Tensor
    ) -> tf.Tensor:
        state, slot = self._states[index], self._slots[index]
        gradient = tf.cast(tf.convert_to_tensor(gradient), tf.float32)
        common = {
            "step": self._step(),
            "weight_decay": self._decay_of(variable),
            "beta": self.beta,
            "g_bound": self.g_bound,
        }
        if state.is_lns:
            seed = self._seed_of(common["step"], index)
            return self._multiply(
                state, slot, variable, gradient, learning_rate=learning_rate, seed=seed, **common
            )
        return apply_madam_additive(
            variable.handle,
            tensor_of(slot.moment).handle,
            gradient,
            learning_rate=self._additive_rate(learning_rate),
            **common,
        )

    def _multiply(
        self, state: WeightState, slot: _Slot, variable: Any, gradient: tf.Tensor, **common
    ) -> tf.Tensor:
        is_cell = state.kind == "cell"
        scale = tf.convert_to_tensor(variable.scale if is_cell else state.scale)
        format, options = self._gradient_format(state, variable)
        of_gradient = {}
        if format is not None:
            axis = options.get("axis") or ()
            power_of_two = options.get("power_of_two", False)
            of_gradient = {
                "gradient_format": format,
                "gradient_scale": ops.scale_of(
                    gradient, format, axis=axis or None, power_of_two=power_of_two
                ),
                "gradient_axis": tuple(axis),
                "gradient_underflow": options.get("underflow", "clamp"),
            }
        limits = {k: exponent_of(v, scale, state.format) for k, v in slot.limits.items()}
        compact = slot.exponent is not None
        return apply_madam(
            variable.handle,
            scale,
            tensor_of(slot.moment).handle,
            gradient,
            weight_type=tf.as_dtype(state.format.dtype) if is_cell else tf.float32,
            moment_type=tf.int8 if compact else tf.float32,
            moment_exponent=tensor_of(slot.exponent).handle if compact else None,
            format=state.format,
            rounding=self.rounding,
            round_gradient=self.round_gradient,
            **of_gradient,
            **limits,
            **common,
        )

    def _additive_rate(self, learning_rate: tf.Tensor) -> tf.Tensor:
        rate = self.additive_learning_rate
        if rate is None:
            return 0.1 * learning_rate
        if callable(rate):
            rate = rate(self.iterations)
        return tf.cast(rate, tf.float32)

    def _rule_config(self) -> dict[str, Any]:
        """The arguments of `_configure_rule`, for `get_config`."""
        rate = self.additive_learning_rate
        if rate is not None and not isinstance(rate, float):
            rate = self._saving.serialize_keras_object(rate)
        return {
            "beta": self.beta,
            "g_bound": self.g_bound,
            "p_scale": self.p_scale,
            "additive_learning_rate": rate,
            "second_moment": None if self.second_moment is None else str(self.second_moment),
            "sign_crossing": self.sign_crossing,
            "floor_octaves": self.floor_octaves,
            "round_gradient": self.round_gradient,
        }


@keras.saving.register_keras_serializable(package="tf_lns")
class LNSMadam(MadamRule, LNSOptimizer, keras.optimizers.Optimizer):
    """The LNS-Madam optimizer (arXiv:2106.13914), with integer weights.

    For each LNS weight, element-wise, with t counted from 1::

        v  <- beta v + (1 - beta) g**2
        g' = clip(g / sqrt(v / (1 - beta**t)), -g_bound, g_bound)
        e  <- clamp(e - round(learning_rate base_factor (g' sign(w) + weight_decay)), 0, L-1)

    so a weight is multiplied by a power of two whose exponent follows its gradient, and its
    sign never changes. Everything that is no LNS weight (biases, norm scales, tensors that
    start at zero) takes the step ``w - additive_learning_rate (g' + weight_decay w)``.

    On a model of `tf_lns.quantize_model` the codes that move are the model's own weights. On
    any other Keras model the float32 weights are put on the grid of `storage` when the
    optimizer is built and always lie on it: a value identifies its code, the optimizer encodes,
    moves and decodes it in one pass, and only the scale is kept beside it. Values that you
    assign move to the nearest point of the grid with the next step; the range of the grid is
    that of the values when the optimizer was built, and clips what lies beyond it: load weights
    before training, or compile anew after it.

    Elements of a gradient that are not finite count as zero; `nonfinite_gradients` counts them.

    Args:
        learning_rate: Octaves per step and unit of g': a float, a Keras schedule or a
            callable. None for ``InverseSqrtDecay(2**-3, 20)``. Fine-tuning a pretrained
            model wants 2**-8 with a linear decay; the default destroys one.
        beta: Decay rate of the second moment.
        g_bound: Bound of the normalised gradient.
        p_scale: No weight grows beyond this many RMS of its tensor's initial values (the
            paper has 3); None for the top of the range alone.
        weight_decay: Decoupled decay, in units of g'; folded into the update.
        rounding: "nearest" or "stochastic" rounding of the step.
        additive_learning_rate: Rate of the additive step: a float or a schedule; None for
            0.1 x learning_rate.
        storage: Format of the weights of plain Keras models.
        second_moment: ``LNSFormat(8, 4)`` for one byte per weight; None for float32.
        sign_crossing: Let a weight that falls below ``RMS / 2**floor_octaves`` of its initial
            values change sign (ours, not the paper's).
        floor_octaves: See `sign_crossing`.
        round_gradient: Round g' to integers, as the authors' code does.
        gradients: Format of the gradients of plain Keras models (quantized models bring their
            own), one scale per last axis; None for float32.
        lns_weights: For plain Keras models: function of a variable that says whether it is an
            LNS weight; None for rank >= 2 and not named as a bias or a norm's scale.
        seed: Integer seed of stochastic rounding.
        **kwargs: As in `keras.optimizers.Optimizer`: `clipnorm`, `clipvalue`,
            `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        learning_rate: Any = None,
        beta: float = 0.999,
        g_bound: float = 10.0,
        p_scale: float | None = None,
        weight_decay: float | None = None,
        rounding: str = "nearest",
        additive_learning_rate: Any = None,
        storage: LNSFormat | str = LNSFormat(16, 2048),
        second_moment: LNSFormat | str | None = None,
        sign_crossing: bool = False,
        floor_octaves: float = 2.0,
        round_gradient: bool = False,
        gradients: LNSFormat | str | None = None,
        lns_weights: Callable[[Any], bool] | None = None,
        seed: int = 0,
        name: str = "lns_madam",
        **kwargs,
    ):
        rate = InverseSqrtDecay() if learning_rate is None else learning_rate
        super().__init__(
            check_rate("learning_rate", rate),
            weight_decay=check_decay(weight_decay),
            name=name,
            **kwargs,
        )
        self._configure(storage, rounding, gradients, lns_weights, seed)
        self._configure_rule(
            beta=beta,
            g_bound=g_bound,
            p_scale=p_scale,
            additive_learning_rate=additive_learning_rate,
            second_moment=second_moment,
            sign_crossing=sign_crossing,
            floor_octaves=floor_octaves,
            round_gradient=round_gradient,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), **self._lns_config(), **self._rule_config()}
