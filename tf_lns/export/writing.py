"""Writes a model for those who build its hardware."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import keras

from tf_lns.datapath import Datapath
from tf_lns.export.describe import describe_layers, describe_model
from tf_lns.export.exported import Export, load_export
from tf_lns.export.folder import Folder, written_folder
from tf_lns.export.units import header, unit_of
from tf_lns.export.weights import weights_of, write_weights
from tf_lns.layers.container import lns_layers


def export_model(
    model: keras.Model,
    directory: Any,
    datapath: Any = None,
    overwrite: bool = False,
) -> Export:
    """Writes a model's codes, formats and constants into a folder, all or nothing.

    ``manifest.json`` says what there is: layers and how they are connected, shapes, formats,
    scales, the datapath's constants, and a SHA-256 of each file. ``weights.npz`` and
    ``weights/*.hex`` (for `$readmemh`) hold the codes, ``datapath.svh`` the constants.

    Args:
        model: Built Keras model with LNS layers.
        directory: Folder to write. What is there is kept, unless it is an export and
            `overwrite` is set; it is replaced once the new one is complete.
        datapath: `Datapath` or its dict; None for that of each layer's config, if it has one.
        overwrite: Whether an export that is there is replaced.

    Returns:
        The `Export`, as read back from the files.

    Raises:
        TypeError: `model` is no Keras model, or an argument has the wrong type.
        ValueError: `model` is not built or has no LNS layer, or an argument is out of range.
        FileExistsError: `directory` is there and must not be replaced.
    """
    _check(model)
    given = None if datapath is None else Datapath.get(datapath)
    weights, others = weights_of(model)
    with written_folder(directory, overwrite) as folder:
        layers = describe_layers(model)
        folder.seal(
            {
                "tf_lns": sys.modules["tf_lns"].__version__,
                "model": describe_model(model),
                "layers": layers,
                **write_weights(folder, weights, others),
                "units": _write_units(folder, model, layers, given),
            }
        )
        export = load_export(folder.path)
    return dataclasses.replace(export, directory=pathlib.Path(directory))


def _check(model: Any) -> None:
    if any(base.__module__.split(".")[0] == "tf_keras" for base in type(model).__mro__):
        raise TypeError(
            "`model` is a model of tf_keras; make it one of Keras with tf_lns.tfmot.convert "
            f"first. Received: model={model!r}"
        )
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    if not model.built:
        raise ValueError("`model` has no variables yet; build it, or call it on a batch, first.")
    if not lns_layers(model):
        raise ValueError(
            f"`model` has no LNS layer, so no codes. Received: model {model.name!r}; convert it "
            "with tf_lns.quantize_model."
        )


def _write_units(
    folder: Folder, model: keras.Model, layers: list[dict[str, Any]], given: Datapath | None
) -> list[dict[str, Any]]:
    """Constants of each datapath and pair of formats that layers multiply with; one as a rule."""
    units: list[dict[str, Any]] = []
    users: list[list[str]] = []
    for layer in layers:
        lns = layer.get("lns")
        datapath = given if given is not None or lns is None else lns["datapath"]
        if lns is None or datapath is None or not lns["activations"]:
            continue
        unit = unit_of(Datapath.get(datapath), lns["activations"], lns["weights"] or lns["storage"])
        if unit not in units:
            units.append(unit)
            users.append([])
        users[units.index(unit)].append(layer["path"])
    for number, (unit, paths) in enumerate(zip(units, users, strict=True), 1):
        name = "datapath.svh" if number == 1 else f"datapath_{number}.svh"
        unit["file"] = folder.write(name, header(unit).encode())
        unit["layers"] = paths
    return units
