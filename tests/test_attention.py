"""Attention layers in LNS: projections, and both products between activations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.testing import TestCase

import tf_lns
from tf_lns import LNSConfig, layers, reference
from tf_lns.layers.tree import all_layers

K = keras.layers
FLOAT = LNSConfig(weights=None, activations=None, errors=None, gradients=None)
MHA = {"num_heads": 2, "key_dim": 3}
GQA = {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2}
CASES = [
    (K.MultiHeadAttention, layers.LNSMultiHeadAttention, MHA),
    (K.MultiHeadAttention, layers.LNSMultiHeadAttention, {**MHA, "value_dim": 5, "dropout": 0.5}),
    (K.GroupQueryAttention, layers.LNSGroupQueryAttention, GQA),
]
IDS = ["mha", "mha_dropout", "gqa"]


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def projections(layer):
    return [x for x in all_layers(layer) if isinstance(x, keras.layers.EinsumDense)]


def pair(plain_class, lns_class, arguments, config):
    """A plain layer and an LNS layer with the same weights."""
    query, value = data(2, 5, 4), data(2, 6, 4, seed=1)
    lns = lns_class(**arguments, lns_config=config)
    plain = plain_class(**arguments)
    lns(query, value)
    plain(query, value)
    plain.set_weights(lns.get_weights())
    return plain, lns, query, value


@pytest.mark.parametrize("mask", [None, "mask", "causal"])
@pytest.mark.parametrize(("plain_class", "lns_class", "arguments"), CASES, ids=IDS)
def test_float_arrows_are_keras_own_layer(plain_class, lns_class, arguments, mask):
    plain, lns, query, value = pair(plain_class, lns_class, arguments, FLOAT)
    options = {}
    if mask == "causal":
        options["use_causal_mask"] = True
    elif mask:
        options["attention_mask"] = np.random.default_rng(3).random((2, 5, 6)) < 0.7
    error = data(2, 5, 4, seed=2)
    found = []
    for layer in (plain, lns):
        q, v = tf.constant(query), tf.constant(value)
        with tf.GradientTape() as tape:
            tape.watch([q, v])
            y = layer(q, v, **options)
            loss = tf.reduce_sum(y * error)
        weights = [w.value for w in layer.trainable_variables]
        found.append([y, *tape.gradient(loss, [q, v, *weights])])
    assert len(found[0]) == 3 + len(plain.trainable_variables)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("plain_class", "lns_class", "arguments"), CASES, ids=IDS)
def test_scores_are_returned(plain_class, lns_class, arguments):
    plain, lns, query, value = pair(plain_class, lns_class, arguments, FLOAT)
    expected = plain(query, value, return_attention_scores=True)
    for a, b in zip(lns(query, value, return_attention_scores=True), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_all_operands_are_quantized():
    """One head of the whole width, by hand, in NumPy."""
    config = LNSConfig(weights="lns8:8", activations="lns6:2", activation_scale="batch")
    layer = layers.LNSMultiHeadAttention(1, 4, use_bias=False, lns_config=config)
    x = data(1, 5, 4)
    y = layer(x, x, training=True)

    def q(a):
        return reference.quantize(a, "lns6:2")

    def seen(projection):
        cell = projection.kernel.cell
        return cell.read(cell.seen).numpy()

    query = q(x[0]) @ seen(layer.query_dense)[:, 0] * np.float32(0.5)
    key = q(x[0]) @ seen(layer.key_dense)[:, 0]
    value = q(x[0]) @ seen(layer.value_dense)[:, 0]
    scores = q(query) @ q(key).T
    exps = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = q(exps / exps.sum(-1, keepdims=True)) @ q(value)
    expected = q(mixed) @ seen(layer.output_dense)[0]
    # Sums in another order may move a value to the next code now and then.
    close = np.isclose(y[0], expected, rtol=1e-4, atol=1e-5)
    assert close.mean() > 0.9
    np.testing.assert_allclose(y[0], expected, rtol=0.3, atol=0.1)


def test_errors_of_both_products_are_on_the_grid():
    config = LNSConfig(weights=None, activations=None, errors="lns4:1")
    layer = layers.LNSMultiHeadAttention(2, 3, lns_config=config)
    x = data(2, 5, 4)
    layer(x, x)
    caught = {}
    original = keras.ops.einsum

    def einsum(equation, *operands):
        @tf.custom_gradient
        def watch(y):
            def grad(dy):
                caught[equation] = dy
                return dy

            return tf.identity(y), grad

        return watch(original(equation, *operands))

    attention = tf_lns.layers.attention.keras_ops
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "einsum", einsum)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, x) * data(2, 5, 4, seed=1))
        tape.gradient(loss, layer.query_dense.kernel.value)
    assert {layer._dot_product_equation, layer._combine_equation} <= set(caught)
    for equation in (layer._dot_product_equation, layer._combine_equation):
        error = caught[equation].numpy()
        np.testing.assert_array_equal(error, reference.quantize(error, "lns4:1"))
        assert len(np.unique(np.abs(error))) <= 8


def test_predictions_do_not_depend_on_the_batch():
    layer = layers.LNSMultiHeadAttention(2, 3)
    x = data(8, 5, 4)
    layer(x, x, training=True)
    assert all(r.numpy() > 0 for r in layer.input_ranges)
    whole = layer(x, x)
    np.testing.assert_array_equal(whole[:2], layer(x[:2], x[:2]))


def test_conversion_and_construction_give_the_same_layer():
    inputs = keras.Input((5, 4))
    plain = keras.Model(inputs, K.MultiHeadAttention(2, 3, name="mha")(inputs, inputs))
    lns = tf_lns.quantize_model(plain, LNSConfig(errors="lns6:2"))
    made = layers.LNSMultiHeadAttention(2, 3, lns_config=LNSConfig(errors="lns6:2"))
    x = data(2, 5, 4)
    made(x, x)
    made.set_weights(lns.get_weights())
    np.testing.assert_array_equal(made(x, x), lns(x))
    assert [p.lns_config for p in projections(made)] == [LNSConfig(errors="lns6:2")] * 4
    plain_again = tf_lns.strip(lns)
    assert type(plain_again.get_layer("mha")) is keras.layers.MultiHeadAttention
    again = layers.LNSMultiHeadAttention.from_config(made.get_config())
    assert again.lns_config == made.lns_config


@pytest.mark.parametrize(("_plain", "lns_class", "arguments"), CASES, ids=IDS)
def test_keras_own_checks(_plain, lns_class, arguments):
    built = lns_class(**arguments)
    built.build((2, 5, 4), (2, 6, 4))
    TestCase().run_layer_test(
        lns_class,
        init_kwargs=arguments,
        input_shape={"query_shape": (2, 5, 4), "value_shape": (2, 6, 4)},
        expected_output_shape=(2, 5, 4),
        expected_num_trainable_weights=8,
        expected_num_non_trainable_weights=0,
        expected_num_seed_generators=1 if arguments.get("dropout") else 0,
        expected_num_losses=0,
        supports_masking=True,
        run_training_check=False,  # as in Keras' own test of these layers
    )


def test_a_tied_embedding_projects_in_lns():
    if not hasattr(K, "ReversibleEmbedding"):
        pytest.skip("This Keras has no ReversibleEmbedding.")
    inputs = keras.Input((5,), dtype="int32")
    embedding = K.ReversibleEmbedding(11, 4)
    plain = keras.Model(inputs, embedding(embedding(inputs), reverse=True))
    lns = tf_lns.quantize_model(plain)
    ids = np.random.default_rng(0).integers(0, 11, (3, 5))
    np.testing.assert_allclose(lns(ids), plain(ids), rtol=0.2, atol=1e-3)
    lns.compile(tf_lns.LNSMadam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    table = lns.layers[1].embeddings
    before = table.codes
    lns.fit(ids, ids, verbose=0)
    assert (table.codes != before).any()
    assert lns.layers[1].input_ranges[0].numpy() > 0
