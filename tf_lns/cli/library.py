"""TensorFlow and the whole of tf_lns, imported only by commands that load a model."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os

from tf_lns.cli.console import InputError

PACKAGES = ("tf_lns", "tf_lns.energy")
"""Packages whose own import needs TensorFlow, in the order of their import."""


def load() -> None:
    """Imports TensorFlow with little noise, and all of tf_lns, whose layers Keras then knows.

    Where the process was started by a launcher that put the packages there without running
    them, they are run now.

    Raises:
        InputError: TensorFlow, or the library of ops, cannot be loaded.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        for name in PACKAGES:
            module = importlib.import_module(name)
            spec = module.__spec__
            if not hasattr(module, "__all__") and spec is not None and spec.loader is not None:
                spec.loader.exec_module(module)
    except ImportError as error:
        raise InputError(f"TensorFlow and tf_lns cannot be loaded: {error}") from error
    for logger in ("tensorflow", "absl"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def version() -> str:
    """The version of the installed package, or of this tree where it is not installed."""
    try:
        return importlib.metadata.version("tf-lns")
    except importlib.metadata.PackageNotFoundError:
        import tf_lns

        return tf_lns.__version__
