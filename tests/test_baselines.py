"""LNSSGD and LNSAdamW: the stock rule in float32, one rounding to the grid per step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lns import reference
from tf_lns.formats import LNSFormat
from tf_lns.optimizers import LNSSGD, LNSAdamW
from tf_lns.variable import LNSVariable

F32 = np.float32
STORAGE = LNSFormat(16, 2048)


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(F32)


def gradients_of(shape, steps, seed=7):
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(steps, *shape)) * np.exp2(rng.integers(-6, 3, size=(steps, *shape)))
    g[rng.random(g.shape) < 0.05] = np.nan
    g[rng.random(g.shape) < 0.05] = np.inf
    return g.astype(F32)


def clean(gradient):
    return np.where(np.isfinite(gradient), gradient, F32(0))


def make(kind, values, storage=STORAGE):
    if kind == "cell":
        return LNSVariable(values, format=storage, name="kernel")
    return keras.Variable(values, name="kernel")


def codes_of(variable, optimizer):
    if isinstance(variable, LNSVariable):
        return variable.codes
    state = optimizer._states[0]
    scale = state.scale.numpy()
    codes = reference.encode(variable.numpy(), scale, state.format)
    np.testing.assert_array_equal(reference.decode(codes, scale, state.format), variable.numpy())
    return codes


def applier(optimizer, variables, mode="graph"):
    optimizer.build(variables)

    def apply(*gradients):
        optimizer.apply(list(gradients), variables)

    if mode == "eager":
        return apply
    return tf.function(apply, jit_compile=mode == "jit", autograph=False)


RULES = {
    "sgd": (LNSSGD, keras.optimizers.SGD, {"learning_rate": 0.1}),
    "sgd, decay": (LNSSGD, keras.optimizers.SGD, {"learning_rate": 0.1, "weight_decay": 0.1}),
    "momentum": (LNSSGD, keras.optimizers.SGD, {"learning_rate": 0.05, "momentum": 0.9}),
    "nesterov": (
        LNSSGD,
        keras.optimizers.SGD,
        {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "adamw": (LNSAdamW, keras.optimizers.AdamW, {"learning_rate": 0.01}),
    "amsgrad": (
        LNSAdamW,
        keras.optimizers.AdamW,
        {"learning_rate": 0.01, "amsgrad": True, "weight_decay": 0.1, "beta_1": 0.8},
    ),
    "clipped": (LNSAdamW, keras.optimizers.AdamW, {"learning_rate": 0.01, "clipnorm": 0.3}),
    "schedule": (
        LNSSGD,
        keras.optimizers.SGD,
        {"learning_rate": keras.optimizers.schedules.InverseTimeDecay(0.1, 2, 0.5)},
    ),
}


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("kind", ["cell", "grid"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_is_the_stock_rule_and_one_rounding(rule, kind, rounding):
    ours, stock, options = rule
    values = normal(6, 5, scale=0.3)
    variable, bias = make(kind, values), keras.Variable(normal(4), name="bias")
    twin, twin_bias = keras.Variable(values), keras.Variable(normal(4))
    optimizer = ours(**options, rounding=rounding, seed=5)
    teacher = stock(**options)
    step = applier(optimizer, [variable, bias], "graph")
    teach = applier(teacher, [twin, twin_bias], "graph")
    scale = reference.weight_scale(values)
    twin.assign(reference.quantize(values, STORAGE, scale))
    for i, gradient in enumerate(gradients_of(values.shape, 12)):
        other = gradient[0, :4]
        step(gradient, other)
        teach(clean(gradient), clean(other))
        seed = (i + 1) * (1 << 20) + (5 * 0x9E3779B97F4A7C1) % (1 << 62)
        expected = reference.encode(
            twin.numpy(), scale, STORAGE, rounding, seed=seed if rounding != "nearest" else None
        )
        np.testing.assert_array_equal(codes_of(variable, optimizer), expected)
        twin.assign(reference.decode(expected, scale, STORAGE))
        np.testing.assert_array_equal(bias.numpy(), twin_bias.numpy())
    assert optimizer.nonfinite_gradients > 0


@pytest.mark.parametrize("cls", [LNSSGD, LNSAdamW])
@pytest.mark.parametrize("mode", ["eager", "jit"])
@pytest.mark.parametrize("kind", ["cell", "grid"])
def test_every_mode_gives_nearly_the_same(cls, mode, kind):
    values = normal(5, 4)

    def trained(how):
        variable = make(kind, values)
        optimizer = cls(0.05, rounding="stochastic")
        step = applier(optimizer, [variable], how)
        for gradient in gradients_of(values.shape, 5):
            step(gradient)
        return codes_of(variable, optimizer).astype(int)

    assert np.abs(trained(mode) - trained("graph")).max() <= 2


@pytest.mark.parametrize("storage", ["lns14:512", "lns12:128", "lns10:32", "lns8:8"])
@pytest.mark.parametrize("kind", ["cell", "grid"])
def test_narrower_storage(storage, kind):
    storage = LNSFormat.parse(storage)
    values = normal(6, 5)
    variable = make(kind, values, storage)
    optimizer = LNSSGD(0.5, storage=storage)
    scale = reference.weight_scale(values, storage)
    codes = reference.encode(values, scale, storage)
    step = applier(optimizer, [variable])
    for gradient in gradients_of(values.shape, 5):
        step(gradient)
        moved = reference.decode(codes, scale, storage) - clean(gradient) * F32(0.5)
        codes = reference.encode(moved, scale, storage)
    np.testing.assert_array_equal(codes_of(variable, optimizer), codes)


def test_small_steps_stick_with_nearest_and_not_with_stochastic_rounding():
    """What claim 3 of the paper is about."""
    storage, values = LNSFormat(10, 32), np.ones((50, 50), F32)
    moved = {}
    for rounding in ("nearest", "stochastic"):
        variable = make("cell", values, storage)
        step = applier(LNSSGD(1e-3, rounding=rounding), [variable])
        for _ in range(50):
            step(np.ones((50, 50), F32))
        moved[rounding] = 1 - variable.numpy().mean()
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("kind", ["cell", "grid"])
def test_gradients_are_quantized(kind):
    values, gradient = normal(6, 5), normal(6, 5, seed=1)
    variable = make(kind, values)
    optimizer = LNSSGD(0.25, gradients=LNSFormat(5, 1))
    if kind == "cell":
        variable.cell.gradient_format = LNSFormat(5, 1)
        variable.cell.gradient_options = {"axis": (1,), "underflow": "clamp"}
    before = variable.numpy()
    applier(optimizer, [variable])(gradient)
    scale = reference.weight_scale(values)
    before = reference.quantize(values, STORAGE, scale)
    moved = before - reference.quantize(gradient, LNSFormat(5, 1), axis=1) * F32(0.25)
    np.testing.assert_array_equal(variable.numpy(), reference.quantize(moved, STORAGE, scale))


def test_cells_bring_options_of_their_gradients():
    values, gradient = normal(6, 5), normal(6, 5, seed=1, scale=1e-3)
    gradient[0, 0] = 1
    variable = make("cell", values)
    variable.cell.gradient_format = LNSFormat(5, 1)
    variable.cell.gradient_options = {"axis": (), "underflow": "flush", "power_of_two": True}
    before = variable.numpy()
    applier(LNSSGD(0.25), [variable])(gradient)
    wanted = reference.quantize(gradient, LNSFormat(5, 1), underflow="flush", power_of_two=True)
    expected = reference.quantize(before - wanted * F32(0.25), STORAGE, variable.scale)
    np.testing.assert_array_equal(variable.numpy(), expected)


@pytest.mark.parametrize("cls", [LNSSGD, LNSAdamW])
def test_huge_gradients_and_rates_leave_finite_weights(cls):
    variables = [make("cell", normal(3, 3)), make("grid", normal(3, 3)), keras.Variable(normal(3))]
    step = applier(cls(1e30), variables)
    for _ in range(3):
        step(*[np.full(v.shape, 3e38, F32) for v in variables])
        step(*[np.full(v.shape, -3e38, F32) for v in variables])
    for variable in variables:
        assert np.isfinite(variable.numpy()).all()


@pytest.mark.parametrize("cls", [LNSSGD, LNSAdamW])
def test_a_rate_that_is_not_finite_is_refused(cls):
    variable, bias = make("cell", normal(3, 3)), keras.Variable(normal(3), name="bias")
    optimizer = cls(lambda: np.nan)
    with pytest.raises(tf.errors.InvalidArgumentError, match="learning_rate must be finite"):
        applier(optimizer, [variable, bias])(np.ones((3, 3), F32), np.ones(3, F32))
    assert np.isfinite(bias.numpy()).all()


def plain_model(optimizer, lazy=False, **kwargs):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            *([] if lazy else [keras.Input((6,))]),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    net.compile(optimizer=optimizer, loss="mse", **kwargs)
    x = normal(64, 6, seed=1)
    return net, x, (x @ normal(6, 1, seed=2)).astype(F32)


@pytest.mark.parametrize(
    ("cls", "mode", "lazy"),
    [
        (LNSSGD, {"run_eagerly": True}, False),
        (LNSSGD, {"jit_compile": True}, False),
        (LNSSGD, {"steps_per_execution": 2}, True),
        (LNSAdamW, {}, False),
        (LNSAdamW, {}, True),
        (LNSAdamW, {"jit_compile": True}, True),
    ],
    ids=str,
)
def test_fit(cls, mode, lazy):
    net, x, y = plain_model(cls(0.02), lazy, **mode)
    history = net.fit(x, y, epochs=8, batch_size=16, verbose=0)
    assert history.history["loss"][-1] < 0.8 * history.history["loss"][0]
    codes_of(net.trainable_variables[0], net.optimizer)


@pytest.mark.parametrize(
    "option",
    [
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"global_clipnorm": 0.5},
        {"loss_scale_factor": 64.0},
    ],
    ids=str,
)
def test_options_of_keras_optimizers(option):
    """Near the stock optimizer with the same options, NaN in a batch apart."""
    net, x, y = plain_model(LNSSGD(0.05, momentum=0.5, **option))
    twin, _, _ = plain_model(keras.optimizers.SGD(0.05, momentum=0.5, **option))
    for each in (net, twin):
        each.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(net.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-3)
    codes_of(net.trainable_variables[0], net.optimizer)


@pytest.mark.parametrize("cls", [LNSSGD, LNSAdamW])
@pytest.mark.parametrize("option", [{}, {"clipnorm": 1.0}, {"gradient_accumulation_steps": 2}])
def test_a_bad_batch_reaches_nothing(cls, option):
    net, x, y = plain_model(cls(0.01, **option))
    y[5] = np.nan
    net.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    for variable in [*net.variables, *net.optimizer.variables]:
        assert np.isfinite(np.asarray(variable, np.float64)).all(), variable.path
    assert net.optimizer.nonfinite_gradients > 0


def test_mixed_precision_and_other_dtypes():
    variables = [
        keras.Variable(normal(3, 3), dtype=dtype, name="kernel")
        for dtype in ("float16", "bfloat16", "float64")
    ]
    before = [np.asarray(v, np.float64) for v in variables]
    step = applier(LNSSGD(0.25), variables)
    step(*[np.ones((3, 3)) for _ in variables])
    for variable, old in zip(variables, before, strict=True):
        np.testing.assert_allclose(np.asarray(variable, np.float64), old - 0.25, atol=0.02)


def test_excluded_variables_do_not_decay():
    inside, outside = make("cell", normal(3, 3)), make("cell", normal(3, 3))
    optimizer = LNSAdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[outside])
    optimizer.apply([np.zeros((3, 3), F32)] * 2, [inside, outside])
    np.testing.assert_allclose(inside.numpy(), normal(3, 3) * 0.95, rtol=5e-4)
    np.testing.assert_allclose(outside.numpy(), normal(3, 3), rtol=2e-4)


def test_embeddings_with_sparse_gradients():
    for cls in (LNSSGD, LNSAdamW):
        net = keras.Sequential(
            [keras.Input((2,)), keras.layers.Embedding(5, 3), keras.layers.Flatten()]
        )
        net.compile(optimizer=cls(0.1), loss="mse")
        before = net.get_weights()[0]
        net.fit(np.array([[1, 1], [3, 1]]), np.ones((2, 6)), verbose=0)
        moved = np.abs(net.get_weights()[0] - before).max(axis=1) > 1e-3
        assert moved.tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("cls", [LNSSGD, LNSAdamW])
@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("learning_rate", "fast", TypeError),
        ("learning_rate", -1.0, ValueError),
        ("learning_rate", np.inf, ValueError),
        ("weight_decay", -1.0, ValueError),
        ("weight_decay", "x", TypeError),
        ("rounding", "floor", ValueError),
        ("storage", "int8", ValueError),
        ("storage", None, TypeError),
        ("gradients", 5, TypeError),
        ("seed", 0.5, TypeError),
        ("lns_weights", "kernel", TypeError),
        ("nonsense", 1, ValueError),
    ],
)
def test_wrong_arguments(cls, argument, value, error):
    with pytest.raises(error, match=argument):
        cls(**{argument: value})


def test_adamw_needs_a_decay():
    with pytest.raises(ValueError, match="weight_decay"):
        LNSAdamW(weight_decay=None)


@pytest.mark.parametrize(
    "optimizer",
    [
        LNSSGD(),
        LNSSGD(1, momentum=0.5, nesterov=True, rounding="stochastic", storage="lns12:128", seed=3),
        LNSAdamW(),
        LNSAdamW(0.1, 0.0, 0.8, 0.9, 1e-5, True, gradients="lns5:1", clipvalue=1.0),
    ],
)
def test_serialization(optimizer):
    config = optimizer.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == config
    assert type(optimizer).__name__ in repr(optimizer)


def test_defaults():
    assert float(LNSSGD().learning_rate) == pytest.approx(0.01)
    assert float(LNSAdamW().learning_rate) == pytest.approx(1e-3)
    assert LNSSGD().storage == LNSAdamW().storage == STORAGE


@pytest.mark.parametrize("cls", [LNSSGD, LNSAdamW])
def test_training_continues_exactly_from_a_file(cls, tmp_path):
    net, x, y = plain_model(cls(0.02, rounding="stochastic"))
    net.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    net.save(tmp_path / "net.keras")
    back = keras.saving.load_model(tmp_path / "net.keras")
    for each in (net, back):
        each.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(net.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
