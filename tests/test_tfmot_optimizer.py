"""LNSMadam for tf_keras: the bits of the Keras 3 optimizer, through all that tf_keras does."""

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tf_lns
from tests.test_optimizers import OPTIONS, gradients_of, normal
from tf_lns import keras_hooks, ops, reference
from tf_lns.formats import LNSFormat
from tf_lns.optimizers import bytes_per_parameter
from tf_lns.tfmot import LNSSGD, InverseSqrtDecay, LNSAdamW, LNSMadam, hooks
from tf_lns.variable import LNSCell, LNSVariable, weight_scale

F32 = np.float32
K = tf_keras.layers
STORAGE = LNSFormat(16, 2048)
COMPACT = LNSFormat(8, 4)


# --- Weights stored as codes ------------------------------------------------------------


def make_cell(values, storage=STORAGE, name="kernel", gradient_format=None):
    """A bare cell with these values, on each device of the strategy around."""
    with tf.init_scope():
        values = np.asarray(values, F32)
        first = weight_scale(values, storage)
        codes = ops.encode(values, first, storage)
        scale = tf.Variable(first, trainable=False, name=f"{name}_scale")

        def make(scale):
            codes_variable = tf.Variable(codes, trainable=False, name=name)
            return LNSCell(codes=codes_variable, scale=scale, storage=storage, name=name)

        cell = keras_hooks.on_each_device(make, scale)
    first_cell, *first_cell.copies = keras_hooks.parts(cell)
    for part in keras_hooks.parts(cell):
        part.role = first_cell.role
    first_cell.gradient_format = gradient_format
    first_cell.gradient_options = {"axis": (values.ndim - 1,) if values.ndim else ()}
    return cell, scale


def put_in(layer, attribute, cell, scale):
    """Makes a cell a weight of a layer, in the place of the one it has there, if any."""
    old = getattr(layer, attribute, None)
    weights = layer._trainable_weights
    at = next((i for i, v in enumerate(weights) if v is old), None)
    if at is None:
        weights.append(cell)
    else:
        weights[at] = cell
    object.__setattr__(layer, attribute, cell)
    layer._track_trackable(keras_hooks.parts(cell)[0], attribute, overwrite=True)
    layer._track_trackable(scale, f"{attribute}_scale", overwrite=True)


@tf_keras.saving.register_keras_serializable(package="test_tfmot")
class Cells(K.Layer):
    """A Dense layer whose kernel is a cell; its files hold the codes."""

    def __init__(self, units, gradient_format=None, **kwargs):
        super().__init__(**kwargs)
        self.units, self.gradient_format = units, gradient_format

    def build(self, shape):
        values = normal(shape[-1], self.units, seed=3, scale=0.4)
        format = self.gradient_format and LNSFormat.parse(self.gradient_format)
        cell, scale = make_cell(values, gradient_format=format)
        put_in(self, "kernel", cell, scale)
        self.bias = self.add_weight("bias", (self.units,), initializer="zeros")
        self.built = True

    def call(self, x):
        return x @ tf.convert_to_tensor(self.kernel) + self.bias

    def save_own_variables(self, store):
        cell = keras_hooks.local_part(self.kernel)
        store["codes"], store["scale"] = cell.codes.numpy(), cell.scale.numpy()
        store["bias"] = self.bias.numpy()

    def load_own_variables(self, store):
        for cell in keras_hooks.parts(self.kernel):
            cell.codes.assign(store["codes"])
            cell.scale.assign(store["scale"])
        self.bias.assign(store["bias"])

    def get_config(self):
        own = {"units": self.units, "gradient_format": self.gradient_format}
        return {**super().get_config(), **own}


def cell_net(values, gradient_format=None):
    """One layer whose kernel is a cell with these values."""
    layer = Cells(values.shape[1], gradient_format and str(gradient_format), name="cells")
    model = tf_keras.Sequential([K.Input(values.shape[:1]), layer])
    layer.kernel.scale.assign(weight_scale(values, STORAGE))
    layer.kernel.assign(values)
    return model


def codes_of(variable, optimizer, index=0):
    """Codes of a weight, which must lie on its grid."""
    part = keras_hooks.local_part(variable)
    if isinstance(part, LNSCell):
        return part.codes.numpy()
    if isinstance(variable, LNSVariable):
        return variable.codes
    state = optimizer._states[index]
    scale = state.scale.numpy()
    codes = reference.encode(variable.numpy(), scale, state.format)
    np.testing.assert_array_equal(reference.decode(codes, scale, state.format), variable.numpy())
    return codes


# --- The same bits as in Keras 3 ---------------------------------------------------------


def both(kind, values, storage=STORAGE, gradient_format=None):
    """The same weight for tf_keras and for Keras 3."""
    if kind == "grid":
        return tf.Variable(values, name="layer/kernel"), keras.Variable(values, name="kernel")
    other = LNSVariable(values, format=storage, name="kernel")
    cell, _ = make_cell(values, storage, gradient_format=gradient_format)
    other.cell.gradient_format = gradient_format
    other.cell.gradient_options = cell.gradient_options
    return cell, other


