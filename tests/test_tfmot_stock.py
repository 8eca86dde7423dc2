"""Where tfmot's own 8-bit scheme fails, and that LNSScheme does not: docs/tfmot.md lists it.

A test here that fails says that a newer tfmot or tf_keras has mended something: take it out of
the list, and out of the code that works around it.
"""

import numpy as np
import pytest
import tensorflow as tf

from tests.tfmot_nets import layers, quantized, tf_keras, tfmot
from tf_lns.tfmot import LNSScheme

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
    tf_keras.utils.set_random_seed(1)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def stock(model):
    return tfmot.quantize_apply(tfmot.quantize_annotate_model(model))


def two_dense(**options):
    return tf_keras.Sequential(
        [layers.Dense(4, "relu", input_shape=(4,), **options), layers.Dense(2)]
    )


def functional(*parts, shape):
    inputs = x = layers.Input(shape)
    for part in parts:
        x = part(x)
    return tf_keras.Model(inputs, x)


def test_a_keras_file_does_not_load(tmp_path):
    path, x = tmp_path / "model.keras", normal(3, 4)
    model = stock(two_dense())
    model.compile("sgd", "mse")
    model.save(path)
    with tfmot.quantize_scope(), pytest.raises(ValueError, match=r"expected \d+ variables, but"):
        tf_keras.models.load_model(path)
    model = quantized(two_dense(), LNSScheme())
    model.compile("sgd", "mse")
    model.save(path)
    np.testing.assert_array_equal(tf_keras.models.load_model(path)(x), model(x))


@pytest.mark.parametrize("relu", [layers.ReLU, lambda: layers.Activation("relu")])
def test_a_product_before_a_relu_layer_is_not_quantized(relu):
    """The product's output is that of its float kernel, at whatever 8-bit grid."""
    model = functional(layers.Dense(4, name="d"), relu(), shape=(4,))
    x = np.eye(4, dtype=np.float32) * 4  # on the grid of the fresh quantizer of the inputs
    dense = stock(model).get_layer("quant_d")
    assert dense._weight_vars == []
    np.testing.assert_array_equal(dense(x), dense.layer(x))
    ours = quantized(model, LNSScheme()).get_layer("quant_d")
    assert len(ours.lns_variables) == 1
    assert np.abs(ours(x) - 4 * model.get_layer("d").kernel).max() > 0


class Nothing(tfmot.QuantizeConfig):
    """Quantizes nothing; what it is put on is annotated none the less."""

    def get_weights_and_quantizers(self, layer):
        return []

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_weights(self, layer, quantize_weights):
        return

    def set_quantize_activations(self, layer, quantize_activations):
        return

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


def test_token_ids_become_others():
    """They are the model's input, and inputs go through the quantizer of activations."""
    table = layers.Embedding(400, 3, input_length=4)
    model = tf_keras.Sequential([tfmot.quantize_annotate_layer(table, Nothing()), layers.Flatten()])
    ids = np.arange(400, dtype=np.float32).reshape(100, 4)
    with tfmot.quantize_scope({"Nothing": Nothing}):
        model = tfmot.quantize_apply(model)
    model.layers[0](ids, training=True)
    seen = model.layers[0](ids, training=False).numpy().astype(int)
    assert np.mean(seen != ids) > 0.3
    # Ours: test_tfmot.py, test_token_ids_are_never_quantized.


def test_an_operation_on_tensors_breaks_with_an_error_that_does_not_say_so():
    model = functional(layers.Dense(4), lambda x: x + 1.0, layers.Dense(2), shape=(4,))
    with pytest.raises(AttributeError, match="'list' object has no attribute 'dtype'"):
        stock(model)
    with pytest.raises(ValueError, match="write it as a layer"):
        LNSScheme().annotate(model)


