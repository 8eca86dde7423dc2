"""Weight files: plain and LNS ones, into plain and LNS models, all or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import keras
import numpy as np

from tf_lns import keras_hooks
from tf_lns.config import LNSConfig
from tf_lns.copying import check_model, copy_layer, plain_copy
from tf_lns.layers.container import convert, lns_layers
from tf_lns.layers.tree import all_layers, pairs
from tf_lns.variable import LNSVariable

_SEAL = "tf_lns_checksum"
"""Attribute of an HDF5 file."""


def load_weights(model: keras.Model, filepath: Any, **kwargs: Any) -> None:
    """Loads a weight file of the model or of its counterpart: plain into LNS, LNS into plain.

    Codes stay as they are where model and file have the same storage format. Floats are encoded
    under a scale chosen from them, so none is clipped. If anything fails, the model is left as
    it was.

    Args:
        model: Built Keras model, plain or with LNS layers.
        filepath: Path of a ``.weights.h5`` or ``.keras`` file.
        **kwargs: As in `keras.Model.load_weights`.

    Raises:
        TypeError: `model` is no Keras model.
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of a newer version of tf_lns, or of another model.
    """
    check_model(model)
    if not os.path.exists(filepath):
        raise FileNotFoundError(f"`filepath` names no file. Received: filepath={str(filepath)!r}")
    _check_seal(filepath)
    try:
        with _all_or_nothing(model):
            keras.Model.load_weights(model, filepath, **kwargs)
        return
    except Exception as error:
        as_own: Exception = error
    try:
        partner, partners = _counterpart(model)
        keras.Model.load_weights(partner, filepath, **kwargs)
    except Exception as as_other:
        raise ValueError(
            f"The weights in {str(filepath)!r} cannot be loaded; the model is as it was.\n"
            f"Read as a file of this model: {as_own}\nRead as a file of its "
            f"{'plain' if lns_layers(model) else 'LNS'} counterpart: {as_other}"
        ) from as_own
    with _all_or_nothing(model):
        for mine, other in partners:
            copy_layer(other, mine)
            for recorded in getattr(mine, "input_ranges", []):
                recorded.assign(0.0)  # they were of other weights


@contextlib.contextmanager
def written_beside(filepath: Any) -> Iterator[str]:
    """A path to write a file to, which takes the place of `filepath` once it is complete.

    A save that fails so leaves the old file. Paths that are no local files are written as such.
    """
    path = os.fspath(filepath)
    folder, name = os.path.split(path)
    if "://" in path or "." not in name or os.path.isdir(path):
        yield path
        return
    stem, rest = name.split(".", 1)
    beside = os.path.join(folder, f"{stem}-{os.getpid()}-partial.{rest}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(beside)


def seal(path: str) -> None:
    """Writes into an HDF5 file the checksum of all that is in it."""
    with h5py.File(path, "r+") as file:
        file.attrs[_SEAL] = _checksum(file)


def _check_seal(path: Any) -> None:
    """Raises ValueError if a file is not what it was when it was sealed."""
    damaged = f"The file {str(path)!r} is damaged; the model is as it was."
    if not str(path).endswith(".h5"):
        return
    try:
        with h5py.File(path, "r") as file:
            whole = _SEAL not in file.attrs or file.attrs[_SEAL] == _checksum(file)
    except Exception as error:
        raise ValueError(f"{damaged} {error}") from error
    if not whole:
        raise ValueError(f"{damaged} Its data does not match the checksum that it was saved with.")


def _checksum(file: h5py.File) -> int:
    """CRC-32 of the names and values of all datasets."""
    crc = 0

    def add(name: str, item: Any) -> None:
        nonlocal crc
        crc = zlib.crc32(name.encode(), crc)
        if isinstance(item, h5py.Dataset):
            crc = zlib.crc32(np.asarray(item).tobytes(), crc)

    file.visititems(add)
    return crc


def _counterpart(model: keras.Model) -> tuple[keras.Model, list[tuple[Any, Any]]]:
    """The plain model of an LNS model, the LNS model of a plain one, and the pairs of layers."""
    other, _ = plain_copy(model)
    if not lns_layers(model):
        convert(other, lambda place, layer, around: LNSConfig())
    return other, pairs(model, other)


@dataclasses.dataclass
class _Saved:
    """State of one layer: its variables, which loading may replace, and their values."""

    layer: keras.layers.Layer
    variables: list[tuple[Any, Any]]
    ranges: list[tuple[Any, Any]]


@contextlib.contextmanager
def _all_or_nothing(model: keras.Model) -> Iterator[None]:
    """Puts the variables of a model back if what is done inside fails."""
    saved = []
    for layer in [model, *all_layers(model)]:
        variables = [(v, _value(v)) for v in keras_hooks.own_variables(layer)]
        ranges = getattr(layer, "input_ranges", [])
        saved.append(_Saved(layer, variables, [(r, r.numpy()) for r in ranges]))
    optimizer = getattr(model, "optimizer", None)
    state = [(v, v.numpy()) for v in optimizer.variables] if optimizer is not None else []
    try:
        yield
    except BaseException:
        for entry in saved:
            present = keras_hooks.own_variables(entry.layer)
            for now, (variable, value) in zip(present, entry.variables, strict=True):
                if now is not variable:
                    keras_hooks.replace_variable(entry.layer, now, variable)
                _put_back(variable, value)
            for recorded, number in entry.ranges:
                recorded.assign(number)
        for variable, value in state:
            variable.assign(value)
        raise


def _value(variable: keras.Variable) -> tuple[Any, ...]:
    if isinstance(variable, LNSVariable):
        return variable.codes, variable.scale
    return (np.asarray(variable.numpy()),)


def _put_back(variable: keras.Variable, value: tuple[Any, ...]) -> None:
    if isinstance(variable, LNSVariable):
        variable.assign_codes(*value)
    else:
        variable.assign(value[0])