def steppers(pairs, mode, ours, theirs):
    """Functions of a list of gradients, that take a step with each optimizer."""
    mine, other = [a for a, _ in pairs], [b for _, b in pairs]

    def apply(*gradients):
        ours.apply_gradients(list(zip(gradients, mine, strict=True)))

    def apply_in_keras_3(*gradients):
        theirs.apply(list(gradients), other)

    if mode == "eager":
        return apply, apply_in_keras_3
    ours.build(mine)
    theirs.build(other)
    compiled = {"jit_compile": mode == "jit", "autograph": False}
    return tf.function(apply, **compiled), tf.function(apply_in_keras_3, **compiled)


def assert_same_bits(pairs, ours, theirs):
    for i, (a, b) in enumerate(pairs):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        if ours._states[i].is_lns:
            np.testing.assert_array_equal(codes_of(a, ours, i), codes_of(b, theirs, i))
        one, two = ours._slots[i], theirs._slots[i]
        np.testing.assert_array_equal(one.moment.numpy(), two.moment.numpy())
        if two.exponent is not None:
            assert one.exponent.numpy() == two.exponent.numpy()
        assert one.limits.keys() == two.limits.keys()
        for name, limit in one.limits.items():
            assert limit.numpy() == two.limits[name].numpy()
    assert ours.nonfinite_gradients == theirs.nonfinite_gradients


@pytest.mark.parametrize("kind", ["cell", "grid"])
@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_bits_of_keras_3(options, mode, kind):
    format = options.get("gradients")
    pairs = [both(kind, normal(6, 7, scale=0.3), gradient_format=format)]
    values = normal(9)
    pairs.append((tf.Variable(values, name="layer/bias"), keras.Variable(values, name="bias")))
    ours, theirs = LNSMadam(0.03, **options), tf_lns.LNSMadam(0.03, **options)
    step, step_in_keras_3 = steppers(pairs, mode, ours, theirs)
    for kernel, bias in zip(gradients_of((6, 7), 12), gradients_of((9,), 12), strict=True):
        step(kernel, bias)
        step_in_keras_3(kernel, bias)
        assert_same_bits(pairs, ours, theirs)
    assert ours.nonfinite_gradients > 0
    assert int(ours.iterations) == int(theirs.iterations) == 12


@pytest.mark.parametrize("storage", ["lns14:512", "lns12:128", "lns8:8"])
@pytest.mark.parametrize("kind", ["cell", "grid"])
def test_the_bits_of_keras_3_in_narrower_storage(storage, kind):
    storage = LNSFormat.parse(storage)
    pairs = [both(kind, normal(6, 7), storage)]
    options = {"storage": storage, "rounding": "stochastic", "second_moment": COMPACT}
    ours, theirs = LNSMadam(0.05, **options), tf_lns.LNSMadam(0.05, **options)
    step, step_in_keras_3 = steppers(pairs, "graph", ours, theirs)
    for gradient in gradients_of((6, 7), 15):
        step(gradient)
        step_in_keras_3(gradient)
    assert_same_bits(pairs, ours, theirs)


@pytest.mark.parametrize("option", [{"clipnorm": 0.5}, {"clipvalue": 0.25}], ids=str)
@pytest.mark.parametrize("kind", ["cell", "grid"])
def test_the_bits_of_keras_3_with_clipping(option, kind):
    pairs = [both(kind, normal(5, 4))]
    ours, theirs = LNSMadam(0.05, **option), tf_lns.LNSMadam(0.05, **option)
    step, step_in_keras_3 = steppers(pairs, "graph", ours, theirs)
    for gradient in gradients_of((5, 4), 8):
        step(gradient)
        step_in_keras_3(gradient)
    assert_same_bits(pairs, ours, theirs)
    assert ours.nonfinite_gradients > 0


def test_clipping_by_the_global_norm_spreads_no_nan():
    """Keras 3 adds the squares in another order: within two steps of the grid."""
    values, bias = normal(5, 4), normal(3)
    pairs = [both("cell", values), (tf.Variable(bias, name="b/bias"), keras.Variable(bias))]
    ours, theirs = LNSMadam(0.05, global_clipnorm=0.5), tf_lns.LNSMadam(0.05, global_clipnorm=0.5)
    step, step_in_keras_3 = steppers(pairs, "graph", ours, theirs)
    for gradient in gradients_of((5, 4), 6):
        step(gradient, np.ones(3, F32))
        step_in_keras_3(gradient, np.ones(3, F32))
    codes = [codes_of(pairs[0][0], ours), codes_of(pairs[0][1], theirs)]
    assert np.abs(codes[0].astype(int) - codes[1]).max() <= 2
    assert np.isfinite(pairs[1][0].numpy()).all()
    assert ours.nonfinite_gradients == theirs.nonfinite_gradients > 0