def test_a_nested_model_is_refused():
    model = tf_keras.Sequential([two_dense(), layers.Dense(2)])
    with pytest.raises(ValueError, match="inside another keras Model is not supported"):
        stock(model)
    with pytest.raises(ValueError, match="Ways out"):
        LNSScheme().annotate(model)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: layers.Lambda(lambda x: x + 1.0), (4,)),
        (lambda: layers.SeparableConv1D(2, 3), (6, 3)),
    ],
    ids=["lambda", "separable"],
)
@pytest.mark.filterwarnings("ignore:Lambda layers are not supported by automatic model")
def test_a_functional_model_with_a_lambda_layer_needs_unsafe_deserialization(make, shape):
    """tfmot makes of a SeparableConv1D three layers, two of them Lambda."""
    model = functional(make(), layers.Flatten(), layers.Dense(2), shape=shape)
    with pytest.raises(ValueError, match="deserialization of a Lambda layer"):
        stock(model)
    assert len(quantized(model, LNSScheme()).layers[-1].lns_variables) == 1


def test_an_activity_regularizer_cannot_train():
    model = two_dense(activity_regularizer="l2")
    data = normal(8, 4), normal(8, 2)
    broken = stock(model)
    broken.compile("sgd", "mse")
    with pytest.raises(TypeError, match="out of scope"):
        broken.fit(*data, verbose=0)
    ours = quantized(model, LNSScheme())
    ours.compile("sgd", "mse")
    assert np.isfinite(ours.fit(*data, verbose=0).history["loss"][0])


def test_a_saved_model_forgets_the_optimizer(tmp_path):
    """tf_keras does, of models of its own layers too; ours are none the better for it."""
    for scheme in (None, LNSScheme()):
        model = stock(two_dense()) if scheme is None else quantized(two_dense(), scheme)
        model.compile(tf_keras.optimizers.Adam(0.01), "mse")
        model.fit(normal(8, 4), normal(8, 2), epochs=3, verbose=0)
        model.save(tmp_path / "model", save_format="tf")
        loaded = tf_keras.models.load_model(tmp_path / "model")
        assert int(model.optimizer.iterations) == 3
        assert int(loaded.optimizer.iterations) == 0
        x = normal(3, 4)
        np.testing.assert_array_equal(tf.convert_to_tensor(loaded(x)), model(x))


def test_batch_norm_on_two_devices_predicts_by_place_in_the_batch(run_python):
    """Each device keeps statistics of its own, in plain tf_keras too; synchronized they are one.

    `BatchNormalization(synchronized=True)` is no way out: its config forgets the argument, and
    whatever copies a model, as tfmot does, makes plain layers of it.
    """
    run_python(
        """
        import numpy as np, tensorflow as tf
        cpu, part = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration
        tf.config.set_logical_device_configuration(cpu, [part(), part()])
        import tf_keras, tf_lns.tfmot
        import tensorflow_model_optimization as tfmot
        q, layers = tfmot.quantization.keras, tf_keras.layers
        random = np.random.default_rng(0)
        x, y = random.normal(size=(20, 6)).astype("f"), random.normal(size=(20, 2)).astype("f")
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

        def trained(norm, scheme=None):
            with strategy.scope():
                tf_keras.utils.set_random_seed(0)
                model = tf_keras.Sequential(
                    [layers.Dense(4, input_shape=(6,)), norm(), layers.ReLU(), layers.Dense(2)])
                if scheme is not None:
                    model = q.quantize_apply(q.quantize_annotate_model(model), scheme=scheme)
                model.compile(tf_keras.optimizers.SGD(0.01), "mse")
            model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)  # the last one of 4
            return model

        def difference(model):
            whole = model.predict(x, batch_size=20, verbose=0)
            parts = [(whole[:n], model.predict(x[:n], verbose=0)) for n in (2, 5, 16)]
            return max(np.abs(a - b).max() for a, b in parts)

        def replicas_agree(model):
            parts = [v.values for v in model.variables if hasattr(v, "values")]
            assert parts
            values = [[np.asarray(tf.convert_to_tensor(v)) for v in pair] for pair in parts]
            return all(np.array_equal(*pair) for pair in values)

        plain = trained(layers.BatchNormalization)
        assert not replicas_agree(plain) and difference(plain) > 1e-3
        lns = trained(layers.experimental.SyncBatchNormalization, tf_lns.tfmot.LNSScheme())
        assert replicas_agree(lns) and difference(lns) == 0.0
        assert "synchronized" not in layers.BatchNormalization(synchronized=True).get_config()
        """
    )
