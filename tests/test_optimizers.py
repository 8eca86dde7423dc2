"""LNSMadam: whole trajectories through the Keras optimizer against tf_lns.reference."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lns import reference
from tf_lns.formats import LNSFormat
from tf_lns.optimizers import InverseSqrtDecay, LNSMadam, bytes_per_parameter
from tf_lns.optimizers.weights import WeightState
from tf_lns.variable import LNSVariable

F32 = np.float32
STORAGE = LNSFormat(16, 2048)
COMPACT = LNSFormat(8, 4)


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(F32)


def gradients_of(shape, steps, seed=7):
    """Gradients of many sizes, with zeros and what is not finite."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(steps, *shape)) * np.exp2(rng.integers(-12, 6, size=(steps, *shape)))
    g[rng.random(g.shape) < 0.1] = 0
    g[rng.random(g.shape) < 0.02] = np.nan
    g[rng.random(g.shape) < 0.02] = -np.inf
    return g.astype(F32)


class Oracle:
    """An LNS weight trained with the NumPy reference."""

    def __init__(self, values, storage=STORAGE, index=0, **options):
        self.storage, self.index, self.options = storage, index, options
        self.scale = reference.weight_scale(values, storage)
        self.codes = reference.encode(values, self.scale, storage)
        stored = self.values.astype(np.float64)
        self.rms = float(np.sqrt(np.mean(stored**2)))
        compact = options.get("second_moment")
        self.v = np.zeros(values.shape, F32)
        if compact:
            self.v = reference.CompactMoment(np.zeros(values.shape, np.int8), None)
        self.step, self.nonfinite = 0, 0

    @property
    def values(self):
        return reference.decode(self.codes, self.scale, self.storage)

    def exponent(self, magnitude):
        return max(int(reference.encode(F32(magnitude), self.scale, self.storage)) - 1, 0)

    def apply(self, gradient, learning_rate):
        o = self.options
        self.step += 1
        gradient, bad = np.where(np.isfinite(gradient), gradient, F32(0)), ~np.isfinite(gradient)
        if o.get("gradients"):
            axis = o.get("gradient_axis", gradient.ndim - 1)
            gradient = reference.quantize(gradient, o["gradients"], axis=axis)
        base = (o.get("seed", 0) * 0x9E3779B97F4A7C1 + self.index) % (1 << 62)
        self.codes, self.v, _ = reference.madam_step(
            self.codes,
            gradient,
            self.v,
            step=self.step,
            learning_rate=learning_rate,
            format=self.storage,
            beta=o.get("beta", 0.999),
            g_bound=o.get("g_bound", 10.0),
            weight_decay=o.get("weight_decay") or 0.0,
            rounding=o.get("rounding", "nearest"),
            seed=self.step * (1 << 20) + base,
            cap=self.exponent(o["p_scale"] * self.rms) if o.get("p_scale") else None,
            floor=self.exponent(self.rms * 2.0 ** -o.get("floor_octaves", 2.0))
            if o.get("sign_crossing")
            else None,
            round_gradient=o.get("round_gradient", False),
        )
        self.nonfinite += int(bad.sum())


def codes_of(variable, optimizer, index=0):
    """Codes of a variable, which must lie on its grid."""
    if isinstance(variable, LNSVariable):
        return variable.codes
    state: WeightState = optimizer._states[index]
    scale = state.scale.numpy()
    codes = reference.encode(variable.numpy(), scale, state.format)
    np.testing.assert_array_equal(reference.decode(codes, scale, state.format), variable.numpy())
    return codes


def applier(optimizer, variables, mode="graph"):
    def apply(*gradients):
        optimizer.apply(list(gradients), variables)

    if mode == "eager":
        return apply
    optimizer.build(variables)
    return tf.function(apply, jit_compile=mode == "jit", autograph=False)


def make(kind, values, storage=STORAGE):
    if kind == "cell":
        return LNSVariable(values, format=storage, name="kernel")
    return keras.Variable(values, name="kernel")


