"""Which tf_keras layers there are in LNS under tfmot, and what of them is quantized.

A new layer is one row. Four kinds:

    product   multiplies activations: operands through Q_A, weights through Q_W, errors Q_E
    values    makes new values, which go through Q_A as the operands of what follows
    passes    moves values without changing them: what was on the grid stays there
    float     neither: softmax
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from tf_lns.layers.core import LNSEinsumDense
from tf_lns.roles import role_of

Axes = Callable[[Any, Any], tuple[int, ...]]
"""From a layer and its weight to the weight's axes that count output channels."""

KINDS = ("product", "values", "passes", "float")


def _last(layer: Any, weight: Any) -> tuple[int, ...]:
    return (len(weight.shape) - 1,)


def _last_two(layer: Any, weight: Any) -> tuple[int, ...]:
    rank = len(weight.shape)
    return (rank - 2, rank - 1)


def _before_last(layer: Any, weight: Any) -> tuple[int, ...]:
    return (len(weight.shape) - 2,)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight that a product reads: where it is, and its axes of output channels."""

    holder: Any
    name: str
    axis: tuple[int, ...]

    @property
    def variable(self) -> Any:
        """The variable, or what stands in its place."""
        return getattr(self.holder, self.name)


@dataclasses.dataclass(frozen=True)
class Row:
    """How layers of one class are quantized.

    Attributes:
        kind: One of `KINDS`.
        weights: Names of the weights that products read, each with its axes.
        quantized_inputs: Whether the inputs of `call` are operands of the product.
        absorbs: Whether it takes the place of the quantizer of the layer before it: "products"
            of linear products, "all" of whatever is before it.
    """

    kind: str
    weights: tuple[tuple[str, Axes], ...] = ()
    quantized_inputs: bool = True
    absorbs: str = ""

    def weights_of(self, layer: Any) -> Iterator[Weight]:
        """The weights of a built layer that products read."""
        for name, axes in self.weights:
            yield Weight(layer, name, axes(layer, getattr(layer, name)))

    def activated(self, layer: Any) -> list[Any]:
        """The layers inside before whose activation function errors go through Q_E."""
        return [layer] if callable(vars(layer).get("activation")) else []


class CustomRow(Row):
    """The row of a layer that no row knows: its kernels, found by name and rank."""

    def weights_of(self, layer: Any) -> Iterator[Weight]:
        """The layer's own variables that multiply activations, as `tf_lns.roles` tells."""
        for name, value in list(vars(layer).items()):
            is_own = any(value is weight for weight in layer._trainable_weights)
            if is_own and role_of(value.name.split("/")[-1], value.shape):
                yield Weight(layer, name, _last(layer, value))


_layers = tf_keras.layers
_ROWS: dict[type, Row] = {}


def _add(row: Row, *names: str) -> None:
    _ROWS.update({getattr(_layers, name): row for name in names})


def _product(*weights: tuple[str, Axes], **options: Any) -> Row:
    return Row("product", weights, **options)


_add(_product(("kernel", _last)), "Dense", "Conv1D", "Conv2D", "Conv3D")
_add(_product(("kernel", _before_last)), "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_add(_product(("depthwise_kernel", _last_two)), "DepthwiseConv1D", "DepthwiseConv2D")
_add(
    _product(("kernel", lambda layer, weight: LNSEinsumDense.gradient_axis(layer, weight))),
    "EinsumDense",
)
_add(_product(("embeddings", _last), quantized_inputs=False), "Embedding")
_add(_product(), "Dot")
_add(
    Row("values"),
    *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"),
    *("AveragePooling1D", "AveragePooling2D", "AveragePooling3D"),
    *("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D"),
    *("UpSampling1D", "UpSampling2D", "UpSampling3D", "Rescaling", "Normalization", "Resizing"),
    *("LayerNormalization", "GroupNormalization", "UnitNormalization"),
    *("GaussianNoise", "GaussianDropout", "AlphaDropout"),
)
_add(Row("values", absorbs="products"), "BatchNormalization")
_ROWS[_layers.experimental.SyncBatchNormalization] = _ROWS[_layers.BatchNormalization]
_add(Row("values", absorbs="all"), "ReLU", "LeakyReLU", "ELU", "PReLU", "ThresholdedReLU")
_add(Row("values", absorbs="all"), "Activation", "Concatenate")
_add(Row("float", absorbs="all"), "Softmax")
_add(
    Row("passes"),
    *("Flatten", "Reshape", "Permute", "RepeatVector", "Masking", "ActivityRegularization"),
    *("Cropping1D", "Cropping2D", "Cropping3D"),
    *("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"),
    *("MaxPooling1D", "MaxPooling2D", "MaxPooling3D"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
)

CUSTOM = CustomRow("product")
"""The row of layers of unknown classes that a user annotated with an `LNSQuantizeConfig`."""


def row_of(layer: Any) -> Row | None:
    """The row of a layer's class, matched exactly; None where there is none."""
    return _ROWS.get(type(layer))


class LNSQuantizeRegistry(tfmot.quantization.keras.QuantizeRegistry):
    """What tfmot asks which layers a scheme can quantize, and how.

    Args:
        config: The scheme's `LNSConfig`.
        left_float: Layers that the scheme has decided to leave as they are.
    """

    def __init__(self, config: Any = None, left_float: Any = ()):
        self._config = config
        self._left_float = left_float

    def supports(self, layer: Any) -> bool:
        """Whether there is a row for the layer."""
        return row_of(layer) is not None and layer not in self._left_float

    def get_quantize_config(self, layer: Any) -> Any:
        """The `LNSQuantizeConfig` of a layer.

        Raises:
            ValueError: The layer is not supported.
        """
        from tf_lns.tfmot.quantize_config import LNSQuantizeConfig

        if not self.supports(layer):
            raise ValueError(unsupported(layer))
        return LNSQuantizeConfig(self._config)


def unsupported(layer: Any) -> str:
    """Why a layer cannot be quantized, and the ways out."""
    return (
        f"Layer {layer.name!r} of class {type(layer).__module__}.{type(layer).__name__} has no row "
        "in the registry of tf_lns.tfmot. Ways out: annotate it with "
        "quantize_annotate_layer(layer, LNSQuantizeConfig()), which quantizes its inputs, its "
        "kernels (found by name and rank), its errors and its outputs; or annotate only the other "
        'layers; or leave all such layers float with LNSScheme(config, on_unsupported="skip").'
    )
