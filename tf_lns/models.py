"""What `quantize_model` makes of a model itself: one whose files are safe."""

from __future__ import annotations

from typing import Any

import keras

from tf_lns import keras_hooks
from tf_lns.files import load_weights, written_beside
from tf_lns.layers.container import base_of_models


@base_of_models
class LNSModel:
    """Mixin of LNS models: files of either kind load, and no failure costs anything."""

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """As in Keras; a save that fails leaves the old file."""
        base: Any = super()
        if not overwrite:  # Keras asks before it replaces a file
            base.save(filepath, overwrite=False, **kwargs)
            return
        with written_beside(filepath) as path:
            base.save(path, **kwargs)

    def save_weights(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """As in Keras; a save that fails leaves the old file."""
        base: Any = super()
        if not overwrite or kwargs.get("max_shard_size"):
            base.save_weights(filepath, overwrite=overwrite, **kwargs)
            return
        with written_beside(filepath) as path:
            base.save_weights(path, **kwargs)

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
