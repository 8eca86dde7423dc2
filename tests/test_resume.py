"""A run that is stopped at step 20 and goes on has at step 40 the bits of one that was not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns import LNSConfig, LNSVariable
from tf_lns.layers.tree import all_layers

K = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STEPS = 20
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 11, (8 * STEPS, 5))
LABELS = RNG.integers(0, 3, 8 * STEPS)


@keras.saving.register_keras_serializable(package="test_resume")
class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.table = K.Embedding(11, 6)
        # Not in a list: TensorFlow's checkpoints do not see into lists of Keras layers.
        self.flat = K.Flatten()
        self.hidden = K.Dense(8, activation="relu")
        self.norm = K.BatchNormalization()
        self.head = K.Dense(3)

    def call(self, x):
        return self.head(self.norm(self.hidden(self.flat(self.table(x)))))


def subclassed():
    model = Subclassed()
    model(TOKENS[:2])
    return model


def recurrent():
    inputs = keras.Input((5,), dtype="int32")
    x = K.Embedding(11, 6, mask_zero=True)(inputs)
    x = K.Bidirectional(K.GRU(4, return_sequences=True))(x)
    return keras.Model(inputs, K.Dense(3)(K.LSTM(5)(x)))


def transformer():
    inputs = keras.Input((5,), dtype="int32")
    x = K.Embedding(11, 6)(inputs)
    h = K.LayerNormalization()(x)
    x = x + K.MultiHeadAttention(2, 3, dropout=0.0)(h, h, use_causal_mask=True)
    return keras.Model(inputs, K.Dense(3)(K.GlobalAveragePooling1D()(x)))


MODELS = pytest.mark.parametrize("make", [subclassed, recurrent, transformer])


def compiled(make):
    """The same model each time, with all that is random or small in its state."""
    keras.utils.set_random_seed(1)
    model = tf_lns.quantize_model(make(), LNSConfig(gradients="lns5:2"))
    model.compile(tf_lns.LNSMadam(rounding="stochastic", second_moment="lns8:4", seed=3), LOSS)
    return model


def train(model, callbacks=(), epochs=1, fit=keras.Model.fit):
    fit(
        model,
        TOKENS,
        LABELS,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return model


def state(model):
    """Everything that training changes."""
    found = []
    for layer in all_layers(model):
        for v in [*layer._trainable_variables, *layer._non_trainable_variables]:
            found += [v.codes, v.scale] if isinstance(v, LNSVariable) else [v.numpy()]
        found += [r.numpy() for r in getattr(layer, "input_ranges", [])]
    return found + [v.numpy() for v in model.optimizer.variables]


def assert_same(a, b):
    for x, y in zip(state(a), state(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def uninterrupted():
    """State at step 40 by model, made once."""
    made = {}

    def of(make):
        if make not in made:
            made[make] = train(train(compiled(make)))
        return made[make]

    return of


@MODELS
def test_keras_file(make, uninterrupted, tmp_path):
    train(compiled(make)).save(tmp_path / "m.keras")
    assert_same(train(keras.models.load_model(tmp_path / "m.keras")), uninterrupted(make))


@MODELS
def test_weights_file_of_a_compiled_model(make, uninterrupted, tmp_path):
    train(compiled(make)).save_weights(tmp_path / "m.weights.h5")
    model = compiled(make)
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "m.weights.h5")
    assert_same(train(model), uninterrupted(make))


@MODELS
def test_tensorflow_checkpoint(make, uninterrupted, tmp_path):
    first = train(compiled(make))
    path = tf.train.Checkpoint(model=first, optimizer=first.optimizer).save(str(tmp_path / "c"))
    model = compiled(make)
    model.optimizer.build(model.trainable_variables)
    reader = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    reader.restore(path).assert_existing_objects_matched()
    assert_same(train(model), uninterrupted(make))
    dtypes = set(tf.train.load_checkpoint(path).get_variable_to_dtype_map().values())
    assert tf.int16 in dtypes


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


@MODELS
def test_backup_and_restore(make, uninterrupted, tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    with pytest.raises(KeyboardInterrupt):
        train(compiled(make), [backup(), Stop()], epochs=2)
    model = compiled(make)
    assert_same(train(model, [backup()], epochs=2), uninterrupted(make))


@MODELS
def test_model_checkpoint(make, uninterrupted, tmp_path):
    path = tmp_path / "{epoch}.keras"
    train(compiled(make), [keras.callbacks.ModelCheckpoint(str(path))], epochs=2)
    model = keras.models.load_model(tmp_path / "1.keras")
    assert_same(train(model), uninterrupted(make))


@MODELS
def test_exports_hold_codes_and_serve_without_tf_lns(make, uninterrupted, tmp_path, run_python):
    model = uninterrupted(make)
    model.export(str(tmp_path / "export"), verbose=False)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    expected = model.predict(TOKENS[:8], verbose=0)
    np.save(tmp_path / "x.npy", TOKENS[:8])
    np.save(tmp_path / "y.npy", expected)
    codes = [v.codes for x in all_layers(model) for v in x._trainable_variables if is_lns(v)]
    for folder in ("export", "saved"):
        reader = tf.train.load_checkpoint(str(tmp_path / folder / "variables/variables"))
        stored = [reader.get_tensor(n) for n in reader.get_variable_to_dtype_map()]
        stored = [s for s in stored if getattr(s, "dtype", None) == np.int16]
        for c in codes:
            assert any(s.shape == c.shape and (s == c).all() for s in stored)
    run_python(
        """
        import sys
        import numpy as np
        import tensorflow as tf

        folder, library = sys.argv[1:]
        tf.load_op_library(library)
        x, y = np.load(folder + "/x.npy"), np.load(folder + "/y.npy")
        served = tf.saved_model.load(folder + "/export")
        np.testing.assert_allclose(served.serve(x), y, rtol=1e-5, atol=1e-6)
        saved = tf.saved_model.load(folder + "/saved")
        other = saved.signatures["serving_default"]
        (name,) = other.structured_input_signature[1]
        dtype = other.structured_input_signature[1][name].dtype
        (result,) = other(**{name: tf.cast(x[:2], dtype)}).values()  # the batch it was built for
        np.testing.assert_allclose(result, y[:2], rtol=1e-5, atol=1e-6)
        assert "tf_lns" not in sys.modules
        """,
        tmp_path,
        tf_lns.ops.library.path(),
    )


def is_lns(variable):
    return isinstance(variable, LNSVariable)