OPTIONS = {
    "defaults": {},
    "beta and g_bound": {"beta": 0.9, "g_bound": 2.0},
    "weight decay": {"weight_decay": 0.1},
    "stochastic": {"rounding": "stochastic", "seed": 11},
    "p_scale": {"p_scale": 1.5},
    "sign crossing": {"sign_crossing": True},
    "sign crossing, decay": {"sign_crossing": True, "floor_octaves": 1.0, "weight_decay": 0.5},
    "round gradient": {"round_gradient": True},
    "one byte": {"second_moment": COMPACT},
    "one byte, all": {
        "second_moment": COMPACT,
        "rounding": "stochastic",
        "weight_decay": 0.01,
        "p_scale": 2.0,
        "sign_crossing": True,
        "seed": 3,
    },
    "5-bit gradients": {"gradients": LNSFormat(5, 1)},
}


@pytest.mark.parametrize("kind", ["cell", "grid"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_trajectory_is_that_of_the_reference(options, kind):
    values = normal(6, 7, scale=0.3)
    options = dict(options)
    oracle = Oracle(values, **options)
    variable = make(kind, values)
    if kind == "cell":
        variable.cell.gradient_format = options.get("gradients")
        variable.cell.gradient_options = {"axis": (1,)}
    optimizer = LNSMadam(0.03, **options)
    step = applier(optimizer, [variable])
    for gradient in gradients_of(values.shape, 40):
        step(gradient)
        oracle.apply(gradient, 0.03)
        np.testing.assert_array_equal(codes_of(variable, optimizer), oracle.codes)
    slot = optimizer._slots[0]
    if options.get("second_moment"):
        np.testing.assert_array_equal(slot.moment.numpy(), oracle.v.k)
        assert slot.exponent.numpy() == oracle.v.exponent
    else:
        np.testing.assert_array_equal(slot.moment.numpy(), oracle.v)
    assert optimizer.nonfinite_gradients == oracle.nonfinite > 0


@pytest.mark.parametrize("kind", ["cell", "grid"])
@pytest.mark.parametrize("mode", ["eager", "jit"])
@pytest.mark.parametrize("options", [{}, OPTIONS["one byte, all"]], ids=["defaults", "all"])
def test_trajectory_in_every_mode(options, kind, mode):
    values = normal(5, 4, scale=0.1)
    oracle = Oracle(values, **options)
    variable = make(kind, values)
    optimizer = LNSMadam(0.02, **options)
    step = applier(optimizer, [variable], mode)
    for gradient in gradients_of(values.shape, 8):
        step(gradient)
        oracle.apply(gradient, 0.02)
    np.testing.assert_array_equal(codes_of(variable, optimizer), oracle.codes)


@pytest.mark.parametrize("storage", ["lns14:512", "lns12:128", "lns10:32", "lns8:8"])
@pytest.mark.parametrize("kind", ["cell", "grid"])
def test_narrower_storage(storage, kind):
    storage = LNSFormat.parse(storage)
    values = normal(6, 7)
    oracle = Oracle(values, storage, rounding="stochastic", second_moment=COMPACT)
    variable = make(kind, values, storage)
    optimizer = LNSMadam(0.05, storage=storage, rounding="stochastic", second_moment=COMPACT)
    step = applier(optimizer, [variable])
    for gradient in gradients_of(values.shape, 20):
        step(gradient)
        oracle.apply(gradient, 0.05)
    np.testing.assert_array_equal(codes_of(variable, optimizer), oracle.codes)


def test_default_rate_decays():
    values = normal(4, 3)
    oracle, variable = Oracle(values), make("cell", values)
    optimizer, schedule = LNSMadam(), InverseSqrtDecay(2.0**-3, 20)
    step = applier(optimizer, [variable])
    for i, gradient in enumerate(gradients_of(values.shape, 20)):
        step(gradient)
        oracle.apply(gradient, schedule(i).numpy())
    np.testing.assert_array_equal(variable.codes, oracle.codes)
    assert float(schedule(0)) == 2.0**-3
    assert float(schedule(20)) == pytest.approx(2.0**-3.5)


def test_paper_moves_by_whole_gradients():
    """At base factor 128 the rate times the base factor is 1: e moves by round(g')."""
    values = normal(6, 5)
    optimizer = LNSMadam.paper()
    assert (optimizer.p_scale, optimizer.round_gradient) == (3.0, True)
    assert optimizer.storage == LNSFormat(12, 128)
    assert float(optimizer.learning_rate) == 2.0**-7
    oracle = Oracle(values, optimizer.storage, p_scale=3.0, round_gradient=True)
    variable = make("grid", values)
    step = applier(optimizer, [variable])
    for gradient in gradients_of(values.shape, 30):
        step(gradient)
        oracle.apply(gradient, 2.0**-7)
    np.testing.assert_array_equal(codes_of(variable, optimizer), oracle.codes)
    moved = LNSMadam.paper(p_scale=5.0, weight_decay=0.1, storage="lns16:2048")
    assert (moved.p_scale, moved.weight_decay, moved.storage) == (5.0, 0.1, STORAGE)


def test_sign_crossing_starts_at_the_floor_and_crosses():
    values = np.array([[1.0, -1.0, 1e-4, -1e-4]], F32)
    variable = make("cell", values)
    optimizer = LNSMadam(2.0**-4, sign_crossing=True)
    optimizer.apply([np.zeros((1, 4), F32)], [variable])
    floor = np.sqrt(np.mean(values**2)) / 4
    np.testing.assert_allclose(np.abs(variable.numpy())[0, 2:], floor, rtol=1e-3)
    np.testing.assert_array_equal(np.sign(variable.numpy()), np.sign(values))
    optimizer.apply([np.array([[0, 0, 1.0, -1.0]], F32)], [variable])
    np.testing.assert_array_equal(np.sign(variable.numpy()), [[1, -1, -1, 1]])


def test_signs_never_change_without_it():
    values = normal(20, 20)
    variable = make("cell", values)
    step = applier(LNSMadam(1.0), [variable])
    for gradient in gradients_of(values.shape, 30):
        step(gradient)
    np.testing.assert_array_equal(np.sign(variable.codes), np.sign(values))


def test_p_scale_bounds_growth_alone():
    values = np.append(normal(30, 1, scale=0.1), np.array([[2.0]], F32), axis=0)
    variable = make("cell", values)
    rms = float(np.sqrt(np.mean(values**2)))
    step = applier(LNSMadam(0.25, p_scale=2.0), [variable])
    for _ in range(100):
        step(-np.sign(values))
    grown = np.abs(variable.numpy())
    assert grown[-1, 0] == pytest.approx(2.0, rel=1e-3)  # started above, stays
    np.testing.assert_allclose(grown[:-1], 2 * rms, rtol=1e-3)
    step(np.sign(values) * 100)
    assert np.abs(variable.numpy())[-1, 0] < 2


# --- Additive variables -----------------------------------------------------------------


def bias(values):
    return keras.Variable(values, name="bias")


@pytest.mark.parametrize(
    ("additive", "rates"),
    [
        (None, [0.005] * 5),
        (0.02, [0.02] * 5),
        (
            keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.25]),
            [0.5, 0.5] + [0.25] * 3,
        ),
        (lambda step: 0.5, [0.5] * 5),
    ],
    ids=["default", "float", "schedule", "callable"],
)
def test_additive_rate(additive, rates):
    values = normal(9)
    variable, expected, v = bias(values), values, np.zeros(9, F32)
    optimizer = LNSMadam(0.05, additive_learning_rate=additive, weight_decay=0.1)
    step = applier(optimizer, [variable])
    for i, gradient in enumerate(gradients_of(values.shape, 5)):
        step(gradient)
        rate = F32(0.1) * F32(0.05) if additive is None else rates[i]
        expected, v, _ = reference.additive_step(
            expected, gradient, v, step=i + 1, learning_rate=rate, weight_decay=0.1
        )
    np.testing.assert_array_equal(variable.numpy(), expected)


