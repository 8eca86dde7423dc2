"""What LNS-Madam and the baselines share in Keras: its calls led to `core.py`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks
from tf_lns.optimizers.arguments import check_rate
from tf_lns.optimizers.core import OptimizerCore, kind_numbers
from tf_lns.optimizers.weights import all_initialized


class LNSOptimizer(OptimizerCore, keras_hooks.FusedWeightDecay):
    """Mixin of the optimizers of weights in LNS; stands before a `keras.optimizers.Optimizer`.

    It finds the kind of each variable (`weights.py`), keeps the float weights of plain models
    on the grid, counts and removes gradient elements that are not finite, and folds weight
    decay into the update. A subclass calls `_configure` in its constructor and implements
    `_update`.
    """

    _saving = keras.saving

    # --- Variables -------------------------------------------------------------------

    def build(self, variables: list) -> None:
        """Makes the optimizer's state for the given trainable variables."""
        if self.built:
            return
        super().build(variables)
        if all_initialized(variables):
            self._create_state()

    def _trained(self) -> list:
        return self._trainable_variables

    def _new_state(
        self, variable: Any, name: str, shape: Any = (), dtype: str = "float32", value: Any = 0
    ) -> keras.Variable:
        number = int(value) if "int" in dtype else float(value)
        initializer = keras.initializers.Constant(number) if number else "zeros"
        return self.add_variable(shape, initializer=initializer, dtype=dtype, name=name)

    def _new_counter(self, name: str) -> keras.Variable:
        return self.add_variable((), dtype="int64", aggregation="sum", name=name)

    def _index_of(self, variable: Any) -> int:
        return keras_hooks.variable_index(self, variable)

    def _decays(self, variable: Any) -> bool:
        return keras_hooks.use_weight_decay(self, variable)

    def _count_nonfinite(self, number: tf.Tensor) -> None:
        self.assign_add(self._nonfinite, number)

    def _check_rate(self, name: str, value: Any) -> Any:
        return check_rate(name, value)

    # --- Files -----------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        """Saves the variables, and the kind of each trainable variable."""
        super().save_own_variables(store)
        if self._states is not None:
            store["kinds"] = kind_numbers([state.kind for state in self._states])

    def load_own_variables(self, store: Any) -> None:
        """Loads the state; by now the model's weights are those of the file."""
        own = {key: store[key] for key in store.keys() if key != "kinds"}  # noqa: SIM118
        if self._states is not None:
            saved = np.asarray(store["kinds"]) if "kinds" in store.keys() else None  # noqa: SIM118
            kinds = self._kinds_from(saved)
            if kinds != [state.kind for state in self._states]:
                keras_hooks.untrack_variables(self, self._state_variables)
                self._create_state(move=False, kinds=kinds)
        super().load_own_variables(own)

    # --- One step --------------------------------------------------------------------

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable; `variable` is its `tf.Variable`."""
        self._step_variable(gradient, variable, learning_rate)

    def _backend_apply_gradients(self, grads: list, trainable_variables: list) -> None:
        """Removes what is not finite before it could spread."""
        clips = self.clipnorm or self.global_clipnorm or self.clipvalue
        if (clips or self.gradient_accumulation_steps) and self._has_state():
            grads = self._finite(grads)
        super()._backend_apply_gradients(grads, trainable_variables)

    def _overwrite_model_variables_with_average_value(self, trainable_variables: list) -> None:
        """Moves the averages to the grid, where weights must lie."""
        super()._overwrite_model_variables_with_average_value(trainable_variables)
        for variable in trainable_variables:
            state = self._states[self._index_of(variable)]
            if state.kind == "grid":
                self.assign(variable, self._nearest_on_grid(variable, state))
