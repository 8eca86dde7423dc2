"""SGD and AdamW on the same storage as LNS-Madam, to compare the update rules alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_lns import keras_hooks
from tf_lns.formats import LNSFormat
from tf_lns.optimizers.arguments import check_decay, check_flag, check_number, check_rate
from tf_lns.optimizers.base import LNSOptimizer
from tf_lns.optimizers.core import OptimizerCore, finite_gradient, quantized_gradient
from tf_lns.optimizers.weights import to_grid

LARGEST_FLOAT = float(tf.float32.max)
LARGEST_GRADIENT = 2.0**63
"""Gradients are clipped here so that their squares stay finite (`reference.finite_gradient`)."""


class _StandIn:
    """Stands for a variable during one step: the stock rule changes its float32 value.

    It has what the rules of `keras.optimizers`, and of `tf_keras.optimizers`, ask of a variable.
    """

    def __init__(self, optimizer: Any, variable: Any):
        self._unique_id = keras_hooks.variable_key(optimizer, variable)
        self.name = variable.name
        self.value = variable.read_value()
        self.dtype = self.value.dtype
        self.shape = self.value.shape

    def assign(self, value: tf.Tensor) -> None:
        self.value = value

    def assign_add(self, delta: tf.Tensor) -> None:
        self.value = self.value + delta

    def assign_sub(self, delta: tf.Tensor) -> None:
        self.value = self.value - delta


class RoundedRule(OptimizerCore):
    """Mixin: the rule of a stock optimizer in float32, its result rounded once a step (Q_U)."""

    def _update(
        self, index: int, gradient: Any, variable: Any, learning_rate: tf.Tensor
    ) -> tf.Tensor:
        state = self._states[index]
        learning_rate = tf.debugging.check_numerics(learning_rate, "learning_rate must be finite")
        gradient, nonfinite = finite_gradient(tf.cast(gradient, variable.dtype))
        if state.is_lns:
            gradient = quantized_gradient(gradient, *self._gradient_format(state, variable))
        if variable.dtype == tf.float32:
            gradient = tf.clip_by_value(gradient, -LARGEST_GRADIENT, LARGEST_GRADIENT)
        stand_in = _StandIn(self, variable)
        decay = self._decay_of(variable)
        if decay:
            rate = tf.cast(learning_rate, variable.dtype)
            stand_in.assign_sub(stand_in.value * tf.cast(decay, variable.dtype) * rate)
        self._stock_update(gradient, stand_in, learning_rate)
        self._store(index, variable, stand_in.value)
        return nonfinite

    def _stock_update(self, gradient: tf.Tensor, stand_in: Any, rate: tf.Tensor) -> None:
        """The update rule of the optimizer that this mixin stands before."""
        raise NotImplementedError

    def _store(self, index: int, variable: Any, value: tf.Tensor) -> None:
        """Writes the new value, rounded to the grid where the variable is an LNS weight."""
        state = self._states[index]
        if variable.dtype == tf.float32:
            value = tf.clip_by_value(value, -LARGEST_FLOAT, LARGEST_FLOAT)
        if not state.is_lns:
            variable.assign(value)
            return
        seed = self._seed_of(self._step(), index) if self.rounding == "stochastic" else None
        if state.kind == "cell":
            variable.assign_rounded(value, self.rounding, seed)
        else:
            scale = tf.convert_to_tensor(state.scale)
            variable.assign(to_grid(value, scale, state.format, self.rounding, seed))


class _Rounded(RoundedRule, LNSOptimizer):
    """`RoundedRule` of an optimizer of Keras."""

    def _stock_update(self, gradient: tf.Tensor, stand_in: Any, rate: tf.Tensor) -> None:
        super(LNSOptimizer, self).update_step(gradient, stand_in, rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), **self._lns_config()}


@keras.saving.register_keras_serializable(package="tf_lns")
class LNSSGD(_Rounded, keras.optimizers.SGD):
    """`keras.optimizers.SGD` with weights in LNS: a baseline for `LNSMadam`.

    ::

        w <- Q_U(w - learning_rate (g + weight_decay w))

    or with momentum as in Keras. The rule is computed in float32 and its result, weight decay
    included, is rounded once per step to the storage format, in the log domain. Weights are
    stored as with `LNSMadam`: codes of a quantized model, or float32 values on the grid of a
    plain one. Biases and norms take the same rule in float32. The slots (momentum) are float32.

    Args:
        learning_rate: A float, a Keras schedule or a callable.
        momentum: As in `keras.optimizers.SGD`.
        nesterov: As in `keras.optimizers.SGD`.
        weight_decay: Decoupled decay, as Keras has it; None for none.
        rounding: "nearest" or "stochastic" rounding to the grid.
        storage: Format of the weights of plain Keras models.
        gradients: As in `LNSMadam`.
        lns_weights: As in `LNSMadam`.
        seed: Integer seed of stochastic rounding.
        **kwargs: As in `keras.optimizers.Optimizer`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        rounding: str = "nearest",
        storage: LNSFormat | str = LNSFormat(16, 2048),
        gradients: LNSFormat | str | None = None,
        lns_weights: Callable[[Any], bool] | None = None,
        seed: int = 0,
        name: str = "lns_sgd",
        **kwargs,
    ):
        super().__init__(
            learning_rate=check_rate("learning_rate", learning_rate),
            momentum=check_number("momentum", momentum, lambda m: 0 <= m <= 1, "0 to 1"),
            nesterov=check_flag("nesterov", nesterov),
            weight_decay=check_decay(weight_decay),
            name=name,
            **kwargs,
        )
        self._configure(storage, rounding, gradients, lns_weights, seed)


@keras.saving.register_keras_serializable(package="tf_lns")
class LNSAdamW(_Rounded, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with weights in LNS: a baseline for `LNSMadam`.

    ::

        w <- Q_U(AdamW(w, g))

    The rule is computed in float32 and its result, weight decay included, is rounded once per
    step to the storage format, in the log domain. Weights are stored as with `LNSMadam`; the
    two moments are float32.

    Args:
        learning_rate: A float, a Keras schedule or a callable.
        weight_decay: Decoupled decay.
        beta_1: As in `keras.optimizers.AdamW`.
        beta_2: As in `keras.optimizers.AdamW`.
        epsilon: As in `keras.optimizers.AdamW`.
        amsgrad: As in `keras.optimizers.AdamW`.
        rounding: "nearest" or "stochastic" rounding to the grid.
        storage: Format of the weights of plain Keras models.
        gradients: As in `LNSMadam`.
        lns_weights: As in `LNSMadam`.
        seed: Integer seed of stochastic rounding.
        **kwargs: As in `keras.optimizers.Optimizer`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        rounding: str = "nearest",
        storage: LNSFormat | str = LNSFormat(16, 2048),
        gradients: LNSFormat | str | None = None,
        lns_weights: Callable[[Any], bool] | None = None,
        seed: int = 0,
        name: str = "lns_adamw",
        **kwargs,
    ):
        super().__init__(
            learning_rate=check_rate("learning_rate", learning_rate),
            weight_decay=check_decay(weight_decay),
            beta_1=check_number("beta_1", beta_1, lambda b: 0 <= b < 1, "at least 0, below 1"),
            beta_2=check_number("beta_2", beta_2, lambda b: 0 <= b < 1, "at least 0, below 1"),
            epsilon=check_number("epsilon", epsilon, lambda e: 0 < e < 1, "between 0 and 1"),
            amsgrad=check_flag("amsgrad", amsgrad),
            name=name,
            **kwargs,
        )
        self._configure(storage, rounding, gradients, lns_weights, seed)
