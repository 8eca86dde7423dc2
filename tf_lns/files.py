"""Weight files: plain and LNS ones, into plain and LNS models, all or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tf_lns import keras_hooks
from tf_lns.config import LNSConfig
from tf_lns.copying import check_model, copy_plain, plain_copy
from tf_lns.layers.container import convert
from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.tree import all_layers, pairs
from tf_lns.variable import LNSVariable


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
            f"{'plain' if _is_lns(model) else 'LNS'} counterpart: {as_other}"
        ) from as_own
    with _all_or_nothing(model):
        for mine, other in partners:
            _take_over(mine, other)


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


def _is_lns(model: keras.Model) -> bool:
    return any(isinstance(layer, LNSMixin) for layer in all_layers(model))


def _counterpart(model: keras.Model) -> tuple[keras.Model, list[tuple[Any, Any]]]:
    """The plain model of an LNS model, the LNS model of a plain one, and the pairs of layers."""
    other, _ = plain_copy(model)
    if not _is_lns(model):
        convert(other, lambda place, layer, around: LNSConfig())
    return other, pairs(model, other)


def _take_over(mine: keras.layers.Layer, other: keras.layers.Layer) -> None:
    """Sets a layer's state to that of its counterpart."""
    if not isinstance(mine, LNSMixin) and not isinstance(other, LNSMixin):
        copy_plain(other, mine)
        return
    own, values = keras_hooks.own_variables(mine), keras_hooks.own_variables(other)
    for variable, value in zip(own, values, strict=True):
        variable.assign(value.numpy())
    if isinstance(mine, LNSMixin):
        for recorded in mine.input_ranges:
            recorded.assign(0.0)


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
