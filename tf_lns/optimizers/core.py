"""What optimizers of weights in LNS do, whichever Keras calls them.

`OptimizerCore` knows the kind of each variable, the state that goes with it and one step of one
variable. It knows nothing of who counts steps, clips gradients or writes files: `base.py` joins
it to Keras, `tf_lns/tfmot/optimizer.py` to tf_keras.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks, ops
from tf_lns.formats import LNSFormat
from tf_lns.ops.call import ROUNDINGS, choice
from tf_lns.optimizers.arguments import check_format, check_number
from tf_lns.optimizers.weights import (
    KINDS,
    WeightState,
    all_initialized,
    classify,
    kind_of,
    label_of,
    to_grid,
)


class OptimizerCore:
    """Mixin of optimizers of weights in LNS.

    It finds the kind of each variable (`weights.py`), makes the state, and takes a step of a
    variable. A subclass for one of the two Keras says how variables are made and found; a
    subclass for a rule implements `_create_slots` and `_update`.
    """

    _states: Any = None  # list[WeightState], once there
    _saving: Any  # `keras.saving`, or that of tf_keras
    _serialized: tuple[str, ...] = ("additive_learning_rate", "lns_weights")  # arguments

    # Of the optimizer that this mixin stands before:
    variables: Any
    iterations: Any
    weight_decay: Any
    _learning_rate: Any

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
            wanted, value = "positive and finite, or None", getattr(self, name, None)
            check_number(name, value, lambda x: 0 < x < np.inf, wanted, optional=True)
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

    # --- What differs between the two Keras ---------------------------------------------

    def _trained(self) -> list:
        """The variables that the optimizer was built for."""
        raise NotImplementedError

    def _new_state(
        self, variable: Any, name: str, shape: Any = (), dtype: str = "float32", value: Any = 0
    ) -> Any:
        """A variable of the optimizer that goes with one of the model."""
        raise NotImplementedError

    def _new_counter(self, name: str) -> Any:
        """An int64 scalar to which replicas add."""
        raise NotImplementedError

    def _count_nonfinite(self, number: tf.Tensor) -> None:
        """Adds to the number of non-finite gradient elements."""
        raise NotImplementedError

    def _index_of(self, variable: Any) -> int:
        """Position of a variable among those the optimizer was built for."""
        raise NotImplementedError

    def _decays(self, variable: Any) -> bool:
        """Whether weight decay applies to a variable."""
        raise NotImplementedError

    def _check_rate(self, name: str, value: Any) -> Any:
        """A learning rate: a float, or a schedule of this Keras."""
        raise NotImplementedError

    # --- State -----------------------------------------------------------------------

    def _create_state(self, move: bool = True, kinds: list[str] | None = None) -> None:
        """Makes the state, which depends on the values of the variables unless `kinds` are given.

        A model that is built by its first batch makes its variables while the training
        function is traced; they have values only when TensorFlow traces it again, so then is
        the time.
        """
        before = len(self.variables)
        states = [
            classify(v, kind, self.storage, self._add_scale, move)
            for v, kind in zip(self._trained(), kinds or self._present_kinds(), strict=True)
        ]
        self._create_slots(states)
        self._nonfinite = self._new_counter("nonfinite_gradients")
        keras_hooks.set_untracked(self, "_states", states)
        keras_hooks.set_untracked(self, "_state_variables", self.variables[before:])

    def _present_kinds(self) -> list[str]:
        return [kind_of(v, self.lns_weights) for v in self._trained()]

    def _kinds_from(self, saved: Any) -> list[str]:
        """The kind of each variable by the numbers in a file, None for no numbers.

        A variable may be of another kind than when the optimizer was built: a tensor that
        starts at zero is additive, and the one in the file need not have been zero.
        """
        kinds = self._present_kinds()
        if saved is None or len(saved) != len(kinds):
            return kinds
        names = [KINDS[int(i)] for i in np.asarray(saved)]
        return [k if k == "cell" else old for k, old in zip(kinds, names, strict=True)]

    def _create_slots(self, states: list[WeightState]) -> None:
        """Makes what the subclass keeps for each variable."""

    def _add_scale(self, variable: Any, scale: np.float32) -> Any:
        return self._new_state(variable, f"{label_of(variable)}_scale", value=scale)

    def _has_state(self) -> bool:
        """Whether the state is there; makes it where that was not possible in `build`."""
        if self._states is None:
            with keras_hooks.late_creation():
                if all_initialized(self._trained()):
                    self._create_state()
        return self._states is not None

    @property
    def nonfinite_gradients(self) -> int:
        """Gradient elements so far that were NaN or Inf and counted as zero."""
        return int(tf.convert_to_tensor(self._nonfinite)) if self._states is not None else 0

    # --- One step --------------------------------------------------------------------

    def _step_variable(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable; `variable` is its `tf.Variable`."""
        if not self._has_state():
            # The first of two traces; only a variable whose initial value depends on the batch
            # makes TensorFlow run it.
            message = f"Build the model before it is trained with {type(self).__name__}."
            tf.debugging.Assert(False, [message])
            return
        rate = tf.cast(learning_rate, tf.float32)
        self._count_nonfinite(self._update(self._index_of(variable), gradient, variable, rate))

    def _update(
        self, index: int, gradient: Any, variable: Any, learning_rate: tf.Tensor
    ) -> tf.Tensor:
        """One step of variable `index`; returns the number of non-finite gradient elements."""
        raise NotImplementedError

    def _decay_of(self, variable: Any) -> float:
        """Weight decay of a variable, 0 where it is left out."""
        decay = self.weight_decay or 0.0
        return decay if self._decays(variable) else 0.0

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

    def _finite(self, gradients: list) -> list:
        """Gradients without what is not finite, which is counted.

        Clipping by a norm would make a whole tensor, or all, NaN of one such element, and an
        accumulator would keep it.
        """
        pairs = [finite_gradient(g) for g in gradients]
        self._count_nonfinite(tf.add_n([count for _, count in pairs]))
        return [g for g, _ in pairs]

    def _nearest_on_grid(self, variable: Any, state: WeightState) -> tf.Tensor:
        """The value of a grid weight moved to the nearest points of its grid."""
        scale = tf.convert_to_tensor(state.scale)
        return to_grid(tf.convert_to_tensor(variable), scale, state.format)

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
            config["lns_weights"] = self._saving.serialize_keras_object(self.lns_weights)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Rebuilds an optimizer from `get_config`."""
        config = dict(config)
        for key in cls._serialized:
            if isinstance(config.get(key), dict):
                config[key] = cls._deserialized(config[key], custom_objects)
        return super().from_config(config, custom_objects)  # type: ignore[misc]

    @classmethod
    def _deserialized(cls, config: dict[str, Any], custom_objects: Any) -> Any:
        """A schedule or a function from its own configuration."""
        return cls._saving.deserialize_keras_object(config, custom_objects)

    def __repr__(self) -> str:
        rate: Any = self._learning_rate
        if isinstance(rate, keras.Variable | tf.Variable):
            rate = f"{float(rate.numpy()):g}"
        return (
            f"<{type(self).__name__} learning_rate={rate} storage={self.storage} "
            f"rounding={self.rounding}>"
        )


def kind_numbers(kinds: list[str]) -> np.ndarray:
    """Kinds as files number them."""
    return np.array([KINDS.index(kind) for kind in kinds], np.int8)


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
