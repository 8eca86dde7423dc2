"""Files of LNS models: codes, scales and ranges survive, in a new process too."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns import LNSConfig, LNSFormat, LNSVariable, layers
from tf_lns.layers.tree import all_layers

K = keras.layers
F32 = np.float32


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def state(model):
    """Codes, scales, float values and ranges of a model, in order."""
    result = []
    for layer in all_layers(model):
        if not isinstance(layer, layers.LNSMixin):
            continue
        for v in layer.variables:
            result.append(v.codes if isinstance(v, LNSVariable) else v.numpy())
            if isinstance(v, LNSVariable):
                result.append(v.scale)
        result += [r.numpy() for r in layer.input_ranges]
    return result


def assert_same_state(a, b):
    a, b = state(a), state(b)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def images():
    """Every convolution, with ranges recorded by a step of training."""
    inputs = keras.Input((8, 8, 2))
    x = layers.LNSConv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.LNSDepthwiseConv2D(2, lns_config=LNSConfig(gradients="lns5:2"))(x)
    x = layers.LNSSeparableConv2D(4, 2, activation="relu")(x)
    x = layers.LNSConv2DTranspose(3, 2)(x)
    x = K.Reshape((-1, 3))(x)
    x = layers.LNSConv1D(4, 3)(x)
    x = layers.LNSSeparableConv1D(4, 2)(layers.LNSDepthwiseConv1D(2)(x))
    x = layers.LNSConv1DTranspose(2, 4)(x)
    x = K.Reshape((-1, 6, 1, 2))(x)
    x = layers.LNSConv3DTranspose(2, 2)(layers.LNSConv3D(2, (2, 2, 1))(x))
    x = K.Flatten()(x)
    outputs = layers.LNSDense(2)(x)
    return keras.Model(inputs, outputs), data(6, 8, 8, 2)


def tokens():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.LNSEmbedding(11, 4, mask_zero=True)(inputs)
    x = layers.LNSEinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d")(x)
    x = K.TimeDistributed(layers.LNSDense(3, activation="tanh"))(x)
    nested = keras.Sequential([keras.Input((6, 3)), K.Flatten(), layers.LNSDense(2)])
    return keras.Model(inputs, nested(x)), np.random.default_rng(0).integers(0, 11, (6, 6))


READ = """
    import sys
    import numpy as np
    import tf_lns  # the classes register themselves: no custom_objects
    import keras

    for name in sys.argv[1:]:
        model = keras.saving.load_model(name + ".keras")
        x = np.load(name + "_x.npy")
        np.testing.assert_array_equal(model.predict(x, verbose=0), np.load(name + "_p.npy"))
        model.save(name + "_again.keras")
        other = keras.models.clone_model(model)
        other.load_weights(name + ".weights.h5")
        np.testing.assert_array_equal(other.predict(x, verbose=0), np.load(name + "_p.npy"))
        model.fit(x, np.zeros((len(x), 2), "float32"), epochs=2, shuffle=False, verbose=0)
        model.save(name + "_trained.keras")
