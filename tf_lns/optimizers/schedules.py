"""Learning-rate schedules."""

from __future__ import annotations

import numbers

import keras
from keras import ops


class InverseSqrtRule:
    """Mixin: `InverseSqrtDecay`, to stand before the schedule class of either Keras."""

    def __init__(
        self,
        initial_learning_rate: float = 2.0**-3,
        decay_steps: float = 20,
        name: str = "inverse_sqrt_decay",
    ):
        super().__init__()
        for argument, value in (
            ("initial_learning_rate", initial_learning_rate),
            ("decay_steps", decay_steps),
        ):
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not number or not 0 < value < float("inf"):
                raise ValueError(
                    f"`{argument}` must be a positive, finite number. "
                    f"Received: {argument}={value!r}"
                )
        self.initial_learning_rate = float(initial_learning_rate)
        self.decay_steps = float(decay_steps)
        self.name = name

    def __call__(self, step):
        """The rate at `step`, counted from 0."""
        with keras.name_scope(self.name):
            progress = ops.cast(step, "float32") / self.decay_steps
            return self.initial_learning_rate * ops.rsqrt(1.0 + progress)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "name": self.name,
        }

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(initial_learning_rate={self.initial_learning_rate:g}, "
            f"decay_steps={self.decay_steps:g})"
        )


@keras.saving.register_keras_serializable(package="tf_lns")
class InverseSqrtDecay(InverseSqrtRule, keras.optimizers.schedules.LearningRateSchedule):
    """``initial_learning_rate / sqrt(1 + step / decay_steps)``, the default of `LNSMadam`.

    The default values come from the study in docs/defaults.md: what a run loses at its end is
    mostly the noise of the last steps, so the rate should be low by then and high before.

    Args:
        initial_learning_rate: Rate at step 0.
        decay_steps: Steps after which the rate has fallen to ``1 / sqrt(2)`` of it.
        name: Name of the schedule's ops.

    Raises:
        ValueError: An argument is not positive.
    """
