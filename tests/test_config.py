"""LNSConfig and the roles of variables."""

import json
import pickle
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from tf_lns import LNSConfig, LNSFormat
from tf_lns.roles import multiplies_activations


def test_defaults_are_those_of_the_specification():
    config = LNSConfig()
    assert config.weights == config.activations == config.errors == LNSFormat(8, 8)
    assert config.gradients == LNSFormat(8, 8)
    assert config.storage == LNSFormat(16, 2048)
    assert config.activation_scale == "moving"
    assert config.gradient_scale == "channel"
    assert config.datapath is None


def test_formats_may_be_given_in_any_form():
    config = LNSConfig("lns6:4", (12, 128), {"bits": 5, "base_factor": 1}, None, None)
    assert config.weights == LNSFormat(6, 4)
    assert config.storage == LNSFormat(12, 128)
    assert config.activations == LNSFormat(5, 1)
    assert config.errors is config.gradients is None


CONFIGS = [
    LNSConfig(),
    LNSConfig(gradients="lns5:2", activation_scale=np.float32(0.25)),
    LNSConfig(
        weights=None,
        activations=None,
        errors=None,
        gradients=None,
        activation_scale="batch",
        gradient_scale="tensor",
        error_underflow="flush",
        gradient_underflow="flush",
        power_of_two_scales=True,
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trips(config):
    settings = json.loads(json.dumps(config.get_config()))
    assert LNSConfig.from_config(settings) == config
    assert LNSConfig.get(settings) == config
    assert LNSConfig.get(config) is config
    serialized = keras.saving.serialize_keras_object(config)
    assert LNSConfig.get(serialized) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(LNSConfig.from_config(settings)) == hash(config)
    assert config.replace() == config


def test_get_of_none_is_the_default():
    assert LNSConfig.get(None) == LNSConfig()


def test_replace_checks_what_it_changes():
    assert LNSConfig().replace(errors=None).errors is None
    with pytest.raises(ValueError, match="activation_scale"):
        LNSConfig().replace(activation_scale=-1)


def test_repr_shows_formats_and_what_differs():
    assert repr(LNSConfig(gradients=None, gradient_scale="tensor")) == (
        "LNSConfig(weights=lns8:8, storage=lns16:2048, activations=lns8:8, errors=lns8:8, "
        "gradients=None, gradient_scale='tensor')"
    )


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("kernel", (3, 4), True),
        ("embeddings", (3, 4), True),
        ("depthwise_kernel", (3, 3, 2, 1), True),
        ("recurrent_kernel", (3, 4), True),
        ("w", (2, 2), True),
        ("kernel", (3,), False),
        ("bias", (4, 5), False),  # of MultiHeadAttention and GRU
        ("query_bias", (4, 5), False),
        ("gamma", (4, 5), False),
        ("moving_mean", (4, 5), False),
        ("kernel:0", (4, 5), True),
        ("bias:0", (4, 5), False),
        ("debias_kernel", (4, 5), True),
        ("", (4, 5), True),
        ("scale", (), False),
    ],
)
def test_roles(name, shape, expected):
    variable = SimpleNamespace(name=name, shape=shape)
    assert multiplies_activations(variable) is expected
