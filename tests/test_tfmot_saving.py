"""Models under tfmot in files: exact codes, scales and ranges, and an exact resume."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tfmot_nets import layers, quantized, tf_keras
from tf_lns import LNSConfig
from tf_lns.ops import library
from tf_lns.tfmot import LNSScheme

X = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)


def net(seed=0, scheme=None):
    tf_keras.utils.set_random_seed(seed)
    model = tf_keras.Sequential(
        [
            layers.Conv2D(4, 3, use_bias=False, input_shape=(6, 6, 2)),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.SeparableConv2D(4, 2),
            layers.Reshape((9, 4)),
            layers.GRU(4),
            layers.Dense(3),
        ]
    )
    model = quantized(model, scheme or LNSScheme())
    model.compile(tf_keras.optimizers.Adam(0.01), "mse")
    return model


def train(model, epochs=1):
    return model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def state(model):
    """Codes, scales, and everything else that a model holds."""
    integers = [v for w in model.layers for v in w.lns_variables]
    found = [(v.codes.numpy(), v.scale.numpy()) for v in integers]
    floats = [
        w.numpy() for w in model.weights if not any(w is v for v in integers)
    ]  # scales again, ranges, biases
    assert len(found) == 6
    return [*[array for pair in found for array in pair], *floats]


def assert_same(a, b):
    for mine, theirs in zip(state(a), state(b), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(a.predict(X, verbose=0), b.predict(X, verbose=0))


@pytest.fixture
def trained():
    model = net()
    train(model, 2)
    return model


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved_model"])
def test_a_whole_model_comes_back(trained, name, tmp_path):
    trained.save(tmp_path / name, **({} if "." in name else {"save_format": "tf"}))
    loaded = tf_keras.models.load_model(tmp_path / name)
    assert_same(trained, loaded)
    if name != "saved_model":  # tf_keras resumes no optimizer from a SavedModel of stock layers
        assert train(loaded) == train(trained)
        assert_same(trained, loaded)


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5", "w"])
def test_weights_alone_come_back(trained, name, tmp_path):
    trained.save_weights(tmp_path / name)
    other = net(seed=5)
    other.load_weights(tmp_path / name)
    assert_same(trained, other)


def test_a_list_of_weights_comes_back(trained):
    other = net(seed=5)
    other.layers[0].layer.kernel.assign(1e-3 * np.ones((3, 3, 2, 4), np.float32))
    other.set_weights(trained.get_weights())
    assert_same(trained, other)


def test_a_checkpoint_resumes_exactly(tmp_path):
    whole = net()
    losses = train(whole, 3)
    half = net()
    first = train(half, 1)
    path = tf.train.Checkpoint(model=half, optimizer=half.optimizer).save(tmp_path / "c")
    resumed = net(seed=5)
    resumed.optimizer.build(resumed.trainable_variables)
    status = tf.train.Checkpoint(model=resumed, optimizer=resumed.optimizer).restore(path)
    status.assert_existing_objects_matched()
    assert first + train(resumed, 2) == losses
    assert_same(whole, resumed)


def test_an_exported_model_predicts_the_same(trained, tmp_path, run_python):
    trained.export(tmp_path / "served")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", trained.predict(X, verbose=0))
    run_python(
        """
        import sys
        import numpy as np, tensorflow as tf
        tf.load_op_library(sys.argv[1])  # the compiled library, and nothing else of tf_lns
        model = tf.saved_model.load("served")
        served = model.serve(np.load("x.npy"))
        np.testing.assert_allclose(served, np.load("y.npy"), rtol=1e-5, atol=1e-6)
        """,
        library.path(),
    )


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_new_process_resumes(trained, name, tmp_path, run_python):
    trained.save(tmp_path / name)
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    next_losses = train(trained, 2)
    np.savez(tmp_path / "state.npz", *state(trained), losses=next_losses)
    run_python(
        """
        import sys
        import numpy as np
        import tf_lns.tfmot, tf_keras
        data, state = np.load("data.npz"), np.load("state.npz")
        model = tf_keras.models.load_model(sys.argv[1])
        history = model.fit(data["x"], data["y"], batch_size=8, epochs=2, shuffle=False, verbose=0)
        assert history.history["loss"] == state["losses"].tolist()
        codes = [v for w in model.layers for v in w.lns_variables]
        for i, weight in enumerate(codes):
            np.testing.assert_array_equal(weight.codes.numpy(), state[f"arr_{2 * i}"])
            assert weight.scale.numpy() == state[f"arr_{2 * i + 1}"]
        """,
        name,
    )


def test_a_file_has_codes_and_no_floats(trained, tmp_path):
    import h5py

    trained.save_weights(tmp_path / "w.weights.h5")
    kinds = {}
    with h5py.File(tmp_path / "w.weights.h5") as file:
        file.visititems(
            lambda name, item: (
                kinds.setdefault(item.shape, []).append(item.dtype)
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    assert [str(d) for d in kinds[(3, 3, 2, 4)] if "int" not in str(d)] == ["float32"] * 2  # Adam's
    assert "int16" in [str(d) for d in kinds[(3, 3, 2, 4)]]


def test_another_storage_format_takes_values(trained, tmp_path):
    trained.save_weights(tmp_path / "w.weights.h5")
    other = net(seed=5, scheme=LNSScheme(LNSConfig(storage="lns12:128")))
    other.load_weights(tmp_path / "w.weights.h5")
    a, b = trained.layers[0].layer.kernel, other.layers[0].layer.kernel
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2 ** (0.6 / 128) - 1)


def test_layers_that_start_at_zero_come_back_as_what_they_were(tmp_path):
    model = tf_keras.Sequential(
        [layers.Dense(3, kernel_initializer="zeros", input_shape=(4,)), layers.Dense(2)]
    )
    model.layers[0].kernel.assign(np.ones((4, 3)))  # trained since
    model = quantized(model, LNSScheme())
    assert [len(w.lns_variables) for w in model.layers] == [1, 1]
    model.save(tmp_path / "m.keras")
    loaded = tf_keras.models.load_model(tmp_path / "m.keras")
    assert [len(w.lns_variables) for w in loaded.layers] == [1, 1]
    np.testing.assert_array_equal(
        model.layers[0].layer.kernel.codes.numpy(), loaded.layers[0].layer.kernel.codes.numpy()
    )


def test_a_damaged_scale_is_refused(trained):
    weights = trained.get_weights()
    (place,) = [i for i, w in enumerate(trained.weights) if "kernel_scale" in w.name][:1]
    weights[place] = np.float32(0.0)
    with pytest.raises(ValueError, match="scale of an integer weight must be finite"):
        trained.set_weights(weights)


def test_a_clone_starts_anew(trained):
    clone = tf_keras.models.clone_model(trained)
    clone.set_weights(trained.get_weights())
    clone.compile("sgd", "mse")
    assert_same(trained, clone)
