"""Any other layer in LNS: its kernels integers, its input and its errors quantized."""

from __future__ import annotations

from typing import Any

import keras

from tf_lns.config import LNSConfig
from tf_lns.layers.container import derived_class
from tf_lns.layers.mixin import LNSMixin


@keras.saving.register_keras_serializable(package="tf_lns")
class LNSWrapper(keras.layers.Wrapper):
    """Trains a layer of your own, or of another library, in LNS.

    Kernels that the layer makes with `add_weight` become integers (what is named as a bias, a
    norm's scale and so on, or has rank below 2, stays float32, as does what starts at zero);
    its first argument goes through Q_A, what it reads of its kernels through Q_W, and the
    errors of its outputs through Q_E. A layer that chains several products wants Q_A and Q_E
    between them too: write an LNS layer for it (`register_layer`).

    Args:
        layer: Keras layer, built or not. It is changed in place.
        lns_config: `LNSConfig`, its dict, or None for the defaults.
        **kwargs: As in `keras.layers.Layer`.

    Raises:
        TypeError: `layer` is no Keras layer.
        ValueError: `layer` is an LNS layer already.
    """

    def __init__(self, layer: keras.layers.Layer, lns_config: Any = None, **kwargs: Any):
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(f"`layer` must be a Keras layer. Received: layer={layer!r}")
        if isinstance(layer, LNSMixin):
            raise ValueError(f"`layer` is in LNS already. Received: layer={layer!r}")
        super().__init__(layer, **kwargs)
        self.lns_config = LNSConfig.get(lns_config)
        class_: Any = type(layer)
        mixin: Any = LNSMixin
        derived_class(class_, mixin).adopt(layer, self.lns_config)

        self.supports_masking = layer.supports_masking

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The layer's own call."""
        return self.layer(inputs, *args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The layer's own."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        """The plain layer and its formats."""
        config = super().get_config()
        inner = config["layer"]["config"]["layer"]  # the layer without what makes it LNS
        return {**config, "layer": inner, "lns_config": self.lns_config.get_config()}
