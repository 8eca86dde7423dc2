"""A tfmot quantize config for one layer in LNS, under any scheme."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from tf_lns.config import LNSConfig
from tf_lns.tfmot.quantizer import LNSQuantizer, error_of, weight_quantizer
from tf_lns.tfmot.registry import CUSTOM, row_of


def without_datapath(config: LNSConfig) -> LNSConfig:
    """A config, which must have no datapath here.

    Raises:
        ValueError: It has one.
    """
    if config.datapath is not None:
        raise ValueError(
            "Under tfmot products are computed in float32 on LNS values; `config` must have "
            f"datapath=None. Received: datapath={config.datapath!r}. Models of Keras 3 train "
            "through a datapath: tf_lns.quantize_model."
        )
    return config


@tf_keras.utils.register_keras_serializable(package="tf_lns")
class LNSQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """How one layer is quantized to LNS: the argument of tfmot's `quantize_annotate_layer`.

    Under `LNSScheme` it replaces the scheme's formats for this layer, whose weights are
    integers. Under any other scheme the arithmetic is the same, and the weights stay float32
    variables: tfmot's own wrapper keeps them. A layer of a class that has no row in the
    registry gets Q_A on its inputs (under `LNSScheme`) and outputs, Q_W on its kernels.

    Args:
        config: `LNSConfig`, its dict, or None for the scheme's (or the defaults).
        quantize_output: Whether outputs go through Q_A: True, False, or None for what the
            layer's place in the model asks for.
    """

    def __init__(self, config: Any = None, quantize_output: bool | None = None):
        self.config = None if config is None else without_datapath(LNSConfig.get(config))
        if quantize_output not in (True, False, None):
            raise TypeError(
                "`quantize_output` must be True, False or None. "
                f"Received: quantize_output={quantize_output!r}"
            )
        self.quantize_output = quantize_output

    @property
    def lns_config(self) -> LNSConfig:
        """The formats, the defaults where none are given."""
        return self.config or LNSConfig()

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, LNSQuantizer]]:
        """The layer's weights that products read, each with Q_W and Q_G."""
        found = []
        for weight in (row_of(layer) or CUSTOM).weights_of(layer):
            quantizer = weight_quantizer(self.lns_config, weight.axis)
            if quantizer is not None:
                found.append((weight.variable, quantizer))
        return found

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Puts quantized tensors where the weights were."""
        if self.lns_config.weights is None:
            return
        weights = self._places(layer)
        for weight, tensor in zip(weights, quantize_weights, strict=True):
            setattr(weight.holder, weight.name, tensor)

    def _places(self, layer: Any) -> list[Any]:
        """Where the weights are; asked before tensors take their places."""
        places = vars(layer).get("_lns_places")
        if places is None:
            places = tuple((row_of(layer) or CUSTOM).weights_of(layer))
            object.__setattr__(layer, "_lns_places", places)
        return list(places)

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, LNSQuantizer]]:
        """The activation functions, with Q_E before them.

        What tfmot's wrapper builds of it is only a detour: outputs are quantized as outputs.
        """
        self._places(layer)
        found: list[tuple[Any, LNSQuantizer]] = []
        for holder in (row_of(layer) or CUSTOM).activated(layer):
            function = ErrorQuantized(holder.activation, self.lns_config)
            found.append((function, LNSQuantizer()))
        return found

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Puts activation functions with Q_E where the plain ones were."""
        holders = (row_of(layer) or CUSTOM).activated(layer)
        for holder, quantized in zip(holders, quantize_activations, strict=True):
            holder.activation = quantized.activation.in_layer()

    def get_output_quantizers(self, layer: Any) -> list[LNSQuantizer]:
        """Q_A of the outputs, unless the layer moves values that were quantized before."""
        config, row = self.lns_config, row_of(layer) or CUSTOM
        wanted = self.quantize_output
        if wanted is None:
            wanted = row.kind in ("product", "values")
        if not wanted or config.activations is None:
            return []
        return [
            LNSQuantizer(
                config.activations,
                kind="activation",
                activation_scale=config.activation_scale,
                power_of_two=config.power_of_two_scales,
            )
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as a JSON-able dict."""
        return {
            "config": None if self.config is None else self.config.get_config(),
            "quantize_output": self.quantize_output,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LNSQuantizeConfig) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(str(self.get_config()))

    def __repr__(self) -> str:
        return f"LNSQuantizeConfig({self.config!r}, quantize_output={self.quantize_output!r})"


class ErrorQuantized:
    """An activation function with Q_E before it, as tfmot's own wrapper takes it.

    Args:
        activation: The function, or what `in_layer` made of it.
        config: The formats.
    """

    __name__ = "NoOpActivation"  # tfmot quantizes neither before nor after one of this name

    def __init__(self, activation: Callable, config: LNSConfig):
        self.activation = getattr(activation, "plain_activation", activation)
        self.lns_config = config

    def __call__(self, z: Any, *args: Any, **kwargs: Any) -> Any:
        """``activation(z)``, whose gradient goes through Q_E."""
        return self.activation(error_of(self.lns_config).quantize_error(z), *args, **kwargs)

    def in_layer(self) -> Callable:
        """The same for a layer to keep: a function that files have under the plain one's name."""

        def activation(*args: Any, **kwargs: Any) -> Any:
            return self(*args, **kwargs)

        function: Any = functools.update_wrapper(activation, self.activation)
        function.plain_activation = self.activation
        return function
