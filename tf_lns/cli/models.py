"""Loads the file of a saved Keras model; what is wrong with it becomes one sentence."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import re
import stat
import sys
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from tf_lns.cli.console import InputError, plain

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK"
_HDF5_SUFFIXES = (".h5", ".hdf5")
_KERAS_PACKAGES = ("keras", "builtins")
_UNKNOWN = re.compile(
    r"(?:Could not locate (?:class|function)|Unknown (?:layer|object|loss function|optimizer|"
    r"metric function|activation function|initializer|regularizer)(?: with name)?:?) '([^']+)'"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that loads a model."""
    parser.add_argument("model", metavar="MODEL", help="saved Keras model: .keras or .h5")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="module, or .py file, that defines the model's own classes; may be repeated",
    )
    parser.add_argument(
        "--unsafe",
        action="store_true",
        help="run Python code that the file itself holds (Lambda layers): only if you trust it",
    )


def load(path: str, imports: Sequence[str] = (), unsafe: bool = False, compile: bool = True) -> Any:
    """Loads a model.

    Args:
        path: Of a `.keras` or `.h5` file.
        imports: Modules that define classes of the model.
        unsafe: Whether code in the file may be run.
        compile: Whether the model gets its optimizer and loss, if it was saved with them.

    Raises:
        InputError: The file holds no model that can be loaded here.
    """
    check_file(path)
    config, saved_by = _description(path)
    if not compile:
        config = _without_training(config)
    lambdas = _lambdas(config)
    if lambdas and not unsafe:
        raise InputError(
            f"{path} holds Python code of its own ({_few(lambdas)}), which is not run unless you "
            "say that you trust the file: add --unsafe"
        )
    modules = [_import(name) for name in imports]
    import keras

    try:
        model = keras.saving.load_model(
            path,
            custom_objects=_offered(config, modules),
            compile=compile,
            safe_mode=not unsafe,
        )
        if path.endswith(_HDF5_SUFFIXES) and getattr(model, "optimizer", None) is not None:
            # Keras builds the optimizer of such a file for no variables at all.
            model.optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
        return model
    except Exception as error:
        model = _by_tf_keras(path, compile) if saved_by.startswith("2.") else None
        if model is not None:
            return model
        raise InputError(_reason(path, config, error, compile, saved_by)) from error


def check_file(path: str) -> None:
    """Raises InputError if a path does not lead to a readable file of a Keras model."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            saved_model = os.path.exists(os.path.join(path, "saved_model.pb"))
            kind = "a SavedModel, which Keras 3 does not load" if saved_model else "a directory"
            raise InputError(f"{path} is {kind}; save the model as one file: model.save(x.keras)")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path} is not a regular file; give the .keras or .h5 file itself")
        with open(path, "rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of a .keras or .h5 file") from None
    except PermissionError:
        raise InputError(f"{path} may not be read: permission denied; see `ls -l`") from None
    except (OSError, ValueError) as error:  # too long a name, a null byte, an I/O error
        raise InputError(f"{path!r} cannot be read: {error}") from None
    if start.startswith(_ZIP):
        wanted: tuple[str, ...] = (".keras",)
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path} is damaged: its end is missing; save or copy it again")
    elif start == _HDF5:
        wanted = _HDF5_SUFFIXES
    elif not start:
        raise InputError(f"{path} is empty; save or copy the model again")
    else:
        raise InputError(f"{path} is no Keras model: neither a .keras nor an HDF5 file")
    if not path.endswith(wanted):
        raise InputError(f"{path} holds a {wanted[0]} model: rename it, so that it ends in that")


def _description(path: str) -> tuple[Any, str]:
    """What a file says of its model, and the version of Keras that wrote it."""
    try:
        if path.endswith(".keras"):
            with zipfile.ZipFile(path) as archive:
                if "config.json" not in archive.namelist():
                    raise InputError(f"{path} is a zip file, but holds no Keras model")
                config = json.loads(archive.read("config.json"))
                about = json.loads(archive.read("metadata.json"))
                return config, str(about.get("keras_version", ""))
        import h5py

        with h5py.File(path, "r") as file:
            if "model_config" not in file.attrs:
                raise InputError(
                    f"{path} holds weights only, no model; save the whole of it: "
                    "model.save(x.keras)"
                )
            parts = [file.attrs[k] for k in ("model_config", "training_config") if k in file.attrs]
            return [json.loads(part) for part in parts], str(file.attrs.get("keras_version", ""))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is damaged ({error}); save or copy it again") from error


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every object in a description, outer ones first."""
    todo = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            todo += reversed(list(value.values()))
        elif isinstance(value, list):
            todo += reversed(value)