def test_the_bits_of_keras_3_with_the_default_schedule_and_that_of_the_paper():
    for ours, theirs in (
        (LNSMadam(), tf_lns.LNSMadam()),
        (LNSMadam.paper(), tf_lns.LNSMadam.paper()),
    ):
        pairs = [both("grid", normal(6, 5), ours.storage)]
        step, step_in_keras_3 = steppers(pairs, "graph", ours, theirs)
        for gradient in gradients_of((6, 5), 25):
            step(gradient)
            step_in_keras_3(gradient)
        assert_same_bits(pairs, ours, theirs)
    assert (ours.p_scale, ours.round_gradient, ours.storage) == (3.0, True, LNSFormat(12, 128))


@pytest.mark.parametrize("kind", ["cell", "grid"])
def test_the_bits_of_keras_3_with_sparse_gradients(kind):
    pairs = [both(kind, normal(6, 3))]
    ours, theirs = LNSMadam(0.1), tf_lns.LNSMadam(0.1)
    step, step_in_keras_3 = steppers(pairs, "eager", ours, theirs)
    before = pairs[0][0].numpy()
    for _ in range(3):
        rows = tf.constant(normal(3, 3, seed=4))
        gradient = tf.IndexedSlices(rows, tf.constant([1, 1, 4]), tf.constant([6, 3]))
        step(gradient)
        step_in_keras_3(gradient)
    assert_same_bits(pairs, ours, theirs)
    moved = np.abs(pairs[0][0].numpy() / before - 1).max(axis=1) > 1e-3
    assert moved.tolist() == [False, True, False, False, True, False]


def test_the_bits_of_keras_3_with_weight_decay_that_leaves_out():
    values = normal(4, 4)
    mine = [tf.Variable(values, name=name) for name in ("a/kernel", "b/kernel", "c/gate_kernel")]
    other = [keras.Variable(values, name=name) for name in ("kernel", "kernel", "gate_kernel")]
    ours, theirs = LNSMadam(0.1, weight_decay=0.5), tf_lns.LNSMadam(0.1, weight_decay=0.5)
    ours.exclude_from_weight_decay(var_list=[mine[1]])
    ours._exclude_from_weight_decay_names = ["gate"]
    theirs.exclude_from_weight_decay(var_list=[other[1]], var_names=["gate"])
    pairs = list(zip(mine, other, strict=True))
    step, step_in_keras_3 = steppers(pairs, "graph", ours, theirs)
    for _ in range(3):
        step(*[np.zeros((4, 4), F32)] * 3)
        step_in_keras_3(*[np.zeros((4, 4), F32)] * 3)
    assert_same_bits(pairs, ours, theirs)
    np.testing.assert_allclose(mine[0].numpy(), values * 2.0**-0.15, rtol=1e-3)
    for variable in mine[1:]:
        np.testing.assert_allclose(variable.numpy(), values, rtol=2e-4)


def test_fit_under_jit_has_the_bits_of_keras_3():
    """The whole step: forward, gradient, update and schedule are the same program to XLA."""
    options = {"rounding": "stochastic", "second_moment": COMPACT, "p_scale": 3.0}
    ours, x, y = plain_model(LNSMadam(**options), jit_compile=True)
    theirs = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)]
    )
    theirs.set_weights(ours.get_weights())
    theirs.compile(tf_lns.LNSMadam(**options), "mse", jit_compile=True)
    for net in (ours, theirs):
        net.fit(x, y, epochs=4, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


BASELINES = {
    "sgd": (LNSSGD, tf_lns.LNSSGD, {}),
    "sgd, all": (
        LNSSGD,
        tf_lns.LNSSGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "rounding": "stochastic"},
    ),
    "adamw": (LNSAdamW, tf_lns.LNSAdamW, {}),
    "adamw, all": (
        LNSAdamW,
        tf_lns.LNSAdamW,
        {"amsgrad": True, "weight_decay": 0.1, "rounding": "stochastic", "gradients": "lns5:1"},
    ),
}


@pytest.mark.parametrize("kind", ["cell", "grid"])
@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
@pytest.mark.parametrize(("ours", "theirs", "options"), BASELINES.values(), ids=BASELINES)
def test_baselines_have_the_weights_of_keras_3(ours, theirs, options, mode, kind):
    """Both Keras write the rules alike, but XLA need not compile them alike."""
    format = options.get("gradients") and LNSFormat.parse(options["gradients"])
    pairs = [both(kind, normal(6, 7, scale=0.3), gradient_format=format)]
    values = normal(9)
    pairs.append((tf.Variable(values, name="layer/bias"), keras.Variable(values, name="bias")))
    ours, theirs = ours(0.01, **options), theirs(0.01, **options)
    step, step_in_keras_3 = steppers(pairs, mode, ours, theirs)
    for kernel, bias in zip(gradients_of((6, 7), 8), gradients_of((9,), 8), strict=True):
        step(kernel, bias)
        step_in_keras_3(kernel, bias)
    mine, other = (codes_of(v, o) for v, o in zip(pairs[0], (ours, theirs), strict=True))
    assert np.abs(mine.astype(int) - other).max() <= (mode == "jit")
    np.testing.assert_allclose(pairs[1][0].numpy(), pairs[1][1].numpy(), rtol=1e-6)
    assert ours.nonfinite_gradients == theirs.nonfinite_gradients > 0


