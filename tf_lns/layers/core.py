"""Dense, einsum-dense and embedding layers in LNS."""

from __future__ import annotations

import re
from typing import Any

import keras
import tensorflow as tf

from tf_lns.layers.mixin import LNSMixin
from tf_lns.layers.registry import register_layer
from tf_lns.variable import reads_forward


@register_layer(keras.layers.Dense)
class LNSDense(LNSMixin, keras.layers.Dense):
    """`keras.layers.Dense` with an integer kernel, and LNS products forward and backward.

    ``y = activation(Q_A(x) Q_W(kernel) + bias)``; the bias is float32.

    Args:
        *args: As in `keras.layers.Dense`.
        lns_config: `LNSConfig`, its dict, or None for the defaults.
        **kwargs: As in `keras.layers.Dense`.
    """

    def datapath_call(self, inputs: Any, training: Any = None) -> Any:
        """Keras' call, its product on the datapath."""
        x = self.einsum("...k,kn->...n", inputs, self.kernel, self.bias)
        return x if self.activation is None else self.activation(x)


@register_layer(keras.layers.EinsumDense)
class LNSEinsumDense(LNSMixin, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` with an integer kernel; arguments as there and `lns_config`."""

    def gradient_axis(self, variable: Any) -> tuple[int, ...]:
        """The kernel's axes that do not come from the input, the last of them if apart."""
        inputs, kernel, _ = re.split(r",|->", self.equation.replace(" ", ""))
        axes = tuple(i for i, letter in enumerate(kernel) if letter not in inputs)
        neighbours = axes == tuple(range(axes[0], axes[0] + len(axes))) if axes else True
        return axes if neighbours else axes[-1:]

    def datapath_call(self, inputs: Any, training: Any = None) -> Any:
        """Keras' call, its product on the datapath."""
        x = self.einsum(self.equation, inputs, self.kernel, self.bias)
        return x if self.activation is None else self.activation(x)


class _Table(LNSMixin):
    """A layer with an embedding table, which a call reads and decodes but once."""

    @property
    def embeddings(self) -> Any:
        """The table; within a call its value, as Keras' look-up uses it twice."""
        table = super().embeddings
        return tf.convert_to_tensor(table) if reads_forward() else table


@register_layer(keras.layers.Embedding)
class LNSEmbedding(_Table, keras.layers.Embedding):
    """`keras.layers.Embedding` with an integer table; arguments as there and `lns_config`.

    Token ids are integers and never quantized; the rows read are Q_W of the table.
    """

    quantized_inputs = 0
    recorded_ranges = 0
    takes_datapath = True  # it has no products
    products_in_methods = True


if hasattr(keras.layers, "ReversibleEmbedding"):

    @register_layer(keras.layers.ReversibleEmbedding)
    class LNSReversibleEmbedding(_Table, keras.layers.ReversibleEmbedding):
        """`keras.layers.ReversibleEmbedding` in LNS; one more argument, `lns_config`.

        Called with ``reverse=True`` it is a product, whose input goes through Q_A.
        """

        def quantize_activation(self, x: Any, index: int = 0, training: Any = False) -> Any:
            """Q_A of hidden states; token ids pass."""
            is_ids = keras.backend.is_int_dtype(keras.backend.standardize_dtype(x.dtype))
            return x if is_ids else super().quantize_activation(x, index, training)

        def datapath_call(self, inputs: Any, reverse: bool = False) -> Any:
            """Keras' call, the product of its reverse on the datapath."""
            if not reverse:
                return self.quantize_error(keras.layers.ReversibleEmbedding.call(self, inputs))
            if self.tie_weights:
                table = keras.layers.ReversibleEmbedding.embeddings.fget(self)
                logits = self.einsum("...d,vd->...v", inputs, table)
            else:
                logits = self.einsum("...d,dv->...v", inputs, self.reverse_embeddings)
            if self.reverse_dtype is not None:
                logits = keras.ops.cast(logits, self.reverse_dtype)
            if self.logit_soft_cap is None:
                return logits
            return keras.ops.tanh(logits / self.logit_soft_cap) * self.logit_soft_cap