def test_which_variables_are_lns_weights():
    """SPEC 2: what multiplies activations and is not all zero; rank is no test."""
    inputs = keras.Input((8,), dtype="int32")
    x = keras.layers.Embedding(10, 4)(inputs)
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Bidirectional(keras.layers.GRU(4, return_sequences=True))(x)
    x = keras.layers.LSTM(4, return_sequences=True)(x)
    x = keras.layers.SeparableConv1D(4, 3)(x)
    x = keras.layers.PReLU()(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv1D(3, 2)(x)
    x = keras.layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")(x)
    x = keras.layers.GroupNormalization(1)(x)
    x = keras.layers.Dense(3, kernel_initializer="zeros")(x)
    net = keras.Model(inputs, keras.layers.Dense(2)(x))
    optimizer = LNSMadam()
    optimizer.build(net.trainable_variables)
    for variable, state in zip(net.trainable_variables, optimizer._states, strict=True):
        multiplies = any(name in variable.name for name in ("kernel", "embeddings"))
        expected = "grid" if multiplies and variable.numpy().any() else "additive"
        assert state.kind == expected, variable.path
    kinds = [state.kind for state in optimizer._states]
    assert kinds.count("grid") == 1 + 4 + 4 + 2 + 2 + 1 + 1 + 1


def test_own_choice_of_lns_weights():
    variables = [keras.Variable(normal(4), name="gains"), keras.Variable(normal(3, 3), name="k")]
    optimizer = LNSMadam(lns_weights=lambda v: v.name == "gains")
    optimizer.build(variables)
    assert [s.kind for s in optimizer._states] == ["grid", "additive"]


def test_empty_scalar_and_zero_variables():
    variables = [
        keras.Variable(np.zeros((0, 3), F32), name="kernel"),
        LNSVariable(np.zeros((0, 3), F32)),
        keras.Variable(F32(2.0), name="kernel"),
        LNSVariable(F32(2.0)),
        keras.Variable(np.zeros((2, 2), F32), name="kernel"),
    ]
    for options in ({}, {"second_moment": COMPACT, "p_scale": 3.0, "sign_crossing": True}):
        optimizer = LNSMadam(0.1, gradients="lns5:1", **options)
        step = applier(optimizer, variables)
        for _ in range(2):
            step(*[tf.ones(v.shape) for v in variables])
    assert 0 < float(variables[3]) < 2
    assert float(variables[2]) < 2
    assert (variables[4].numpy() < 0).all()


def test_an_all_zero_integer_weight_is_announced():
    with pytest.warns(UserWarning, match="all zero.*never moves"):
        LNSMadam().build([LNSVariable(np.zeros((2, 2), F32))])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_dtypes_raise_at_once(dtype):
    variable = keras.Variable(normal(2, 2), dtype=dtype, name="kernel")
    with pytest.raises(TypeError, match=f"float32 variables.*{dtype}"):
        LNSMadam().build([variable])


def test_integer_variables_are_left_alone():
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    counter = keras.Variable(np.array([1, 2]), dtype="int32", name="counter")
    optimizer = LNSMadam(0.1)
    optimizer.build([*net.trainable_variables, counter])
    gradients = [tf.ones(v.shape) for v in net.trainable_variables]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([*gradients, None])
    assert counter.numpy().tolist() == [1, 2]


def test_a_constraint_on_a_grid_weight_raises():
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_constraint="max_norm")])
    with pytest.raises(ValueError, match=r"constraint.*cannot hold.*kernel"):
        LNSMadam().build(net.trainable_variables)
    LNSMadam(lns_weights=lambda v: False).build(net.trainable_variables)


