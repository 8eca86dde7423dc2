"""Where a model's activations are quantized: once, at the end of each group of layers.

As in tfmot's 8-bit scheme: Conv / Depthwise / Dense + BatchNorm + ReLU have one quantizer, at
their end; what is concatenated has one behind the concatenation. A product whose operand comes
from elsewhere (the model's input, a softmax, a float layer) quantizes it itself. An output of
the model is no product's operand and stays float unless asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tf_keras

from tf_lns.tfmot import hooks
from tf_lns.tfmot.registry import CUSTOM, Row, row_of


@dataclasses.dataclass
class Place:
    """What quantizes the activations of one layer.

    Attributes:
        layer: The layer.
        quantized: Whether it is quantized at all.
        inputs: Whether its inputs go through Q_A.
        outputs: Whether its outputs do.
        own: Whether the user has given it a config of its own, which no grouping changes.
    """

    layer: Any
    quantized: bool
    inputs: bool = False
    outputs: bool = False
    own: bool = False

    @property
    def row(self) -> Row | None:
        """The layer's row; of a quantized layer always one."""
        return row_of(self.layer) or (CUSTOM if self.quantized else None)


def places_of(
    model: Any, configs: dict[str, Any], quantized: set[str], quantize_outputs: bool
) -> dict[str, Place]:
    """Finds the groups of a model.

    Args:
        model: Sequential or functional model of plain layers.
        configs: The user's own `LNSQuantizeConfig` of layers, by name.
        quantized: Names of the layers to be quantized.
        quantize_outputs: Whether outputs of the model go through Q_A.

    Returns:
        The place of each layer, by name.
    """
    places: dict[str, Place] = {}
    producers: dict[str, list[str]] = {}
    consumers: dict[str, list[str]] = {}
    calls: dict[str, int] = {}
    for layer, inbound in hooks.edges(model):
        name = layer.name
        places.setdefault(name, Place(layer, name in quantized, own=name in configs))
        calls[name] = calls.get(name, 0) + 1
        for source in inbound:
            producers.setdefault(name, []).append(source.name)
            consumers.setdefault(source.name, []).append(name)
    outputs = {layer.name for layer in hooks.output_layers(model)}

    def only_consumer(name: str) -> Place | None:
        """The one layer that what this one returns goes to, if it is one."""
        found = consumers.get(name, [])
        alone = len(found) == 1 and calls[name] == 1 and name not in outputs
        return places[found[0]] if alone and calls[found[0]] == 1 else None

    def ends_in_output(name: str) -> bool:
        """Whether what a layer returns only moves on to the model's outputs."""
        follow = consumers.get(name, [])
        kinds = [places[f].row for f in follow]
        moves = all(row is not None and row.kind in ("passes", "float") for row in kinds)
        return moves and all(ends_in_output(f) for f in follow)

    for name, place in places.items():
        row = place.row
        if not place.quantized or row is None or row.kind not in ("product", "values"):
            continue
        if place.own and configs[name].quantize_output is not None:
            place.outputs = configs[name].quantize_output
            continue
        place.outputs = quantize_outputs or not ends_in_output(name)
        after = only_consumer(name)
        if not place.own and after is not None and after.quantized and not after.own:
            place.outputs = place.outputs and not _absorbs(after, place)

    def on_grid(name: str) -> bool:
        """Whether what a layer returns is quantized."""
        place = places[name]
        if place.quantized and place.outputs:
            return True
        row = place.row
        sources = producers.get(name, [])
        return (
            row is not None
            and row.kind == "passes"
            and bool(sources)
            and all(on_grid(source) for source in sources)
        )

    for name, place in places.items():
        row = place.row
        if place.quantized and row is not None and row.kind == "product" and row.operands != 0:
            place.inputs = not all(
                on_grid(source) for source in producers.get(name, [""]) if source
            )
    return places


def _absorbs(after: Place, before: Place) -> bool:
    """Whether a layer's quantizer stands for that of the layer before it."""
    row, earlier = after.row, before.row
    if row is None or earlier is None:
        return False
    if row.absorbs == "products":
        linear = getattr(before.layer, "activation", None) in (None, tf_keras.activations.linear)
        return earlier.kind == "product" and linear
    return row.absorbs == "all"
