"""The batch of a step from `--batch` and `--shape`."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from tf_lns.cli.console import InputError, plain

_SHAPE = re.compile(
    r"(?:(?P<name>[^=:]+)=)?(?P<sizes>\d+(?:[,x]\d+)*,?)?(?::(?P<dtype>[a-z]+\d*))?"
)
_DTYPES = ("float32", "float16", "bfloat16", "float64", "int8", "uint8", "int32", "int64", "bool")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What one `--shape` says of one input, or of all.

    Attributes:
        name: Of the input, "" for one that is not named.
        sizes: Sizes without the batch.
        dtype: Its dtype, "" for the one that the model has.
    """

    name: str
    sizes: tuple[int, ...]
    dtype: str = ""


def parse(text: str) -> Shape:
    """Reads `384`, `224,224,3`, `ids=384` or `ids=384:int32`; for argparse."""
    match = _SHAPE.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise argparse.ArgumentTypeError(
            f"{text!r} must look like 384 or 224,224,3 or name=384 or name=384:int32"
        )
    sizes = tuple(int(n) for n in re.findall(r"\d+", match["sizes"] or ""))
    dtype = match["dtype"] or ""
    if 0 in sizes:
        raise argparse.ArgumentTypeError(f"{text!r}: sizes must be 1 or more")
    if dtype and dtype not in _DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r}: the dtype must be one of {', '.join(_DTYPES)}")
    return Shape(match["name"] or "", sizes, dtype)


def batch_for(model: Any, size: int, shapes: Sequence[Shape]) -> tuple[Any, tuple[str, ...]]:
    """What `tally` is given: a number of samples, or specifications of inputs and targets.

    Args:
        model: A loaded model.
        size: Samples in the batch.
        shapes: What the user says of the inputs.

    Returns:
        The batch, and what was assumed, in sentences.

    Raises:
        InputError: The shapes of the inputs stay unknown, or do not fit the model.
    """
    notes: list[str] = []
    if getattr(model, "inputs", None) and getattr(model, "outputs", None):
        inputs = _known(model, size, shapes)
        if inputs is None:
            return size, ()
    else:
        if not shapes:
            shapes = _built_with(model)
        inputs = _given(size, shapes)
        if not all(shape.dtype for shape in shapes):
            notes.append("The inputs are taken as float32: the model does not say their dtype.")
    return _with_targets(model, inputs, size), tuple(notes)


def _known(model: Any, size: int, shapes: Sequence[Shape]) -> Any:
    """Specifications of a model that names its inputs; None if it knows all by itself."""
    tensors = list(model.inputs)
    names = [str(x.name).split(":")[0] for x in tensors]
    open_ = [None in tuple(x.shape)[1:] for x in tensors]
    said: dict[int, Shape] = {}
    plain = [shape for shape in shapes if not shape.name]
    for shape in shapes:
        if shape.name and shape.name not in names:
            raise InputError(
                f"--shape: the model has no input '{shape.name}'; its inputs are {', '.join(names)}"
            )
        if shape.name:
            said[names.index(shape.name)] = shape
    places = [i for i in range(len(tensors)) if i not in said]
    if len(plain) == 1:  # for the only input, or for all that are open
        chosen = [i for i in places if open_[i]] or places[:1]
        said.update(dict.fromkeys(chosen, plain[0]))
    elif plain:
        if len(plain) != len(places):
            raise InputError(
                f"--shape: {len(plain)} shapes without a name for {len(places)} inputs "
                f"({', '.join(names)}); name them: --shape {names[0]}=..."
            )
        said.update(zip(places, plain, strict=True))
    if not said and not any(open_):
        return None
    specs = [_spec(x, names[i], size, said.get(i)) for i, x in enumerate(tensors)]
    structure = getattr(model, "input", None)
    if isinstance(structure, dict):
        return {
            key: next(s for x, s in zip(tensors, specs, strict=True) if x is tensor)
            for key, tensor in structure.items()
        }
    return specs[0] if len(specs) == 1 else specs


