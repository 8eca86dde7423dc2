"""Each private hook of tf_keras and tfmot still is what tf_lns.tfmot takes it for.

A failure here after an upgrade names the hook that changed.
"""

import ast
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.tfmot_nets import layers, tf_keras, tfmot
from tf_lns.tfmot import hooks

ROOT = Path(__file__).resolve().parent.parent


def built(layer=None, shape=(None, 4)):
    layer = layer or layers.Dense(3, kernel_regularizer="l2")
    layer.build(shape)
    return layer


def test_private_modules_are_imported_by_hooks_alone():
    private = ("tf_keras.src", "tensorflow_model_optimization.python")
    for path in (ROOT / "tf_lns/tfmot").glob("*.py"):
        if path.name == "hooks.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [n for n in names if n.startswith(private)], path.name


def test_lists_of_variables():
    layer = built()
    found = hooks.own_variables(layer)
    assert [v.ref() for v in found] == [layer.kernel.ref(), layer.bias.ref()]


def test_a_variable_is_replaced_everywhere():
    layer = built()
    old, new = layer.kernel, tf.Variable(np.ones((4, 3), np.float32))
    hooks.replace_variable(layer, old, new)
    assert layer.kernel is new
    assert layer.trainable_weights[0] is new
    assert layer._lookup_dependency("kernel") is new
    np.testing.assert_allclose(sum(layer.losses), 0.01 * 12)


def test_a_variable_is_added():
    layer = built()
    extra = tf.Variable(1.0, trainable=False)
    hooks.add_variable(layer, extra, "extra", extra)
    assert layer.non_trainable_weights[-1] is extra
    assert layer._lookup_dependency("extra") is extra


def test_untracked_attributes_are_untracked():
    layer = built()
    hooks.set_untracked(layer, "mine", [tf.Variable(1.0)])
    assert len(layer.weights) == 2
    assert type(layer.mine) is list


def test_swapped_attributes_come_back():
    layer = built()
    kernel, relu = layer.kernel, tf.nn.relu
    with hooks.Swapped() as swapped:
        swapped.set(layer, "kernel", tf.ones((4, 3)))
        swapped.set(layer, "activation", relu)
        swapped.set(layer, "call", lambda x: x)
        assert layer.activation is relu
        assert layer.trainable_weights[0] is kernel
        assert layer(tf.ones((1, 4))).shape == (1, 4)
    assert layer.kernel is kernel
    assert layer.activation is not relu
    assert "call" not in vars(layer)


def test_mixed_precision_wraps_variables():
    layer = built(layers.Dense(3, dtype="mixed_bfloat16"))
    inner = hooks.uncast(layer.kernel)
    assert inner is not layer.kernel
    assert inner.dtype == tf.float32
    assert hooks.uncast(inner) is inner


def test_an_activity_regularizer_is_shared():
    layer = layers.Dense(3, activity_regularizer="l1")
    wrapper = layers.TimeDistributed(layer)
    hooks.share_activity_regularizer(wrapper, layer)
    assert isinstance(wrapper._activity_regularizer, tf_keras.regularizers.L1)


def test_masks():
    assert hooks.computes_mask(layers.Masking())
    assert hooks.computes_mask(layers.Embedding(3, 2, mask_zero=True))
    assert hooks.computes_mask(layers.LSTM(2))
    assert not hooks.computes_mask(layers.Flatten())


def test_building():
    layer = layers.Layer()
    hooks.mark_built(layer, (None, 3))
    assert layer.built


def test_calls_are_forgotten():
    layer = layers.Dense(2)
    for _ in range(2):
        layer(layers.Input((3,)))
    hooks.forget_calls(layer)
    inputs = layers.Input((3,))
    outputs = layer(inputs)
    assert layer.output is outputs
    assert tf_keras.Model(inputs, outputs)(tf.ones((1, 3))).shape == (1, 2)


def test_edges_of_a_model():
    inputs = layers.Input((3,), name="in")
    shared = layers.Dense(3, name="d")
    both = layers.Add(name="sum")([shared(inputs), shared(shared(inputs))])
    model = tf_keras.Model(inputs, both)
    found = sorted((layer.name, sorted(i.name for i in into)) for layer, into in hooks.edges(model))
    assert found == [
        ("d", ["d"]), ("d", ["in"]), ("d", ["in"]), ("in", []), ("sum", ["d", "d"]),
    ]  # fmt: skip
    assert [layer.name for layer in hooks.output_layers(model)] == ["sum"]


