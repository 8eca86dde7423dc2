"""Counts of a training step against closed forms worked by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns.energy import tally, tally_evaluation

K = keras.layers


def compiled(*layers, loss="mse", optimizer="adam", **options):
    model = keras.Sequential(layers)
    model.compile(optimizer, loss, **options)
    return model


def passes(counts, layer=None):
    return tuple(counts.macs(p, layer) for p in ("forward", "error", "gradient"))


# --- Closed forms of the products -----------------------------------------------------


def test_dense():
    counts = tally(compiled(keras.Input((7,)), K.Dense(5), K.Dense(3)), 2)
    assert passes(counts, "dense") == (2 * 7 * 5, 0, 2 * 7 * 5)  # the data need no error
    assert passes(counts, "dense_1") == (2 * 5 * 3,) * 3
    forward = [r for r in counts.records if r.kind == "mac" and r.pass_ == "forward"]
    assert [r.reduction for r in forward] == [7, 5]
    assert counts.unpriced == ()


CONVOLUTIONS = {
    # name: (layer of a 12 x 12 x 4 image, MACs of the last layer for one image)
    "valid": (K.Conv2D(6, 3), 10 * 10 * 3 * 3 * 4 * 6),
    "same": (K.Conv2D(6, 3, padding="same"), 12 * 12 * 3 * 3 * 4 * 6),
    "strides": (K.Conv2D(6, 3, strides=2), 5 * 5 * 3 * 3 * 4 * 6),
    "dilation": (K.Conv2D(6, 3, dilation_rate=2), 8 * 8 * 3 * 3 * 4 * 6),
    "dilation same": (K.Conv2D(6, 3, dilation_rate=2, padding="same"), 144 * 9 * 4 * 6),
    "groups": (K.Conv2D(6, 3, groups=2), 10 * 10 * 3 * 3 * 2 * 6),
    "oblong": (K.Conv2D(6, (1, 5), strides=(2, 1)), 6 * 8 * 1 * 5 * 4 * 6),
    "depthwise": (K.DepthwiseConv2D(3), 10 * 10 * 3 * 3 * 4),
    "multiplier": (K.DepthwiseConv2D(3, depth_multiplier=2), 10 * 10 * 3 * 3 * 8),
    "separable": (K.SeparableConv2D(6, 3), 10 * 10 * (9 * 4 + 4 * 6)),
    "transposed": (K.Conv2DTranspose(6, 3, strides=2), 12 * 12 * 3 * 3 * 4 * 6),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("lns", [False, True], ids=["float", "lns"])
def test_convolutions(name, lns):
    layer, macs = CONVOLUTIONS[name]
    last = type(layer).from_config({**layer.get_config(), "name": "last"})
    # A convolution before it, so that there is an error to be had
    model = keras.Sequential([keras.Input((12, 12, 4)), K.Conv2D(4, 1, name="first"), last])
    if lns:
        model = tf_lns.quantize_model(model, tf_lns.LNSConfig())
    model.compile("sgd", "mse")
    counts = tally(model, 3)
    assert passes(counts, "last") == (3 * macs,) * 3
    assert passes(counts, "first") == (3 * 144 * 16, 0, 3 * 144 * 16)
    formats = {r.formats for r in counts.records if r.kind == "mac"}
    assert formats == {("lns8:8", "lns8:8") if lns else ("fp32", "fp32")}
    assert counts.unpriced == ()


@pytest.mark.parametrize(("size", "dilation", "padding"), [(8, 3, "valid"), (9, 2, "same")])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "separable"])
def test_padding_for_dilation_is_not_counted(size, dilation, padding, kind):
    layer = {
        "conv": lambda **k: K.Conv2D(6, 3, **k),
        "depthwise": lambda **k: K.DepthwiseConv2D(3, **k),
        "separable": lambda **k: K.SeparableConv2D(6, 3, **k),
    }[kind](dilation_rate=dilation, padding=padding, name="last")
    model = compiled(keras.Input((size, size, 4)), K.Conv2D(4, 1), layer)
    out = size if padding == "same" else size - 2 * dilation
    per_position = {"conv": 9 * 4 * 6, "depthwise": 9 * 4, "separable": 9 * 4 + 4 * 6}[kind]
    assert passes(tally(model, 2), "last") == (2 * out * out * per_position,) * 3


def test_convolutions_of_other_ranks():
    one = compiled(keras.Input((20, 3)), K.Conv1D(3, 1), K.Conv1D(5, 4, strides=2))
    assert passes(tally(one, 2), one.layers[-1].name) == (2 * 9 * 4 * 3 * 5,) * 3
    three = compiled(keras.Input((6, 6, 6, 2)), K.Conv3D(2, 1), K.Conv3D(3, 3))
    assert passes(tally(three, 2), three.layers[-1].name) == (2 * 64 * 27 * 2 * 3,) * 3


def test_einsum():
    dense = K.EinsumDense("abc,cde->abde", output_shape=(6, 3, 4))
    model = compiled(keras.Input((6, 5)), K.Dense(5), dense)
    assert passes(tally(model, 2), dense.name) == (2 * 6 * 5 * 3 * 4,) * 3


@pytest.mark.parametrize("lns", [False, True], ids=["float", "lns"])
def test_einsum_with_an_ellipsis(lns):
    # TensorFlow makes the gradient an outer product and a sum
    x = keras.Input((6, 4))
    dense = K.EinsumDense("...x,xy->...y", output_shape=(5,), name="einsum")
    model = keras.Model(x, dense(K.Dense(4)(x)))
    if lns:
        model = tf_lns.quantize_model(model, tf_lns.LNSConfig())
    model.compile("sgd", "mse")
    counts = tally(model, 2)
    assert passes(counts, "einsum") == (2 * 6 * 4 * 5,) * 3
    assert {r.formats for r in counts.records if r.kind == "mac"} == {
        ("lns8:8", "lns8:8") if lns else ("fp32", "fp32")
    }


@pytest.mark.parametrize("lns", [False, True], ids=["float", "lns"])
def test_attention(lns):
    batch, time, width, heads, size = 2, 7, 12, 3, 4
    x = keras.Input((time, width))
    h = K.Dense(width)(x)
    y = K.MultiHeadAttention(heads, size, name="attention")(h, h)
    model = keras.Model(x, y)
    if lns:
        model = tf_lns.quantize_model(model, tf_lns.LNSConfig())
    model.compile("sgd", "mse")
    counts = tally(model, batch)
    projection = batch * time * width * heads * size
    for name in ("query", "key", "value", "attention_output"):
        assert passes(counts, f"attention/{name}") == (projection,) * 3
    products = 2 * batch * heads * time * time * size  # QKᵀ and PV
    own = [r for r in counts.records if r.layer == "attention" and r.kind == "mac"]
    assert sum(r.count for r in own if r.pass_ == "forward") == products
    # Both factors of each are differentiated: twice the products, and no weight gradient
    assert sum(r.count for r in own if r.pass_ == "error") == 2 * products
    assert not any(r.pass_ == "gradient" for r in own)


@pytest.mark.parametrize("lns", [False, True], ids=["float", "lns"])
@pytest.mark.parametrize("unroll", [False, True], ids=["loop", "unrolled"])
def test_lstm(lns, unroll):
    batch, time, inputs, units = 2, 6, 3, 4
    model = keras.Sequential(
        [keras.Input((time, inputs)), K.Dense(inputs), K.LSTM(units, unroll=unroll, name="rnn")]
    )
    if lns:
        model = tf_lns.quantize_model(model, tf_lns.LNSConfig())
    model.compile("sgd", "mse")
    counts = tally(model, batch)
    kernel, recurrent = (batch * time * n * 4 * units for n in (inputs, units))
    forward, error, gradient = passes(counts, "rnn")
    assert forward == kernel + recurrent
    # The first state is zero and no variable: its error is of no use, but the loop makes it.
    assert error in (kernel + recurrent, kernel + recurrent * (time - 1) // time)
    assert gradient == kernel + recurrent
    assert counts.unpriced == ()


def test_a_masked_lstm_has_lns_products_only():
    model = keras.Sequential(
        [keras.Input((6,), dtype="int32"), K.Embedding(10, 3, mask_zero=True), K.LSTM(4)]
    )
    model = tf_lns.quantize_model(model, tf_lns.LNSConfig())
    model.compile("sgd", "mse")
    formats = {r.formats for r in tally(model, 2).records if r.kind == "mac"}
    assert formats == {("lns8:8", "lns8:8")}


def test_an_rnn_of_time_steps_known_to_the_batch_alone():
    model = keras.Sequential([keras.Input((None, 3)), K.SimpleRNN(4)])
    model.compile("sgd", "mse")
    counts = tally(model, (np.zeros((2, 9, 3), "float32"), np.zeros((2, 4), "float32")))
    assert counts.macs("forward") == 2 * 9 * (3 * 4 + 4 * 4)
    with pytest.raises(ValueError, match="batch size alone"):
        tally(model, 2)


def test_embedding_has_no_products():
    model = compiled(keras.Input((6,), dtype="int32"), K.Embedding(10, 4), K.Dense(5))
    counts = tally(model, 2)
    assert counts.macs(layer="dense") == counts.macs()
    # the error of the first product is what trains the table
    assert counts.macs("error") == 2 * 6 * 4 * 5
    rows = [t for t in counts.traffic if t.layer == "embedding" and t.pass_ == "forward"]
    assert [(t.role, t.direction, t.elements) for t in rows] == [("weights", "read", 2 * 6 * 4)]


PUBLISHED = {
    # He et al. 2015, table 1: 3.8e9; Keras' net has its strides where the paper has them
    "ResNet50": (224, 3.8e9, 0.03),
    # Sandler et al. 2018, table 4: 300 M
    "MobileNetV2": (224, 300e6, 0.01),
    # Tan & Le 2019, table 2: 0.39 B
    "EfficientNetB0": (224, 0.39e9, 0.02),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    size, published, tolerance = PUBLISHED[name]
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    counts = tally_evaluation(model, 1)
    assert counts.macs("forward") == pytest.approx(published, rel=tolerance)
    assert counts.macs() == counts.macs("forward")
    assert counts.unpriced == ()


def test_bert_base():
    models = pytest.importorskip("keras_hub").models
    time, width, layers = 128, 768, 12
    model = models.BertBackbone(
        vocabulary_size=1000,
        num_layers=layers,
        num_heads=12,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=time,
    )
    batch = {
        "token_ids": tf.TensorSpec((1, time), "int32"),
        "segment_ids": tf.TensorSpec((1, time), "int32"),
        "padding_mask": tf.TensorSpec((1, time), "int32"),
    }
    linear = time * 12 * width**2
    attention = 2 * time**2 * width
    pooler = width**2
    # 11.2e9 in all: 22.5 GFLOPs of two per MAC, Clark et al. 2020 (ELECTRA), table 8
    assert layers * (linear + attention) == pytest.approx(22.5e9 / 2, rel=0.01)
    counts = tally_evaluation(model, batch)
    assert counts.macs("forward") == layers * (linear + attention) + pooler


# --- Kinds of models and steps --------------------------------------------------------


def test_all_ways_to_say_a_model_agree():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = K.Dense(5, activation="relu")
            self.last = K.Dense(3)

        def call(self, x):
            return self.last(self.first(x))

    x = keras.Input((7,))
    functional = keras.Model(x, K.Dense(3)(K.Dense(5, activation="relu")(x)))
    sequential = keras.Sequential([keras.Input((7,)), K.Dense(5, activation="relu"), K.Dense(3)])
    batch = (np.zeros((2, 7), "float32"), np.zeros((2, 3), "float32"))
    sums = set()
    for model in (Subclassed(), functional, sequential):
        model.compile("adam", "mse")
        counts = tally(model, batch)
        sums.add(
            tuple(
                (p, k, counts.count(k, p))
                for p in ("forward", "error", "gradient", "update")
                for k in ("mac", "add", "multiply", "divide", "sqrt", "compare")
            )
        )
    assert len(sums) == 1


def test_a_plain_callable_and_a_custom_train_step():
    w = tf.Variable(tf.zeros((7, 5)))

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((tf.matmul(x, w) - y) ** 2)
        w.assign_sub(0.1 * tape.gradient(loss, w))
        return loss

    specs = tf.TensorSpec((2, 7)), tf.TensorSpec((2, 5))
    assert passes(tally(step, specs)) == (70, 0, 70)
    assert passes(tally(tf.function(step), specs)) == (70, 0, 70)
    assert passes(tally(tf.function(step, jit_compile=True), specs)) == (70, 0, 70)

    class Custom(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x) - y) ** 2) + tf.reduce_mean(self(2 * x))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    x = keras.Input((7,))
    model = Custom(x, K.Dense(5, name="dense")(x))
    model.compile("sgd")
    counts = tally(model, specs)
    assert passes(counts, "dense") == (140, 0, 140)  # the layer is called twice


def test_gradients_that_flow_on_from_a_nested_function():
    @tf.function
    def block(x, w):
        return tf.nn.relu(tf.matmul(x, w))

    ws = [tf.Variable(tf.ones((4, 4))) for _ in range(3)]

    def step(x):
        with tf.GradientTape() as tape:
            h = x
            for w in ws:
                h = block(h, w)
            loss = tf.reduce_sum(h)
        return tape.gradient(loss, ws)

    assert passes(tally(step, (tf.TensorSpec((2, 4)),))) == (3 * 32, 2 * 32, 3 * 32)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_function_inside_a_layer_that_was_traced_for_any_batch(jit_compile):
    class Block(K.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.first, self.last = K.Dense(5, name="first"), K.Dense(6, name="last")

        def build(self, shape):
            self.first.build(shape)
            self.last.build((*shape[:-1], 5))

        @tf.function(jit_compile=jit_compile)
        def call(self, x):
            return self.last(tf.nn.relu(self.first(x)))

    model = compiled(
        keras.Input((6,)), K.Dense(6, name="below"), Block(name="block"), K.Dense(3, name="above")
    )
    counts = tally(model, 4)
    assert counts.unpriced == ()
    assert passes(counts, "block") == (4 * 6 * 5 * 2,) * 3
    assert passes(counts, "below") == (4 * 36, 0, 4 * 36)
    assert passes(counts, "above") == (4 * 18,) * 3


def test_loops_and_branches():
    w = tf.Variable(tf.ones((4, 4)))

    def looped(x):
        for _ in tf.range(5):
            x = tf.matmul(x, w)
        return tf.cond(tf.shape(x)[0] > 1, lambda: tf.matmul(x, w), lambda: x)

    assert tally(tf.function(looped), (tf.TensorSpec((2, 4)),)).macs() == 6 * 32
    assert tally(tf.function(looped), (tf.TensorSpec((1, 4)),)).macs() == 5 * 16

    def until(x):
        while tf.reduce_sum(x) < 100:
            x = tf.matmul(x, w)
        return x

    counts = tally(tf.function(until), (tf.TensorSpec((2, 4)),))
    assert counts.macs() == 32
    assert [u.op for u in counts.unpriced] == ["While"] or [u.op for u in counts.unpriced] == [
        "StatelessWhile"
    ]
    assert any("counted once" in note for note in counts.notes)


def test_unknown_operations_are_listed():
    counts = tally(lambda x: tf.linalg.inv(x) @ x, (tf.TensorSpec((3, 3)),))
    assert [(u.op, u.count, u.elements) for u in counts.unpriced] == [("MatrixInverse", 1, 9)]
    assert counts.macs() == 27


def test_a_division_by_a_constant_is_a_multiplication():
    specs = (tf.TensorSpec((2, 3)), tf.TensorSpec((2, 3)))
    counts = tally(lambda x, y: (x / y, x / 3.0), specs)
    assert (counts.count("divide"), counts.count("multiply")) == (6, 6)


def test_what_nobody_uses_is_not_counted():
    def step(x):
        tf.matmul(x, x)
        return tf.matmul(x, tf.matmul(tf.ones((3, 3)), tf.ones((3, 3))))

    assert tally(step, (tf.TensorSpec((3, 3)),)).macs() == 27


def test_frozen_layers_have_errors_and_no_gradients():
    model = keras.Sequential([keras.Input((7,)), K.Dense(5), K.Dense(4), K.Dense(3)])
    model.layers[1].trainable = False
    model.compile("adam", "mse")
    counts = tally(model, 2)
    assert passes(counts, model.layers[1].name) == (40, 40, 0)
    model.trainable = False
    model.layers[2].trainable = True
    model.compile("adam", "mse")


# --- Formats and conversions ----------------------------------------------------------


def test_formats_of_an_lns_model():
    config = tf_lns.LNSConfig(activations="lns8:8", errors="lns6:2", gradients="lns5:1")
    model = keras.Sequential([keras.Input((7,)), K.Dense(5, activation="relu"), K.Dense(3)])
    model = tf_lns.quantize_model(model, config)
    model.compile(tf_lns.LNSMadam(), "mse")
    counts = tally(model, 2)
    formats = {r.pass_: r.formats for r in counts.records if r.kind == "mac"}
    assert formats == {
        "forward": ("lns8:8", "lns8:8"),
        "error": ("lns6:2", "lns8:8"),
        "gradient": ("lns8:8", "lns6:2"),
    }
    # Q_A of both inputs, Q_E of both errors, Q_G and Q_W of both kernels
    assert counts.count("encode", "forward") == 2 * (7 + 5)
    assert counts.count("encode", "error") == 2 * (5 + 3)
    assert counts.count("encode", "update") == 7 * 5 + 5 * 3
    assert counts.count("requantize") == 7 * 5 + 5 * 3
    assert counts.count("decode") == 0
    (gradient,) = {r.formats for r in counts.records if r.kind == "encode" and r.pass_ == "update"}
    assert gradient == ("fp32", "lns5:1")


def test_integer_operations_of_the_update():
    model = keras.Sequential([keras.Input((7,)), K.Dense(5, use_bias=False)])
    model = tf_lns.quantize_model(model, tf_lns.LNSConfig())
    model.compile(tf_lns.LNSMadam(), "mse")
    counts = tally(model, 2)
    weights = 35
    integer = [r for r in counts.records if r.formats == ("int16",)]
    assert {(r.kind, r.count) for r in integer} == {("add", weights), ("compare", 2 * weights)}
    assert counts.count("sqrt", "update") == weights + 1  # and that of the learning rate
    one_byte = keras.models.clone_model(model)
    one_byte.compile(tf_lns.LNSMadam(second_moment="lns8:4"), "mse")
    counts = tally(one_byte, 2)
    assert counts.count("lookup") == 2 * weights
    assert counts.count("sqrt", "update") == 1


def test_memory_traffic():
    model = keras.Sequential([keras.Input((7,)), K.Dense(5, use_bias=False, name="dense")])
    model = tf_lns.quantize_model(model, tf_lns.LNSConfig(gradients="lns5:1"))
    model.compile(tf_lns.LNSMadam(second_moment="lns8:4"), "mse")
    moved = {(t.pass_, t.role, t.direction): (t.bits, t.elements) for t in tally(model, 2).traffic}
    assert moved == {
        ("forward", "activations", "read"): (8, 14),
        ("forward", "weights", "read"): (8, 35),
        ("forward", "activations", "write"): (32, 10),
        ("gradient", "activations", "read"): (8, 14),
        ("gradient", "errors", "read"): (8, 10),
        ("gradient", "gradients", "write"): (5, 35),
        ("update", "gradients", "read"): (5, 35),
        ("update", "weights", "read"): (16, 35),
        ("update", "weights", "write"): (16, 35),
        ("update", "state", "read"): (8, 35),
        ("update", "state", "write"): (8, 35),
    }


def test_padding_and_loops_do_not_multiply_operands():
    conv = compiled(
        keras.Input((8, 8, 4)), K.Conv2D(4, 3, dilation_rate=2, padding="same", use_bias=False)
    )
    (read,) = [
        t
        for t in tally(conv, 2).traffic
        if (t.pass_, t.role, t.direction) == ("forward", "activations", "read")
    ]
    assert read.elements == 2 * 8 * 8 * 4
    rnn = compiled(keras.Input((6, 3)), K.SimpleRNN(4))
    weights = [o for o in tally(rnn, 2).operands if o.role == "weights"]
    assert sum(o.elements for o in weights) == 3 * 4 + 4 * 4


def test_mixed_precision():
    dense = K.Dense(5, dtype="mixed_float16")
    model = compiled(keras.Input((7,)), dense)
    counts = tally(model, 2)
    formats = {r.formats for r in counts.records if r.kind == "mac"}
    assert formats == {("fp16", "fp16")}
    kinds = {(r.kind, r.formats) for r in counts.records if r.pass_ == "forward"}
    assert ("encode", ("fp32", "fp16")) in kinds


def test_mixed_precision_in_lns():
    model = keras.Sequential(
        [keras.Input((7,)), K.Dense(5, dtype="mixed_float16"), K.Dense(3, dtype="mixed_float16")]
    )
    model = tf_lns.quantize_model(model, tf_lns.LNSConfig())
    model.compile(keras.optimizers.LossScaleOptimizer(tf_lns.LNSMadam()), "mse")
    formats = {r.formats for r in tally(model, 2).records if r.kind == "mac"}
    assert formats == {("lns8:8", "lns8:8")}


def test_low_rank_adapters():
    dense = K.Dense(5, name="dense")
    model = compiled(keras.Input((7,)), K.Dense(7, name="below"), dense)
    dense.enable_lora(2)
    model.compile("sgd", "mse")
    forward, error, gradient = passes(tally(model, 4), "dense")
    assert forward == 4 * 7 * 5 + 7 * 2 * 5  # and the product of both factors
    assert error == 4 * 5 * 7
    assert gradient == 7 * 4 * 5 + 7 * 5 * 2 + 2 * 7 * 5  # of the kernel, and of both factors


def test_gradient_accumulation_counts_the_mean():
    def update(steps):
        model = compiled(
            keras.Input((7,)),
            K.Dense(5),
            optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps),
        )
        counts = tally(model, 2)
        writes = [t for t in counts.traffic if (t.pass_, t.role) == ("update", "weights")]
        return sum(t.elements for t in writes), counts.notes

    assert update(None) == (2 * 40, ())
    elements, notes = update(4)
    assert elements == 2 * 40 / 4
    assert any("one of 4 steps" in note for note in notes)


def test_evaluation_and_models_without_a_loss():
    model = compiled(keras.Input((7,)), K.Dense(5), K.Dense(3))
    assert passes(tally_evaluation(model, 2)) == (100, 0, 0)
    bare = keras.Sequential([keras.Input((7,)), K.Dense(5), K.Dense(3)])
    counts = tally(bare, 2)
    assert passes(counts) == (100, 30, 100)
    assert counts.count("add", "update") == 0
    assert any("not compiled" in note for note in counts.notes)


def test_nothing_is_trained_by_counting():
    model = compiled(keras.Input((7,)), K.Dense(5), K.BatchNormalization(), K.Dropout(0.5))
    model.optimizer.build(model.trainable_variables)
    before = [v.numpy().copy() for v in [*model.variables, *model.optimizer.variables]]
    tally(model, (np.ones((2, 7)), np.ones((2, 5))))
    after = [*model.variables, *model.optimizer.variables]
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, after, strict=True))
    model.fit(np.ones((2, 7)), np.ones((2, 5)), verbose=0)  # and it still trains


# --- Arguments ------------------------------------------------------------------------


def test_batches():
    model = compiled(
        keras.Input((7,)), K.Dense(5), loss=keras.losses.SparseCategoricalCrossentropy()
    )
    x, y = np.zeros((4, 7)), np.zeros((4,), int)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    expected = tally(model, (x, y))
    for batch in (4, x, data, (tf.constant(x, "float32"), tf.constant(y)), [x, y]):
        counts = tally(model, batch)
        assert counts.samples == 4
        assert passes(counts) == passes(expected)


@pytest.mark.parametrize(
    ("model", "batch", "error", "message"),
    [
        (None, None, TypeError, "Keras model or a callable"),
        ("net", 0, ValueError, "at least 1"),
        ("net", None, ValueError, "batch"),
        ("net", (np.array(["a"]),), ValueError, "numbers"),
        ("net", (tf.TensorSpec((None, 7)),), ValueError, "known shape"),
        ("net", (np.zeros((2, 8)), np.zeros((2, 5))), ValueError, "cannot be traced"),
    ],
)
def test_wrong_arguments(model, batch, error, message):
    net = compiled(keras.Input((7,)), K.Dense(5)) if model else model
    with pytest.raises(error, match=message):
        tally(net, batch)


def test_queries():
    counts = tally(compiled(keras.Input((7,)), K.Dense(5, name="one")), 2)
    assert counts.layers == ("one",)
    for call, message in (
        (lambda: counts.macs("backward"), "pass_"),
        (lambda: counts.macs(layer="two"), "layer"),
        (lambda: counts.count("macs"), "kind"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_counts_survive_json():
    import json

    counts = tally(compiled(keras.Input((7,)), K.Dense(5)), 2)
    assert tf_lns.energy.Tally.from_dict(json.loads(json.dumps(counts.to_dict()))) == counts
    with pytest.raises(ValueError, match="version"):
        tf_lns.energy.Tally.from_dict({"version": 99})


def test_two_layers_of_one_name_are_kept_apart():
    x = keras.Input((4,))
    a = keras.Sequential([K.Dense(4, name="same")], name="a")
    b = keras.Sequential([K.Dense(4, name="same")], name="b")
    model = keras.Model(x, b(a(x)))
    model.compile("sgd", "mse")
    counts = tally(model, 2)
    assert {"a/same", "b/same"} <= set(counts.layers)
    assert counts.macs("forward", "a") == counts.macs("forward", "a/same") == 32
    assert counts.macs("forward", "same") == 64
