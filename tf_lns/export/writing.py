"""Writes a model for those who build its hardware."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import keras
import numpy as np

from tf_lns.datapath import Datapath
from tf_lns.export.capture import LayerProduct, on_datapath, products_of
from tf_lns.export.describe import describe_layers, describe_model
from tf_lns.export.exported import Export, load_export
from tf_lns.export.folder import Folder, check_target, target_of, written_folder
from tf_lns.export.inputs import RANDOM, random_samples, samples_of
from tf_lns.export.units import header, unit_of
from tf_lns.export.vectors import write_vectors
from tf_lns.export.weights import weights_of, write_weights
from tf_lns.layers.container import lns_layers
from tf_lns.ops.call import flag, integer


def export_model(
    model: keras.Model,
    directory: Any,
    vectors: int = 0,
    data: Any = None,
    datapath: Any = None,
    overwrite: bool = False,
) -> Export:
    """Writes a model's codes, constants and test vectors into a folder, all or nothing.

    ``manifest.json`` says what there is: layers and how they are connected, shapes, formats,
    scales, the datapath's constants, and a SHA-256 of each file. ``weights.npz`` and
    ``weights/*.hex`` (for `$readmemh`) hold the codes, ``datapath.svh`` the constants, and each
    folder below ``vectors`` a product of a layer: operands, accumulators and outputs.

    Args:
        model: Built Keras model with LNS layers.
        directory: Folder to write. What is there is kept, unless it is an export and
            `overwrite` is set; it is replaced once the new one is complete.
        vectors: How many samples to compute test vectors for; 0 for none. The model is called
            once, eagerly, as for inference. Convolutions become products of patches, and of
            long products or many of one kind an evenly spaced choice is written.
        data: Samples, the first of which are taken: what `calibrate` takes. None for random
            ones.
        datapath: `Datapath` or its dict, on which all layers are to compute; None for that of
            each layer's config, if it has one.
        overwrite: Whether an export that is there is replaced.

    Returns:
        The `Export`, as read back from the files.

    Raises:
        TypeError: `model` is no Keras model, or an argument has the wrong type.
        ValueError: `model` is not built or has no LNS layer, or an argument is out of range.
        FileExistsError: `directory` is there and must not be replaced.
    """
    _check(model)
    count = integer(vectors, "vectors")
    if count < 0:
        raise ValueError(f"`vectors` must be 0 or more. Received: vectors={count}")
    if data is not None and not count:
        raise ValueError("`data` is for test vectors: say how many, vectors=N. Received: vectors=0")
    given = None if datapath is None else Datapath.get(datapath)
    overwrite = flag(overwrite, "overwrite")
    check_target(target_of(directory), overwrite)
    products, source, reasons = _products(model, count, data, given)
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
                "vectors": {
                    "samples": count,
                    "data": source,
                    **write_vectors(folder, model, weights, products, reasons),
                },
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


def _products(
    model: keras.Model, count: int, data: Any, datapath: Datapath | None
) -> tuple[list[LayerProduct], str | None, dict[int, str]]:
    """The products of a batch, where its samples come from, and layers that have no datapath."""
    if not count:
        return [], None, {}
    configs = [layer.lns_config for layer in lns_layers(model)]
    if datapath is None and all(config.datapath is None for config in configs):
        raise ValueError(
            "`vectors` are computed on a datapath, and the model was trained for none. Received: "
            f"datapath=None, vectors={count}. Say which: datapath=tf_lns.Datapath(...)."
        )
    batch = random_samples(model, count) if data is None else samples_of(data, count)
    _check_numbers(batch)
    with on_datapath(model, datapath) as reasons:
        products = products_of(model, batch)
    if not products:
        raise ValueError(
            f"The model computes no product on a datapath: {'; '.join(reasons.values()) or 'none'}"
        )
    return products, RANDOM if data is None else "given", reasons


def _check_numbers(batch: Any) -> None:
    """Raises ValueError at a NaN: codes have none, and vectors of zeros would test nothing."""
    for part in keras.tree.flatten(batch):
        values = np.asarray(part)
        if values.dtype.kind == "f" and np.isnan(values).any():
            index = int(np.flatnonzero(np.isnan(values.reshape(-1)))[0])
            raise ValueError(f"`data` must hold no NaN. Received: the first at flat index {index}")


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
