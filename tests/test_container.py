"""Subclassed models, layers made of layers, and users' own subclasses in LNS."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lns
from tf_lns import LNSConfig, LNSVariable, layers
from tf_lns.layers.container import LNSContainer, lns_class_for
from tf_lns.layers.tree import all_layers, children, pairs, walk

K = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NARROW = LNSConfig(gradients="lns5:2")


@keras.saving.register_keras_serializable(package="test_container")
class Block(keras.layers.Layer):
    """Makes its layers when it is built."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.up = K.Dense(self.units, activation="relu", name="up")
        self.up.build(shape)
        self.down = K.Dense(shape[-1], name="down")
        self.down.build((*shape[:-1], self.units))

    def call(self, x):
        return x + self.down(self.up(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="test_container")
class Net(keras.Model):
    """Layers as attributes, in a list and in a nested model; one is used twice.

    The constructor takes no `**kwargs`, as most people's do not, and `call` no `training`.
    """

    def __init__(self, width=8):
        super().__init__()
        self.stem = K.Dense(width)
        self.blocks = [Block(16), Block(12)]
        self.inner = keras.Sequential([K.Dense(width, activation="relu"), K.BatchNormalization()])
        self.head = K.Dense(3, name="head")

    def call(self, x):
        x = self.stem(x)
        for block in [*self.blocks, self.blocks[0]]:
            x = block(x)
        return self.head(self.inner(x))


@keras.saving.register_keras_serializable(package="test_container")
class Scaled(keras.layers.Dense):
    """A user's subclass of a known layer, with a call of its own."""

    def call(self, inputs):
        return 2.0 * super().call(inputs)


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


LABELS = np.arange(32) % 3


def codes(model):
    return [v.codes for layer in all_layers(model) for v in layer._trainable_variables if is_lns(v)]


def is_lns(variable):
    return isinstance(variable, LNSVariable)


def built(*arguments):
    net = Net(*arguments)
    net(data(2, 5))
    return net


def trained(model, epochs=1):
    if not model.compiled:
        model.compile(tf_lns.LNSMadam(rounding="stochastic", second_moment="lns8:4"), LOSS)
    model.fit(data(32, 5), LABELS, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model


def test_a_subclassed_model_is_copied_and_converted_at_any_depth():
    plain = built()
    lns = tf_lns.quantize_model(plain)
    assert isinstance(lns, Net)
    assert isinstance(lns, LNSContainer)
    assert type(plain) is Net
    assert not any(isinstance(layer, layers.LNSMixin) for layer in all_layers(plain))
    assert len(codes(lns)) == 7
    assert [x.name for x in all_layers(lns)] == [x.name for x in all_layers(plain)]
    assert [(w.path, w.shape) for w in lns.weights] == [(w.path, w.shape) for w in plain.weights]
    for a, b in zip(lns.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4)
    before = codes(lns)
    trained(lns)
    assert all((a != b).any() for a, b in zip(codes(lns), before, strict=True))


def test_layers_inside_learn_of_training_though_call_takes_none():
    lns = trained(tf_lns.quantize_model(built()))
    ranges = [r for x in all_layers(lns) for r in getattr(x, "input_ranges", [])]
    assert len(ranges) == 7
    assert all(r.numpy() > 0 for r in ranges)


def test_predictions_are_those_of_float_arrows():
    plain = built()
    config = LNSConfig(weights=None, activations=None, errors=None, gradients=None)
    lns = tf_lns.quantize_model(plain, config)
    x = data(6, 5)
    np.testing.assert_array_equal(lns(x), tf_lns.strip(lns)(x))


@pytest.mark.parametrize("make", [built, lambda: keras.Sequential([keras.Input((5,)), Net()])])
def test_resuming_from_a_keras_file_gives_the_same_bits(make, tmp_path):
    lns = trained(tf_lns.quantize_model(make(), NARROW, {"head": None}))
    lns.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again) is type(lns)
    for a, b in zip(codes(again), codes(lns), strict=True):
        np.testing.assert_array_equal(a, b)
    heads = [x for x in all_layers(again) if x.name == "head"]
    assert [type(x) for x in heads] == [keras.layers.Dense]
    configs = [x.lns_config for x in all_layers(again) if isinstance(x, layers.LNSMixin)]
    assert configs == [NARROW] * 6
    trained(lns)
    trained(again)
    for a, b in zip(again.get_weights(), lns.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_formats_of_layers_that_are_still_to_be_made(tmp_path):
    """The blocks of an unbuilt model make their layers later, after a reload even."""
    lns = tf_lns.quantize_model(Net(), NARROW)
    lns(data(2, 5))
    assert len(codes(lns)) == 7
    assert lns.blocks[1].up.lns_config == NARROW


def test_in_place_keeps_the_object():
    plain = built()
    values = plain.get_weights()
    lns = tf_lns.quantize_model(plain, in_place=True)
    assert lns is plain
    assert len(codes(lns)) == 7
    for a, b in zip(lns.get_weights(), values, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4)
    with pytest.raises(ValueError, match="in_place"):
        tf_lns.quantize_model(plain, in_place=True)


def test_a_model_that_cannot_be_copied_is_told_the_ways_out():
    class Needy(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x):
            return self.layer(x)

    plain = Needy(K.Dense(2))
    plain(data(2, 5))
    with pytest.raises(ValueError, match=r"(?s)get_config.*in_place"):
        tf_lns.quantize_model(plain)
    assert isinstance(tf_lns.quantize_model(plain, in_place=True).layer, layers.LNSDense)


def test_strip_gives_the_plain_class_back():
    lns = trained(tf_lns.quantize_model(built()))
    plain = tf_lns.strip(lns)
    assert type(plain) is Net
    assert not any(isinstance(x, layers.LNSMixin | LNSContainer) for x in all_layers(plain))
    for a, b in zip(plain.get_weights(), lns.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_quantizing_again_changes_formats_and_keeps_codes():
    lns = trained(tf_lns.quantize_model(built()))
    again = tf_lns.quantize_model(lns, NARROW)
    for a, b in zip(codes(again), codes(lns), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.head.lns_config == NARROW
    assert tf_lns.quantize_model(again).head.lns_config == NARROW


def test_a_pattern_holds_for_what_is_inside():
    inputs = keras.Input((4, 5))
    x = K.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    plain = keras.Model(inputs, K.Dense(2, name="head")(x))
    lns = tf_lns.quantize_model(plain, overrides={"attention": None, "value": NARROW})
    kinds = {x.name: type(x).__name__ for x in all_layers(lns)}
    assert kinds["attention"] == "MultiHeadAttention"
    assert kinds["query"] == "EinsumDense"
    assert kinds["value"] == "LNSEinsumDense"
    assert kinds["head"] == "LNSDense"


def test_a_function_is_asked_for_lns_layers_alone():
    asked = []

    def choose(layer):
        asked.append(layer.name)
        return LNSConfig() if isinstance(layer, keras.layers.Dense) else None

    plain = keras.Sequential([keras.Input((5,)), Net(), K.Dense(3, name="last")])
    lns = tf_lns.quantize_model(plain, overrides=choose)
    assert len(codes(lns)) == 8
    assert {"last", "head", "up", "down"} <= set(asked)
    assert not {"net", "sequential"} & set(asked)


def test_a_users_subclass_of_a_known_layer(tmp_path):
    plain = keras.Sequential([keras.Input((5,)), Scaled(4, name="own"), K.Dense(3)])
    config = LNSConfig(weights=None, activations=None)
    lns = tf_lns.quantize_model(plain, config)
    own = lns.layers[0]
    assert isinstance(own, Scaled)
    assert isinstance(own, layers.LNSDense)
    assert is_lns(own.kernel)
    x = data(6, 5)
    np.testing.assert_allclose(lns(x), plain(x), rtol=1e-2, atol=1e-2)
    trained(lns).save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(x), lns(x))
    assert type(tf_lns.strip(again).layers[0]) is Scaled
    with tf.GradientTape() as tape:  # errors of its product are quantized too
        y = tf_lns.quantize_model(plain).layers[0](x)
        error = data(6, 4)
        loss = tf.reduce_sum(y * error)
    assert tape.gradient(loss, y) is not None


def test_layers_with_a_quantization_of_their_own_stay_as_they_are():
    dense = K.Dense(4)
    dense.build((None, 5))
    dense.quantize("int8")
    assert lns_class_for(dense) is None
    lora = K.Dense(4)
    lora.build((None, 5))
    lora.enable_lora(2)
    assert lns_class_for(lora) is None


def test_a_compile_of_the_models_own_is_left_to_the_user():
    class Two(Net):
        def compile(self, first, second):
            super().compile()
            self.first, self.second = first, second

    plain = Two()
    plain(data(2, 5))
    plain.compile("a", "b")
    with pytest.warns(UserWarning, match="compile the converted model again"):
        tf_lns.quantize_model(plain)


def test_custom_train_steps_are_kept():
    class Doubled(Net):
        def train_step(self, pair):
            x, y = pair
            with tf.GradientTape() as tape:
                loss = 2.0 * self.compute_loss(y=y, y_pred=self(x, training=True))
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"doubled": loss}

    plain = Doubled()
    plain(data(2, 5))
    lns = tf_lns.quantize_model(plain)
    lns.compile(tf_lns.LNSMadam(), LOSS)
    history = lns.fit(data(32, 5), LABELS, verbose=0).history
    assert np.isfinite(history["doubled"]).all()


# --- The tree -----------------------------------------------------------------------------


def test_places_say_where_a_layer_is():
    net = built()
    places = dict(walk(net))
    assert places["stem"] is net.stem
    assert places["blocks.1.down"] is net.blocks[1].down
    assert places["inner.layers.0"] is net.inner.layers[0]
    assert len(set(map(id, places.values()))) == len(places)
    assert [place for place, _ in children(net)][:3] == ["stem", "blocks.0", "blocks.1"]


def test_pairs_of_different_models_are_refused():
    with pytest.raises(ValueError, match="holds other layers"):
        pairs(built(), keras.Sequential([keras.Input((5,)), K.Dense(2)]))


# --- Scope --------------------------------------------------------------------------------


def test_scope_makes_lns_layers_of_keras_layers(tmp_path):
    with tf_lns.scope(NARROW):
        net = Net()
        model = keras.Sequential(
            [K.Dense(4), K.BatchNormalization(), Scaled(3), K.Dense(3, name="last")]
        )
        with tf_lns.scope():
            inner = K.Conv1D(2, 1)
        given = layers.LNSDense(2, lns_config=LNSConfig(weights="lns6:2"))
    outside = K.Dense(4)
    assert type(outside) is keras.layers.Dense
    kinds = [type(x).__name__ for x in model.layers]
    assert kinds == ["LNSDense", "BatchNormalization", "Scaled", "LNSDense"]
    assert isinstance(model.layers[2], layers.LNSDense)
    assert model.layers[0].lns_config == NARROW
    assert inner.lns_config == LNSConfig()
    assert given.lns_config == LNSConfig(weights="lns6:2")
    assert isinstance(net, LNSContainer)
    x = data(32, 5)
    for m in (net, model):
        m(x)
        trained(m).save(tmp_path / "m.keras")
        np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), m(x))
    assert len(codes(net)) == 7
    assert len(codes(model)) == 3


