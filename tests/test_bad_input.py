"""Every public argument: a clear error that names it, or the documented result."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tf_lns
from tf_lns import LNSConfig, LNSFormat, LNSQuantizer, LNSVariable, layers, ops, reference

F32 = np.float32
FMT = LNSFormat(8, 8)
X = np.random.default_rng(0).normal(size=(3, 4)).astype(F32)
CODES = reference.encode(X, F32(1e-3), FMT)
INVALID = tf.errors.InvalidArgumentError

ANY = (TypeError, ValueError, INVALID)


def refuses(function, error, text):
    """`function` raises `error`, whose message has `text`, eagerly and where it is traced."""
    with pytest.raises(error, match=text):
        function()
    with pytest.raises(error, match=text):
        tf.function(function, autograph=False)()


# --- Wrong types and ranges ---------------------------------------------------------------

# What all functions of float tensors refuse: argument, value, error, part of its message.
NOT_FLOAT = [
    ("x", [1, 2], TypeError, "`x`.*int32"),
    ("x", "text", TypeError, "`x`.*string"),
    ("x", None, TypeError, "`x`"),
    ("x", object(), TypeError, "`x`"),
    ("x", [[1.0], [1.0, 2.0]], TypeError, "`x`"),
    ("x", np.ones(2, complex), TypeError, "`x`.*complex128"),
    ("x", np.ones(2, bool), TypeError, "`x`.*bool"),
    ("x", CODES, TypeError, "`x`.*int8"),
]
BAD_FORMAT = [
    ("format", None, TypeError, "format"),
    ("format", 8, TypeError, "format.*8"),
    ("format", "lns8", ValueError, "lns8"),
    ("format", "lns1000:8", ValueError, "bits.*1000"),
    ("format", (8, 3), ValueError, "base_factor.*3"),
    ("format", (8, 8192), ValueError, "base_factor.*8192"),
    ("format", (1, 8), ValueError, "bits.*1"),
    ("format", (8.0, 8), TypeError, "bits.*8.0"),
    ("format", (True, 8), TypeError, "bits.*True"),
    ("format", (8, 8, 8), TypeError, "format"),
    ("format", {"bits": 8}, ValueError, "base_factor"),
]
BAD_LAYOUT = [
    ("axis", 2, ValueError, "`axis`.*rank 2.*axis=2"),
    ("axis", -3, ValueError, "`axis`.*rank 2.*axis=-3"),
    ("axis", 1.0, TypeError, "`axis`.*1.0"),
    ("axis", True, TypeError, "`axis`.*True"),
    ("axis", "channel", TypeError, "`axis`.*channel"),
    ("axis", (0, 0), ValueError, "`axis`.*neighbouring"),
    ("axis", np.array([0, 1]), TypeError, "`axis`"),
    ("vector_size", 2, ValueError, "`vector_size`.*`axis`"),
    ("vector_size", 0, ValueError, "`vector_size`.*0"),
    ("vector_size", -5, ValueError, "`vector_size`.*-5"),
    ("vector_size", 1 << 80, ValueError, "`vector_size`"),
    ("vector_size", 2.0, TypeError, "`vector_size`.*2.0"),
    ("vector_size", True, TypeError, "`vector_size`.*True"),
]
BAD_ROUNDING = [
    ("rounding", "up", ValueError, "`rounding`.*nearest.*up"),
    ("rounding", None, ValueError, "`rounding`.*None"),
    ("rounding", ["nearest"], ValueError, "`rounding`"),
    ("underflow", "keep", ValueError, "`underflow`.*flush.*keep"),
]
BAD_SEED = [
    ("seed", 1.5, TypeError, "`seed`.*1.5"),
    ("seed", True, TypeError, "`seed`.*True"),
    ("seed", "lucky", TypeError, "`seed`.*lucky"),
    ("seed", [1, 2], ANY, r"seed|rank"),
]
BAD_SCALE = [
    ("scale", 0.0, INVALID, "scale"),
    ("scale", -1.0, INVALID, "scale"),
    ("scale", 1e-40, INVALID, "scale"),
    ("scale", np.inf, INVALID, "scale"),
    ("scale", np.nan, INVALID, "scale"),
    ("scale", 1e39, INVALID, "scale"),
    ("scale", [1.0, 1.0], (ValueError, INVALID), "scale|[Rr]ank|rank"),
    ("scale", "big", TypeError, "`scale`"),
    ("scale", 1j, TypeError, "`scale`"),
    ("scale", None, TypeError, "`scale`"),
    ("scale", True, TypeError, "`scale`"),
]
BAD_FLAG = [("power_of_two", 1, TypeError, "`power_of_two`.*1")]

ENCODE = {"x": X, "scale": 1e-3, "format": FMT}
DECODE = {"codes": CODES, "scale": 1e-3, "format": FMT}
NOT_CODES = [
    ("codes", X, TypeError, "`codes`.*int8.*float32"),
    ("codes", CODES.astype(np.int16), TypeError, "`codes`.*int8.*int16"),
    ("codes", [1, 2], TypeError, "`codes`.*int32"),
    ("codes", None, TypeError, "`codes`"),
    ("codes", np.full((2,), -128, np.int8), INVALID, "codes must lie in -127..127"),
]
FUNCTIONS = {
    "encode": (
        ENCODE,
        [
            *NOT_FLOAT,
            *BAD_FORMAT,
            *BAD_LAYOUT,
            *BAD_ROUNDING,
            *BAD_SCALE,
            ("x", [np.nan], INVALID, "NaN"),
        ],
    ),
    "decode": (DECODE, [*NOT_CODES, *BAD_FORMAT, *BAD_LAYOUT, *BAD_SCALE]),
    "requantize": (
        {"codes": CODES, "from_format": FMT, "to_format": LNSFormat(16, 2048)},
        [
            *NOT_CODES,
            *[("from_format", *rest) for _, *rest in BAD_FORMAT],
            *[("to_format", *rest) for _, *rest in BAD_FORMAT],
        ],
    ),
    "quantize": (
        {"x": X, "format": FMT},
        [
            *NOT_FLOAT,
            *BAD_FORMAT,
            *BAD_LAYOUT,
            *BAD_ROUNDING,
            *BAD_FLAG,
            *[case for case in BAD_SCALE if case[1] is not None],
        ],
    ),
    "quantize_with_scale": (
        {"x": X, "format": FMT},
        [*NOT_FLOAT, *BAD_FORMAT, *BAD_LAYOUT, *BAD_ROUNDING, *BAD_FLAG],
    ),
    "quantize_gradient": (
        {"x": X, "format": FMT},
        [*NOT_FLOAT, *BAD_FORMAT, *BAD_LAYOUT, *BAD_ROUNDING, *BAD_FLAG],
    ),
    "scale_of": ({"x": X, "format": FMT}, [*NOT_FLOAT, *BAD_FORMAT, *BAD_LAYOUT, *BAD_FLAG]),
}


@pytest.mark.parametrize(
    ("name", "argument", "value", "error", "text"),
    [(name, *case) for name, (_, cases) in FUNCTIONS.items() for case in cases],
)
def test_an_op_refuses(name, argument, value, error, text):
    arguments = {**FUNCTIONS[name][0], argument: value}
    refuses(lambda: getattr(ops, name)(**arguments), error, text)


@pytest.mark.parametrize("name", ["encode", "quantize", "quantize_with_scale"])
@pytest.mark.parametrize(("argument", "value", "error", "text"), BAD_SEED)
def test_a_seed_that_is_used_must_be_an_integer(name, argument, value, error, text):
    arguments = {**FUNCTIONS[name][0], argument: value, "rounding": "stochastic"}
    refuses(lambda: getattr(ops, name)(**arguments), error, text)


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, -(2**63), np.int32(5), np.uint8(7)])
def test_any_integer_is_a_seed(seed):
    codes = ops.encode(X, 1e-3, FMT, rounding="stochastic", seed=seed)
    expected = reference.encode(X, F32(1e-3), FMT, rounding="stochastic", seed=int(seed))
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize(
    ("axis", "vector_size", "shape"),
    [
        (None, None, (1,)),
        (0, None, (4,)),
        (1, None, (3,)),
        (1, None, (1, 4)),
        (0, None, ()),
        (1, 2, (3, 3)),
        (1, 2, (3,)),
        ((0, 1), None, (4, 3)),
    ],
)
def test_a_scale_of_another_shape_is_refused(axis, vector_size, shape):
    for call in (
        lambda: ops.encode(X, np.ones(shape, F32), FMT, axis=axis, vector_size=vector_size),
        lambda: ops.decode(CODES, np.ones(shape, F32), FMT, axis=axis, vector_size=vector_size),
        lambda: ops.quantize(X, FMT, np.ones(shape, F32), axis=axis, vector_size=vector_size),
    ):
        refuses(call, (ValueError, INVALID), "scale|[Ss]hape|rank|[Dd]imension")


def test_an_axis_needs_a_known_rank():
    unknown = [tf.TensorSpec(None, tf.float32)]
    for function in (ops.scale_of, ops.quantize, ops.quantize_gradient):

        def channels(x, function=function):
            return function(x, FMT, axis=0)

        def whole(x, function=function):
            return function(x, FMT)

        with pytest.raises(ValueError, match="`axis` needs a tensor of known rank"):
            tf.function(channels, input_signature=unknown)(X)
        assert tf.function(whole, input_signature=unknown)(X) is not None


def test_unknown_dimensions_are_checked_when_the_op_runs():
    call = tf.function(
        lambda x, s: ops.encode(x, s, FMT, axis=1),
        input_signature=[tf.TensorSpec([None, None]), tf.TensorSpec([None])],
    )
    np.testing.assert_array_equal(
        call(X, np.ones(4, F32)), reference.encode(X, np.ones(4, F32), FMT, axis=1)
    )
    with pytest.raises(INVALID, match="scale"):
        call(X, np.ones(3, F32))


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0), (2, 0, 3)])
def test_empty_and_scalar_tensors(shape):
    x = np.full(shape, 0.5, F32)
    np.testing.assert_array_equal(ops.quantize(x, FMT), reference.quantize(x, FMT))
    assert ops.scale_of(x, FMT).numpy() == reference.scale_of(x, FMT)
    codes = ops.encode(x, 0.1, FMT)
    assert codes.shape == shape
    assert ops.decode(codes, 0.1, FMT).shape == shape
    assert ops.requantize(codes, FMT, (5, 1)).shape == shape
    if shape:
        scale = ops.scale_of(x, FMT, axis=-1)
        np.testing.assert_array_equal(scale, reference.scale_of(x, FMT, axis=-1))
        assert ops.quantize(x, FMT, axis=-1, vector_size=2).shape == shape


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value):
    x = np.array([[1.0, value], [0.5, -2.0]], F32)
    np.testing.assert_array_equal(ops.quantize(x, FMT), reference.quantize(x, FMT))
    np.testing.assert_array_equal(ops.scale_of(x, FMT), reference.scale_of(x, FMT))
    if np.isinf(value):
        codes = ops.encode(x, 0.01, FMT)
        assert codes.numpy()[0, 1] == np.sign(value) * FMT.max_code


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    x=arrays.arrays(
        F32,
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    ),
    bits=st.integers(2, 16),
    log2_base=st.integers(0, 12),
    axis=st.none() | st.integers(-5, 5) | st.lists(st.integers(-5, 5), max_size=3),
    vector_size=st.none() | st.integers(-2, 9),
    underflow=st.sampled_from(["clamp", "flush"]),
    power_of_two=st.booleans(),
)
def test_quantize_equals_the_reference_or_refuses_as_it_does(
    x, bits, log2_base, axis, vector_size, underflow, power_of_two
):
    fmt = LNSFormat(bits, 2**log2_base)
    options = {"axis": axis, "underflow": underflow, "power_of_two": power_of_two}

    def call():
        return ops.quantize(x, fmt, vector_size=vector_size, **options).numpy()

    axes = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    inside = all(-x.ndim <= a < x.ndim for a in axes)
    places = sorted(a % x.ndim for a in axes) if inside else []
    neighbours = places == list(range(places[0], places[0] + len(places))) if places else True
    vectors = vector_size is None or (vector_size > 0 and len(axes) == 1)
    if not (inside and neighbours and vectors):
        with pytest.raises(ValueError, match=r"`axis`|`vector_size`"):
            call()
        return
    y = call()
    expected = reference.quantize(x, fmt, vector_size=vector_size, **options)
    np.testing.assert_array_equal(y.view(np.uint32), np.asarray(expected).view(np.uint32))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    codes=arrays.arrays(np.int16, st.integers(0, 7)),
    bits=st.integers(9, 16),
    log2_base=st.integers(0, 12),
    scale=st.floats(width=32),
)
def test_decode_equals_the_reference_or_refuses(codes, bits, log2_base, scale):
    fmt = LNSFormat(bits, 2**log2_base)
    inside = np.all(np.abs(codes.astype(int)) <= fmt.max_code)
    valid = np.isfinite(scale) and scale >= 2.0**-126
    if not (inside and valid):
        with pytest.raises(INVALID, match=r"code|scale"):
            ops.decode(codes, F32(scale), fmt)
        return
    with np.errstate(over="ignore"):
        expected = reference.decode(codes, F32(scale), fmt)
    np.testing.assert_array_equal(ops.decode(codes, F32(scale), fmt), expected)


# --- Objects ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"weights": "int8"}, ValueError, "`weights`.*int8"),
        ({"storage": None}, ValueError, "`storage`.*None"),
        ({"storage": 16}, TypeError, "`storage`.*16"),
        ({"activations": (8, 3)}, ValueError, "`activations`.*3"),
        ({"errors": (99, 8)}, ValueError, "`errors`.*99"),
        ({"gradients": object()}, TypeError, "`gradients`"),
        ({"activation_scale": "auto"}, ValueError, "`activation_scale`.*auto"),
        ({"activation_scale": 0}, ValueError, "`activation_scale`.*0"),
        ({"activation_scale": -2.0}, ValueError, "`activation_scale`.*-2.0"),
        ({"activation_scale": float("nan")}, ValueError, "`activation_scale`.*nan"),
        ({"activation_scale": float("inf")}, ValueError, "`activation_scale`.*inf"),
        ({"activation_scale": True}, TypeError, "`activation_scale`.*True"),
        ({"activation_scale": None}, TypeError, "`activation_scale`.*None"),
        ({"activation_scale": [1.0]}, TypeError, "`activation_scale`"),
        ({"gradient_scale": "vector"}, ValueError, "`gradient_scale`.*vector"),
        ({"error_underflow": "no"}, ValueError, "`error_underflow`.*no"),
        ({"gradient_underflow": 1}, ValueError, "`gradient_underflow`.*1"),
        ({"power_of_two_scales": "yes"}, TypeError, "`power_of_two_scales`.*yes"),
        ({"datapath": 3}, TypeError, "`datapath`.*3"),
        ({"bits": 8}, TypeError, "bits"),
    ],
)
def test_a_config_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        LNSConfig(**arguments)


@pytest.mark.parametrize("value", [3, "lns8:8", LNSFormat(8, 8), [1]])
def test_what_is_no_config(value):
    with pytest.raises(TypeError, match="config"):
        LNSConfig.get(value)
    with pytest.raises(TypeError, match="config"):
        layers.LNSDense(3, lns_config=value)


def test_dicts_that_are_no_config():
    with pytest.raises(ValueError, match=r"\['bits'\]"):
        LNSConfig.get({"bits": 8})
    with pytest.raises(TypeError, match="config"):
        LNSConfig.get(keras.saving.serialize_keras_object(keras.layers.ReLU()))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"format": 8}, TypeError, "8"),
        ({"scale": 0.0}, ValueError, "`scale`.*0.0"),
        ({"scale": -1}, ValueError, "`scale`.*-1"),
        ({"scale": float("nan")}, ValueError, "`scale`.*nan"),
        ({"scale": float("inf")}, ValueError, "`scale`.*inf"),
        ({"scale": 1e-40}, ValueError, "`scale`.*1e-40"),
        ({"scale": "1"}, TypeError, "`scale`.*'1'"),
        ({"scale": True}, TypeError, "`scale`.*True"),
        ({"axis": "last"}, TypeError, "`axis`.*last"),
        ({"axis": [0, 1.5]}, TypeError, "`axis`.*1.5"),
        ({"vector_size": 4}, ValueError, "`vector_size`.*axis"),
        ({"vector_size": 0, "axis": 1}, ValueError, "`vector_size`.*0"),
        ({"vector_size": 4, "axis": (0, 1)}, ValueError, "`vector_size`.*axis"),
        ({"rounding": "up"}, ValueError, "`rounding`.*up"),
        ({"underflow": "up"}, ValueError, "`underflow`.*up"),
        ({"power_of_two": 1}, TypeError, "`power_of_two`.*1"),
        ({"seed": 1.5}, TypeError, "`seed`.*1.5"),
    ],
)
def test_a_quantizer_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        LNSQuantizer(**{"format": "lns8:8", **arguments})


def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: tf_lns.quantize_model(3), TypeError, "`model`.*3"),
        (lambda: tf_lns.quantize_model(keras.layers.Dense(3)), TypeError, "`model`.*Dense"),
        (lambda: tf_lns.quantize_model(model(), 3), TypeError, "config.*3"),
        (lambda: tf_lns.quantize_model(model(), None, 3), TypeError, "`overrides`.*3"),
        (lambda: tf_lns.quantize_model(model(), None, {"head": 3}), TypeError, "config.*3"),
        (lambda: tf_lns.quantize_model(model(), None, {3: None}), ValueError, "pattern.*3"),
        (lambda: tf_lns.quantize_model(model(), None, lambda _: 3), TypeError, "config.*3"),
        (lambda: tf_lns.strip("model"), TypeError, "`model`.*model"),
        (lambda: tf_lns.strip(model(), "both"), ValueError, "`weights`.*both"),
        (lambda: tf_lns.strip(model(), None), ValueError, "`weights`.*None"),
        (lambda: tf_lns.calibrate(3, X), TypeError, "`model`.*3"),
        (lambda: tf_lns.calibrate(lns(), X, batch_size=0), ValueError, "`batch_size`.*0"),
        (lambda: tf_lns.calibrate(lns(), X, batch_size=1.5), TypeError, "`batch_size`.*1.5"),
        (lambda: tf_lns.calibrate(lns(), X, steps=-1), ValueError, "`steps`.*-1"),
        (lambda: tf_lns.calibrate(lns(), 3), TypeError, "`data`.*3"),
        (lambda: tf_lns.calibrate(lns(), None), TypeError, "`data`.*None"),
        (lambda: tf_lns.calibrate(lns(), X[0, 0]), (TypeError, ValueError), "`data`"),
        (lambda: tf_lns.summary(None), TypeError, "`model`.*None"),
        (lambda: tf_lns.register_layer(3), TypeError, "`keras_class`.*3"),
        (lambda: tf_lns.register_layer(int), TypeError, "`keras_class`.*int"),
        (
            lambda: tf_lns.register_layer(keras.layers.Dense)(layers.LNSConv1D),
            TypeError,
            "Dense",
        ),
        (lambda: tf_lns.register_layer(keras.layers.Dense)(3), TypeError, "3"),
    ],
)
def test_a_function_of_models_refuses(call, error, text):
    with pytest.raises(error, match=text):
        call()


def lns():
    return tf_lns.quantize_model(model())


def test_a_zero_size_batch_changes_nothing():
    plain = lns()
    plain.compile(tf_lns.LNSMadam(), "mse")
    empty = np.zeros((0, 4), F32)
    assert plain(empty).shape == (0, 2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(plain(empty, training=True))
    kernel = plain.layers[0].kernel
    before = kernel.codes
    gradients = tape.gradient(loss, [v.value for v in plain.trainable_variables])
    plain.optimizer.apply(gradients, plain.trainable_variables)
    np.testing.assert_array_equal(kernel.codes, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_batch_that_is_not_finite_never_reaches_weights_state_or_ranges(value):
    lns_model = lns()
    lns_model.compile(tf_lns.LNSMadam(), "mse")
    x = np.ones((8, 4), F32)
    x[3, 2] = value
    lns_model.fit(x, np.ones((8, 2), F32), epochs=2, verbose=0)
    values = [*lns_model.get_weights(), *[v.numpy() for v in lns_model.optimizer.variables]]
    values += [r.numpy() for r in lns_model.layers[0].input_ranges]
    for v in values:
        assert np.isfinite(v).all()
    assert np.isfinite(lns_model.predict(np.ones((2, 4), F32), verbose=0)).all()


def test_terminate_on_nan_still_works():
    lns_model = lns()
    lns_model.compile(tf_lns.LNSMadam(), "mse")
    x = np.full((8, 4), np.nan, F32)
    callback = keras.callbacks.TerminateOnNaN()
    history = lns_model.fit(x, np.ones((8, 2)), epochs=3, verbose=0, callbacks=[callback])
    assert len(history.epoch) == 1


# --- Hostile attributes and shapes ----------------------------------------------------------

HOSTILE = r"""
    import resource
    import sys

    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))  # no swapping: fail to allocate
    import numpy as np
    import tensorflow as tf
    from tf_lns.ops.library import load

    lib = load()
    f8 = {"bits": 8, "base_factor": 8}
    x = tf.ones((3, 4))
    codes = tf.ones((3, 4), tf.int8)
    zero = tf.constant(0, tf.int64)

    def encode(x=x, scale=1.0, seed=zero, **attrs):
        return lib.lns_encode(x, scale, seed, **{"Tcode": tf.int8, **f8, **attrs})

    def decode(codes=codes, scale=1.0, **attrs):
        return lib.lns_decode(codes, scale, **{**f8, **attrs})

    def quantize(x=x, scale=1.0, seed=zero, **attrs):
        return lib.lns_quantize(x, scale, seed, **{**f8, **attrs})

    def dynamic(x=x, seed=zero, **attrs):
        return lib.lns_quantize_dynamic(x, seed, **{**f8, **attrs})

    def gradient(x=x, **attrs):
        x = tf.identity(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = lib.lns_quantize_gradient(x, **{**f8, **attrs})
        return tape.gradient(y, x)

    def scale(x=x, **attrs):
        return lib.lns_scale(x, **{**f8, **attrs})

    def requantize(codes=codes, **attrs):
        both = {"from_bits": 8, "from_base_factor": 8, "to_bits": 16, "to_base_factor": 2048}
        return lib.lns_requantize(codes, **{"Tto": tf.int16, **both, **attrs})

    BAD = [
        {"bits": 1000}, {"bits": 0}, {"bits": 1}, {"bits": -8}, {"bits": 17}, {"bits": 2**40},
        {"bits": 9}, {"base_factor": 3}, {"base_factor": 0}, {"base_factor": -8},
        {"base_factor": 2**62}, {"base_factor": 8192},
    ]
    LAYOUT = [
        {"axis": [0, 2]}, {"axis": [300]}, {"axis": [-1]}, {"axis": [1, 0]}, {"axis": [1, 1]},
        {"axis": list(range(40))}, {"vector_size": -5}, {"vector_size": 3},
        {"axis": [0, 1], "vector_size": 2}, {"axis": [2], "vector_size": 2},
        {"axis": [2**31 - 1]}, {"axis": [-(2**31)]},
        {"axis": [1], "vector_size": -(2**63)},
    ]
    refused = []  # calls that must raise
    for function in (encode, quantize, dynamic, gradient, scale, decode):
        accepts9 = function not in (encode, decode)  # 9 bits: codes would not fit int8
        refused += [(function, a) for a in BAD if not (accepts9 and a == {"bits": 9})]
        refused += [(function, a) for a in LAYOUT]
    for key in ("from_", "to_"):
        for attrs in BAD:
            if key == "to_" and attrs == {"bits": 9}:
                continue  # fits int16
            refused.append((requantize, {key + k: v for k, v in attrs.items()}))
    refused += [
        (encode, {"rounding": "up"}), (encode, {"Tcode": tf.int32}),
        (requantize, {"Tto": tf.int32}),
        (encode, {"scale": tf.zeros((0,))}), (encode, {"scale": tf.ones((1, 1, 1))}),
        (encode, {"seed": tf.zeros((0,), tf.int64)}), (dynamic, {"seed": tf.zeros((2,), tf.int64)}),
        (decode, {"scale": tf.zeros((0,))}), (quantize, {"scale": tf.ones((3,)), "axis": [1]}),
        (encode, {"scale": tf.zeros((3, 0)), "axis": [1], "vector_size": 1}),
    ]
    huge = 2**33  # 32 GiB of float32 scales, for no element
    odd = [  # calls that may raise or return, but must come back
        (f, {"x": tf.zeros((0, huge)), **layout})
        for f in (scale, dynamic, gradient)
        for layout in ({}, {"axis": [1]}, {"axis": [0]}, {"axis": [1], "vector_size": 1},
                       {"axis": [1], "vector_size": 2**62}, {"axis": [0], "vector_size": 2**63 - 1})
    ]
    odd += [
        (f, {"x": value, **layout})
        for f in (scale, dynamic, gradient)
        for value in (tf.zeros(()), tf.zeros((0,)), tf.zeros((1,) * 8), tf.zeros((3, 0, 5)), x)
        for layout in ({}, {"axis": [0]}, {"axis": [1], "vector_size": 2**63 - 1})
    ]
    odd += [(encode, {"x": tf.zeros((0, huge))}), (decode, {"codes": tf.zeros((huge, 0), tf.int8)})]

    handle = tf.Variable(tf.ones((3, 4), tf.int16)).handle
    floats = tf.Variable(tf.ones((3, 4))).handle
    empty = tf.raw_ops.VarHandleOp(dtype=tf.int16, shape=(3, 4), shared_name="nothing_in_it")
    f16 = {"bits": 16, "base_factor": 2048}

    def read(handle=handle, scale=1.0, **attrs):
        seen = {"read_bits": 8, "read_base_factor": 8}
        return lib.lns_read_variable(handle, scale, **{"Tcode": tf.int16, **f16, **seen, **attrs})

    def assign(handle=handle, scale=1.0, value=x, seed=zero, **attrs):
        lib.lns_assign_variable(handle, scale, value, seed, **{"Tcode": tf.int16, **f16, **attrs})

    def madam(weight=handle, scale=1.0, v=floats, grad=x, rate=0.1, step=1, **attrs):
        step = tf.cast(step, tf.int64)
        return lib.lns_apply_madam(
            weight, scale, v, v, grad, 1.0, rate, 0.0, step, zero, -1, -1,
            **{"Tweight": tf.int16, "Tmoment": tf.float32, **f16, **attrs})

    def additive(weight=floats, v=floats, grad=x, rate=0.1, step=1, **attrs):
        return lib.lns_apply_madam_additive(
            weight, v, grad, rate, 0.0, tf.cast(step, tf.int64), **attrs)

    for function in (read, assign, madam):
        refused += [(function, a) for a in BAD if a not in ({"bits": 9}, {"bits": 8})]
        refused += [(function, {"scale": tf.zeros((0,))}), (function, {"scale": 0.0}),
                    (function, {"scale": tf.ones((2,))}), (function, {"scale": float("nan")})]
    refused += [
        (read, {"handle": floats}), (read, {"handle": empty}), (read, {"read_bits": 1000}),
        (read, {"read_base_factor": 3}), (assign, {"handle": floats}), (assign, {"handle": empty}),
        (assign, {"value": tf.ones((4, 3))}), (assign, {"value": tf.ones(())}),
        (assign, {"value": x * np.nan}), (assign, {"seed": tf.zeros((2,), tf.int64)}),
        (madam, {"weight": floats}), (madam, {"weight": empty}), (madam, {"v": handle}),
        (madam, {"v": empty}), (madam, {"grad": tf.ones((4, 3))}), (madam, {"grad": tf.ones(())}),
        (madam, {"rate": tf.zeros((0,))}), (madam, {"step": tf.zeros((0,))}),
        (madam, {"grad_bits": 1000}), (madam, {"grad_bits": 8, "grad_base_factor": 3}),
        (madam, {"grad_bits": 8, "grad_axis": [300]}),
        (madam, {"grad_bits": 8, "grad_axis": [0, 2]}),
        (madam, {"Tmoment": tf.int8}),
        (additive, {"weight": handle}), (additive, {"v": handle}), (additive, {"weight": empty}),
        (additive, {"grad": tf.ones((4, 3))}), (additive, {"rate": tf.zeros((0,))}),
    ]
    odd += [
        (madam, {"step": 0}), (madam, {"step": -1}), (madam, {"step": 2**62}),
        (madam, {"beta": float("nan")}), (madam, {"beta": 1.0}), (madam, {"beta": -3.0}),
        (madam, {"g_bound": float("nan")}), (madam, {"g_bound": -1.0}), (madam, {"rate": 1e38}),
        (madam, {"rate": float("nan")}), (madam, {"v": floats, "weight": handle}),
        (additive, {"step": 0}), (additive, {"beta": float("nan")}),
        (additive, {"v": floats, "weight": floats}),
    ]

    traced = sys.argv[1] == "traced"
    wrong = []
    for must_fail, cases in ((True, refused), (False, odd)):
        for function, arguments in cases:
            run = lambda: function(**arguments)
            text = f"{function.__name__} {str(arguments)[:100]}"
            print(text, flush=True)
            try:
                (tf.function(run, autograph=False) if traced else run)()
            except (TypeError, ValueError, OverflowError, tf.errors.OpError):
                continue
            if must_fail:
                wrong.append(text)
    print("ACCEPTED", wrong)
    sys.exit(bool(wrong))
"""


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_hostile_attributes_and_shapes_cannot_crash_the_process(run_python, mode):
    result = run_python(HOSTILE, mode, check=False)
    tail = "\n".join(result.stdout.splitlines()[-3:])
    assert result.returncode == 0, (
        f"exit code {result.returncode} after: {tail}\n{result.stderr[-3000:]}"
    )


def test_an_lns_variable_refuses():
    with pytest.raises(ValueError, match="finite"):
        LNSVariable(np.array([[np.nan, 1.0]], F32))
    variable = LNSVariable(X)
    with pytest.raises(ANY, match=r"finite|NaN"):
        variable.assign(X * np.nan)
    for codes, scale, text in (
        (np.zeros((3, 4)), 1.0, "integers"),
        (np.zeros((4, 3), int), 1.0, "shape"),
        (np.full((3, 4), -(2**15)), 1.0, "-32768"),
        (np.zeros((3, 4), int), 0.0, "scale"),
        (np.zeros((3, 4), int), [1.0], "scale"),
    ):
        with pytest.raises(ValueError, match=text):
            variable.assign_codes(codes, scale)
    np.testing.assert_allclose(variable.numpy(), X, rtol=2e-4)
