"""The product of matrices of codes on a datapath: the compiled op behind a checked wrapper.

It equals `tf_lns.reference.lns_matmul` bit for bit.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_lns.datapath import Datapath, pair_of_formats
from tf_lns.formats import LNSFormat
from tf_lns.ops.call import call, code_tensor, flag, scale_tensor
from tf_lns.ops.recording import show
from tf_lns.reference import LNSProduct


def lns_matmul(
    a: Any,
    b: Any,
    a_format: Any,
    b_format: Any = None,
    a_scale: Any = 1.0,
    b_scale: Any = 1.0,
    transpose_a: bool = False,
    transpose_b: bool = False,
    datapath: Any = None,
    return_details: bool = False,
) -> Any:
    """The product of matrices of codes, as a datapath of hardware computes it, bit for bit.

    Args:
        a: Codes ``[..., M, K]``; ``[..., K, M]`` with `transpose_a`. Axes before the last two are
            broadcast.
        b: Codes ``[..., K, N]``; ``[..., N, K]`` with `transpose_b`.
        a_format: `LNSFormat` of `a`, or its short form.
        b_format: Format of `b`, of the same base factor; None for that of `a`.
        a_scale: Scale of `a`: a scalar, ``[..., M, 1]`` for one per row, or ``[..., M or 1, G]``
            for one per vector of ``datapath.vector_size`` terms, ``G = ceil(K / vector_size)``.
            Then each vector has an accumulator of its own, and their results are added in
            float32 in ascending order.
        b_scale: Scale of `b`: a scalar, ``[..., 1, N]`` or ``[..., G, N or 1]``.
        transpose_a: Whether the last two axes of `a` are swapped first.
        transpose_b: Whether those of `b` are.
        datapath: `Datapath`, its dict, or None for the defaults.
        return_details: Whether to return an `LNSProduct`: the values, the raw accumulators, and
            how many of them saturated or had terms that lost bits. Slow.

    Returns:
        float32 ``[..., M, N]``, or an `LNSProduct`. There is no gradient: codes are integers.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The base factors differ, or the datapath does not fit them.
        tf.errors.InvalidArgumentError: A code lies outside of its format, a scale is no finite
            normal number, or shapes do not fit.
    """
    datapath = Datapath.get(datapath)
    a_format, b_format = pair_of_formats(a_format, b_format)
    return_details = flag(return_details, "return_details")
    inputs = (
        code_tensor(a, a_format, "a"),
        code_tensor(b, b_format, "b"),
        scale_tensor(a_scale, "a_scale"),
        scale_tensor(b_scale, "b_scale"),
    )
    name = "lns_matmul_details" if return_details else "lns_matmul"
    result = call(
        name,
        *inputs,
        transpose_a=flag(transpose_a, "transpose_a"),
        transpose_b=flag(transpose_b, "transpose_b"),
        **product_attributes(datapath, a_format, b_format),
    )
    if return_details:
        return LNSProduct(*result)
    show(
        operation="matmul",
        a=inputs[0],
        b=inputs[1],
        a_format=a_format,
        b_format=b_format,
        a_scale=inputs[2],
        b_scale=inputs[3],
        datapath=datapath,
        result=result,
        options={"transpose_a": transpose_a, "transpose_b": transpose_b},
    )
    return result


def product_attributes(
    datapath: Datapath, a_format: LNSFormat, b_format: LNSFormat
) -> dict[str, Any]:
    """The attributes that all ops of products share."""
    return {
        "a_bits": a_format.bits,
        "b_bits": b_format.bits,
        "base_factor": a_format.base_factor,
        **datapath.get_config(),
        "lut_bits": datapath.table_bits(a_format.base_factor),
    }


def refuse_gradient(op: Any, *gradients: Any) -> None:
    """The gradient of an op of codes.

    Raises:
        LookupError: Always.
    """
    raise LookupError(
        f"{op.type} takes codes, which are integers and have no gradient. Layers with "
        "`LNSConfig(datapath=...)` train through a datapath."
    )


for _name in ("LnsMatmul", "LnsMatmulDetails"):
    tf.RegisterGradient(_name)(refuse_gradient)
