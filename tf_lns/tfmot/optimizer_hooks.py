"""The private hooks of tf_keras optimizers that `optimizer.py` relies on, and nothing else.

`tests/test_tfmot_optimizer.py` checks each one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import tensorflow as tf
from tf_keras.src.saving.legacy.saved_model.utils import in_tf_saved_model_scope

if TYPE_CHECKING:  # what the mixin stands before
    _OptimizerMixin: TypeAlias = Any
else:
    _OptimizerMixin = object


class FusedUpdate(_OptimizerMixin):
    """Mixin before a `tf_keras.optimizers.Optimizer` whose update is one operation."""

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing: `update_step` folds the decay in."""

    def _deduplicate_sparse_grad(self, grads: Any) -> Any:
        """The gradients as they are: `update_step` makes them dense, which adds repeated rows."""
        return grads

    def _update_step_xla(self, gradient: Any, variable: Any, key: int) -> Any:
        """No compiled function for each variable, which would be given a copy of the variable."""
        return self._update_step(gradient, variable)

    def _clip_gradients(self, grads: Any) -> Any:
        return super()._clip_gradients(self.before_clipping(list(grads)))

    def before_clipping(self, gradients: list) -> list:
        """Nothing; a subclass adds to it."""
        return gradients


def variable_index(optimizer: Any, variable: Any) -> int:
    """Position of a variable among those the optimizer was built for."""
    return optimizer._index_dict[optimizer._var_key(variable)]


def use_weight_decay(optimizer: Any, variable: Any) -> bool:
    """Whether `exclude_from_weight_decay` leaves a variable in."""
    return optimizer._use_weight_decay(variable)


def set_rate(optimizer: Any, rate: Any) -> None:
    """Makes the variable of the learning rate, or the schedule with its variable."""
    optimizer._learning_rate = optimizer._build_learning_rate(rate)


def serialized_rate(optimizer: Any) -> Any:
    """The learning rate for a configuration: a float, or a schedule's own configuration."""
    rate = optimizer._serialize_hyperparameter(optimizer._learning_rate)
    return rate if isinstance(rate, dict) else float(rate)


def set_built(optimizer: Any) -> None:
    """Says that the optimizer has its state."""
    optimizer._built = True


def add_variable(optimizer: Any, variable: tf.Variable) -> None:
    """Adds a variable to those that the optimizer saves and loads."""
    optimizer._variables.append(variable)


def drop_variables(optimizer: Any, variables: list) -> None:
    """Takes variables out of those that the optimizer saves and loads."""
    dropped = {id(v) for v in variables}
    order_variables(optimizer, [v for v in optimizer._variables if id(v) not in dropped])


def order_variables(optimizer: Any, variables: list) -> None:
    """Makes these the variables that the optimizer saves and loads."""
    optimizer._variables = variables  # a new list: checkpoints refuse one that was changed


def update_copies(optimizer: Any, variable: Any, update: Callable, *arguments: Any) -> None:
    """Calls `update` with the variable on each device that has a copy of it."""
    optimizer._distribution_strategy.extended.update(
        variable, lambda copy: update(copy, *arguments)
    )


def loads_legacy_file() -> bool:
    """Whether tf_keras is loading an HDF5 file or a SavedModel."""
    return in_tf_saved_model_scope()