def test_scope_ends_with_an_error_too():
    original = keras.layers.Layer.__new__
    with pytest.raises(RuntimeError), tf_lns.scope():
        raise RuntimeError
    assert keras.layers.Layer.__new__ is original
    assert type(K.Dense(1)) is keras.layers.Dense
    with pytest.raises(TypeError, match="config"), tf_lns.scope("lns8:8"):
        pass


def test_scope_is_of_one_thread():
    import threading

    made = []
    with tf_lns.scope():
        thread = threading.Thread(target=lambda: made.append(K.Dense(1)))
        thread.start()
        thread.join()
    assert type(made[0]) is keras.layers.Dense


# --- LNSWrapper ---------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_container")
class Product(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")
        self.bias = self.add_weight(shape=(3,), name="bias", initializer="ones")

    def call(self, x):
        return x @ self.kernel + self.bias


def test_wrapper_quantizes_a_layer_of_any_kind(tmp_path):
    inputs = keras.Input((5,))
    outputs = layers.LNSWrapper(Product(), NARROW)(inputs)
    model = keras.Model(inputs, outputs)
    wrapped = model.layers[1]
    assert is_lns(wrapped.layer.kernel)
    assert not is_lns(wrapped.layer.bias)
    x = data(7, 5)
    y = model(x, training=True)
    w = wrapped.layer.kernel
    expected = tf_lns.reference.quantize(x, "lns8:8") @ w.cell.read(w.cell.seen) + 1.0
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    trained(model).save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.layers[1].lns_config == NARROW
    np.testing.assert_array_equal(again(x), model(x))
    np.testing.assert_array_equal(again.layers[1].layer.kernel.codes, w.codes)


def test_wrapper_refuses_what_it_cannot_wrap():
    with pytest.raises(TypeError, match="layer"):
        layers.LNSWrapper("dense")
    with pytest.raises(ValueError, match="in LNS already"):
        layers.LNSWrapper(layers.LNSDense(2))


def test_a_wrapped_layer_is_converted_stripped_and_saved_with_its_model(tmp_path):
    inputs = keras.Input((5,))
    x = layers.LNSWrapper(Product(), NARROW, name="own")(inputs)
    model = keras.Model(inputs, K.Dense(3)(x))
    again = tf_lns.quantize_model(model, LNSConfig(weights="lns5:2"))
    own = again.get_layer("own")
    assert is_lns(own.kernel)
    assert own.kernel.cell.seen == tf_lns.LNSFormat(5, 2)
    trained(again).save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(data(4, 5)), again(data(4, 5)))
    plain = tf_lns.strip(model)
    assert type(plain.get_layer("own")) is Product
    np.testing.assert_array_equal(plain.get_weights()[0], model.get_weights()[0])


