"""Products of layers on a datapath, forward and backward.

::

    y  = P(Q_A(x), Q_W(w)) + bias
    dx = P(Q_E(dy), Q_W(w))       dw = P(Q_A(x), Q_E(dy))       dbias = sum of Q_E(dy)

P multiplies codes (`tf_lns.ops.lns_matmul`, `lns_conv`). Operands come as float32 tensors that
lie on a grid (`operands.py`); here they become codes. Q_E acts once, in the gradient of the
product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf

from tf_lns import keras_hooks, ops
from tf_lns.config import LNSConfig
from tf_lns.datapath import Datapath
from tf_lns.formats import LNSFormat
from tf_lns.layers.operands import Coded, coded, reshaped, sizes_of


class Form(Protocol):
    """What is summed over what: a contraction, or a convolution of some kind."""

    def forward(self, datapath: Datapath, a: Coded, b: Coded) -> Any:
        """The product of both operands."""

    def left(self, datapath: Datapath, e: Coded, b: Coded, sizes: list[Any]) -> Any:
        """The derivative by the left operand, of the given sizes, from errors e."""

    def right(self, datapath: Datapath, a: Coded, e: Coded, sizes: list[Any]) -> Any:
        """The derivative by the right operand."""


@dataclasses.dataclass(frozen=True)
class Gates:
    """Products of the same form side by side, each with an operand and a kernel of its own.

    Q_E sees the errors of all of them as one tensor.

    Args:
        form: That of each.
        count: How many there are.
        axis: Axis along which the left operands, and the results, stand side by side; the
            kernels do along their last.
    """

    form: Form
    count: int
    axis: int

    def forward(self, datapath: Datapath, a: Coded, b: Coded) -> Any:
        """See `Form`."""
        parts = zip(self._parts(a, self.axis), self._parts(b, -1), strict=True)
        return tf.concat([self.form.forward(datapath, x, w) for x, w in parts], self.axis)

    def left(self, datapath: Datapath, e: Coded, b: Coded, sizes: list[Any]) -> Any:
        """See `Form`."""
        sizes = list(sizes)
        sizes[self.axis] //= self.count
        parts = zip(self._parts(e, self.axis), self._parts(b, -1), strict=True)
        return tf.concat([self.form.left(datapath, y, w, sizes) for y, w in parts], self.axis)

    def right(self, datapath: Datapath, a: Coded, e: Coded, sizes: list[Any]) -> Any:
        """See `Form`."""
        sizes = [*sizes[:-1], sizes[-1] // self.count]
        parts = zip(self._parts(a, self.axis), self._parts(e, self.axis), strict=True)
        return tf.concat([self.form.right(datapath, x, y, sizes) for x, y in parts], -1)

    def _parts(self, x: Coded, axis: int) -> list[Coded]:
        codes = tf.split(x.codes, self.count, axis)
        bad = [None] * self.count if x.bad is None else tf.split(x.bad, self.count, axis)
        return [x._replace(codes=c, bad=b) for c, b in zip(codes, bad, strict=True)]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """What the products of a layer have in common.

    Attributes:
        datapath: Where they are computed.
        errors: Format of Q_E.
        options: Further arguments of Q_E.
        overflows: Whether an Inf among the errors must stay one, by which a
            `LossScaleOptimizer` knows to skip a step.
    """

    datapath: Datapath
    errors: LNSFormat
    options: dict[str, Any]
    overflows: bool = False

    @classmethod
    def of(cls, config: LNSConfig, compute_dtype: str) -> Arithmetic:
        """That of a layer with these formats."""
        options = {
            "underflow": config.error_underflow,
            "power_of_two": config.power_of_two_scales,
        }
        return cls(config.datapath, config.errors, options, compute_dtype == "float16")

    def quantized_error(self, dy: Any, axis: int | None = None) -> tuple[Any, Coded]:
        """Q_E of dy, in float32 and as codes; one scale, or one per index of `axis`."""
        error, scale = ops.quantize_with_scale(dy, self.errors, axis=axis, **self.options)
        bad = tf.math.is_nan(error)
        codes = ops.encode(tf.where(bad, 0.0, error), scale, self.errors, axis=axis)
        if self.overflows:
            infinite = tf.math.is_inf(dy)
            error, bad = tf.where(infinite, dy, error), bad | infinite
        return error, Coded(codes, scale, self.errors, bad)


@tf.autograph.experimental.do_not_convert  # it has functions inside, which confuse AutoGraph
def multiply(form: Form, a: Any, b: Any, arithmetic: Arithmetic, bias: Any = None) -> Any:
    """The product of two operands on a datapath, whose derivatives are products on it.

    Args:
        form: Which product.
        a: Left operand, see `on_grid`.
        b: Right operand.
        arithmetic: The layer's.
        bias: float32 tensor that is added, broadcast.

    Returns:
        float32 tensor.
    """
    datapath = arithmetic.datapath
    left, right = coded(a), coded(b)
    a_sizes, b_sizes = sizes_of(a), sizes_of(b)

    def backward(dy: Any) -> tuple:
        error, e = arithmetic.quantized_error(dy)
        da = _shaped(form.left(datapath, e, right, a_sizes), a)
        db = _shaped(form.right(datapath, left, e, b_sizes), b)
        return da, db, error

    return _differentiable(lambda: form.forward(datapath, left, right), backward, a, b, bias)


@tf.autograph.experimental.do_not_convert
def multiply_sequence(form: Form, a: Any, b: Any, arithmetic: Arithmetic, bias: Any = None) -> Any:
    """`multiply` for all time steps; Q_E has a scale per step.

    Forward it is one product. Backward each step is a product of its own, and the derivatives
    by b are added in float32 from the first step to the last.

    Args:
        form: Product of one time step.
        a: ``[time, samples, ...]``.
        b: The other operand, the same in all steps.
        arithmetic: The layer's.
        bias: float32 tensor that is added, broadcast.
    """
    datapath = arithmetic.datapath
    left, right = coded(a), coded(b)
    a_sizes, b_sizes = sizes_of(a), sizes_of(b)

    def forward() -> Any:
        flat = left.moved(lambda x: reshaped(x, (-1, *a_sizes[2:])))
        y = form.forward(datapath, flat, right)
        return reshaped(y, (*a_sizes[:2], *sizes_of(y)[1:]))

    def backward(dy: Any) -> tuple:
        error, e = arithmetic.quantized_error(dy, axis=0)

        def to_a(step: tuple) -> Any:
            error = Coded(step[0], step[1], e.format, step[2])
            return form.left(datapath, error, right, a_sizes[1:])

        def to_b(total: Any, step: tuple) -> Any:
            x = Coded(step[0], left.scale, left.format, step[1])
            y = Coded(step[2], step[3], e.format, step[4])
            return total + form.right(datapath, x, y, b_sizes)

        da = tf.map_fn(to_a, (e.codes, e.scale, e.bad), fn_output_signature=tf.float32)
        steps = (left.codes, left.bad, e.codes, e.scale, e.bad)
        db = tf.foldl(to_b, steps, initializer=tf.zeros_like(b))
        return _shaped(da, a), _shaped(db, b), error

    return _differentiable(forward, backward, a, b, bias)


def _differentiable(forward: Callable, backward: Callable, a: Any, b: Any, bias: Any) -> Any:
    """What `forward` gives, plus the bias, with the derivatives that `backward` gives.

    Their own derivatives would be products of codes as well, which have none: they are refused.
    """
    extra = [] if bias is None else [bias]

    @tf.custom_gradient
    def product(a: Any, b: Any, *extra: Any) -> tuple[Any, Callable]:
        y = forward()
        if extra:
            y = y + extra[0]

        def gradient(dy: Any) -> Any:
            da, db, error = backward(dy)
            keras_hooks.refuse_derivatives(
                [da, db], [dy, a, b], "Products on a datapath have no second derivatives."
            )
            return da, db, *(_sum_to(error, x) for x in extra)

        return y, gradient

    return product(a, b, *extra)


def _shaped(x: Any, like: Any) -> Any:
    x.set_shape(like.shape)
    return x


def _sum_to(x: Any, like: Any) -> Any:
    """X summed over the axes along which `like` was broadcast to its shape."""
    missing = x.shape.rank - like.shape.rank
    ones = [missing + i for i, size in enumerate(like.shape) if size == 1]
    total = tf.reduce_sum(x, axis=[*range(missing), *ones])
    return tf.reshape(total, like.shape)
