"""How the Python wrappers call a compiled op, and how they check what they are given."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lns import keras_hooks
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


@functools.lru_cache(maxsize=4096)
def _compiled(name: str, attributes: tuple, places: tuple, signature: tuple) -> Any:
    """The op as a compiled function of its different inputs, for one signature of theirs."""
    op = getattr(load(), name)
    attrs = {key: list(value) if isinstance(value, tuple) else value for key, value in attributes}

    def run(*inputs: tf.Tensor) -> Any:
        result = op(*[inputs[i] for i in places], **attrs)
        return None if isinstance(result, tf.Operation) else result

    return tf.function(run, jit_compile=True, autograph=False)


def call(name: str, *inputs: Any, **attrs: Any) -> Any:
    """Runs an op; on a machine with a GPU inside its own compiled function."""
    if not _compile_each_op():
        return getattr(load(), name)(*inputs, **attrs)
    different: list[tf.Tensor] = []  # XLA takes a variable's handle once
    places = []
    for x in map(tf.convert_to_tensor, inputs):
        known = [i for i, y in enumerate(different) if y is x]
        places.append(known[0] if known else len(different))
        if not known:
            different.append(x)
    attributes = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in attrs.items())
    signature = tuple(map(_signature, different))
    return _compiled(name, attributes, tuple(places), signature)(*different)


def _signature(x: tf.Tensor) -> tuple:
    """What a traced function depends on, behind a handle too: `tf.function` looks only at it."""
    if x.dtype == tf.resource:
        return x.dtype, keras_hooks.get_handle_data(x).SerializeToString(deterministic=True)
    return x.dtype, str(x.shape)


def tensor_of(x: Any, name: str, wanted: str) -> tf.Tensor:
    """`x` as a tensor.

    Raises:
        TypeError: TensorFlow makes no tensor of it.
    """
    try:
        return tf.convert_to_tensor(x)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise TypeError(f"`{name}` must be {wanted}. Received: {name}={x!r}") from error


def float_tensor(x: Any, name: str) -> tuple[tf.Tensor, tf.DType]:
    """`x` as a float32 tensor, and the float dtype it had.

    Raises:
        TypeError: `x` is not of a float dtype.
    """
    tensor = tensor_of(x, name, "a float tensor")
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
    tensor = tensor_of(codes, name, f"a tensor of dtype {format.dtype}")
    if tensor.dtype != format.dtype:
        raise TypeError(
            f"`{name}` of {format} must have dtype {format.dtype}. "
            f"Received: {name} of dtype {tensor.dtype.name}"
        )
    return tensor


def scale_tensor(scale: Any, name: str = "scale") -> tf.Tensor:
    """`scale` as a float32 tensor; its values are checked where the op runs.

    Raises:
        TypeError: `scale` is not made of numbers.
    """
    if isinstance(scale, float):  # one too large for float32 becomes Inf, which the op refuses
        with np.errstate(over="ignore"):
            scale = np.float32(scale)
    tensor = tensor_of(scale, name, "a number or a tensor of numbers")
    if tensor.dtype == tf.float32:
        return tensor
    if tensor.dtype not in FLOATS and not tensor.dtype.is_integer:
        raise TypeError(f"`{name}` must be a number. Received: {name} of dtype {tensor.dtype.name}")
    return tf.cast(tensor, tf.float32)


def flag(value: Any, name: str) -> bool:
    """`value`, which must be True or False.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)


def choice(value: Any, name: str, allowed: Sequence[str]) -> str:
    """`value`, which must be one of `allowed`.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, str) or value not in allowed:
        options = " or ".join(f'"{option}"' for option in allowed)
        raise ValueError(f"`{name}` must be {options}. Received: {name}={value!r}")
    return value


def seed_tensor(seed: Any, rounding: str) -> tf.Tensor:
    """The op's seed: `seed`, or a fresh one (from `tf.random`) where it matters and is None.

    Raises:
        TypeError: `seed` is no integer.
    """
    if rounding == "nearest":
        return tf.constant(0, tf.int64)
    if seed is None:
        return tf.random.uniform((), maxval=tf.int64.max, dtype=tf.int64)
    if isinstance(seed, int) and not isinstance(seed, bool):
        seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)  # the same 64 bits
        return tf.constant(seed, tf.int64)
    tensor = tensor_of(seed, "seed", "an integer")
    if not tensor.dtype.is_integer:
        raise TypeError(f"`seed` must be an integer. Received: seed={seed!r}")
    return tf.cast(tensor, tf.int64)


def integer(value: Any, name: str) -> int:
    """`value` as an int.

    Raises:
        TypeError: It is no integer.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r}") from None


def axes_of(axis: int | Sequence[int] | None) -> tuple[int, ...]:
    """`axis` as a tuple.

    Raises:
        TypeError: It is not made of integers.
    """
    if axis is None:
        return ()
    if not isinstance(axis, list | tuple):
        return (integer(axis, "axis"),)
    return tuple(integer(a, "axis") for a in axis)


def check_vector_size(vector_size: int | None, axis: int | Sequence[int] | None) -> int:
    """`vector_size` as an op takes it, 0 for None.

    Raises:
        TypeError: An argument is not made of integers.
        ValueError: `vector_size` is out of range, or there is not exactly one axis.
    """
    if vector_size is None:
        return 0
    size = integer(vector_size, "vector_size")
    if not 1 <= size < 1 << 63:
        raise ValueError(
            f"`vector_size` must be at least 1 and fit 64 bits. Received: vector_size={size}"
        )
    if len(axes_of(axis)) != 1:
        raise ValueError(
            "`vector_size` needs exactly one `axis`, the one along which vectors lie. "
            f"Received: axis={axis!r}"
        )
    return size


def scale_layout(
    axis: int | Sequence[int] | None, vector_size: int | None, rank: int | None
) -> dict[str, Any]:
    """Attributes `axis` and `vector_size` of an op, from the arguments of the same names.

    Raises:
        TypeError: An argument is not made of integers.
        ValueError: An argument is out of range, or needs a static rank that is not known.
    """
    axes, size = axes_of(axis), check_vector_size(vector_size, axis)
    if not axes:
        return {"axis": [], "vector_size": size}
    if rank is None:
        raise ValueError(
            "`axis` needs a tensor of known rank. Received: a tensor of unknown rank, "
            f"axis={axis!r}"
        )
    if any(not -rank <= a < rank for a in axes):
        raise ValueError(f"`axis` is out of range for rank {rank}. Received: axis={axis!r}")
    axes = tuple(sorted(a % rank for a in axes))
    if axes != tuple(range(axes[0], axes[0] + len(axes))):
        raise ValueError(f"`axis` must name neighbouring axes. Received: axis={axis!r}")
    return {"axis": list(axes), "vector_size": size}