# --- What a reviewer found ------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_a_frozen_layer_trains_when_it_is_thawed(in_place):
    plain = keras.Sequential([keras.Input((5,)), Net(), K.Dense(3)])
    plain.layers[0].trainable = False
    lns = tf_lns.quantize_model(plain, in_place=in_place)
    before = codes(lns)
    trained(lns)
    assert all((a == b).all() for a, b in zip(codes(lns)[:-1], before[:-1], strict=True))
    lns.layers[0].trainable = True
    lns.compile(tf_lns.LNSMadam(), LOSS)
    trained(lns)
    assert all((a != b).any() for a, b in zip(codes(lns), before, strict=True))


def test_sharing_that_a_copy_would_lose_is_refused():
    a, b = keras.Input((4, 5)), keras.Input((5,))
    dense = K.Dense(3)
    plain = keras.Model([a, b], [K.TimeDistributed(dense)(a), dense(b)])
    with pytest.raises(ValueError, match=r"(?s)used in several places.*in_place"):
        tf_lns.quantize_model(plain)
    lns = tf_lns.quantize_model(plain, in_place=True)
    assert len(lns.trainable_variables) == 2


def test_variables_in_collections_and_in_other_layers_are_replaced():
    class Held(keras.layers.Layer):
        def build(self, shape):
            self.held = {"k": (self.add_weight(shape=(shape[-1], 4), name="kernel"), 1)}

        def call(self, x):
            return x @ self.held["k"][0]

    class Penalty(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = K.Dense(3)

        def build(self, shape):
            self.dense.build(shape)
            self.kernels = [self.dense.kernel]

        def call(self, x):
            self.add_loss(keras.ops.sum(keras.ops.square(self.kernels[0])))
            return self.dense(x)

    layer = Held()
    layer(data(2, 5))
    layers.LNSWrapper(layer)
    assert is_lns(layer.held["k"][0])
    net = Penalty()
    net(data(2, 5))
    lns = tf_lns.quantize_model(net)
    assert lns.kernels[0] is lns.dense.kernel
    assert len(lns.trainable_variables) == 2


def test_quantizing_within_a_scope_goes_by_its_own_arguments():
    plain = built()
    with tf_lns.scope():
        lns = tf_lns.quantize_model(plain, NARROW, overrides={"head": None})
        stripped = tf_lns.strip(lns)
    assert type(lns.head) is keras.layers.Dense
    assert lns.stem.lns_config == NARROW
    assert type(stripped.stem) is keras.layers.Dense


def test_a_subclass_whose_call_would_bypass_ours_stays_as_it_is():
    class Mine(keras.layers.SeparableConv1D):
        def call(self, inputs):
            return super().call(inputs)

    class Renamed(keras.layers.SeparableConv1D):
        pass

    assert lns_class_for(Mine(2, 2)) is None
    assert issubclass(lns_class_for(Renamed(2, 2)), layers.LNSSeparableConv1D)
    inputs = keras.Input((6, 3))
    with pytest.warns(UserWarning, match="Mine"):
        tf_lns.quantize_model(keras.Model(inputs, Mine(2, 2)(inputs)))


def test_inputs_in_a_collection_are_quantized():
    class Two(layers.LNSMixin, keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(5, 3), name="kernel")

        def call(self, pair):
            return pair["a"] @ self.kernel + pair["b"] @ self.kernel

    layer = Two(lns_config=LNSConfig(weights=None, activations="lns4:1"))
    pair = {"a": data(2, 5), "b": data(2, 5, seed=1)}
    expected = sum(tf_lns.reference.quantize(x, "lns4:1") for x in pair.values())
    y = layer(pair, training=True)
    np.testing.assert_allclose(y, expected @ layer.kernel.numpy(), rtol=1e-5, atol=1e-6)


def test_a_metric_that_cannot_be_copied_leaves_compiling_to_the_user():
    class Odd(keras.metrics.Mean):
        def __init__(self, needed):
            super().__init__()

    plain = built()
    plain.compile("adam", LOSS, metrics=[Odd(1)])
    with pytest.warns(UserWarning, match="compile the converted model again"):
        lns = tf_lns.quantize_model(plain)
    assert len(codes(lns)) == 7


def test_in_place_is_refused_before_anything_is_changed():
    plain = keras.Sequential(
        [keras.Input((5,)), K.Dense(4), K.Dense(3, kernel_constraint="non_neg", name="last")]
    )
    with pytest.raises(ValueError, match="constraint"):
        tf_lns.quantize_model(plain, in_place=True)
    assert not any(isinstance(x, layers.LNSMixin) for x in all_layers(plain))
    tf_lns.quantize_model(plain, overrides={"last": None}, in_place=True)


def test_in_place_forgets_functions_traced_before():
    """A model may predict without being compiled; its function holds the float weights."""
    plain = built()
    x = data(6, 5)
    plain.predict(x, verbose=0)
    lns = tf_lns.quantize_model(plain, LNSConfig(activation_scale=8.0), in_place=True)
    for layer in all_layers(lns):
        for variable in getattr(layer, "lns_variables", []):
            variable.assign(2.0 * variable.numpy())
    np.testing.assert_array_equal(lns.predict(x, verbose=0), lns(x))


def test_a_constraint_inside_a_model_that_stays_float_is_no_hindrance():
    inner = keras.Sequential(
        [keras.Input((5,)), K.Dense(3, kernel_constraint="non_neg")], name="inner"
    )
    plain = keras.Sequential([keras.Input((5,)), inner, K.Dense(2)])
    lns = tf_lns.quantize_model(plain, overrides={"inner": None}, in_place=True)
    assert len(codes(lns)) == 1