def _without_training(config: Any) -> Any:
    """A description without loss, metrics and optimizer."""
    if isinstance(config, list):  # of an HDF5 file: the model, then how it is trained
        return config[:1]
    return {key: value for key, value in config.items() if key != "compile_config"}


def _lambdas(config: Any) -> list[str]:
    """What in a description is Python code: Lambda layers by name, other lambdas as such."""
    layers, others = [], []
    for entry in _objects(config):
        inner = entry.get("config")
        if entry["class_name"] == "__lambda__":
            others.append("a lambda")
        elif entry["class_name"] == "Lambda" and isinstance(inner, dict):
            function = inner.get("function")
            kept_as = function.get("class_name") if isinstance(function, dict) else None
            is_code = isinstance(function, list) or inner.get("function_type") == "lambda"
            if is_code or kept_as == "__lambda__":
                layers.append(f"the Lambda layer '{inner.get('name')}'")
    return list(dict.fromkeys(layers or others))


def _own_names(config: Any) -> dict[str, str]:
    """Names of classes and functions that are not Keras's, with the module each was in."""
    found: dict[str, str] = {}
    for entry in _objects(config):
        module, registered = str(entry.get("module") or ""), entry.get("registered_name")
        if not registered or not isinstance(registered, str):
            continue
        if entry["class_name"] == "function":
            if isinstance(entry.get("config"), str):
                found.setdefault(entry["config"], "" if module == "builtins" else module)
        elif module.split(".")[0] not in _KERAS_PACKAGES:
            found.setdefault(registered, module)
    return found


def _offered(config: Any, modules: Sequence[Any]) -> dict[str, Any]:
    """Classes and functions of the imported modules that a description names.

    So a class need not be registered with Keras. Only what a module itself defines is
    offered, not what it has imported.
    """
    offered: dict[str, Any] = {}
    for registered in _own_names(config):
        name = registered.rsplit(">", 1)[-1]
        for module in modules:
            value = getattr(module, name, None)
            home = str(getattr(value, "__module__", "")).split(".")[0]
            if callable(value) and home == module.__name__.split(".")[0]:
                offered.setdefault(registered, value)
                offered.setdefault(name, value)
    return offered


def _import(name: str) -> Any:
    """Imports a module by its name, also from the current folder, or by its file."""
    try:
        if name.endswith(".py"):
            stem = pathlib.Path(name).stem
            spec = importlib.util.spec_from_file_location(stem, name)
            if spec is None or spec.loader is None:
                raise ImportError("no Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(stem, module)
            spec.loader.exec_module(module)
            return module
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(f"--import {name}: cannot be imported: {plain(error)}") from error


def _by_tf_keras(path: str, compile: bool) -> Any:
    """The model of a file of Keras 2 as tf_keras reads it, None if it does not."""
    if importlib.util.find_spec("tf_keras") is None:
        return None
    with contextlib.suppress(Exception):
        return importlib.import_module("tf_keras").models.load_model(path, compile=compile)
    return None


def _reason(path: str, config: Any, error: Exception, compile: bool, saved_by: str) -> str:
    """Why a model could not be loaded, and what to do."""
    import keras

    text = plain(error)
    missing = {
        name: module
        for name, module in _own_names(config).items()
        if keras.saving.get_registered_object(name) is None
        and not _is_loaded(module)
        and not hasattr(keras.losses, name)
        and not hasattr(keras.activations, name)
        and not hasattr(keras.metrics, name)
    }
    named = _UNKNOWN.search(text)
    if named is not None:
        short = {name.rsplit(">", 1)[-1]: module for name, module in missing.items()}
        short = {named[1]: short.get(named[1], ""), **short}
        modules = [m for m in dict.fromkeys(short.values()) if m not in ("", "__main__")]
        hint = " ".join(f"--import {module}" for module in modules) or (
            "--import MODULE, the module or .py file that defines it"
        )
        inside = {name.rsplit(">", 1)[-1] for name in _own_names(_without_training(config))}
        trained_only = compile and named[1] not in inside
        without = "; or leave out loss and optimizer: --no-compile" if trained_only else ""
        many = "a class or function" if len(short) == 1 else "classes or functions"
        return f"{path} uses {many} unknown here, {_few(list(short))}: add {hint}{without}"
    if saved_by.startswith("2.") and importlib.util.find_spec("tf_keras") is None:
        return (
            f"{path} was saved by Keras {saved_by} and Keras {keras.__version__} does not load it "
            f"({text}); pip install tf_keras"
        )
    return f"{path} cannot be loaded: {text}"


def _is_loaded(module: str) -> bool:
    """Whether Keras imports a module of its own family by itself."""
    return module.split(".")[0] in ("keras_hub", "keras_cv", "keras_nlp") and module in sys.modules


def _few(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, each in quotes unless it is a phrase."""
    text = ", ".join(name if " " in name else f"'{name}'" for name in names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")