# --- Options of every Keras optimizer ----------------------------------------------------


@pytest.mark.parametrize("kind", ["cell", "grid"])
def test_weight_decay_can_leave_variables_out(kind):
    values = normal(4, 4)
    inside, outside = make(kind, values), make(kind, values)
    out_by_name = keras.Variable(values, name="gate_kernel")
    optimizer = LNSMadam(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[outside], var_names=["gate"])
    optimizer.apply([np.zeros((4, 4), F32)] * 3, [inside, outside, out_by_name])
    np.testing.assert_allclose(inside.numpy(), values * 2.0**-0.05, rtol=1e-3)
    np.testing.assert_allclose(outside.numpy(), values, rtol=2e-4)
    np.testing.assert_allclose(out_by_name.numpy(), values, rtol=2e-4)


@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
def test_gradient_accumulation_counts_updates(mode):
    values = normal(5, 4)
    oracle, variable = Oracle(values), make("cell", values)
    optimizer = LNSMadam(0.05, gradient_accumulation_steps=3)
    step = applier(optimizer, [variable], mode)
    gradients = gradients_of(values.shape, 12)
    clean = np.where(np.isfinite(gradients), gradients, F32(0))
    for i in range(4):
        total = np.zeros_like(values)
        for k in range(3):
            step(gradients[3 * i + k])
            assert np.isfinite(optimizer._accumulated_gradients[0].numpy()).all()
        total = (clean[3 * i + 2] + (clean[3 * i] + clean[3 * i + 1])) / F32(3)
        oracle.apply(total, 0.05)
    np.testing.assert_array_equal(variable.codes, oracle.codes)
    assert optimizer.nonfinite_gradients == np.count_nonzero(~np.isfinite(gradients))