def _spec(tensor: Any, name: str, size: int, shape: Shape | None) -> Any:
    """One input with all sizes known."""
    import tensorflow as tf

    known = tuple(tensor.shape)[1:]
    sizes = list(known)
    if shape is not None and (shape.sizes or not shape.dtype):
        fills = len(shape.sizes) == known.count(None) != len(known)
        given = iter(shape.sizes)
        sizes = [next(given) if n is None else n for n in known] if fills else list(shape.sizes)
        fits = len(sizes) == len(known) and all(
            b in (None, a) for a, b in zip(sizes, known, strict=True)
        )
        if not fits:
            raise InputError(
                f"--shape {','.join(map(str, shape.sizes))} does not fit the input '{name}' "
                f"of shape {_text(known)} (without the batch)"
            )
    if None in sizes:
        raise InputError(
            f"the input '{name}' has the shape {_text(known)} (without the batch): say how "
            f"large it is, e.g. --shape {name}={_example(known)}"
        )
    dtype = shape.dtype if shape is not None and shape.dtype else tensor.dtype
    return tf.TensorSpec((size, *sizes), dtype)


def _text(shape: Sequence[int | None]) -> str:
    return f"({', '.join('?' if n is None else str(n) for n in shape)})"


def _example(shape: Sequence[int | None]) -> str:
    return ",".join(str(n or (128 if len(shape) <= 2 else 224)) for n in shape)


def _built_with(model: Any) -> tuple[Shape, ...]:
    """Shapes that a subclassed model was built with when it was saved."""
    get_build_config = getattr(model, "get_build_config", None)
    config = (get_build_config() if get_build_config is not None else None) or {}
    shape = config.get("input_shape")
    if isinstance(shape, tuple | list) and shape and all(isinstance(n, int) for n in shape[1:]):
        return (Shape("", tuple(shape[1:])),)
    raise InputError(
        "the model does not say which shapes its inputs have: add --shape, e.g. --shape 28,28,1, "
        "or --shape 128:int32 for token ids, or one --shape name=... per input"
    )


def _given(size: int, shapes: Sequence[Shape]) -> Any:
    """Specifications from the command line alone."""
    import tensorflow as tf

    specs = [tf.TensorSpec((size, *s.sizes), s.dtype or "float32") for s in shapes]
    if all(s.name for s in shapes):
        return {s.name: spec for s, spec in zip(shapes, specs, strict=True)}
    if any(s.name for s in shapes):
        raise InputError("--shape: name all inputs, or none of them")
    return specs[0] if len(specs) == 1 else specs


@dataclasses.dataclass(frozen=True)
class _Signature:
    """A model's inputs and outputs as `example_batch` looks at them."""

    name: str
    input: Any
    inputs: list[Any]
    outputs: list[Any]
    loss: Any
    optimizer: Any


def _with_targets(model: Any, inputs: Any, size: int) -> Any:
    """(inputs, targets) of a compiled model, else inputs."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return inputs
    import tensorflow as tf

    from tf_lns.energy.trace import example_batch

    try:
        if not model.built:
            model(tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), inputs))
        forward = tf.function(lambda x: model(x, training=False), autograph=False)
        outputs = forward.get_concrete_function(inputs).structured_outputs
    except Exception as error:
        shapes = ", ".join(f"{s.dtype.name}{list(s.shape)}" for s in tf.nest.flatten(inputs))
        raise InputError(
            f"the model cannot be called on inputs of {shapes}: {plain(error)}; say what its "
            "inputs are with --shape"
        ) from error
    flat = tf.nest.flatten(inputs)
    model_like = _Signature(
        str(model.name),
        inputs if isinstance(inputs, dict) else flat,
        flat,
        tf.nest.flatten(outputs),
        getattr(model, "loss", None),
        optimizer,
    )
    return example_batch(model_like, size)
