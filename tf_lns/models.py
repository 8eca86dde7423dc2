"""What `quantize_model` makes of a model itself: it loads plain and LNS weight files."""

from __future__ import annotations

from typing import Any

import keras

from tf_lns import keras_hooks
from tf_lns.files import load_weights
from tf_lns.layers.container import base_of_models


@base_of_models
class LNSModel:
    """Mixin of LNS models."""

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Loads weights that this model or its plain counterpart saved, all or nothing.

        See `tf_lns.load_weights`.
        """
        model: Any = self
        load_weights(model, filepath, skip_mismatch=skip_mismatch, **kwargs)


@keras.saving.register_keras_serializable(package="tf_lns")
class LNSSequential(LNSModel, keras.Sequential):
    """A `keras.Sequential` from `quantize_model`."""

    _plain_class = keras.Sequential


@keras.saving.register_keras_serializable(package="tf_lns")
class LNSFunctional(LNSModel, keras_hooks.Functional):
    """A functional `keras.Model` from `quantize_model`."""

    _plain_class = keras_hooks.Functional


def as_lns_model(model: keras.Model) -> None:
    """Makes a Sequential or functional model an LNS model, in place."""
    for class_ in (LNSSequential, LNSFunctional):
        if type(model) is class_._plain_class:
            keras_hooks.change_class(model, class_)
