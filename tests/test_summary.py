"""tf_lns.summary."""

import json

import keras
import numpy as np
import pytest

import tf_lns
from tf_lns import LNSConfig, LNSFormat
from tf_lns.summary import human_bytes

K = keras.layers


def model(**config):
    plain = keras.Sequential(
        [
            keras.Input((6,)),
            K.Dense(8, name="hidden"),
            K.BatchNormalization(name="norm"),
            K.Reshape((2, 4)),
            K.LSTM(3, name="lstm"),
            K.Dense(2, name="head"),
        ],
        name="net",
    )
    return tf_lns.quantize_model(plain, LNSConfig(**config), {"lstm": None})


def test_numbers_are_those_of_the_variables():
    lns = model(storage="lns8:8", gradients=None)
    summary = tf_lns.summary(lns, print_table=False)
    assert summary.parameters == lns.count_params()
    float_bytes = 4 * sum(int(np.prod(w.shape)) for w in lns.weights if w.name != "kernel")
    float_bytes += 4 * int(np.prod(lns.get_layer("lstm").weights[0].shape))
    # One byte a weight, a scale and a recorded range for each of two layers.
    assert summary.bytes == float_bytes + (48 + 6) + 2 * 4 + 2 * 4
    assert summary.float_layers == ("lstm_cell",)
    assert summary.layers["head"] == {
        "weights": "lns8:8",
        "activations": "lns8:8",
        "errors": "lns8:8",
        "gradients": "float",
    }
    rows = {(w.layer, w.weight): w for w in summary.weights}
    assert rows["norm", "gamma"].storage == "float32"
    assert rows["norm", "gamma"].bytes == 32
    assert rows["hidden", "kernel"].seen == "lns8:8"
    assert rows["hidden", "kernel"].shape == (6, 8)


def test_the_use_of_the_range():
    lns = model()
    kernel = lns.get_layer("head").kernel
    top = LNSFormat(16, 2048).max_code
    kernel.assign_codes(np.array([[top, -top], [1, 0], [1 + 2048, 1 + 4096]]), 1.0)
    weights = tf_lns.summary(lns, print_table=False).weights
    row = next(w for w in weights if w.layer == "head")
    assert row.octaves_used == pytest.approx((top - 1) / 2048)
    assert (row.saturated, row.underflowed, row.zero) == pytest.approx((2 / 6, 1 / 6, 1 / 6))


def test_the_table_fits_80_columns_and_says_all(capsys):
    lns = model()
    summary = tf_lns.summary(lns)
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines())
    text = str(summary)
    for word in ("hidden", "kernel", "lns16:2048", "all LNS layers", "float kernels: lstm_cell"):
        assert word in text
        assert word in printed
    assert "W lns8:8, A lns8:8, E lns8:8, G lns8:8" in text


def test_layers_of_different_formats_are_told_apart():
    plain = keras.Sequential([keras.Input((6,)), K.Dense(8, name="a"), K.Dense(2, name="b")])
    lns = tf_lns.quantize_model(plain, overrides={"b": LNSConfig(gradients="lns5:2")})
    text = str(tf_lns.summary(lns, print_table=False))
    assert "G lns8:8: a" in text
    assert "G lns5:2: b" in text


def test_the_dict_is_plain_json():
    summary = tf_lns.summary(model(), print_table=False)
    again = json.loads(json.dumps(summary.to_dict()))
    assert again["parameters"] == summary.parameters
    assert len(again["weights"]) == len(summary.weights)


def test_shared_weights_count_once():
    shared = K.Dense(3)
    a, b = keras.Input((3,)), keras.Input((3,))
    lns = tf_lns.quantize_model(keras.Model([a, b], [shared(a), shared(shared(b))]))
    assert tf_lns.summary(lns, print_table=False).parameters == 12


def test_what_is_no_built_model_is_refused():
    with pytest.raises(TypeError, match="model"):
        tf_lns.summary(3)
    with pytest.raises(ValueError, match="build"):
        tf_lns.summary(keras.Sequential([K.Dense(2)]))


def test_a_plain_model_has_a_summary_too():
    summary = tf_lns.summary(keras.Sequential([keras.Input((2,)), K.Dense(3)]), False)
    assert summary.bytes == 4 * 9
    assert "9 parameters in 36 B (36 B in float32)" in str(summary)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9999, "10.0 kB"),
        (99960, "100 kB"),
        (999_500, "1.00 MB"),
        (123_456_789, "123 MB"),
        (5 * 10**12, "5.00 TB"),
    ],
)
def test_bytes_have_three_digits(count, text):
    assert human_bytes(count) == text