"""


def test_a_new_process_reads_every_layer_and_trains_on(tmp_path, run_python):
    models = {}
    for make in (images, tokens):
        model, x = make()
        name = make.__name__
        model.compile(tf_lns.LNSMadam(second_moment="lns8:4"), "mse")
        model.fit(x, data(6, 2), verbose=0)
        model.save(tmp_path / f"{name}.keras")
        model.save_weights(tmp_path / f"{name}.weights.h5")
        np.save(tmp_path / f"{name}_x.npy", x)
        np.save(tmp_path / f"{name}_p.npy", model.predict(x, verbose=0))
        models[name] = model, x
    run_python(READ, *models)
    for name, (model, x) in models.items():
        again = keras.saving.load_model(tmp_path / f"{name}_again.keras")
        assert_same_state(model, again)
        assert [type(a) for a in model.layers] == [type(a) for a in again.layers]
        # Training goes on there as it would have here, to the last code.
        model.fit(x, np.zeros((6, 2), F32), epochs=2, shuffle=False, verbose=0)
        trained = keras.saving.load_model(tmp_path / f"{name}_trained.keras")
        assert_same_state(model, trained)


def plain_and_lns():
    plain = keras.Sequential([keras.Input((4,)), K.Dense(3, name="a"), K.Dense(2, name="b")])
    return plain, tf_lns.quantize_model(plain)


def test_a_plain_layer_s_variables_clear_the_ranges():
    plain, lns = plain_and_lns()
    tf_lns.calibrate(lns, data(8, 4), verbose=0)
    plain.set_weights([data(*w.shape) for w in plain.weights])
    for a, b in zip(plain.layers, lns.layers, strict=True):
        store = {}
        a.save_own_variables(store)
        b.load_own_variables(store)
        assert b.input_ranges[0].numpy() == 0
        np.testing.assert_allclose(a.kernel.numpy(), b.kernel.numpy(), rtol=2e-4)


def test_the_file_of_another_storage_format_is_converted(tmp_path):
    _, lns = plain_and_lns()
    lns.save_weights(tmp_path / "wide.weights.h5")
    narrow = tf_lns.quantize_model(lns, LNSConfig(storage="lns12:128"))
    before = [layer.kernel.scale for layer in narrow.layers]
    for layer in narrow.layers:
        layer.kernel.assign(data(*layer.kernel.shape))
    narrow.load_weights(tmp_path / "wide.weights.h5")
    for a, b, scale in zip(narrow.layers, lns.layers, before, strict=True):
        assert a.kernel.format == LNSFormat(12, 128)
        np.testing.assert_allclose(a.kernel.numpy(), b.kernel.numpy(), rtol=3e-3)
        assert a.kernel.scale == pytest.approx(scale, rel=1)


def pretrained_zeros():
    """Kernels that would start at zero, but were given values before conversion."""
    zeros = {"kernel_initializer": "zeros"}
    plain = keras.Sequential([keras.Input((4,)), K.Dense(3, **zeros), K.Dense(2, **zeros)])
    plain.layers[0].set_weights([data(4, 3), np.zeros(3)])
    return tf_lns.quantize_model(plain)


def test_kinds_of_weights_survive_whatever_the_initializer_says(tmp_path):
    lns = pretrained_zeros()
    kinds = [isinstance(layer.kernel, LNSVariable) for layer in lns.layers]
    assert kinds == [True, False]
    lns.layers[1].kernel.assign(data(3, 2))  # float by now, and not zero
    lns.layers[1].trainable = False
    lns.compile(tf_lns.LNSMadam(), "mse")
    x = data(8, 4)
    lns.fit(x, x[:, :2], verbose=0)
    lns.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert [isinstance(layer.kernel, LNSVariable) for layer in again.layers] == kinds
    assert_same_state(lns, again)
    lns.fit(x, x[:, :2], verbose=0, shuffle=False)
    again.fit(x, x[:, :2], verbose=0, shuffle=False)
    assert_same_state(lns, again)


def test_loading_weights_around_a_change_of_kind(tmp_path):
    lns = pretrained_zeros()
    lns.save_weights(tmp_path / "mixed.weights.h5")
    fresh = keras.Sequential(
        [
            keras.Input((4,)),
            layers.LNSDense(3, kernel_initializer="zeros"),
            layers.LNSDense(2),
        ]
    )
    fresh.load_weights(tmp_path / "mixed.weights.h5")
    assert isinstance(fresh.layers[0].kernel, LNSVariable)
    assert not isinstance(fresh.layers[1].kernel, LNSVariable)  # a zero would never move
    assert_same_state(lns, fresh)
    fresh.compile(tf_lns.LNSMadam(), "mse")
    x = data(8, 4)
    fresh.fit(x, x[:, :2], epochs=2, verbose=0)
    for layer in fresh.layers:
        assert np.abs(layer.kernel.numpy()).max() > 0


def test_a_file_of_another_shape_is_refused(tmp_path):
    _, lns = plain_and_lns()
    lns.save_weights(tmp_path / "a.weights.h5")
    other = keras.Sequential([keras.Input((5,)), layers.LNSDense(3), layers.LNSDense(2)])
    with pytest.raises(ValueError, match="shape"):
        other.load_weights(tmp_path / "a.weights.h5")


def test_a_json_config_round_trip():
    _, lns = plain_and_lns()
    again = keras.models.model_from_json(lns.to_json())
    assert [type(layer) for layer in again.layers] == [layers.LNSDense] * 2
    assert again.layers[0].lns_config == lns.layers[0].lns_config


def test_a_layer_from_an_older_config_gets_defaults():
    settings = layers.LNSDense(3).get_config()
    del settings["lns_config"]["power_of_two_scales"]
    assert layers.LNSDense.from_config(settings).lns_config == LNSConfig()
    del settings["lns_config"]
    assert layers.LNSDense.from_config(settings).lns_config == LNSConfig()


def test_export_and_checkpoint_hold_codes_and_ranges(tmp_path):
    _, lns = plain_and_lns()
    x = data(8, 4)
    tf_lns.calibrate(lns, x, verbose=0)
    expected = lns(x)
    lns.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(x), expected, rtol=1e-6)

    path = tf.train.Checkpoint(model=lns).save(str(tmp_path / "checkpoint"))
    _, other = plain_and_lns()
    tf.train.Checkpoint(model=other).restore(path)
    assert_same_state(lns, other)


def test_a_zero_kernel_trained_additively_keeps_its_optimizer_state(tmp_path):
    x = np.random.default_rng(0).standard_normal((8, 5)).astype("float32")
    y = np.ones((8, 2), "float32")
    model = keras.Sequential(
        [
            keras.layers.Input((5,)),
            keras.layers.Dense(4, kernel_initializer="zeros"),
            keras.layers.Dense(2),
        ]
    )
    model.compile(tf_lns.LNSMadam(), "mse")
    model.fit(x, y, epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    going_on = [m.fit(x, y, epochs=3, verbose=0, shuffle=False).history for m in (model, loaded)]
    assert going_on[0] == going_on[1]
