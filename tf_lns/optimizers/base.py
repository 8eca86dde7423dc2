"""What LNS-Madam and the baselines share: weights on their grid, clean gradients, seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks, ops
from tf_lns.formats import LNSFormat
from tf_lns.ops.call import ROUNDINGS, choice
from tf_lns.optimizers.weights import (
    KINDS,
    WeightState,
    all_initialized,
    classify,
    kind_of,
    label_of,
    to_grid,
)

LARGEST_GRADIENT = 2.0**63
"""Gradients are clipped here so that their squares stay finite (`reference.finite_gradient`)."""


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


class LNSOptimizer(keras_hooks.FusedWeightDecay):
    """Mixin of the optimizers of weights in LNS; stands before a `keras.optimizers.Optimizer`.

    It finds the kind of each variable (`weights.py`), keeps the float weights of plain models
    on the grid, counts and removes gradient elements that are not finite, and folds weight
    decay into the update. A subclass calls `_configure` in its constructor and implements
    `_update`.
    """

    _states: Any = None  # list[WeightState], once there

    def _configure(
        self,
        storage: Any,
        rounding: str,
        gradients: Any,
        lns_weights: Callable[[Any], bool] | None,
        seed: int,
    ) -> None:
        """Checks and keeps the arguments that all optimizers have."""
        for name in ("clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor"):
            wanted = "positive and finite, or None"
            check_number(name, getattr(self, name), lambda x: 0 < x < np.inf, wanted, optional=True)
        self.storage: Any = check_format("storage", storage, optional=False)
        self.rounding = choice(rounding, "rounding", ROUNDINGS)
        self.gradients = check_format("gradients", gradients)
        if lns_weights is not None and not callable(lns_weights):
            raise TypeError(
                "`lns_weights` must be None or a function of a variable that returns a bool. "
                f"Received: lns_weights={lns_weights!r}"
            )
        self.lns_weights = lns_weights
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise TypeError(f"`seed` must be an integer. Received: seed={seed!r}")
        self.seed = int(seed)

    # --- State -----------------------------------------------------------------------

    def build(self, variables: list) -> None:
        """Makes the optimizer's state for the given trainable variables."""
        if self.built:
            return
        super().build(variables)
        if all_initialized(variables):
            self._create_state()

    def _create_state(self, move: bool = True, kinds: list[str] | None = None) -> None:
        """Makes the state, which depends on the values of the variables unless `kinds` are given.

        A model that is built by its first batch makes its variables while the training
        function is traced; they have values only when TensorFlow traces it again, so then is
        the time.
        """
        before = len(self.variables)
        states = [
            classify(v, kind, self.storage, self._add_scale, move)
            for v, kind in zip(
                self._trainable_variables, kinds or self._present_kinds(), strict=True
            )
        ]
        self._create_slots(states)
        self._nonfinite = self.add_variable(
            (), dtype="int64", aggregation="sum", name="nonfinite_gradients"
        )
        keras_hooks.set_untracked(self, "_states", states)
        keras_hooks.set_untracked(self, "_state_variables", self.variables[before:])

    def _present_kinds(self) -> list[str]:
        return [kind_of(v, self.lns_weights) for v in self._trainable_variables]

    def save_own_variables(self, store: Any) -> None:
        """Saves the variables, and the kind of each trainable variable."""
        super().save_own_variables(store)
        if self._states is not None:
            kinds = [KINDS.index(state.kind) for state in self._states]
            store["kinds"] = np.array(kinds, np.int8)

    def load_own_variables(self, store: Any) -> None:
        """Loads the state; by now the model's weights are those of the file.

        A variable may be of another kind than when the optimizer was built: a tensor that
        starts at zero is additive, and the one in the file need not have been zero.
        """
        own = {key: store[key] for key in store.keys() if key != "kinds"}  # noqa: SIM118
        if self._states is not None:
            kinds = self._present_kinds()
            if "kinds" in store.keys():  # noqa: SIM118
                saved = [KINDS[int(i)] for i in np.asarray(store["kinds"])]
                if len(saved) == len(kinds):
                    kinds = [k if k == "cell" else old for k, old in zip(kinds, saved, strict=True)]
            if kinds != [state.kind for state in self._states]:
                keras_hooks.untrack_variables(self, self._state_variables)
                self._create_state(move=False, kinds=kinds)
        super().load_own_variables(own)

    def _create_slots(self, states: list[WeightState]) -> None:
        """Makes what the subclass keeps for each variable."""

    def _add_scale(self, variable: Any, scale: np.float32) -> keras.Variable:
        return self._add_scalar(f"{label_of(variable)}_scale", scale)

    def _add_scalar(self, name: str, value: Any, dtype: str = "float32") -> keras.Variable:
        initializer = keras.initializers.Constant(value if dtype == "int32" else float(value))
        return self.add_variable((), initializer=initializer, dtype=dtype, name=name)

    def _has_state(self) -> bool:
        """Whether the state is there; makes it where that was not possible in `build`."""
        if self._states is None:
            with keras_hooks.late_creation():
                if all_initialized(self._trainable_variables):
                    self._create_state()
        return self._states is not None

    @property
    def nonfinite_gradients(self) -> int:
        """Gradient elements so far that were NaN or Inf and counted as zero."""
        return int(tf.convert_to_tensor(self._nonfinite)) if self._states is not None else 0

    # --- One step --------------------------------------------------------------------

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable; `variable` is its `tf.Variable`."""
        if not self._has_state():
            # The first of two traces; only a variable whose initial value depends on the batch
            # makes TensorFlow run it.
            message = f"Build the model before it is trained with {type(self).__name__}."
            tf.debugging.Assert(False, [message])
            return
        index = keras_hooks.variable_index(self, variable)
        nonfinite = self._update(index, gradient, variable, tf.cast(learning_rate, tf.float32))
        self.assign_add(self._nonfinite, nonfinite)

    def _update(
        self, index: int, gradient: Any, variable: Any, learning_rate: tf.Tensor
    ) -> tf.Tensor:
        """One step of variable `index`; returns the number of non-finite gradient elements."""
        raise NotImplementedError

    def _decay_of(self, variable: Any) -> float:
        """Weight decay of a variable, 0 where it is left out."""
        included = keras_hooks.use_weight_decay(self, variable)
        return (self.weight_decay or 0.0) if included else 0.0

    def _gradient_format(
        self, state: WeightState, variable: Any
    ) -> tuple[LNSFormat | None, dict[str, Any]]:
        """Format of Q_G on the gradient of an LNS weight, and how it is applied."""
        if state.kind == "cell":
            return variable.gradient_format, variable.gradient_options
        rank = len(variable.shape)
        return self.gradients, {"axis": (rank - 1,) if rank else ()}

    def _step(self) -> tf.Tensor:
        """Number of this step, from 1."""
        return tf.cast(self.iterations, tf.int64) + 1

    def _seed_of(self, step: tf.Tensor, index: int) -> tf.Tensor:
        """Seed of a variable's draws in a step; all differ."""
        base = (self.seed * 0x9E3779B97F4A7C1 + index) % (1 << 62)
        return step * (1 << 20) + base

    def _backend_apply_gradients(self, grads: list, trainable_variables: list) -> None:
        """Removes what is not finite before it could spread.

        Clipping by a norm would make a whole tensor, or all, NaN of one such element, and an
        accumulator would keep it.
        """
        clips = self.clipnorm or self.global_clipnorm or self.clipvalue
        if (clips or self.gradient_accumulation_steps) and self._has_state():
            pairs = [finite_gradient(g) for g in grads]
            grads = [g for g, _ in pairs]
            self.assign_add(self._nonfinite, tf.add_n([count for _, count in pairs]))
        super()._backend_apply_gradients(grads, trainable_variables)

    def _overwrite_model_variables_with_average_value(self, trainable_variables: list) -> None:
        """Moves the averages to the grid, where weights must lie."""
        super()._overwrite_model_variables_with_average_value(trainable_variables)
        for variable in trainable_variables:
            state = self._states[keras_hooks.variable_index(self, variable)]
            if state.kind == "grid":
                value = tf.convert_to_tensor(variable)
                self.assign(
                    variable, to_grid(value, tf.convert_to_tensor(state.scale), state.format)
                )

    # --- Configuration ---------------------------------------------------------------

    def _lns_config(self) -> dict[str, Any]:
        """The arguments of `_configure`, for `get_config`."""
        config = {
            "storage": str(self.storage),
            "rounding": self.rounding,
            "gradients": None if self.gradients is None else str(self.gradients),
            "seed": self.seed,
        }
        if self.lns_weights is not None:
            config["lns_weights"] = keras.saving.serialize_keras_object(self.lns_weights)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Rebuilds an optimizer from `get_config`."""
        config = dict(config)
        for key in ("additive_learning_rate", "lns_weights"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects)
        return super().from_config(config, custom_objects)

    def __repr__(self) -> str:
        rate = self._learning_rate
        if isinstance(rate, keras.Variable):
            rate = f"{float(rate.numpy()):g}"
        return (
            f"<{type(self).__name__} learning_rate={rate} storage={self.storage} "
            f"rounding={self.rounding}>"
        )


def finite_gradient(gradient: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """A dense gradient without its non-finite elements, and their number (int64)."""
    gradient = tf.convert_to_tensor(gradient)
    finite = tf.math.is_finite(gradient)
    count = tf.size(finite, tf.int64) - tf.math.count_nonzero(finite, dtype=tf.int64)
    return tf.where(finite, gradient, tf.zeros((), gradient.dtype)), count


def quantized_gradient(
    gradient: tf.Tensor, format: LNSFormat | None, options: dict[str, Any]
) -> tf.Tensor:
    """Q_G of a float32 gradient; the gradient itself where `format` is None."""
    if format is None:
        return gradient
    return ops.quantize(gradient, format, **{**options, "axis": options.get("axis") or None})
