"""Stripped models in TensorFlow Lite: the same predictions, and which weights stay on the grid."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.test_tfmot import functional, normal
from tests.tfmot_nets import layers, quantized, tf_keras
from tf_lns import LNSConfig
from tf_lns.tfmot import LNSScheme, strip

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


def attention(x):
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3, name="attention")(x, x)])
    return layers.Flatten()(layers.LayerNormalization()(x))


def cnn(x):
    x = layers.Conv2D(4, 3, name="before_norm")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return layers.Flatten()(layers.Conv2D(4, 3, activation="relu", name="conv")(x))


NETS = {
    "cnn": ((8, 8, 2), cnn),
    "lstm": ((6, 4), lambda x: layers.LSTM(5, name="lstm")(x)),
    "gru": ((3, 4), lambda x: layers.GRU(5, name="gru")(x)),
    "attention": ((6, 4), attention),
}


@functools.cache
def stripped(name):
    """The model in LNS, the stripped one, a batch, and the file of it.

    Weights are as training leaves them.
    """
    tf_keras.utils.set_random_seed(1)
    shape, build = NETS[name]
    lns = functional(lambda x: layers.Dense(3, name="end")(build(x)), shape)
    lns = quantized(lns, LNSScheme(LNSConfig(activations=None)))
    for weight in lns.trainable_weights:
        weight.assign(weight + 0.1 * normal(*weight.shape))
    for weight in lns.non_trainable_weights:
        if "moving_variance" in weight.name:
            weight.assign(1 + np.square(normal(*weight.shape)))
    x = normal(4, *shape)
    plain = strip(lns, weights="seen")
    return lns, plain, x, converted(plain, x)


def converted(model, x):
    """The file of a model for batches of a fixed size."""
    run = tf.function(lambda x: model(x, training=False))
    concrete = run.get_concrete_function(tf.TensorSpec(x.shape, tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model)
    return converter.convert()


def interpreted(content, x):
    """The interpreter of the TensorFlow wheel after a run on a batch."""
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter


def output_of(interpreter):
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def constants_of(interpreter):
    """Values of the float tensors that an interpreter keeps, by name."""
    computed = {i for op in interpreter._get_ops_details() for i in op["outputs"]}
    return {
        detail["name"]: interpreter.get_tensor(detail["index"])
        for detail in interpreter.get_tensor_details()
        if detail["dtype"] is np.float32 and detail["index"] not in computed and detail["name"]
    }


@pytest.mark.parametrize("name", NETS)
def test_the_interpreter_predicts_the_same(name):
    lns, plain, x, content = stripped(name)
    found = output_of(interpreted(content, x))
    np.testing.assert_allclose(found, plain(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, lns(x), rtol=1e-5, atol=1e-6)


def test_the_usual_conversion_of_a_model_without_loops():
    _, plain, x, _ = stripped("cnn")
    content = tf.lite.TFLiteConverter.from_keras_model(plain).convert()
    interpreter = tf.lite.Interpreter(model_content=content)
    (place,) = interpreter.get_input_details()
    for n in (1, 4):  # the batch is free
        interpreter.resize_tensor_input(place["index"], x[:n].shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place["index"], x[:n])
        interpreter.invoke()
        np.testing.assert_allclose(output_of(interpreter), plain(x[:n]), rtol=1e-5, atol=1e-6)


# --- Which weights are on the grid of Q_W -----------------------------------------------------


def on_grid(values):
    """Whether all values are those of lns8:8 under one scale: ratios are powers of 2**(1/8)."""
    logs = 8 * np.log2(np.abs(values[values != 0].astype(np.float64)))
    steps = logs - logs.max()
    return np.abs(steps - np.rint(steps)).max() < 1e-4


def kept(weight, content):
    """Whether a weight is in a file to the last bit: its rows, or its columns, each in one piece.

    Single values would not do: those of all weights are powers of 2**(1/8).
    """
    values = weight.numpy()
    matrices = [values.reshape(-1, values.shape[-1]), values.reshape(values.shape[0], -1)]
    views = [*matrices, *(matrix.T for matrix in matrices)]
    return any(all(row.tobytes() in content for row in view) for view in views)


def kernels(model):
    """Kernels by the last two parts of their names."""
    return {
        "/".join(w.name.split(":")[0].split("/")[-2:]): w
        for w in model.weights
        if w.name.split(":")[0].endswith("kernel")
    }


@pytest.mark.parametrize(
    ("name", "changed", "stays"),
    [
        ("cnn", ["before_norm/kernel"], False),  # a factor per channel
        ("attention", ["query/kernel"], True),  # one factor: the same grid, of another scale
        ("lstm", [], True),
        ("gru", [], True),
    ],
)
def test_the_converter_multiplies_factors_into_weights(name, changed, stays):
    """That of BatchNorm behind the product, and that of the scores in attention."""
    _, plain, x, content = stripped(name)
    found = kernels(plain)
    assert all(on_grid(weight.numpy()) for weight in found.values())
    assert [key for key, weight in found.items() if not kept(weight, content)] == changed
    constants = constants_of(interpreted(content, x)) if changed else {}
    others = [weight.numpy() for key, weight in found.items() if key not in changed]
    for key in changed:
        (new,) = (
            c
            for c in constants.values()
            if c.size == found[key].shape.num_elements()
            and np.any(c)
            and not any(np.isin(c, other).all() for other in others)
        )
        assert on_grid(new) == stays


def test_a_norm_behind_an_activation_leaves_weights_alone():
    tf_keras.utils.set_random_seed(1)
    norm = layers.BatchNormalization(name="norm")
    model = functional(lambda x: layers.Dense(3)(norm(layers.ReLU()(layers.Dense(5)(x)))), (4,))
    lns = quantized(model, LNSScheme())
    for weight in lns.weights:
        if "moving_" in weight.name or "gamma" in weight.name:
            weight.assign(1 + np.square(normal(*weight.shape)))
    plain, x = strip(lns, weights="seen"), normal(4, 4)
    content = converted(plain, x)
    assert len(kernels(plain)) == 2
    assert all(kept(weight, content) for weight in kernels(plain).values())