@pytest.mark.parametrize(
    "option", [{"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.25}], ids=str
)
def test_clipping_spreads_no_nan(option):
    values = normal(5, 4)
    oracle, variable, other = Oracle(values), make("cell", values), bias(normal(3))
    optimizer = LNSMadam(0.05, **option)
    step = applier(optimizer, [variable, other])
    for gradient in gradients_of(values.shape, 6):
        step(gradient, np.ones(3, F32))
        clean = np.where(np.isfinite(gradient), gradient, F32(0))
        if "clipnorm" in option:
            clean = tf.clip_by_norm(clean, 0.5).numpy()
        elif "clipvalue" in option:
            clean = np.clip(clean, -0.25, 0.25)
        else:
            norm = np.sqrt(np.sum(clean.astype(np.float64) ** 2) + 3)
            clean = (clean * min(1.0, 0.5 / norm)).astype(F32)
        oracle.apply(clean, 0.05)
    tolerance = 2 if "global_clipnorm" in option else 0
    assert np.abs(variable.codes.astype(int) - oracle.codes).max() <= tolerance
    assert np.isfinite(other.numpy()).all()


def test_loss_scale_factor():
    values = normal(5, 4)
    oracle, variable = Oracle(values), make("cell", values)
    optimizer = LNSMadam(0.05, loss_scale_factor=1024.0)
    step = applier(optimizer, [variable])
    for gradient in gradients_of(values.shape, 5):
        step(gradient * 1024)
        oracle.apply(gradient, 0.05)
    np.testing.assert_array_equal(variable.codes, oracle.codes)
    assert float(optimizer.scale_loss(tf.constant(2.0))) == 2048


@pytest.mark.parametrize("kind", ["cell", "grid"])
@pytest.mark.parametrize("frequency", [None, 3])
def test_moving_average(kind, frequency):
    values = normal(5, 4)
    variable = make(kind, values)
    optimizer = LNSMadam(0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=frequency)
    step = applier(optimizer, [variable])
    for gradient in gradients_of(values.shape, 7):
        step(gradient)
        codes_of(variable, optimizer)
    average = optimizer._model_variables_moving_average[0].numpy()
    optimizer.finalize_variable_values([variable])
    codes_of(variable, optimizer)
    np.testing.assert_allclose(variable.numpy(), average, rtol=2e-4)


def test_a_float_rate_stays_settable():
    net, x, y = plain_model(LNSMadam(0.05))
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.5, patience=1, min_delta=1e9
    )
    net.fit(x, y, epochs=4, verbose=0, callbacks=[plateau])
    assert float(net.optimizer.learning_rate) < 0.05
    net.optimizer.learning_rate = 0.01
    assert float(net.optimizer.learning_rate) == pytest.approx(0.01)
    values = net.layers[0].kernel.numpy()
    net.optimizer.learning_rate = 0.0
    net.fit(x, y, verbose=0)
    np.testing.assert_array_equal(net.layers[0].kernel.numpy(), values)


def test_sparse_gradients():
    """An embedding's IndexedSlices, repeated rows summed."""
    for optimizer in (LNSMadam(0.1), LNSMadam(0.1, second_moment=COMPACT, clipnorm=1.0)):
        for kind in ("cell", "grid"):
            variable = make(kind, normal(6, 3))
            before = variable.numpy()
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(variable.value, [1, 1, 4]))
            gradient = tape.gradient(loss, variable.value)
            assert isinstance(gradient, tf.IndexedSlices)
            type(optimizer).from_config(optimizer.get_config()).apply([gradient], [variable])
            moved = np.abs(variable.numpy() / before - 1).max(axis=1) > 1e-3
            assert moved.tolist() == [False, True, False, False, True, False]