@pytest.mark.parametrize(
    "rate",
    [
        0.02,
        tf_keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.25]),
        lambda step: 0.5,
    ],
    ids=["float", "schedule", "callable"],
)
def test_additive_rate(rate):
    values = normal(9)
    variable, expected, v = tf.Variable(values, name="bias"), values, np.zeros(9, F32)
    optimizer = LNSMadam(0.05, additive_learning_rate=rate, weight_decay=0.1)
    for i, gradient in enumerate(gradients_of(values.shape, 5)):
        optimizer.apply_gradients([(gradient, variable)])
        now = F32(rate(i)) if callable(rate) else rate
        expected, v, _ = reference.additive_step(
            expected, gradient, v, step=i + 1, learning_rate=now, weight_decay=0.1
        )
    np.testing.assert_array_equal(variable.numpy(), expected)


# --- Models -------------------------------------------------------------------------------


def data():
    x = normal(64, 6, seed=1)
    return x, (x @ normal(6, 1, seed=2)).astype(F32)


def plain_model(optimizer, lazy=False, dtype=None, **kwargs):
    tf_keras.utils.set_random_seed(0)
    net = tf_keras.Sequential(
        [
            *([] if lazy else [K.Input((6,))]),
            K.Dense(8, activation="relu", dtype=dtype),
            K.Dense(1, dtype=dtype),
        ]
    )
    net.compile(optimizer=optimizer, loss="mse", **kwargs)
    return net, *data()


def cells_model(optimizer, **kwargs):
    tf_keras.utils.set_random_seed(0)
    net = tf_keras.Sequential([K.Input((6,)), Cells(8, "lns5:2"), K.Activation("relu"), Cells(1)])
    net.compile(optimizer=optimizer, loss="mse", **kwargs)
    return net, *data()


MODELS = {"grid": plain_model, "cell": cells_model}
MODES = {
    "eager": {"run_eagerly": True},
    "graph": {},
    "jit": {"jit_compile": True},
    "steps_per_execution": {"steps_per_execution": 2},
    "jit, steps_per_execution": {"jit_compile": True, "steps_per_execution": 2},
}


def train(net, x, y, epochs=2, callbacks=()):
    options = {"batch_size": 16, "shuffle": False, "verbose": 0, "callbacks": list(callbacks)}
    return net.fit(x, y, epochs=epochs, **options).history["loss"]


def state(net):
    """Everything that training changes."""
    found = []
    for variable in net.trainable_variables:
        part = keras_hooks.local_part(variable)
        cell = isinstance(part, LNSCell)
        found += [part.codes.numpy(), part.scale.numpy()] if cell else [variable.numpy()]
    return found + [v.numpy() for v in net.optimizer.variables]


