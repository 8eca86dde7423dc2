"""How the Python wrappers call a compiled op, and how they check what they are given."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_lns.formats import LNSFormat
from tf_lns.ops.library import load

FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)
ROUNDINGS = ("nearest", "stochastic")
UNDERFLOWS = ("clamp", "flush")


@functools.cache
def _compile_each_op() -> bool:
    """Whether ops must run through XLA one by one: there is a GPU, for which no kernel exists."""
    if "TF_LNS_JIT_OPS" in os.environ:  # lets the tests take this path on a CPU
        return os.environ["TF_LNS_JIT_OPS"] == "1"
    return bool(tf.config.list_logical_devices("GPU"))


@functools.lru_cache(maxsize=1024)
def _compiled(name: str, attributes: tuple) -> Any:
    op = getattr(load(), name)
    attrs = {key: list(value) if isinstance(value, tuple) else value for key, value in attributes}
    return tf.function(lambda *inputs: op(*inputs, **attrs), jit_compile=True, autograph=False)


def call(name: str, *inputs: Any, **attrs: Any) -> Any:
    """Runs an op; on a machine with a GPU inside its own compiled function."""
    if _compile_each_op():
        key = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(attrs.items()))
        return _compiled(name, key)(*[tf.convert_to_tensor(x) for x in inputs])
    return getattr(load(), name)(*inputs, **attrs)


def float_tensor(x: Any, name: str) -> tuple[tf.Tensor, tf.DType]:
    """`x` as a float32 tensor, and the float dtype it had.

    Raises:
        TypeError: `x` is not of a float dtype.
    """
    try:
        tensor = tf.convert_to_tensor(x)
    except (ValueError, TypeError) as error:
        raise TypeError(f"`{name}` must be a float tensor. Received: {x!r}") from error
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"`{name}` must have a float dtype, one of "
            f"{', '.join(d.name for d in FLOATS)}. Received: {name} of dtype {tensor.dtype.name}"
        )
    return tf.cast(tensor, tf.float32), tensor.dtype


def code_tensor(codes: Any, format: LNSFormat, name: str = "codes") -> tf.Tensor:
    """`codes` as a tensor of the format's dtype.

    Raises:
        TypeError: `codes` has another dtype.
    """
    tensor = tf.convert_to_tensor(codes)
    if tensor.dtype != format.dtype:
        raise TypeError(
            f"`{name}` of {format} must have dtype {format.dtype}. "
            f"Received: {name} of dtype {tensor.dtype.name}"
        )
    return tensor


def scale_tensor(scale: Any) -> tf.Tensor:
    """`scale` as a float32 tensor; its values are checked where the op runs."""
    tensor = tf.convert_to_tensor(scale)
    if tensor.dtype == tf.float32:
        return tensor
    if tensor.dtype not in FLOATS and not tensor.dtype.is_integer:
        raise TypeError(f"`scale` must be a number. Received: scale of dtype {tensor.dtype.name}")
    return tf.cast(tensor, tf.float32)


def choice(value: Any, name: str, allowed: Sequence[str]) -> str:
    """`value`, which must be one of `allowed`.

    Raises:
        ValueError: It is not.
    """
    if value not in allowed:
        options = " or ".join(f'"{option}"' for option in allowed)
        raise ValueError(f"`{name}` must be {options}. Received: {name}={value!r}")
    return value


def seed_tensor(seed: Any, rounding: str) -> tf.Tensor:
    """The op's seed: `seed`, or a fresh one (from `tf.random`) where it matters and is None."""
    if rounding == "nearest":
        return tf.constant(0, tf.int64)
    if seed is None:
        return tf.random.uniform((), maxval=tf.int64.max, dtype=tf.int64)
    if isinstance(seed, bool) or (isinstance(seed, float)):
        raise TypeError(f"`seed` must be an integer. Received: seed={seed!r}")
    if isinstance(seed, int):
        seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)  # the same 64 bits
        return tf.constant(seed, tf.int64)
    tensor = tf.convert_to_tensor(seed)
    if not tensor.dtype.is_integer:
        raise TypeError(f"`seed` must be an integer. Received: seed of dtype {tensor.dtype.name}")
    return tf.cast(tensor, tf.int64)


def scale_layout(
    axis: int | Sequence[int] | None, vector_size: int | None, rank: int | None
) -> dict[str, Any]:
    """Attributes `axis` and `vector_size` of an op, from the arguments of the same names.

    Raises:
        TypeError: An argument is not made of integers.
        ValueError: An argument is out of range, or needs a static rank that is not known.
    """
    axes = () if axis is None else (axis,) if not isinstance(axis, list | tuple) else tuple(axis)
    for a in axes:
        if isinstance(a, bool) or not hasattr(a, "__index__"):
            raise TypeError(f"`axis` must be an integer or several. Received: axis={axis!r}")
    axes = tuple(int(a) for a in axes)
    if axes and rank is None:
        raise ValueError("`axis` needs a tensor of known rank. Received: a tensor of unknown rank")
    if any(not -rank <= a < rank for a in axes):
        raise ValueError(f"`axis` is out of range for rank {rank}. Received: axis={axis!r}")
    axes = tuple(sorted(a % rank for a in axes))
    if axes and axes != tuple(range(axes[0], axes[0] + len(axes))):
        raise ValueError(f"`axis` must name neighbouring axes. Received: axis={axis!r}")
    if vector_size is not None:
        if isinstance(vector_size, bool) or not hasattr(vector_size, "__index__"):
            raise TypeError(f"`vector_size` must be an integer. Received: {vector_size!r}")
        if vector_size < 1:
            raise ValueError(
                f"`vector_size` must be at least 1. Received: vector_size={vector_size}"
            )
        if len(axes) != 1:
            raise ValueError(
                "`vector_size` needs exactly one `axis`, the one along which vectors lie. "
                f"Received: axis={axis!r}"
            )
    return {"axis": list(axes), "vector_size": int(vector_size or 0)}