def test_loss_scaling_around_it():
    net, x, y = plain_model(
        keras.optimizers.LossScaleOptimizer(LNSMadam(), initial_scale=2.0**10),
        dtype="mixed_float16",
    )
    history = net.fit(x, y, epochs=8, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    codes_of(net.layers[0].kernel, net.optimizer.inner_optimizer)


@pytest.mark.parametrize("kind", ["cell", "grid"])
def test_a_rate_that_is_not_finite_is_refused(kind):
    variable = make(kind, normal(3, 3))
    optimizer = LNSMadam(lambda: np.nan)
    step = applier(optimizer, [variable])
    before = variable.numpy()
    with pytest.raises(tf.errors.InvalidArgumentError, match="learning_rate must be finite"):
        step(np.ones((3, 3), F32))
    np.testing.assert_array_equal(variable.numpy(), before)
    assert not optimizer._slots[0].moment.numpy().any()


def test_unknown_variables_are_refused():
    optimizer = LNSMadam()
    optimizer.build([make("cell", normal(2, 2))])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.ones((2, 2))], [make("cell", normal(2, 2))])


# --- Plain Keras models -----------------------------------------------------------------


def plain_model(optimizer, lazy=False, dtype=None, **kwargs):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            *([] if lazy else [keras.Input((6,))]),
            keras.layers.Dense(8, activation="relu", dtype=dtype),
            keras.layers.Dense(1, dtype=dtype),
        ]
    )
    net.compile(optimizer=optimizer, loss="mse", **kwargs)
    x = normal(64, 6, seed=1)
    return net, x, (x @ normal(6, 1, seed=2)).astype(F32)


MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
    "steps_per_execution": {"steps_per_execution": 2},
    "jit, steps_per_execution": {"jit_compile": True, "steps_per_execution": 2},
}


@functools.cache
def fitted_in_a_graph():
    net, x, y = plain_model(LNSMadam(rounding="stochastic"), jit_compile=False)
    net.fit(x, y, epochs=8, batch_size=16, shuffle=False, verbose=0)
    return net.get_weights()


