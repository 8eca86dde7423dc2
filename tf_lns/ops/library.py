"""Loads the compiled op library, once, and says what to do when it cannot be used."""

from __future__ import annotations

import functools
import pathlib
import types

import tensorflow as tf

_LIBRARY = pathlib.Path(__file__).parent / "_lns_ops.so"

_REBUILD = (
    "Rebuild it with `pip install --force-reinstall --no-deps .` (or, in a checkout, "
    "`python custom_ops/build.py`) in this environment."
)


def path() -> str:
    """Path of the compiled library, for `tf.load_op_library` in a process without tf_lns."""
    return str(_LIBRARY)


@functools.cache
def load() -> types.ModuleType:
    """The module of generated op functions.

    Raises:
        ImportError: The library is missing, or was built for another TensorFlow.
    """
    if not _LIBRARY.exists():
        raise ImportError(f"The compiled ops of tf_lns are missing ({_LIBRARY.name}). {_REBUILD}")
    _check_version()
    try:
        return tf.load_op_library(path())
    except tf.errors.NotFoundError as error:
        raise ImportError(
            f"The compiled ops of tf_lns do not load into TensorFlow {tf.__version__}: "
            f"{error.message}. {_REBUILD}"
        ) from error


def _check_version() -> None:
    """Compares the TensorFlow built for with the one running: symbols change at each minor."""
    try:
        from tf_lns.ops import _build_info
    except ImportError:
        return  # no record: loading itself will tell
    built = _build_info.TENSORFLOW_VERSION
    if built.split(".")[:2] != tf.__version__.split(".")[:2]:
        raise ImportError(
            f"The compiled ops of tf_lns were built for TensorFlow {built}, but "
            f"{tf.__version__} is running. {_REBUILD}"
        )
