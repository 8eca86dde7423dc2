"""The optimizers of `tf_lns.optimizers` for tf_keras: the same rules, called by tf_keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from tf_lns import keras_hooks
from tf_lns.formats import LNSFormat
from tf_lns.optimizers.arguments import check_decay, check_flag, check_number, check_rate
from tf_lns.optimizers.baselines import RoundedRule
from tf_lns.optimizers.core import OptimizerCore, kind_numbers
from tf_lns.optimizers.madam import MadamRule
from tf_lns.optimizers.schedules import InverseSqrtRule
from tf_lns.optimizers.weights import all_initialized
from tf_lns.tfmot import hooks
from tf_lns.tfmot.gradients import left_to_the_optimizer


@tf_keras.saving.register_keras_serializable(package="tf_lns")
class InverseSqrtDecay(InverseSqrtRule, tf_keras.optimizers.schedules.LearningRateSchedule):
    """`tf_lns.InverseSqrtDecay` for tf_keras: the default learning rate of `LNSMadam`.

    ``initial_learning_rate / sqrt(1 + step / decay_steps)``

    Args:
        initial_learning_rate: Rate at step 0.
        decay_steps: Steps after which the rate has fallen to ``1 / sqrt(2)`` of it.
        name: Name of the schedule's ops.

    Raises:
        ValueError: An argument is not positive.
    """


class TFKerasOptimizer(OptimizerCore, hooks.FusedUpdate):
    """Mixin of the optimizers of weights in LNS; stands before a `tf_keras` optimizer.

    What `tf_lns.optimizers.base.LNSOptimizer` is for Keras. Weights in LNS are either bare
    `LNSCell`s, which bring their own `gradient_format` and `gradient_options`, or float32
    variables on the grid of `storage`.
    """

    _saving = tf_keras.saving
    _serialized = (*OptimizerCore._serialized, "learning_rate")  # tf_keras knows only its own
    _variables_built_for: list

    # --- Variables -------------------------------------------------------------------

    def build(self, var_list: Any) -> None:
        """Makes the optimizer's state for the given trainable variables."""
        if self.built:
            return
        keras_hooks.set_untracked(self, "_variables_built_for", list(var_list))
        if all_initialized(self._variables_built_for):
            # From an HDF5 file the scale comes later; weights stay as they are until it does.
            self._create_state(move=not hooks.loads_legacy_file())
        super().build(var_list)  # averages begin with weights that lie on the grid
        hooks.set_built(self)

    @property
    def built(self) -> bool:
        """Whether the optimizer knows its variables."""
        return bool(getattr(self, "_built", False))

    def compute_gradients(self, loss: Any, var_list: Any, tape: Any = None) -> list:
        """As in tf_keras; Q_G acts on the sum, in `apply_gradients`."""
        with left_to_the_optimizer():
            return super().compute_gradients(loss, var_list, tape)

    def _trained(self) -> list:
        return self._variables_built_for

    def _create_state(self, move: bool = True, kinds: list[str] | None = None) -> None:
        """Makes the state, with a variable that says of which kind the weights are.

        It comes first, so that a checkpoint that is waiting for the optimizer to be built
        restores it before the rest of the state is laid out by it.
        """
        numbers = kind_numbers(kinds or self._present_kinds())
        variable = self._tracked(None, "kinds", numbers)
        super()._create_state(move, self._kinds_from(variable.numpy()))
        keras_hooks.set_untracked(self, "_kinds", variable)

    def _new_state(
        self, variable: Any, name: str, shape: Any = (), dtype: str = "float32", value: Any = 0
    ) -> tf.Variable:
        return self._tracked(variable, name, tf.fill(shape, tf.cast(value, dtype)))

    def _new_counter(self, name: str) -> tf.Variable:
        return self._tracked(None, name, tf.zeros((), tf.int64))

    def _tracked(self, beside: Any, name: str, value: Any) -> tf.Variable:
        """A variable of the optimizer, on the devices of one of the model.

        Its name is unique in the optimizer: HDF5 files know variables by it.
        """
        taken = {v.name.split(":")[0] for v in self.variables}
        numbered, n = name, 0
        while numbered in taken:
            n += 1
            numbered = f"{name}_{n}"
        arguments = {
            "name": numbered,
            "trainable": False,
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        if beside is None:
            variable = tf.Variable(value, **arguments)
        else:
            with tf.distribute.get_strategy().extended.colocate_vars_with(beside):
                variable = tf.Variable(value, **arguments)
        hooks.add_state(self, variable)
        return variable

    def _index_of(self, variable: Any) -> int:
        return hooks.variable_index(self, variable)

    def _decays(self, variable: Any) -> bool:
        return hooks.use_weight_decay(self, variable)

    def _count_nonfinite(self, number: tf.Tensor) -> None:
        # Each replica in its own copy; gradients have been added up, so all count the same.
        keras_hooks.local_part(self._nonfinite).assign_add(number)

    def _check_rate(self, name: str, value: Any) -> Any:
        if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
            raise TypeError(
                f"`{name}` must be a schedule of tf_keras.optimizers.schedules (or "
                f"tf_lns.tfmot.InverseSqrtDecay), not of Keras 3. Received: {name}={value!r}"
            )
        return check_rate(name, value)

    def _check_own_rate(self, value: Any) -> Any:
        """The learning rate itself, which tf_keras calls only if it is a schedule."""
        is_schedule = isinstance(value, tf_keras.optimizers.schedules.LearningRateSchedule)
        if callable(self._check_rate("learning_rate", value)) and not is_schedule:
            raise TypeError(
                "`learning_rate` must be a number or a schedule of tf_keras, which calls no other "
                "function at each step. Subclass tf_keras.optimizers.schedules."
                f"LearningRateSchedule. Received: learning_rate={value!r}"
            )
        return value

    # --- Files -----------------------------------------------------------------------

    def load_own_variables(self, store: Any) -> None:
        """Loads the state from a `.keras` file."""
        self._lay_out([store[str(i)] for i in range(len(store.keys()))])
        super().load_own_variables(store)

    def set_weights(self, weights: list) -> None:
        """Sets the values of all variables of the optimizer."""
        self._lay_out(weights)
        super().set_weights(weights)

    def _lay_out(self, weights: list) -> None:
        """Makes the state anew where the weights to be loaded are of other kinds."""
        if self._states is None:
            return
        at = next(i for i, v in enumerate(self.variables) if v is self._kinds)
        if len(weights) <= at or weights[at].shape != self._kinds.shape:
            return
        kinds = self._kinds_from(np.asarray(weights[at]))
        if kinds != [state.kind for state in self._states]:
            hooks.drop_state(self, [self._kinds, *self._state_variables])
            rest = list(self.variables)
            self._create_state(move=False, kinds=kinds)
            made = self.variables[len(rest) :]
            hooks.order_state(self, [*rest[:at], *made, *rest[at:]])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        rate = hooks.serialized_rate(self)
        return {**super().get_config(), **self._lns_config(), "learning_rate": rate}

    @classmethod
    def _deserialized(cls, config: dict[str, Any], custom_objects: Any) -> Any:
        """HDF5 files are read by older rules, which do not know registered names: found here."""
        is_function = config["class_name"] == "function"
        name = config["config"] if is_function else config.get("registered_name")
        found = tf_keras.saving.get_registered_object(name, custom_objects) if name else None
        if is_function:
            return found or super()._deserialized(config, custom_objects)
        if found is not None:
            custom_objects = {**(custom_objects or {}), config["class_name"]: found}
        return tf_keras.optimizers.schedules.deserialize(config, custom_objects)

    # --- One step --------------------------------------------------------------------

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Updates one variable."""
        self._step_variable(gradient, variable, self.learning_rate)

    def before_clipping(self, gradients: list) -> list:
        """Removes what is not finite before it could spread."""
        clips = self.clipnorm or self.global_clipnorm or self.clipvalue
        return self._finite(gradients) if clips and self._has_state() else gradients

    def _overwrite_model_variables_with_average_value(self, var_list: Any) -> None:
        """Moves the averages to the grid, where weights must lie."""
        super()._overwrite_model_variables_with_average_value(var_list)
        for variable in var_list:
            state = self._states[self._index_of(variable)]
            if state.kind == "grid":
                hooks.update_copies(self, variable, self._put_on_grid, state)

    def _put_on_grid(self, variable: Any, state: Any) -> None:
        variable.assign(self._nearest_on_grid(variable, state))


@tf_keras.saving.register_keras_serializable(package="tf_lns")
class LNSMadam(MadamRule, TFKerasOptimizer, tf_keras.optimizers.Optimizer):
    """`tf_lns.LNSMadam` for tf_keras: the same rule, arguments and bits.

    For each LNS weight, element-wise, with t counted from 1::

        v  <- beta v + (1 - beta) g**2
        g' = clip(g / sqrt(v / (1 - beta**t)), -g_bound, g_bound)
        e  <- clamp(e - round(learning_rate base_factor (g' sign(w) + weight_decay)), 0, L-1)

    Everything that is no LNS weight (biases, norm scales, tensors that start at zero) takes
    the step ``w - additive_learning_rate (g' + weight_decay w)``.

    A layer's weight that is an `LNSCell` (a model quantized with `tf_lns.tfmot`) moves its own
    codes, and brings the format of its gradient: ``cell.gradient_format`` (an `LNSFormat`, None
    for float32) and ``cell.gradient_options`` (arguments of `tf_lns.ops.quantize`: "axis",
    "power_of_two", "underflow"); the copies of a cell on several devices share them through
    ``cell.role``. The float32 weights of any other tf_keras model are put on the grid of
    `storage` when the optimizer is built, and always lie on it.

    Elements of a gradient that are not finite count as zero; `nonfinite_gradients` counts them.

    Args:
        learning_rate: Octaves per step and unit of g': a float or a schedule of tf_keras.
            None for ``InverseSqrtDecay(2**-3, 20)``. Fine-tuning a pretrained model wants
            2**-8 with a linear decay; the default destroys one.
        beta: Decay rate of the second moment.
        g_bound: Bound of the normalised gradient.
        p_scale: No weight grows beyond this many RMS of its tensor's initial values (the
            paper has 3); None for the top of the range alone.
        weight_decay: Decoupled decay, in units of g'; folded into the update.
        rounding: "nearest" or "stochastic" rounding of the step.
        additive_learning_rate: Rate of the additive step: a float, a schedule of tf_keras or
            a function of the step; None for 0.1 x learning_rate.
        storage: Format of the weights of plain tf_keras models.
        second_moment: ``LNSFormat(8, 4)`` for one byte per weight; None for float32.
        sign_crossing: Let a weight that falls below ``RMS / 2**floor_octaves`` of its initial
            values change sign (ours, not the paper's).
        floor_octaves: See `sign_crossing`.
        round_gradient: Round g' to integers, as the authors' code does.
        gradients: Format of the gradients of plain tf_keras models (cells bring their own),
            one scale per last axis; None for float32.
        lns_weights: For plain tf_keras models: function of a variable that says whether it is
            an LNS weight; None for rank >= 2 and not named as a bias or a norm's scale.
        seed: Integer seed of stochastic rounding.
        **kwargs: As in `tf_keras.optimizers.Optimizer`: `clipnorm`, `clipvalue`,
            `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `name`.
            `jit_compile` has no effect: the update is one operation.

    Raises:
        TypeError: An argument has the wrong type.
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
        rate = self._check_own_rate(InverseSqrtDecay() if learning_rate is None else learning_rate)
        super().__init__(name=name, weight_decay=check_decay(weight_decay), **kwargs)
        hooks.set_rate(self, rate)
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
        return {**super().get_config(), **self._rule_config()}


class _Rounded(RoundedRule, TFKerasOptimizer):
    """`RoundedRule` of an optimizer of tf_keras."""

    def _stock_update(self, gradient: tf.Tensor, stand_in: Any, rate: tf.Tensor) -> None:
        # tf_keras' rules read the rate themselves; this one has been checked.
        with tf.control_dependencies([rate]):
            gradient = tf.identity(gradient)
        super(TFKerasOptimizer, self).update_step(gradient, stand_in)


@tf_keras.saving.register_keras_serializable(package="tf_lns")
class LNSSGD(_Rounded, tf_keras.optimizers.SGD):
    """`tf_keras.optimizers.SGD` with weights in LNS: `tf_lns.LNSSGD` for tf_keras.

    ::

        w <- Q_U(w - learning_rate (g + weight_decay w))

    or with momentum as in tf_keras. The rule is computed in float32 and its result, weight
    decay included, is rounded once per step to the storage format, in the log domain. Weights
    are stored as with `LNSMadam`; the slots (momentum) are float32.

    Args:
        learning_rate: A float or a schedule of tf_keras.
        momentum: As in `tf_keras.optimizers.SGD`.
        nesterov: As in `tf_keras.optimizers.SGD`.
        weight_decay: Decoupled decay; None for none.
        rounding: "nearest" or "stochastic" rounding to the grid.
        storage: Format of the weights of plain tf_keras models.
        gradients: As in `LNSMadam`.
        lns_weights: As in `LNSMadam`.
        seed: Integer seed of stochastic rounding.
        **kwargs: As in `LNSMadam`.

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
            learning_rate=self._check_own_rate(learning_rate),
            momentum=check_number("momentum", momentum, lambda m: 0 <= m <= 1, "0 to 1"),
            nesterov=check_flag("nesterov", nesterov),
            weight_decay=check_decay(weight_decay),
            name=name,
            **kwargs,
        )
        self._configure(storage, rounding, gradients, lns_weights, seed)


@tf_keras.saving.register_keras_serializable(package="tf_lns")
class LNSAdamW(_Rounded, tf_keras.optimizers.AdamW):
    """`tf_keras.optimizers.AdamW` with weights in LNS: `tf_lns.LNSAdamW` for tf_keras.

    ::

        w <- Q_U(AdamW(w, g))

    The rule is computed in float32 and its result, weight decay included, is rounded once per
    step to the storage format, in the log domain. Weights are stored as with `LNSMadam`; the
    two moments are float32.

    Args:
        learning_rate: A float or a schedule of tf_keras.
        weight_decay: Decoupled decay.
        beta_1: As in `tf_keras.optimizers.AdamW`.
        beta_2: As in `tf_keras.optimizers.AdamW`.
        epsilon: As in `tf_keras.optimizers.AdamW`.
        amsgrad: As in `tf_keras.optimizers.AdamW`.
        rounding: "nearest" or "stochastic" rounding to the grid.
        storage: Format of the weights of plain tf_keras models.
        gradients: As in `LNSMadam`.
        lns_weights: As in `LNSMadam`.
        seed: Integer seed of stochastic rounding.
        **kwargs: As in `LNSMadam`.

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
            learning_rate=self._check_own_rate(learning_rate),
            weight_decay=check_decay(weight_decay),
            beta_1=check_number("beta_1", beta_1, lambda b: 0 <= b < 1, "at least 0, below 1"),
            beta_2=check_number("beta_2", beta_2, lambda b: 0 <= b < 1, "at least 0, below 1"),
            epsilon=check_number("epsilon", epsilon, lambda e: 0 < e < 1, "between 0 and 1"),
            amsgrad=check_flag("amsgrad", amsgrad),
            name=name,
            **kwargs,
        )
        self._configure(storage, rounding, gradients, lns_weights, seed)
