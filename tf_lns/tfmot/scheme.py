"""The tfmot scheme that makes a model one of integer LNS weights."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from tf_lns.config import LNSConfig
from tf_lns.tfmot import hooks
from tf_lns.tfmot.grouping import places_of
from tf_lns.tfmot.quantize_config import LNSQuantizeConfig, without_datapath
from tf_lns.tfmot.registry import LNSQuantizeRegistry, row_of, unsupported
from tf_lns.tfmot.wrapper import LNSQuantizeWrapper


@tf_keras.utils.register_keras_serializable(package="tf_lns")
class LNSScheme(tfmot.quantization.keras.QuantizeScheme):
    """The `scheme` argument of tfmot's `quantize_apply` that trains a model in LNS.

    ::

        annotated = tfmot.quantization.keras.quantize_annotate_model(model)
        model = tfmot.quantization.keras.quantize_apply(
            annotated, scheme=tf_lns.tfmot.LNSScheme(tf_lns.LNSConfig()))

    Weights become integers, chosen from the values they have; `quantize_apply` copies the model
    first. Activations, errors and gradients have the formats of the config, or of a layer's own
    `LNSQuantizeConfig`. Q_G acts in an optimizer
    of `tf_lns.tfmot`, and for any other one as a gradient leaves its layer.

    Args:
        config: `LNSConfig`, its dict, or None for the defaults.
        on_unsupported: "raise" for an error where a layer has no row in the registry, "skip"
            to leave it float with a warning.
        quantize_outputs: Whether the model's outputs go through Q_A too. They are no operand
            of any product, so by default they do not.
        name_prefix: Put before the names of quantized layers. (`quantize_apply` has an argument
            for it, which does not reach schemes.)

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or the config has a datapath.
    """

    def __init__(
        self,
        config: Any = None,
        on_unsupported: str = "raise",
        quantize_outputs: bool = False,
        name_prefix: str = "quant_",
    ):
        self.config = without_datapath(LNSConfig.get(config))
        if on_unsupported not in ("raise", "skip"):
            raise ValueError(
                '`on_unsupported` must be "raise" or "skip". '
                f"Received: on_unsupported={on_unsupported!r}"
            )
        for name, value, kind in (
            ("quantize_outputs", quantize_outputs, bool),
            ("name_prefix", name_prefix, str),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"`{name}` must be a {kind.__name__}. Received: {name}={value!r}")
        self.on_unsupported = on_unsupported
        self.quantize_outputs = quantize_outputs
        self.name_prefix = name_prefix
        self._left_float: Any = weakref.WeakSet()

    def annotate(self, model: Any) -> Any:
        """Like tfmot's `quantize_annotate_model`, of the layers that the scheme supports.

        That function takes a model's every layer and later fails on operations on tensors and
        nested models; here they are an error that says more, or left float.

        Args:
            model: Sequential or functional model of tf_keras; layers that are annotated
                already stay so.

        Returns:
            The model for `quantize_apply`.

        Raises:
            ValueError: A layer is not supported, and the scheme does not skip it.
        """

        def annotated(layer: Any) -> Any:
            if hooks.is_annotated(layer) or not self.takes(layer):
                return layer
            return tfmot.quantization.keras.quantize_annotate_layer(layer)

        return tf_keras.models.clone_model(model, clone_function=annotated)

    def takes(self, layer: Any) -> bool:
        """Whether a layer is quantized that has no config of its own.

        Raises:
            ValueError: It is not supported, and the scheme does not skip it.
        """
        if row_of(layer) is not None:
            return True
        if self.on_unsupported == "raise":
            raise ValueError(unsupported(layer))
        warnings.warn(
            f"Layer {layer.name!r} of class {type(layer).__name__} is left float: it has no row in "
            "the registry of tf_lns.tfmot.",
            stacklevel=2,
        )
        return False

    def get_layout_transformer(self) -> Any:
        """What wraps the layers of a model."""
        return _Layout(self)

    def get_quantize_registry(self) -> LNSQuantizeRegistry:
        """What tfmot asks about single layers."""
        return LNSQuantizeRegistry(self.config, self._left_float)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as a JSON-able dict."""
        return {
            "config": self.config.get_config(),
            "on_unsupported": self.on_unsupported,
            "quantize_outputs": self.quantize_outputs,
            "name_prefix": self.name_prefix,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LNSScheme:
        """Rebuilds a scheme from `get_config`."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"LNSScheme({self.config!r}, on_unsupported={self.on_unsupported!r})"


class _Layout(tfmot.quantization.keras.QuantizeLayoutTransform):
    """Wraps each annotated layer in an `LNSQuantizeWrapper`, which tfmot then leaves alone."""

    def __init__(self, scheme: LNSScheme):
        self._scheme = scheme

    def apply(self, model: Any, layer_quantize_map: dict[str, dict]) -> tuple[Any, dict]:
        """Wraps layers.

        Args:
            model: Model without annotations.
            layer_quantize_map: The annotated layers: names, and configs of the user's own.

        Returns:
            The model with wrapped layers, and the part of the map that is left to tfmot:
            layers with a config that is none of tf_lns.
        """
        scheme = self._scheme
        names = {layer.name for layer in model.layers}
        given = {
            name: found.get("quantize_config")
            for name, found in layer_quantize_map.items()
            if name in names
        }
        foreign = {
            name: layer_quantize_map[name]
            for name, config in given.items()
            if config is not None and not isinstance(config, LNSQuantizeConfig)
        }
        own = {n: c for n, c in given.items() if isinstance(c, LNSQuantizeConfig)}
        quantized = {
            layer.name
            for layer in model.layers
            if layer.name in given
            and layer.name not in foreign
            and not isinstance(layer, tf_keras.layers.InputLayer)
            and (layer.name in own or scheme.takes(layer))
        }
        places = places_of(model, own, quantized, scheme.quantize_outputs)

        def wrap(layer: Any) -> Any:
            if layer.name not in quantized:
                if layer.name not in foreign:
                    scheme._left_float.add(layer)
                return layer
            place, config = places[layer.name], own.get(layer.name)
            formats = scheme.config if config is None or config.config is None else config.config
            return LNSQuantizeWrapper(
                layer,
                LNSQuantizeConfig(formats, None if config is None else config.quantize_output),
                name_prefix=scheme.name_prefix,
                quantize_inputs=place.inputs,
                quantize_outputs=place.outputs,
            )

        wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
        for layer in wrapped.layers:
            if isinstance(layer, LNSQuantizeWrapper):
                layer.forget_earlier_calls()
        return wrapped, foreign
