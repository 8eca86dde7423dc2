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
from tf_lns.tfmot import hooks, inside

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


def _local(layer: Any, weight: Any) -> tuple[int, ...]:
    """Of what has a kernel at each place: one that is kept sparse has no axis of channels."""
    rank = len(weight.shape)
    if layer.implementation == 2 and layer.data_format == "channels_first":
        return (rank // 2,)
    return () if layer.implementation == 3 else (rank - 1,)


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
        operands: How many of the inputs of `call` are operands of the product; None for all.
        absorbs: Whether it takes the place of the quantizer of the layer before it: "products"
            of linear products, "all" of whatever is before it.
    """

    kind: str
    weights: tuple[tuple[str, Axes], ...] = ()
    operands: int | None = None
    absorbs: str = ""

    def prepare(self, layer: Any, input_shape: Any) -> None:
        """Builds what is still to be built in a layer that is built."""

    def weights_of(self, layer: Any) -> Iterator[Weight]:
        """The weights of a built layer that products read."""
        for name, axes in self.weights:
            yield Weight(layer, name, axes(layer, getattr(layer, name)))

    def activated(self, layer: Any) -> list[Any]:
        """The layers inside before whose activation function errors go through Q_E."""
        return [layer] if callable(vars(layer).get("activation")) else []

    def quantizes_errors(self, layer: Any) -> bool:
        """Whether errors are quantized inside, and not where they enter."""
        return bool(self.activated(layer))

    def ranges_inside(self, layer: Any) -> int:
        """How many activations inside have a recorded range."""
        return 0

    def install(self, layer: Any, running: inside.Running) -> None:
        """Puts quantizers inside of the layer, for the time of a call."""


class CustomRow(Row):
    """The row of a layer that no row knows: its kernels, found by name and rank."""

    def weights_of(self, layer: Any) -> Iterator[Weight]:
        """The layer's own variables that multiply activations, as `tf_lns.roles` tells."""
        for name, value in list(vars(layer).items()):
            is_own = any(value is weight for weight in layer._trainable_weights)
            if is_own and role_of(value.name.split("/")[-1], value.shape):
                yield Weight(layer, name, _last(layer, value))


class SeparableRow(Row):
    """Two products in one layer."""

    def ranges_inside(self, layer: Any) -> int:
        """What lies between the two kernels."""
        return 1

    def install(self, layer: Any, running: inside.Running) -> None:
        """Takes the two apart."""
        inside.separable(layer, running)


class AttentionRow(Row):
    """Four projections and two products between activations."""

    def prepare(self, layer: Any, input_shape: Any) -> None:
        """The projections, which a layer from a file makes without building them."""
        hooks.build_projections(layer, input_shape)

    def weights_of(self, layer: Any) -> Iterator[Weight]:
        """The kernels of the projections."""
        for dense in hooks.projections(layer):
            yield Weight(dense, "kernel", LNSEinsumDense.gradient_axis(dense, dense.kernel))

    def activated(self, layer: Any) -> list[Any]:
        """The projections."""
        return hooks.projections(layer)

    def ranges_inside(self, layer: Any) -> int:
        """Query, key, probabilities, value, and the operand of the last projection."""
        return 5

    def install(self, layer: Any, running: inside.Running) -> None:
        """Puts the products between activations in LNS."""
        inside.attention(layer, running)


class RecurrentRow(Row):
    """A loop over time around a cell, or around cells that are stacked."""

    def weights_of(self, layer: Any) -> Iterator[Weight]:
        """The kernels of the cells."""
        for cell in inside.cells_of(layer):
            for name in ("kernel", "recurrent_kernel"):
                yield Weight(cell, name, _last(layer, getattr(cell, name)))

    def quantizes_errors(self, layer: Any) -> bool:
        """In each time step."""
        return True

    def ranges_inside(self, layer: Any) -> int:
        """The operands of the products with the states, and the inputs of stacked cells."""
        cells = inside.cells_of(layer)
        return sum(inside.range_count(cell) for cell in cells) + len(cells) - 1

    def install(self, layer: Any, running: inside.Running) -> None:
        """Runs the loop of tf_lns."""
        inside.recurrent(layer, running)


class AroundRow(Row):
    """A layer around others, which has what those have.

    Args:
        row: The row of the layers inside.
        names: Attributes that hold them.
    """

    def __init__(self, row: Row, *names: str):
        super().__init__(row.kind, operands=row.operands, absorbs=row.absorbs)
        object.__setattr__(self, "row", row)
        object.__setattr__(self, "names", names)

    def _layers(self, layer: Any) -> list[Any]:
        return [getattr(layer, name) for name in vars(self)["names"]]

    @property
    def _row(self) -> Row:
        return vars(self)["row"]

    def weights_of(self, layer: Any) -> Iterator[Weight]:
        """Those of the layers inside."""
        for inner in self._layers(layer):
            yield from self._row.weights_of(inner)

    def activated(self, layer: Any) -> list[Any]:
        """Those inside."""
        return [held for inner in self._layers(layer) for held in self._row.activated(inner)]

    def quantizes_errors(self, layer: Any) -> bool:
        """As the layers inside do."""
        return all(self._row.quantizes_errors(inner) for inner in self._layers(layer))

    def ranges_inside(self, layer: Any) -> int:
        """Those of the layers inside."""
        return sum(self._row.ranges_inside(inner) for inner in self._layers(layer))

    def install(self, layer: Any, running: inside.Running) -> None:
        """In each layer inside."""
        for inner in self._layers(layer):
            self._row.install(inner, running)


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
_add(_product(("kernel", _local)), "LocallyConnected1D", "LocallyConnected2D")
_add(_product(("embeddings", _last), operands=0), "Embedding")
_add(
    SeparableRow("product", (("depthwise_kernel", _last_two), ("pointwise_kernel", _last))),
    *("SeparableConv1D", "SeparableConv2D"),
)
_add(AttentionRow("product", operands=3), "MultiHeadAttention")
_add(
    RecurrentRow("product", operands=1),
    *("SimpleRNN", "LSTM", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
)
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


_CELLS = (_layers.SimpleRNNCell, _layers.LSTMCell, _layers.GRUCell)


def row_of(layer: Any) -> Row | None:
    """The row of a layer's class, matched exactly; None where there is none."""
    if type(layer) is _layers.TimeDistributed:
        row = row_of(layer.layer)
        return None if row is None else AroundRow(row, "layer")
    if type(layer) is _layers.Bidirectional:
        row, other = row_of(layer.forward_layer), row_of(layer.backward_layer)
        return AroundRow(row, "forward_layer", "backward_layer") if row and other else None
    if type(layer) is _layers.RNN:
        known = all(type(cell) in _CELLS for cell in inside.cells_of(layer))
        turned = getattr(layer.cell, "reverse_state_order", False)
        return _ROWS[_layers.LSTM] if known and not turned else None
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
    skip = (
        "or leave all such layers float with "
        'LNSScheme(config, on_unsupported="skip").annotate(model) and that scheme.'
    )
    if isinstance(layer, tf_keras.Model):
        return (
            f"Layer {layer.name!r} is a model, and tfmot does not look into nested models. Ways "
            "out: build one model of the layers of both; quantize the inner model alone, before "
            f"it becomes part of the other; {skip}"
        )
    if hooks.is_operation(layer):
        return (
            f"Layer {layer.name!r} is an operation on tensors, or a function, which tfmot cannot "
            "copy. Ways out: write it as a layer (Add, Multiply, Rescaling, Activation, or one of "
            f"your own); {skip}"
        )
    if type(layer) is _layers.RNN:
        cells = ", ".join(type(cell).__name__ for cell in inside.cells_of(layer))
        return (
            f"Layer {layer.name!r} of class RNN has a cell that tf_lns.tfmot does not know: "
            f"{cells}. It knows SimpleRNNCell, LSTMCell, GRUCell, and such cells stacked in their "
            f"natural order of states. Ways out: annotate only the other layers; {skip}"
        )
    return (
        f"Layer {layer.name!r} of class {type(layer).__module__}.{type(layer).__name__} has no row "
        "in the registry of tf_lns.tfmot. Ways out: annotate it with "
        "quantize_annotate_layer(layer, LNSQuantizeConfig()), which quantizes its inputs, its "
        "kernels (found by name and rank), its errors and its outputs; annotate only the other "
        f"layers; {skip}"
    )
