"""Each private hook of TensorFlow and Keras still is what tf_lns takes it for.

A failure here after an upgrade names the hook that changed.
"""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lns import keras_hooks
from tf_lns.ops.variable import read_variable
from tf_lns.optimizers import LNSMadam
from tf_lns.variable import LNSVariable

ROOT = Path(__file__).resolve().parent.parent
STORAGE = "lns16:2048"


@pytest.fixture
def variable():
    return LNSVariable(np.array([[1.0, 2.0], [4.0, 0.5]], np.float32))


@pytest.fixture
def layer():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    return layer


@pytest.fixture
def optimizer():
    return keras.optimizers.SGD(0.1, weight_decay=0.5)


def test_private_modules_are_imported_here_alone():
    """`tensorflow.python`, `tensorflow.core` and `keras.src` appear in keras_hooks.py only."""
    private = ("tensorflow.python", "tensorflow.core", "keras.src")
    for path in (ROOT / "tf_lns").rglob("*.py"):
        if path.name == "keras_hooks.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            bad = [n for n in names if n.startswith(private) or ".python.ops" in n]
            assert not bad, f"{path.name}: {bad}"


# --- TensorFlow ---------------------------------------------------------------------------


def test_a_variable_class_of_our_own(variable):
    assert issubclass(keras_hooks.BaseResourceVariable, tf.Variable)
    assert isinstance(variable.cell, tf.Variable)
    assert variable.cell.dtype == tf.float32
    assert variable.cell.codes.dtype == tf.int16


def test_float_alias():
    codes = tf.Variable(tf.zeros((2, 3), tf.int16))
    alias = keras_hooks.float_alias(codes.handle, codes.shape)
    [data] = keras_hooks.get_handle_data(alias).shape_and_type
    assert data.dtype == tf.float32.as_datatype_enum
    assert [d.size for d in data.shape.dim] == [2, 3]
    [data] = keras_hooks.get_handle_data(codes.handle).shape_and_type
    assert data.dtype == tf.int16.as_datatype_enum


def test_reads_are_told_to_tapes_and_function_graphs(variable):
    with tf.GradientTape() as tape:
        tf.convert_to_tensor(variable.cell)
    assert [id(v) for v in tape.watched_variables()] == [id(variable.cell)]

    @tf.function
    def read():
        return tf.convert_to_tensor(variable.cell)

    assert any(v is variable.cell for v in read.get_concrete_function().graph.variables)


def test_watched_operations():
    found = []
    x = tf.ones((2, 2))

    @tf.function
    def branch(x):
        return tf.cond(x[0, 0] > 0, lambda: tf.einsum("ab,bc->ac", x, x), lambda: x)

    with keras_hooks.watched_operations(found.append):
        tf.matmul(x, x)
        branch(x)
    tf.nn.relu(x)
    assert {"MatMul", "Einsum"} <= set(found)
    assert "Relu" not in found

    def refuse(op_type):
        raise ValueError(op_type)

    with keras_hooks.watched_operations(refuse), pytest.raises(ValueError, match="MatMul"):
        tf.matmul(x, x)
    tf.matmul(x, x)


