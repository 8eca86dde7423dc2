"""Attention layers in LNS: the projections, and the two products between activations."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as keras_ops

from tf_lns.layers.container import LNSComposite
from tf_lns.layers.registry import register_layer

_QUERY, _KEY, _PROBABILITIES, _VALUE = range(4)


class _Attention(LNSComposite):
    """Projections are LNS layers of their own; here are ``Q K'`` and ``P V``.

    ::

        scores = Q_A(query / sqrt(d)) Q_A(key)'       errors through Q_E
        output = Q_A(softmax(scores)) Q_A(value)      errors through Q_E

    Softmax and dropout are float. Flash and causal kernels, which hide the products, are not
    used.
    """

    quantized_inputs = 0
    quantized_outputs = False
    recorded_ranges = 4
    takes_datapath = True
    products_in_methods = True

    def _scores(self, query: Any, key: Any) -> Any:
        """The first product, in the order of operands that the layer's equation has."""
        raise NotImplementedError

    def _compute_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: Any = None,
        return_attention_scores: bool = False,
    ) -> tuple[Any, Any]:
        """Keras' place for another computation of attention; see there for the arguments."""
        query = keras_ops.multiply(query, keras_ops.cast(self._inverse_root, query.dtype))
        query = self.quantize_activation(query, _QUERY, training)
        key = self.quantize_activation(key, _KEY, training)
        value = self.quantize_activation(value, _VALUE, training)
        scores = self.quantize_result_error(self._scores(query, key))
        scores = self._masked_softmax(scores, attention_mask)
        kept = self._dropout_layer(scores, training=training)
        kept = self.quantize_activation(kept, _PROBABILITIES, training)
        output = self.einsum(self._combine_equation, kept, value)
        return self.quantize_result_error(output), scores


@register_layer(keras.layers.MultiHeadAttention)
class LNSMultiHeadAttention(_Attention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` in LNS; one more argument, `lns_config`."""

    def _scores(self, query: Any, key: Any) -> Any:
        return self.einsum(self._dot_product_equation, key, query)

    @property
    def _inverse_root(self) -> float:
        return self._inverse_sqrt_key_dim


@register_layer(keras.layers.GroupQueryAttention)
class LNSGroupQueryAttention(_Attention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` in LNS; one more argument, `lns_config`."""

    def _scores(self, query: Any, key: Any) -> Any:
        return self.einsum(self._dot_product_equation, query, key)

    @property
    def _inverse_root(self) -> float:
        return self._inverse_sqrt_head_dim
