"""A tfmot quantizer that rounds to LNS."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from tf_lns.config import LNSConfig
from tf_lns.layers.mixin import ActivationMixin
from tf_lns.quantizers import LNSQuantizer as PlainQuantizer

_KINDS = ("activation", "weight")

_ACTIVATIONS = ("pre_activation", "post_activation", "output")
"""What tfmot's wrapper calls the activations that it has quantizers built for."""


class Recorded(ActivationMixin):
    """Q_A under one recorded range, wherever that variable is kept."""

    compute_dtype = "float32"

    def __init__(self, config: LNSConfig, recorded: Any):
        self.lns_config = config
        self.input_ranges = [recorded]


@tf_keras.utils.register_keras_serializable(package="tf_lns")
class LNSQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """`tfmot.quantization.keras.quantizers.Quantizer` with the compiled ops of tf_lns.

    For a `QuantizeConfig` of your own::

        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, LNSQuantizer("lns8:8", gradient_format="lns5:2"))]

        def get_activations_and_quantizers(self, layer):
            return [(layer.activation, LNSQuantizer("lns8:8"))]

    The arithmetic is LNS; tfmot's wrapper keeps the weight itself in float32. Integer weights
    come with `LNSScheme`.

    Args:
        format: `LNSFormat`, or its short form.
        kind: "activation" (a recorded range outside of training, so that predictions do not
            depend on the batch they come in), "weight" (always the tensor's own abs-max), or
            None for what tfmot uses it as.
        activation_scale: Of activations, as in `LNSConfig`: "moving", "batch" or the largest
            magnitude that is represented.
        gradient_format: Format that the gradient is quantized to on its way back; None leaves
            it in float.
        gradient_axis: Axis, or neighbouring axes, with a scale per index for the gradient.
        axis: The same for the tensor itself, of kind "weight".
        gradient_underflow: "clamp" or "flush", of the gradient.
        power_of_two: Round scales up to powers of two.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        format: Any = "lns8:8",
        kind: str | None = None,
        activation_scale: Any = "moving",
        gradient_format: Any = None,
        gradient_axis: Any = None,
        axis: Any = None,
        gradient_underflow: str = "clamp",
        power_of_two: bool = False,
    ):
        if kind is not None and kind not in _KINDS:
            raise ValueError(f"`kind` must be one of {_KINDS} or None. Received: kind={kind!r}")
        self.kind = kind
        self.weight_quantizer = PlainQuantizer(format, axis=axis, power_of_two=power_of_two)
        self.format = self.weight_quantizer.format
        self.gradient_quantizer = (
            None
            if gradient_format is None
            else PlainQuantizer(
                gradient_format,
                axis=gradient_axis,
                underflow=gradient_underflow,
                power_of_two=power_of_two,
            )
        )
        self.lns_config = LNSConfig(
            activations=self.format,
            activation_scale=activation_scale,
            power_of_two_scales=power_of_two,
        )

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Makes the recorded range of an activation; see tfmot's `Quantizer`."""
        wrapper = tfmot.quantization.keras.QuantizeWrapper
        is_weight = isinstance(layer, wrapper) and name not in _ACTIVATIONS
        kind = self.kind or ("weight" if is_weight else "activation")
        if kind == "weight" or self.lns_config.activation_scale != "moving":
            return {"kind": kind}
        recorded = layer.add_weight(
            name=f"{name}_range",
            shape=(),
            dtype=tf.float32,
            initializer="zeros",
            trainable=False,
            experimental_autocast=False,
            aggregation=tf.VariableAggregation.MEAN,
        )
        return {"kind": kind, "range": recorded}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        """The nearest values of the format; gradients pass straight through, or quantized.

        Args:
            inputs: Tensor; what is not of a float dtype passes as it is.
            training: Whether an activation's own range is used, and recorded.
            weights: What `build` returned.
            **kwargs: Nothing.

        Returns:
            Tensor like `inputs`.
        """
        inputs = tf.convert_to_tensor(inputs)
        if not inputs.dtype.is_floating:
            return inputs
        if self.gradient_quantizer is not None:
            inputs = self.gradient_quantizer.error(inputs)
        if weights["kind"] == "weight":
            return self.weight_quantizer(inputs)
        recorded = Recorded(self.lns_config, weights.get("range"))
        return recorded.quantize_activation(inputs, 0, training)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as a JSON-able dict."""
        gradient = self.gradient_quantizer
        return {
            "format": str(self.format),
            "kind": self.kind,
            "activation_scale": self.lns_config.activation_scale,
            "gradient_format": None if gradient is None else str(gradient.format),
            "gradient_axis": None if gradient is None else gradient.axis,
            "axis": self.weight_quantizer.axis,
            "gradient_underflow": "clamp" if gradient is None else gradient.underflow,
            "power_of_two": self.weight_quantizer.power_of_two,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LNSQuantizer) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(str(self.get_config()))

    def __repr__(self) -> str:
        return f"LNSQuantizer({str(self.format)!r}, kind={self.kind!r})"


def error_of(config: LNSConfig) -> Any:
    """Q_E as an object with `quantize_error`."""
    return Recorded(config, None)


def weight_quantizer(config: LNSConfig, axis: tuple[int, ...]) -> LNSQuantizer | None:
    """Q_W and Q_G of a weight that is stored in float; None where both are off."""
    if config.weights is None:
        return None
    return LNSQuantizer(
        config.weights,
        kind="weight",
        gradient_format=config.gradients,
        gradient_axis=list(axis) if config.gradient_scale == "channel" else None,
        gradient_underflow=config.gradient_underflow,
        power_of_two=config.power_of_two_scales,
    )