def assert_same(a, b):
    for x, y in zip(state(a), state(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_fit(mode, make):
    net, x, y = make(LNSMadam(rounding="stochastic"), **mode)
    losses = train(net, x, y, epochs=8)
    assert losses[-1] < 0.8 * losses[0]
    kind = "grid" if make is plain_model else "cell"
    assert [s.kind for s in net.optimizer._states] == [kind, "additive"] * 2
    for i in (0, 2):
        codes_of(net.trainable_variables[i], net.optimizer, i)
    assert int(net.optimizer.iterations) == 32
    other, x, y = make(LNSMadam(rounding="stochastic"))
    train(other, x, y, epochs=8)
    for a, b in zip(net.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0.02, atol=1e-3)


def test_a_model_that_is_built_by_its_first_batch():
    net, x, y = plain_model(LNSMadam(), lazy=True)
    train(net, x, y)
    other, x, y = plain_model(LNSMadam())
    train(other, x, y)
    assert_same(net, other)


def test_which_variables_are_lns_weights():
    inputs = tf_keras.Input((8,), dtype="int32")
    x = K.Embedding(10, 4)(inputs)
    x = K.MultiHeadAttention(2, 3)(x, x)
    x = K.LayerNormalization()(x)
    x = K.Bidirectional(K.GRU(4, return_sequences=True))(x)
    x = K.LSTM(4, return_sequences=True)(x)
    x = K.BatchNormalization()(K.PReLU()(K.SeparableConv1D(4, 3)(x)))
    x = K.Dense(3, kernel_initializer="zeros")(K.Conv1D(3, 2)(x))
    net = tf_keras.Model(inputs, K.Dense(2)(x))
    optimizer = LNSMadam()
    optimizer.build(net.trainable_variables)
    for variable, found in zip(net.trainable_variables, optimizer._states, strict=True):
        multiplies = any(name in variable.name for name in ("kernel", "embeddings"))
        expected = "grid" if multiplies and variable.numpy().any() else "additive"
        assert found.kind == expected, variable.name
    names = [v.name for v in optimizer.variables]
    assert len(set(names)) == len(names)
    assert optimizer.built


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("frequency", [None, 3])
def test_moving_average(make, frequency):
    optimizer = LNSMadam(0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=frequency)
    net, x, y = make(optimizer)
    train(net, x, y, epochs=3)  # at its end the averages are assigned
    for variable, found, average in zip(
        net.trainable_variables,
        optimizer._states,
        optimizer._model_variables_moving_average,
        strict=True,
    ):
        assert found.kind in ("additive", "grid", "cell")
        np.testing.assert_allclose(variable.numpy(), average.numpy(), rtol=2e-4, atol=1e-7)
    for i in (0, 2):
        codes_of(net.trainable_variables[i], optimizer, i)


def test_a_float_rate_stays_settable():
    net, x, y = plain_model(LNSMadam(0.05))
    plateau = tf_keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.5, patience=1, min_delta=1e9
    )
    train(net, x, y, epochs=4, callbacks=[plateau])
    assert float(net.optimizer.learning_rate) < 0.05
    net.optimizer.learning_rate = 0.0
    before = net.get_weights()
    train(net, x, y)
    for a, b in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_that_the_user_sets_are_honoured():
    variable = tf.Variable(normal(5, 4), name="kernel")
    optimizer = LNSMadam(0.05)
    optimizer.apply_gradients([(np.ones((5, 4), F32), variable)])
    mine = normal(5, 4, seed=8)
    variable.assign(mine)
    optimizer.apply_gradients([(np.zeros((5, 4), F32), variable)])
    scale = optimizer._states[0].scale.numpy()
    np.testing.assert_array_equal(variable.numpy(), reference.quantize(mine, STORAGE, scale))


def test_loss_scaling_and_mixed_precision():
    net, x, y = plain_model(
        tf_keras.mixed_precision.LossScaleOptimizer(LNSMadam(), initial_scale=2.0**10),
        dtype="mixed_float16",
    )
    losses = train(net, x, y, epochs=8)
    assert losses[-1] < losses[0]
    inner = net.optimizer.inner_optimizer
    assert [s.kind for s in inner._states] == ["grid", "additive"] * 2
    codes_of(net.layers[0].kernel, inner)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_bad_batch_reaches_nothing(make):
    net, x, y = make(LNSMadam(second_moment=COMPACT, clipnorm=1.0))
    train(net, x, y)
    x[3, 2] = np.nan
    train(net, x, y)
    for value in state(net):
        assert np.isfinite(value.astype(np.float64)).all()
    assert net.optimizer.nonfinite_gradients > 0


def test_a_constraint_on_a_grid_weight_raises():
    net = tf_keras.Sequential([K.Input((3,)), K.Dense(2, kernel_constraint="max_norm")])
    with pytest.raises(ValueError, match=r"constraint.*cannot hold.*kernel"):
        LNSMadam().build(net.trainable_variables)
    LNSMadam(lns_weights=lambda v: False).build(net.trainable_variables)


def test_bytes_per_parameter():
    net = cell_net(normal(300, 200))
    for optimizer, expected in (
        (LNSMadam(second_moment=COMPACT), 3.0),
        (LNSMadam(), 6.0),
        (tf_keras.optimizers.Adam(), 10.0),
    ):
        net.compile(optimizer, "mse")
        with pytest.raises(ValueError, match="optimizer"):
            bytes_per_parameter(net)
        net.fit(normal(8, 300), normal(8, 200), verbose=0)
        assert bytes_per_parameter(net) == pytest.approx(expected, abs=0.03)


def test_a_cell_in_the_place_of_a_stock_layers_kernel():
    net, x, y = plain_model(LNSMadam())
    layer = net.layers[0]
    put_in(layer, "kernel", *make_cell(layer.kernel.numpy(), name="dense/kernel"))
    losses = train(net, x, y, epochs=6)
    assert losses[-1] < losses[0]
    assert [s.kind for s in net.optimizer._states] == ["cell", "additive", "grid", "additive"]


# --- Files --------------------------------------------------------------------------------

RESUMED = {
    "defaults": {},
    "all": {
        "rounding": "stochastic",
        "second_moment": COMPACT,
        "p_scale": 3.0,
        "sign_crossing": True,
        "weight_decay": 0.01,
        "use_ema": True,
    },
    "schedule": {"additive_learning_rate": InverseSqrtDecay(0.1, 10), "gradients": "lns5:1"},
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_training_continues_exactly_from_a_keras_file(options, make, tmp_path):
    net, x, y = make(LNSMadam(**options))
    train(net, x, y)
    net.save(tmp_path / "net.keras")
    back = tf_keras.models.load_model(tmp_path / "net.keras")
    assert type(back.optimizer) is LNSMadam
    assert_same(net, back)
    for each in (net, back):
        train(each, x, y)
    assert_same(net, back)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_training_continues_exactly_from_an_hdf5_file(options, tmp_path):
    net, x, y = plain_model(LNSMadam(**options))
    train(net, x, y)
    net.save(tmp_path / "net.h5")
    back = tf_keras.models.load_model(tmp_path / "net.h5")
    assert_same(net, back)
    for each in (net, back):
        train(each, x, y)
    assert_same(net, back)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_an_hdf5_file_whose_weights_have_outgrown_their_first_range(tmp_path):
    """The optimizer is built for the weights before it is told their scale."""
    net = tf_keras.Sequential([K.Input((6,)), K.Dense(4, use_bias=False)])
    net.compile(LNSMadam(0.0), "mse")
    x = normal(16, 6)
    train(net, x, x[:, :4])
    scale = net.optimizer._states[0].scale.numpy()
    codes = np.arange(24).reshape(6, 4) + 1  # the bottom of the range,
    codes[0] = STORAGE.max_code  # and its top
    values = reference.decode(codes, scale, STORAGE)
    assert weight_scale(values, STORAGE) > scale
    net.layers[0].kernel.assign(values)
    net.save(tmp_path / "net.h5")
    back = tf_keras.models.load_model(tmp_path / "net.h5")
    np.testing.assert_array_equal(back.layers[0].kernel.numpy(), values)
    assert back.optimizer._states[0].scale.numpy() == scale
    train(back, x, x[:, :4])
    np.testing.assert_array_equal(back.layers[0].kernel.numpy(), values)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("zero_after", [False, True], ids=["set before", "set after"])
def test_a_kernel_that_started_at_zero_loads(ending, zero_after, tmp_path):
    """Its kind depends on its values when the optimizer was built."""
    net = tf_keras.Sequential([K.Input((6,)), K.Dense(3, kernel_initializer="zeros")])
    net.compile(LNSMadam(second_moment=COMPACT, use_ema=True), "mse")
    if zero_after:
        net.optimizer.build(net.trainable_variables)
    net.layers[0].kernel.assign(normal(6, 3))
    x, y = normal(32, 6), normal(32, 3)
    train(net, x, y)
    kinds = ["additive" if zero_after else "grid", "additive"]
    assert [s.kind for s in net.optimizer._states] == kinds
    net.save(tmp_path / f"net.{ending}")
    back = tf_keras.models.load_model(tmp_path / f"net.{ending}")
    assert [s.kind for s in back.optimizer._states] == kinds
    assert_same(net, back)
    for each in (net, back):
        train(each, x, y)
    assert_same(net, back)
    # The state that was made anew is what is saved
    tf.train.Checkpoint(model=back).save(str(tmp_path / "ckpt"))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("built", [True, False], ids=["built", "built later"])
def test_training_continues_exactly_from_a_checkpoint(built, make, tmp_path):
    options = {"second_moment": COMPACT, "rounding": "stochastic", "use_ema": True}
    net, x, y = make(LNSMadam(**options))
    train(net, x, y)
    path = tf.train.Checkpoint(model=net, optimizer=net.optimizer).save(str(tmp_path / "c"))
    train(net, x, y)
    back, x, y = make(LNSMadam(**options))
    if built:
        back.optimizer.build(back.trainable_variables)
    status = tf.train.Checkpoint(model=back, optimizer=back.optimizer).restore(path)
    if built:
        status.assert_existing_objects_matched()
    train(back, x, y)
    assert_same(net, back)


def test_a_checkpoint_tells_an_optimizer_that_is_built_later_the_kinds(tmp_path):
    def zeros():
        net = tf_keras.Sequential([K.Input((6,)), K.Dense(3, kernel_initializer="zeros")])
        net.compile(LNSMadam(second_moment=COMPACT), "mse")
        return net

    net = zeros()
    x, y = normal(32, 6), normal(32, 3)
    train(net, x, y)
    path = tf.train.Checkpoint(model=net).save(str(tmp_path / "c"))
    train(net, x, y)
    back = zeros()
    tf.train.Checkpoint(model=back).restore(path)
    train(back, x, y)
    assert [s.kind for s in back.optimizer._states] == ["additive", "additive"]
    assert_same(net, back)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_backup_and_restore(make, tmp_path):
    class Stop(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(*callbacks):
        net, x, y = make(LNSMadam(rounding="stochastic", second_moment=COMPACT))
        train(net, x, y, 4, callbacks)
        return net

    def backup():
        return tf_keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    with pytest.raises(KeyboardInterrupt):
        run(backup(), Stop())
    assert_same(run(backup()), run())


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("make", [LNSSGD, LNSAdamW])
def test_baselines_continue_exactly_from_a_file(make, ending, tmp_path):
    net, x, y = plain_model(make(0.01, rounding="stochastic", clipnorm=1.0))
    losses = train(net, x, y, 4)
    assert losses[-1] < losses[0]
    assert net.optimizer.nonfinite_gradients == 0
    net.save(tmp_path / f"net.{ending}")
    back = tf_keras.models.load_model(tmp_path / f"net.{ending}")
    assert type(back.optimizer) is make
    assert back.optimizer.get_config() == net.optimizer.get_config()
    assert_same(net, back)
    for each in (net, back):
        train(each, x, y)
    assert_same(net, back)


@pytest.mark.parametrize("make", [LNSMadam, LNSSGD, LNSAdamW])
def test_a_rate_that_is_not_finite_is_refused(make):
    @tf_keras.saving.register_keras_serializable(package="test_tfmot")
    class Broken(tf_keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return tf.constant(np.nan)

        def get_config(self):
            return {}

    net, x, y = plain_model(make(Broken()))
    before = net.get_weights()
    with pytest.raises(tf.errors.InvalidArgumentError, match="learning_rate must be finite"):
        train(net, x, y)
    for a, b in zip(before, net.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4)


# --- Arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("learning_rate", "fast", TypeError),
        ("learning_rate", -0.1, ValueError),
        ("learning_rate", np.nan, ValueError),
        ("learning_rate", lambda: 0.1, TypeError),
        ("learning_rate", tf_lns.InverseSqrtDecay(), TypeError),
        ("additive_learning_rate", tf_lns.InverseSqrtDecay(), TypeError),
        ("additive_learning_rate", "slow", TypeError),
        ("beta", 1.0, ValueError),
        ("g_bound", np.inf, ValueError),
        ("p_scale", 0, ValueError),
        ("weight_decay", -1e-3, ValueError),
        ("rounding", "up", ValueError),
        ("storage", "int8", ValueError),
        ("gradients", 8, TypeError),
        ("second_moment", LNSFormat(8, 8), ValueError),
        ("sign_crossing", 1, TypeError),
        ("floor_octaves", 9, ValueError),
        ("round_gradient", "yes", TypeError),
        ("lns_weights", ["kernel"], TypeError),
        ("seed", 1.5, TypeError),
        ("clipnorm", -1.0, ValueError),
        ("nonsense", 1, TypeError),
    ],
)
def test_wrong_arguments(argument, value, error):
    with pytest.raises(error, match=argument):
        LNSMadam(**{argument: value})


@tf_keras.saving.register_keras_serializable(package="test_tfmot")
def all_of_rank_two(variable):
    return len(variable.shape) == 2


EVERYTHING = {
    "beta": 0.9,
    "g_bound": 5,
    "p_scale": 4,
    "weight_decay": 0.01,
    "rounding": "stochastic",
    "storage": (12, 128),
    "second_moment": "lns8:4",
    "sign_crossing": True,
    "floor_octaves": 3,
    "round_gradient": True,
    "gradients": "lns5:2",
    "lns_weights": all_of_rank_two,
    "seed": 5,
    "clipnorm": 1.0,
    "use_ema": True,
}


def all_arguments():
    schedule = tf_keras.optimizers.schedules.CosineDecay(0.1, 100)
    return LNSMadam(schedule, additive_learning_rate=schedule, **EVERYTHING)


@pytest.mark.parametrize(
    "make", [LNSMadam, LNSMadam.paper, all_arguments], ids=["defaults", "paper", "all"]
)
def test_serialization(make):
    optimizer = make()
    config = optimizer.get_config()
    json.dumps(config)
    assert LNSMadam.from_config(config).get_config() == config
    again = tf_keras.saving.deserialize_keras_object(
        tf_keras.saving.serialize_keras_object(optimizer)
    )
    assert type(again) is LNSMadam
    assert again.get_config() == config
    serialized = tf_keras.optimizers.serialize(again)
    assert tf_keras.optimizers.deserialize(serialized).get_config() == config
    assert "LNSMadam" in repr(again)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_file_holds_every_argument(ending, tmp_path):
    net, x, y = plain_model(all_arguments())
    train(net, x, y, 1)
    net.save(tmp_path / f"net.{ending}")
    back = tf_keras.models.load_model(tmp_path / f"net.{ending}")
    assert back.optimizer.get_config() == net.optimizer.get_config()
    assert back.optimizer.lns_weights is all_of_rank_two
    assert_same(net, back)


@pytest.mark.parametrize("name", ["LNSMadam", "LNSSGD", "LNSAdamW"])
def test_both_have_the_same_arguments(name):
    classes = [getattr(tf_lns.tfmot, name), getattr(tf_lns, name)]
    ours, theirs = (inspect.signature(c.__init__).parameters for c in classes)
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    assert classes[0]._update is classes[1]._update  # one implementation


def test_the_schedule():
    ours, theirs = InverseSqrtDecay(0.25, 50), tf_lns.InverseSqrtDecay(0.25, 50)
    for step in (0, 1, 7, 50, 1000):
        assert float(ours(step)) == float(theirs(step))
    again = tf_keras.saving.deserialize_keras_object(tf_keras.saving.serialize_keras_object(ours))
    assert type(again) is InverseSqrtDecay
    assert again.get_config() == ours.get_config() == theirs.get_config()
    with pytest.raises(ValueError, match="decay_steps"):
        InverseSqrtDecay(decay_steps=0)


# --- Private hooks ------------------------------------------------------------------------


def test_hooks():
    net, x, y = plain_model(LNSMadam(weight_decay=0.1, clipnorm=1.0))
    optimizer = net.optimizer
    optimizer.exclude_from_weight_decay(var_list=[net.trainable_variables[1]])
    train(net, x, y)
    variables = net.trainable_variables
    assert [hooks.variable_index(optimizer, v) for v in variables] == [0, 1, 2, 3]
    assert [hooks.use_weight_decay(optimizer, v) for v in variables] == [1, 0, 1, 1]
    assert keras_hooks.is_built(optimizer)
    assert not keras_hooks.is_built(tf_keras.optimizers.Adam())
    base = tf_keras.optimizers.Optimizer
    for name in vars(hooks.FusedUpdate):
        if name.startswith("_") and not name.startswith("__"):
            assert callable(getattr(base, name)), name
    extra = tf.Variable(1.0)
    before = list(optimizer.variables)
    hooks.add_state(optimizer, extra)
    assert optimizer.variables[-1] is extra
    hooks.drop_state(optimizer, [extra])
    assert all(a is b for a, b in zip(before, optimizer.variables, strict=True))
    assert hooks.serialized_rate(LNSMadam(0.5)) == 0.5
    seen = []
    hooks.update_copies(optimizer, variables[0], lambda v, n: seen.append(n), 3)
    assert seen == [3]


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_hook_knows_when_a_legacy_file_is_loaded(tmp_path):
    seen = []

    @tf_keras.saving.register_keras_serializable(package="test_tfmot")
    class Noting(tf_keras.optimizers.Adam):
        def build(self, var_list):
            seen.append(hooks.loads_legacy_file())
            super().build(var_list)

    net, x, y = plain_model(Noting())
    train(net, x, y, 1)
    assert not any(seen)
    for ending, expected in (("keras", False), ("h5", True)):
        net.save(tmp_path / f"net.{ending}")
        seen.clear()
        tf_keras.models.load_model(tmp_path / f"net.{ending}")
        assert set(seen) == {expected}


def test_hooks_find_layers_and_their_variables():
    net, _, _ = plain_model("sgd")
    assert [x.name for x in keras_hooks.tf_keras_sublayers(net)][-2:] == [
        layer.name for layer in net.layers
    ]
    assert len(keras_hooks.own_variables(net.layers[0])) == 2


# --- Several devices ----------------------------------------------------------------------

REPLICAS = """
    import numpy as np, tensorflow as tf, tf_keras

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from tests import test_tfmot_optimizer as t
    from tf_lns import keras_hooks
    from tf_lns.tfmot import LNSMadam

    options = {"rounding": "stochastic", "second_moment": "lns8:4", **OPTIONS}

    for make in (t.plain_model, t.cells_model):
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            net, x, y = make(LNSMadam(**options))
        losses = t.train(net, x, y, 3)
        assert losses[-1] < losses[0]
        single, _, _ = make(LNSMadam(**options))
        t.train(single, x, y, 3)
        for a, b in zip(net.trainable_variables, single.trainable_variables):
            first, second = keras_hooks.parts(a)
            np.testing.assert_array_equal(first.numpy(), second.numpy())
            np.testing.assert_allclose(first.numpy(), b.numpy(), rtol=0.02, atol=2e-3)
        for variable in net.optimizer.variables:
            first, second = keras_hooks.parts(variable)
            np.testing.assert_array_equal(first.numpy(), second.numpy())
        assert net.optimizer.nonfinite_gradients == 0
        x[3, 2] = np.nan
        t.train(net, x, y, 1)
        counted = net.optimizer.nonfinite_gradients
        t.train(single, x, y, 1)
        assert counted == single.optimizer.nonfinite_gradients > 0, counted
        for value in t.state(net):
            assert np.isfinite(value.astype(float)).all()
"""


@pytest.mark.parametrize(
    "options", [{}, {"clipnorm": 1.0, "use_ema": True, "ema_overwrite_frequency": 5}], ids=str
)
def test_replicas(run_python, options):
    run_python(REPLICAS.replace("OPTIONS", repr(options)))