def test_attention_has_what_its_arithmetic_takes():
    layer = layers.MultiHeadAttention(2, 3)
    hooks.build_projections(layer, (None, 6, 4))
    assert [type(part) for part in hooks.projections(layer)] == [layers.EinsumDense] * 4
    assert all(part.built for part in hooks.projections(layer))
    assert not [name for name in hooks.ATTENTION if not hasattr(layer, name)]
    again = layers.MultiHeadAttention.from_config(layer.get_config())
    hooks.build_projections(again, None)
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]


def test_recurrent_inputs_are_told_apart():
    layer = built(layers.LSTM(3), (None, 6, 4))
    x, h, c = tf.ones((2, 6, 4)), tf.ones((2, 3)), tf.zeros((2, 3))
    inputs, states, constants = hooks.begin_recurrent(layer, [x, h, c], None, None)
    assert inputs is x
    assert [s.ref() for s in states] == [h.ref(), c.ref()]
    assert constants is None
    _, states, _ = hooks.begin_recurrent(layer, x, None, None)
    assert [s.shape for s in states] == [(2, 3), (2, 3)]


def test_causal_padding():
    layer = layers.SeparableConv1D(2, 3, padding="causal")
    padded = tf.pad(tf.ones((1, 5, 2)), hooks.causal_padding(layer, tf.ones((1, 5, 2))))
    assert padded.shape == (1, 7, 2)


def test_annotations_and_operations_are_known():
    assert hooks.is_annotated(tfmot.quantize_annotate_layer(layers.Dense(2)))
    assert not hooks.is_annotated(layers.Dense(2))
    inputs = layers.Input((3,))
    model = tf_keras.Model(inputs, (inputs + 1.0)[:, 0])
    assert [hooks.is_operation(layer) for layer in model.layers] == [False, True, True]
    assert hooks.is_operation(layers.Lambda(lambda x: x))


def test_quantize_apply_leaves_wrappers_alone():
    """What `LNSScheme` rests on: tfmot keeps an instance of a subclass of QuantizeWrapper."""

    class Wrapper(tfmot.QuantizeWrapper):
        def build(self, shape):
            self.built = True

        def call(self, inputs, training=None):
            return self.layer(inputs)

    class Layout(tfmot.QuantizeLayoutTransform):
        def apply(self, model, layer_quantize_map):
            def wrap(layer):
                return Wrapper(layer, object())

            return tf_keras.models.clone_model(model, clone_function=wrap), {}

    class Scheme(tfmot.QuantizeScheme):
        def get_layout_transformer(self):
            return Layout()

        def get_quantize_registry(self):
            return None

    model = tf_keras.Sequential([layers.Dense(2, input_shape=(3,))])
    model = tfmot.quantize_apply(tfmot.quantize_annotate_model(model), scheme=Scheme())
    assert [type(layer) for layer in model.layers] == [Wrapper]


def test_calls_of_a_model():
    inputs = layers.Input((6, 4), name="in")
    dense, attention = layers.Dense(4), layers.MultiHeadAttention(1, 2)
    x = dense(inputs)
    y = attention(x, value=inputs, use_causal_mask=True)
    model = tf_keras.Model(inputs, y)
    assert hooks.is_graph(model)
    assert not hooks.is_graph(type("Mine", (tf_keras.Model,), {})())
    first, second = hooks.calls(model)
    assert first == (dense, (inputs,), {}, [x])
    assert second == (attention, (x,), {"value": inputs, "use_causal_mask": True}, [y])
    assert hooks.maker_of(y) is attention
    assert hooks.maker_of(inputs).name == "in"


def test_layers_inside():
    layer = layers.Bidirectional(layers.GRU(2))
    layer.build((None, 3, 4))
    names = [type(inner).__name__ for inner in hooks.inner_layers(layer)]
    assert names == ["Bidirectional", "GRU", "GRUCell", "GRU", "GRUCell"]
    cell = layer.forward_layer.cell
    assert hooks.attribute_of(cell, cell.recurrent_kernel) == "recurrent_kernel"


def test_what_tfmot_puts_into_layers():
    model = tf_keras.Sequential([layers.Dense(2, "relu", input_shape=(3,))])
    quantizer, wrapper = tfmot.quantize_apply(tfmot.quantize_annotate_model(model)).layers
    assert hooks.is_input_quantizer(quantizer)
    assert not hooks.is_input_quantizer(wrapper)
    ((kernel, _, variables),) = hooks.quantized_weights(wrapper)
    assert kernel.shape == (3, 2)
    assert variables
    displaced = wrapper.layer.activation
    with hooks.plain_activations(wrapper.layer):
        assert wrapper.layer.activation is tf_keras.activations.relu
    assert wrapper.layer.activation is displaced