@pytest.mark.parametrize("graph", [False, True])
def test_refuse_derivatives(graph):
    def second(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            with tape.stop_recording():
                y = x * x
            keras_hooks.refuse_derivatives([y], [x], "none of these")
            z = 2.0 * y
        return tape.gradient(z, x)

    with pytest.raises(LookupError, match="none of these"):
        (tf.function(second, autograph=False) if graph else second)(tf.constant(3.0))


def test_record_read(variable):
    """Without it the gradient would be lost where a function reads in a branch."""

    @tf.function
    def gradient(flag):
        with tf.GradientTape() as tape:
            y = tf.cond(flag, lambda: tf.reduce_sum(variable.value), lambda: tf.constant(0.0))
        return tape.gradient(y, variable.value)

    np.testing.assert_array_equal(gradient(tf.constant(True)), np.ones((2, 2)))


def test_reads_are_not_ordered_among_themselves(variable):
    @tf.function
    def twice():
        return tf.convert_to_tensor(variable.cell) + tf.convert_to_tensor(variable.cell)

    operations = twice.get_concrete_function().graph.get_operations()
    reads = [op for op in operations if op.type == "LnsReadVariable"]
    assert len(reads) == 2
    assert not any(read.control_inputs for read in reads)


def test_writes_are_ordered(variable):
    @tf.function
    def write_and_read():
        variable.cell.assign(tf.ones((2, 2)))
        return tf.convert_to_tensor(variable.cell)

    operations = write_and_read.get_concrete_function().graph.get_operations()
    [read] = [op for op in operations if op.type == "LnsReadVariable"]
    assert "LnsAssignVariable" in [op.type for op in read.control_inputs]


def test_reads_pass_vectorized_maps(variable):
    y = tf.vectorized_map(lambda x: x * variable.value, tf.constant([1.0, 2.0]))
    np.testing.assert_array_equal(y[1], 2 * variable.numpy())


def test_a_vectorized_map_over_scales_says_that_it_cannot(variable):
    def read(scale):
        return read_variable(variable.handle, scale, variable.format)

    with pytest.raises(ValueError, match=r"stacked|loop invariant"):
        tf.vectorized_map(read, tf.constant([1.0, 2.0]), fallback_to_while_loop=False)


def test_late_creation():
    made = []

    @tf.function
    def f(x):
        with keras_hooks.late_creation():
            made.append(tf.Variable(3.0))
        return x + made[-1]

    assert f(tf.constant(1.0)) == 4
    assert f(tf.constant([1.0])) == [4]  # a second trace, where TensorFlow forbids variables
    assert len(made) >= 2

    @tf.function
    def stock(x):
        with tf.init_scope():
            made.append(tf.Variable(3.0))
        return x + made[-1]

    with pytest.raises(ValueError, match="created on the first call"):
        stock(tf.constant(1.0))


def test_plain_objects_in_saved_models():
    class Node:
        def __init__(self):
            self.user_object = keras_hooks.saved_object_graph_pb2.SavedUserObject()

    node = Node()
    keras_hooks.write_plain_object(node)
    assert node.user_object.identifier == "_generic_user_object"


# --- Keras: layers --------------------------------------------------------------------------


def test_lists_of_variables(layer):
    trainable, others = keras_hooks.variable_lists(layer)
    assert trainable == layer.trainable_variables
    assert others == []
    assert keras_hooks.own_variables(layer) == layer.variables


def test_unlocked(layer):
    with pytest.raises(ValueError, match="cannot add new elements"):
        layer.extra = keras.Variable(1.0)
    with keras_hooks.unlocked(layer):
        layer.more = keras.Variable(1.0)
    assert len(layer.variables) == 3
    with pytest.raises(ValueError, match="cannot add new elements"):
        layer.extra = keras.Variable(1.0)


def test_replace_variable(layer):
    old = layer.kernel
    new = LNSVariable.from_variable(old, STORAGE)
    keras_hooks.replace_variable(layer, old, new)
    assert layer.kernel is layer._kernel is new
    assert layer.trainable_variables[0] is new
    assert len(layer.variables) == 2
    layer.trainable = False
    assert layer.non_trainable_variables[0] is new
    assert layer(np.ones((1, 3), np.float32)).shape == (1, 2)
    checkpointed = {id(v) for v in layer._trackable_children().values()}
    assert id(new) in checkpointed
    assert id(old) not in checkpointed


def test_replace_variable_in_lists_of_a_layer():
    class Bag(keras.layers.Layer):
        def build(self, shape):
            self.parts = [self.add_weight(shape=(2, 2), name=f"w{i}") for i in range(2)]

    bag = Bag()
    bag.build(None)
    old = bag.parts[1]
    new = LNSVariable.from_variable(old, STORAGE)
    keras_hooks.replace_variable(bag, old, new)
    assert bag.parts[1] is new
    assert [id(v) for v in bag.variables] == [id(v) for v in bag.parts]


def test_track_variable(layer):
    with keras_hooks.unlocked(layer):
        keras_hooks.track_variable(layer, LNSVariable(np.ones(2, np.float32)))
    assert len(layer.trainable_variables) == 3


def test_after_build_runs_before_the_layer_is_locked():
    class Dense(keras_hooks.AfterBuild, keras.layers.Dense):
        def after_build(self):
            self.extra = keras.Variable(np.float32(self.kernel.shape[0]))

    layer = Dense(2)
    layer(np.ones((1, 3), np.float32))
    assert float(layer.extra) == 3
    with pytest.raises(ValueError, match="cannot add new elements"):
        layer.later = keras.Variable(1.0)


def test_check_saved_count(layer):
    keras_hooks.check_saved_count(layer, {"0": 1, "1": 2})
    with pytest.raises(ValueError, match="expected 2 variables, but received 1"):
        keras_hooks.check_saved_count(layer, {"0": 1})


def test_forget_functions():
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    net.compile(loss="mse")
    x = np.ones((4, 3), np.float32)
    net.fit(x, x[:, :1], verbose=0)
    net.evaluate(x, x[:, :1], verbose=0)
    net.predict(x, verbose=0)
    functions = ("train_function", "test_function", "predict_function")
    assert all(getattr(net, name) is not None for name in functions)
    keras_hooks.forget_functions(net)
    assert all(getattr(net, name) is None for name in functions)
    net.fit(x, x[:, :1], verbose=0)


def test_sublayers():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    net = keras.Sequential([inner, keras.layers.Dense(1)])
    net.compile(loss="mse", metrics=["mae"])
    layers = keras_hooks.sublayers(net)
    assert inner in layers
    assert not any(isinstance(layer, keras.metrics.Metric) for layer in layers)


def test_compile_arguments():
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert keras_hooks.compile_arguments(net) is None
    net.compile(optimizer="sgd", loss="mse")
    assert keras_hooks.compile_arguments(net)["loss"] == "mse"


def test_not_compiled():
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    net.compile(optimizer="sgd", loss="mse")
    with keras_hooks.not_compiled([net]):
        assert keras_hooks.compile_arguments(net) is None
    assert keras_hooks.compile_arguments(net) is not None


# --- Keras: optimizers -----------------------------------------------------------------------


def test_use_weight_decay(optimizer, layer):
    optimizer.exclude_from_weight_decay(var_list=[layer.bias])
    assert keras_hooks.use_weight_decay(optimizer, layer.kernel)
    assert not keras_hooks.use_weight_decay(optimizer, layer.bias)
    assert not keras_hooks.use_weight_decay(optimizer, layer.bias.value)


def test_index_and_key_of_a_variable(optimizer, layer, variable):
    optimizer.build([*layer.trainable_variables, variable])
    for i, v in enumerate([layer.kernel, layer.bias.value, variable.cell]):
        assert keras_hooks.variable_index(optimizer, v) == i

    class StandIn:
        _unique_id = keras_hooks.variable_key(optimizer, variable)

    assert keras_hooks.variable_index(optimizer, StandIn()) == 2
    assert keras_hooks.variable_key(optimizer, variable) == keras_hooks.variable_key(
        optimizer, variable.cell
    )


def test_set_untracked(optimizer):
    keras_hooks.set_untracked(optimizer, "things", [object()])
    assert type(optimizer.things) is list


def test_untrack_variables(optimizer, layer):
    before = optimizer.variables
    extra = optimizer.add_variable((), name="extra")
    keras_hooks.untrack_variables(optimizer, [extra])
    assert [id(v) for v in optimizer.variables] == [id(v) for v in before]


def test_weight_decay_is_not_a_pass_of_its_own(layer):
    class Idle(keras_hooks.FusedWeightDecay, keras.optimizers.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            pass

    before = layer.kernel.numpy()
    gradients = [tf.ones(v.shape) for v in layer.trainable_variables]
    Idle(0.1, weight_decay=0.5).apply(gradients, layer.trainable_variables)
    np.testing.assert_array_equal(layer.kernel.numpy(), before)
    keras.optimizers.SGD(0.0 + 1e-9, weight_decay=5e8).apply(gradients, layer.trainable_variables)
    np.testing.assert_allclose(layer.kernel.numpy(), before * 0.5, rtol=1e-3, atol=1e-6)


def test_methods_that_our_optimizers_override_exist():
    for name in (
        "_backend_apply_gradients",
        "_overwrite_model_variables_with_average_value",
        "_apply_weight_decay",
        "load_own_variables",
    ):
        assert hasattr(keras.optimizers.Optimizer, name), name
        assert getattr(LNSMadam, name) is not getattr(keras.optimizers.Optimizer, name), name


# --- Keras: classes --------------------------------------------------------------------------


class Doubled(keras.layers.Dense):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs)


def test_a_changed_class_is_what_keras_calls(layer):
    x = np.ones((3, layer.kernel.shape[0]), np.float32)
    single = layer(x)
    layer.quantize  # noqa: B018  (Keras keeps one that is bound to the class of the start)
    keras_hooks.change_class(layer, Doubled)
    np.testing.assert_array_equal(layer(x), 2.0 * single)
    made = Doubled(2)
    for name in (
        "_call_signature",
        "call_signature_parameters",
        "_call_has_training_arg",
        "_call_has_mask_arg",
        "_call_has_context_arg",
    ):
        assert getattr(layer, name) == getattr(made, name), name
    assert "quantize" in vars(made)
    assert "quantize" not in vars(layer)


def test_as_class_gives_the_class_back(layer):
    with keras_hooks.as_class(layer, Doubled):
        assert type(layer) is Doubled
    assert type(layer) is keras.layers.Dense


def test_name_for_saving_is_what_keras_writes():
    class Local(keras.layers.Layer):
        pass

    keras_hooks.name_for_saving(Local, "tests>Elsewhere")
    written = keras.saving.serialize_keras_object(Local())
    assert written["registered_name"] == "tests>Elsewhere"
    assert keras.saving.get_registered_object("tests>Elsewhere") is None


def test_serialized_class_is_what_keras_writes(layer):
    written = keras.saving.serialize_keras_object(layer)
    made = keras_hooks.serialized_class(keras.layers.Dense, layer.get_config())
    assert {key: written[key] for key in made} == made


def test_is_graph():
    x = keras.Input((2,))
    assert keras_hooks.is_graph(keras.Sequential())
    assert keras_hooks.is_graph(keras.Model(x, x + 1.0))
    assert not keras_hooks.is_graph(keras.Model())


def test_redirect_new():
    noted = []

    def choose(cls):
        return Doubled if cls is keras.layers.Dense else cls

    original = keras.layers.Layer.__new__
    with keras_hooks.redirect_new(choose, noted.append):
        made = keras.layers.Dense(3, name="made")
        with keras_hooks.redirect_new(lambda cls: cls, lambda layer: None):
            assert type(keras.layers.Dense(3)) is keras.layers.Dense
    assert type(made) is Doubled
    assert made.units == 3
    assert noted == [made]
    assert keras.layers.Layer.__new__ is original


def test_values_of_a_variable_that_is_made_later(layer):
    np.testing.assert_array_equal(keras_hooks.values_of(layer.kernel), layer.kernel.numpy())
    with keras.StatelessScope():
        late = keras.Variable(keras.initializers.Ones(), shape=(2, 3), dtype="float32")
        assert late._value is None
        np.testing.assert_array_equal(keras_hooks.values_of(late), np.ones((2, 3)))


def test_name_alike(layer):
    other = keras.layers.Dense(2, name="other")
    other.build((None, 3))
    keras_hooks.name_alike(layer.kernel, other.bias)
    assert (layer.kernel.name, layer.kernel.path) == ("bias", "other/bias")


def test_calls_of_a_functional_model():
    inputs = keras.Input((6,), dtype="int32", name="in")
    embedding, lstm = keras.layers.Embedding(9, 4, mask_zero=True), keras.layers.LSTM(3)
    x = embedding(inputs)
    y = lstm(x)
    model = keras.Model(inputs, y)
    calls = {call[0]: call for call in keras_hooks.graph_calls(model)}
    _, args, _, outputs = calls[embedding]
    assert args[0] is inputs
    assert outputs[0] is x
    _, args, kwargs, outputs = calls[lstm]
    assert args[0] is x
    assert outputs[0] is y
    assert kwargs["mask"] is keras_hooks.mask_of(x)  # Keras adds it, made by an operation
    assert not isinstance(keras_hooks.maker_of(kwargs["mask"]), keras.layers.Layer)
    assert keras_hooks.maker_of(y) is lstm
    assert keras_hooks.mask_of(inputs) is None