@pytest.mark.parametrize("lazy", [False, True], ids=["built", "built by its first batch"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_fit_of_a_plain_model(mode, lazy):
    net, x, y = plain_model(LNSMadam(rounding="stochastic"), lazy, **mode)
    history = net.fit(x, y, epochs=8, batch_size=16, shuffle=False, verbose=0)
    assert history.history["loss"][-1] < 0.8 * history.history["loss"][0]
    assert [s.kind for s in net.optimizer._states] == ["grid", "additive"] * 2
    for i in (0, 2):
        codes_of(net.trainable_variables[i], net.optimizer, i)
    assert int(net.optimizer.iterations) == 32
    for a, b in zip(net.get_weights(), fitted_in_a_graph(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=1e-3)


def test_weights_that_the_user_sets_are_honoured():
    values = normal(5, 4)
    variable = make("grid", values)
    optimizer = LNSMadam(0.05)
    step = applier(optimizer, [variable])
    step(np.ones((5, 4), F32))
    mine = normal(5, 4, seed=8)
    variable.assign(mine)
    step(np.zeros((5, 4), F32))
    scale = optimizer._states[0].scale.numpy()
    np.testing.assert_array_equal(variable.numpy(), reference.quantize(mine, STORAGE, scale))


def test_frozen_layers_do_not_move():
    net, x, y = plain_model(LNSMadam())
    net.layers[0].trainable = False
    net.compile(optimizer=LNSMadam(), loss="mse")
    before = net.layers[0].kernel.numpy()
    net.fit(x, y, verbose=0)
    np.testing.assert_array_equal(net.layers[0].kernel.numpy(), before)
    assert len(net.optimizer._states) == 2


@pytest.mark.parametrize("kind", ["cell", "grid"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_batch_reaches_nothing(kind, bad):
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(3)(inputs)
    net = keras.Model(inputs, outputs)
    if kind == "cell":
        from tests.test_variable import Linear

        net = keras.Sequential([inputs, Linear(3)])
    net.compile(optimizer=LNSMadam(second_moment=COMPACT), loss="mse")
    x = normal(16, 6)
    net.fit(x, x[:, :3], verbose=0)
    x[3, 2] = bad
    net.fit(x, x[:, :3], verbose=0, epochs=2)
    for variable in [*net.variables, *net.optimizer.variables]:
        assert np.isfinite(np.asarray(variable, np.float64)).all(), variable.path
    assert net.optimizer.nonfinite_gradients > 0


def test_bytes_per_parameter():
    values = normal(300, 200)

    class Product(keras.layers.Layer):
        def build(self, shape):
            self.w = LNSVariable(values, name="kernel")

        def call(self, x):
            return x @ self.w.value

    def after_a_step(optimizer):
        net = keras.Sequential([keras.Input((300,)), Product()])
        net.compile(optimizer=optimizer, loss="mse")
        with pytest.raises(ValueError, match="optimizer"):
            bytes_per_parameter(net)
        net.fit(normal(8, 300), normal(8, 200), verbose=0)
        return bytes_per_parameter(net)

    assert after_a_step(LNSMadam(second_moment=COMPACT)) == pytest.approx(3.0, abs=2e-3)
    assert after_a_step(LNSMadam()) == pytest.approx(6.0, abs=2e-3)
    assert after_a_step(keras.optimizers.Adam()) == pytest.approx(10.0, abs=2e-3)
    net, x, y = plain_model(keras.optimizers.Adam())
    net.fit(x, y, verbose=0)
    assert bytes_per_parameter(net) == pytest.approx(12.0, abs=0.3)


# --- Arguments and files -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("learning_rate", "fast", TypeError),
        ("learning_rate", True, TypeError),
        ("learning_rate", [0.1], TypeError),
        ("learning_rate", np.nan, ValueError),
        ("learning_rate", -0.1, ValueError),
        ("beta", 1.0, ValueError),
        ("beta", 0, ValueError),
        ("beta", "0.9", TypeError),
        ("beta", None, TypeError),
        ("g_bound", 0.0, ValueError),
        ("g_bound", np.inf, ValueError),
        ("g_bound", np.nan, ValueError),
        ("p_scale", 0, ValueError),
        ("p_scale", -3.0, ValueError),
        ("p_scale", True, TypeError),
        ("weight_decay", -1e-3, ValueError),
        ("weight_decay", np.nan, ValueError),
        ("weight_decay", "none", TypeError),
        ("rounding", "up", ValueError),
        ("rounding", None, ValueError),
        ("additive_learning_rate", "slow", TypeError),
        ("additive_learning_rate", -1.0, ValueError),
        ("second_moment", LNSFormat(8, 8), ValueError),
        ("second_moment", True, TypeError),
        ("sign_crossing", 1, TypeError),
        ("sign_crossing", None, TypeError),
        ("floor_octaves", 0.0, ValueError),
        ("floor_octaves", 9, ValueError),
        ("round_gradient", "yes", TypeError),
        ("lns_weights", ["kernel"], TypeError),
        ("seed", 1.5, TypeError),
        ("seed", True, TypeError),
        ("gradient_accumulation_steps", 1, ValueError),
        ("nonsense", 1, ValueError),
    ],
)
def test_wrong_arguments(argument, value, error):
    with pytest.raises(error, match=argument):
        LNSMadam(**{argument: value})


@pytest.mark.parametrize("argument", ["storage", "gradients", "second_moment"])
@pytest.mark.parametrize("value", ["int8", 8, LNSFormat, (1, 2, 3), "lns99:8"])
def test_wrong_formats(argument, value):
    with pytest.raises((TypeError, ValueError), match=argument):
        LNSMadam(**{argument: value})


def test_numbers_of_any_kind_are_rates():
    for rate in (1, np.float32(0.5), np.int64(1), 0.25, tf.constant(0.5)):
        assert float(LNSMadam(rate).learning_rate) == float(rate)


@keras.saving.register_keras_serializable(package="test")
def all_of_rank_two(variable):
    return len(variable.shape) == 2


@pytest.mark.parametrize(
    "optimizer",
    [
        LNSMadam(),
        LNSMadam.paper(),
        LNSMadam(
            keras.optimizers.schedules.CosineDecay(0.1, 100),
            additive_learning_rate=keras.optimizers.schedules.CosineDecay(0.1, 100),
            beta=0.9,
            g_bound=5,
            p_scale=4,
            weight_decay=0.01,
            rounding="stochastic",
            storage=(12, 128),
            second_moment="lns8:4",
            sign_crossing=True,
            floor_octaves=3,
            round_gradient=True,
            gradients="lns5:2",
            lns_weights=all_of_rank_two,
            seed=5,
            clipnorm=1.0,
            use_ema=True,
        ),
    ],
    ids=["defaults", "paper", "all"],
)
def test_serialization(optimizer):
    config = optimizer.get_config()
    assert LNSMadam.from_config(config).get_config() == config
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert again.get_config() == config
    assert type(again) is LNSMadam
    assert keras.optimizers.deserialize(keras.optimizers.serialize(again)).get_config() == config
    assert "LNSMadam" in repr(again)


def test_config_is_json():
    import json

    json.dumps(LNSMadam(second_moment="lns8:4", gradients="lns5:1").get_config())


def test_missing_keys_of_old_files_have_defaults():
    assert LNSMadam.from_config({"name": "x"}).beta == pytest.approx(0.999)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rounding": "stochastic", "second_moment": COMPACT, "p_scale": 3.0},
        {"sign_crossing": True, "use_ema": True, "gradient_accumulation_steps": 2},
        {"additive_learning_rate": InverseSqrtDecay(0.1, 10), "gradients": LNSFormat(5, 1)},
    ],
    ids=["defaults", "compact", "crossing", "schedule"],
)
def test_training_continues_exactly_from_a_file(options, tmp_path):
    net, x, y = plain_model(LNSMadam(**options))
    net.fit(x, y, epochs=3, batch_size=16, shuffle=False, verbose=0)
    net.save(tmp_path / "net.keras")
    back = keras.saving.load_model(tmp_path / "net.keras")
    for each in (net, back):
        each.fit(x, y, epochs=3, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(
        [*net.variables, *net.optimizer.variables],
        [*back.variables, *back.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("lazy", [False, True], ids=["built", "built by its first batch"])
def test_training_continues_exactly_from_a_checkpoint(lazy, tmp_path):
    def fitted(net, x, y):
        net.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)

    net, x, y = plain_model(LNSMadam(second_moment=COMPACT), lazy)
    fitted(net, x, y)
    path = tf.train.Checkpoint(model=net).save(str(tmp_path / "ckpt"))
    fitted(net, x, y)
    back, x, y = plain_model(LNSMadam(second_moment=COMPACT), lazy)
    back.build((None, 6))
    back.optimizer.build(back.trainable_variables)
    tf.train.Checkpoint(model=back).restore(path).assert_existing_objects_matched()
    fitted(back, x, y)
    for a, b in zip(net.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_kernel_that_started_at_zero_and_was_trained_loads(tmp_path):
    """Its kind depends on its values, which a rebuilt model does not have at first."""
    net = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3, kernel_initializer="zeros", name="zeros")]
    )
    net.layers[0].kernel.assign(normal(6, 3))
    net.compile(optimizer=LNSMadam(second_moment=COMPACT), loss="mse")
    x, y = normal(32, 6), normal(32, 3)
    net.fit(x, y, epochs=2, shuffle=False, verbose=0)
    net.save(tmp_path / "net.keras")
    back = keras.saving.load_model(tmp_path / "net.keras")
    assert [s.kind for s in back.optimizer._states] == ["grid", "additive"]
    for each in (net, back):
        each.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(net.optimizer.variables, back.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(net.layers[0].kernel, back.layers[0].kernel)


@pytest.mark.parametrize("argument", ["initial_learning_rate", "decay_steps"])
@pytest.mark.parametrize("value", [0, -1.0, "a", True, None, np.nan, np.inf])
def test_wrong_arguments_of_the_schedule(argument, value):
    with pytest.raises(ValueError, match=argument):
        InverseSqrtDecay(**{argument: value})


def test_schedule_round_trip():
    schedule = InverseSqrtDecay(0.25, 50)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert again.get_config() == schedule.get_config()
    assert float(again(50)) == pytest.approx(0.25 / 2**0.5)
