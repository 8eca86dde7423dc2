"""LNS-Madam: a multiplicative update, which on logarithms is an integer addition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks, ops
from tf_lns.formats import LNSFormat
from tf_lns.ops.call import ROUNDINGS, choice
from tf_lns.ops.madam import NO_EXPONENT, apply_madam, apply_madam_additive
from tf_lns.optimizers.schedules import InverseSqrtDecay
from tf_lns.optimizers.weights import WeightState, all_initialized, classify, exponent_of


@keras.saving.register_keras_serializable(package="tf_lns")
class LNSMadam(keras_hooks.FusedWeightDecay, keras.optimizers.Optimizer):
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
    assign move to the nearest point of the grid with the next step.

    Elements of a gradient that are not finite count as zero; `nonfinite_gradients` counts them.

    Args:
        learning_rate: Octaves per step and unit of g': a float, a Keras schedule or a
            callable. None for ``InverseSqrtDecay(2**-4, 200)``. Fine-tuning a pretrained
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
        if learning_rate is None:
            learning_rate = InverseSqrtDecay()
        elif isinstance(learning_rate, int | np.floating) and not isinstance(learning_rate, bool):
            learning_rate = float(learning_rate)
        if isinstance(learning_rate, float):
            _check("learning_rate", learning_rate, np.isfinite(learning_rate), "finite")
        _check("beta", beta, 0 < beta < 1, "between 0 and 1")
        _check("g_bound", g_bound, 0 < g_bound < np.inf, "positive and finite")
        if p_scale is not None:
            _check("p_scale", p_scale, 0 < p_scale < np.inf, "positive, or None")
        if weight_decay is not None:
            _check("weight_decay", weight_decay, 0 <= weight_decay < np.inf, "at least 0")
        _check("floor_octaves", floor_octaves, 0 < floor_octaves <= 8, "above 0, at most 8")
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise TypeError(f"`seed` must be an integer. Received: seed={seed!r}")
        super().__init__(learning_rate, weight_decay=weight_decay, name=name, **kwargs)
        self.beta = float(beta)
        self.g_bound = float(g_bound)
        self.p_scale = p_scale
        self.rounding = choice(rounding, "rounding", ROUNDINGS)
        self.additive_learning_rate = additive_learning_rate
        self.storage = LNSFormat.get(storage)
        self.second_moment = None if second_moment is None else LNSFormat.get(second_moment)
        if self.second_moment not in (None, LNSFormat(8, 4)):
            raise ValueError(
                "`second_moment` must be None (float32) or LNSFormat(8, 4). "
                f"Received: second_moment={second_moment}"
            )
        self.sign_crossing = bool(sign_crossing)
        self.floor_octaves = float(floor_octaves)
        self.round_gradient = bool(round_gradient)
        self.gradients = None if gradients is None else LNSFormat.get(gradients)
        self.lns_weights = lns_weights
        self.seed = int(seed)

    @classmethod
    def paper(cls, learning_rate: Any = 2.0**-7, p_scale: float = 3.0, **kwargs) -> LNSMadam:
        """The authors' settings: rate 2**-7, growth bounded at 3 RMS, g' rounded to integers.

        With `storage` of base factor 128 each step is the authors' code's: the learning rate
        times the base factor is 1 and the exponent moves by g' rounded half to even.
        """
        kwargs.setdefault("storage", LNSFormat(12, 128))
        return cls(learning_rate, p_scale=p_scale, round_gradient=True, **kwargs)

    def build(self, variables: list) -> None:
        """Makes the optimizer's state for the given trainable variables."""
        if self.built:
            return
        super().build(variables)
        self._states: list[WeightState] | None = None
        if all_initialized(variables):
            self._create_state()

    def _create_state(self) -> None:
        """Makes the state, which depends on the values of the variables.

        A model that is built by its first batch makes its variables while the training
        function is traced; they have values only when TensorFlow traces it again, so then is
        the time.
        """
        variables = self._trainable_variables
        self._states = [
            classify(v, self.storage, self.lns_weights, self._add_scale) for v in variables
        ]
        self._moments, self._exponents = [], []
        for variable, state in zip(variables, self._states, strict=True):
            compact = state.is_lns and self.second_moment is not None
            label = variable.path.replace("/", "_") if hasattr(variable, "path") else "var"
            self._moments.append(
                self.add_variable(
                    variable.shape,
                    dtype="int8" if compact else "float32",
                    name=f"{label}_second_moment",
                )
            )
            self._exponents.append(
                self.add_variable(
                    (),
                    initializer=keras.initializers.Constant(NO_EXPONENT),
                    dtype="int32",
                    name=f"{label}_second_moment_exponent",
                )
                if compact
                else None
            )
        self._limits = [self._add_limits(v, s) for v, s in zip(variables, self._states)]
        self._nonfinite = self.add_variable((), dtype="int64", name="nonfinite_gradients")

    def _add_scale(self, variable: Any, scale: np.float32) -> keras.Variable:
        label = variable.path.replace("/", "_") if hasattr(variable, "path") else "var"
        return self.add_variable(
            (), initializer=keras.initializers.Constant(float(scale)), name=f"{label}_scale"
        )

    def _add_limits(self, variable: Any, state: WeightState) -> dict[str, keras.Variable]:
        """Cap and floor as magnitudes, so that they outlive a change of the scale."""
        if not state.is_lns:
            return {}
        label = variable.path.replace("/", "_") if hasattr(variable, "path") else "var"
        wanted = {}
        if self.p_scale is not None:
            wanted["cap"] = self.p_scale * state.rms
        if self.sign_crossing:
            wanted["floor"] = state.rms * 2.0**-self.floor_octaves
        return {
            key: self.add_variable(
                (), initializer=keras.initializers.Constant(value), name=f"{label}_{key}"
            )
            for key, value in wanted.items()
        }

    @property
    def nonfinite_gradients(self) -> int:
        """Gradient elements so far that were NaN or Inf and counted as zero."""
        return int(self._nonfinite.numpy()) if self.built and self._states else 0

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable; `variable` is its `tf.Variable`."""
        if self._states is None:
            with keras_hooks.late_creation():
                if all_initialized(self._trainable_variables):
                    self._create_state()
        if self._states is None:
            # The first of two traces; only a variable whose initial value depends on the batch
            # makes TensorFlow run it.
            tf.debugging.Assert(False, ["Build the model before it is trained with LNSMadam."])
            return
        index = keras_hooks.variable_index(self, variable)
        state = self._states[index]
        gradient = tf.cast(tf.convert_to_tensor(gradient), tf.float32)
        learning_rate = tf.cast(learning_rate, tf.float32)
        decay = self.weight_decay or 0.0
        common = {
            "step": tf.cast(self.iterations, tf.int64) + 1,
            "weight_decay": decay if keras_hooks.use_weight_decay(self, variable) else 0.0,
            "beta": self.beta,
            "g_bound": self.g_bound,
        }
        moment = self._moments[index].value
        if state.is_lns:
            nonfinite = self._multiply(
                index, state, variable, gradient, learning_rate=learning_rate, **common
            )
        elif variable.dtype == tf.float32:
            rate = self._additive_rate(learning_rate)
            nonfinite = apply_madam_additive(
                variable.handle, moment.handle, gradient, learning_rate=rate, **common
            )
        else:
            raise TypeError(
                f"LNSMadam updates float32 variables. Received: {variable.name} of dtype "
                f"{variable.dtype.name}"
            )
        self.assign_add(self._nonfinite, nonfinite)

    def _multiply(
        self, index: int, state: WeightState, variable: Any, gradient: tf.Tensor, **common
    ) -> tf.Tensor:
        scale = tf.convert_to_tensor(state.scale)
        moment, exponent = self._moments[index].value, self._exponents[index]
        if state.kind == "cell":
            format, options = variable.gradient_format, variable.gradient_options
            weight_type = tf.as_dtype(state.format.dtype)
        else:
            format, options = self.gradients, {"axis": (len(variable.shape) - 1,)}
            weight_type = tf.float32
        axis = tuple(options.get("axis") or ())
        limits = {
            key: exponent_of(value, scale, state.format)
            for key, value in self._limits[index].items()
        }
        return apply_madam(
            variable.handle,
            scale,
            moment.handle,
            gradient,
            weight_type=weight_type,
            moment_type=tf.float32 if exponent is None else tf.int8,
            format=state.format,
            moment_exponent=None if exponent is None else exponent.value.handle,
            gradient_format=format,
            gradient_scale=None
            if format is None
            else ops.scale_of(gradient, format, axis=axis or None),
            gradient_axis=axis,
            gradient_underflow=options.get("underflow", "clamp"),
            rounding=self.rounding,
            round_gradient=self.round_gradient,
            seed=self._seed_of(common["step"], index),
            **limits,
            **common,
        )

    def _seed_of(self, step: tf.Tensor, index: int) -> Any:
        if self.rounding == "nearest" and self.second_moment is None:
            return 0
        base = (self.seed * 0x9E3779B97F4A7C1 + index) % (1 << 62)
        return step * (1 << 20) + base

    def _additive_rate(self, learning_rate: tf.Tensor) -> tf.Tensor:
        rate = self.additive_learning_rate
        if rate is None:
            return 0.1 * learning_rate
        if callable(rate):
            rate = rate(self.iterations)
        return tf.cast(rate, tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        rate = self.additive_learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = keras.saving.serialize_keras_object(rate)
        config.update(
            {
                "beta": self.beta,
                "g_bound": self.g_bound,
                "p_scale": self.p_scale,
                "rounding": self.rounding,
                "additive_learning_rate": rate,
                "storage": str(self.storage),
                "second_moment": None if self.second_moment is None else str(self.second_moment),
                "sign_crossing": self.sign_crossing,
                "floor_octaves": self.floor_octaves,
                "round_gradient": self.round_gradient,
                "gradients": None if self.gradients is None else str(self.gradients),
                "seed": self.seed,
            }
        )
        if self.lns_weights is not None:
            config["lns_weights"] = keras.saving.serialize_keras_object(self.lns_weights)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LNSMadam:
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
        return f"<LNSMadam learning_rate={rate} storage={self.storage} rounding={self.rounding}>"


def _check(name: str, value: Any, holds: Any, wanted: str) -> None:
    if isinstance(value, bool) or not holds:
        raise ValueError(f"`{name}` must be {wanted}. Received: {name}={value!r}")
