"""The models of tfmot's own Keras quantization tests, built anew: what `check_tfmot.py` runs.

tfmot's wheel has no tests. Each case names the test file of the repository (under
`tensorflow_model_optimization/python/core/quantization/keras`) that has a model like it: the
same layers with the same arguments.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization
import tf_keras

tfmot = tensorflow_model_optimization.quantization.keras
layers = tf_keras.layers
annotate = tfmot.quantize_annotate_layer


@dataclasses.dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: What it is, unique.
        origin: The test file.
        build: Returns the model, without annotations or with them.
        inactive: Whether the test is skipped there, or its row commented out.
        files: Other kinds of files, beside `.keras`, that the test saves and loads.
        scope: Custom objects for `quantize_scope`.
        error_at: The step at which the test wants an error.
        after: What the test does with the quantized model.
        quick: Whether the tests of tf_lns run it.
    """

    name: str
    origin: str
    build: Callable[[], Any]
    inactive: bool = False
    files: tuple[str, ...] = ()
    scope: dict[str, Any] = dataclasses.field(default_factory=dict)
    error_at: str = ""
    after: Callable[[Any], Any] | None = None
    quick: bool = False


def _chain(*parts: Callable[[], Any]) -> Callable[[], Any]:
    """A function that makes a sequential model of what these functions make."""
    return lambda: tf_keras.Sequential([part() for part in parts])


def _functional(
    shape: tuple[int, ...], *parts: Callable[[], Any], batch: int | None = None
) -> Callable[[], Any]:
    """The same as a functional model."""

    def build() -> Any:
        inputs = x = layers.Input(shape, batch)
        for part in parts:
            x = part()(x)
        return tf_keras.Model(inputs, x)

    return build


def _dense(units: int, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: layers.Dense(units, *args, **kwargs)


# --- default_8bit/default_8bit_transforms_test.py ---------------------------------------------

_TRANSFORMS = "default_8bit/default_8bit_transforms_test.py"
_NORMS = {
    "BatchNormalization": lambda: layers.BatchNormalization(axis=-1),
    "SyncBatchNormalization": lambda: layers.experimental.SyncBatchNormalization(axis=-1),
}
_ENDS: dict[str, list[Callable[[], Any]]] = {
    "": [],
    ", ReLU(6)": [lambda: layers.ReLU(6.0)],
    ', Activation("relu")': [lambda: layers.Activation("relu")],
}
_PRODUCTS: dict[str, tuple] = {
    "Conv2D": (lambda: layers.Conv2D(2, 1, use_bias=False), (1, 3, 3), 1),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(1, use_bias=False), (1, 10, 3), 8),
    "Dense": (_dense(32), (32,), 1),
}


def _squeeze() -> Any:
    return layers.Lambda(lambda x: tf.squeeze(x, [1]), name="sepconv1d_squeeze_1")


def _groups() -> Iterable[Case]:
    for (name, (product, shape, batch)), squeezed in itertools.product(
        _PRODUCTS.items(), (False, True)
    ):
        if squeezed and name == "Dense":
            continue
        for (norm, make_norm), (end, make_end) in itertools.product(_NORMS.items(), _ENDS.items()):
            middle = [_squeeze] if squeezed else []
            yield Case(
                f"{name}, {'Lambda(squeeze), ' if squeezed else ''}{norm}{end}",
                _TRANSFORMS,
                _functional(shape, product, *middle, make_norm, *make_end, batch=batch),
                quick=norm == "BatchNormalization" and not squeezed and end == ", ReLU(6)",
            )


def _separable() -> Iterable[Case]:
    constraints = tf_keras.constraints
    options: dict[str, dict[str, Any]] = {
        "valid": {"padding": "valid"},
        "same": {"padding": "same"},
        "same, dilation 2": {"padding": "same", "dilation_rate": 2},
        "strides 2": {"strides": 2},
        "dilation 2": {"dilation_rate": 2},
        "depth multiplier 2": {"depth_multiplier": 2},
        "regularizers": {
            f"{part}_regularizer": "l2" for part in ("depthwise", "pointwise", "bias", "activity")
        },
        "constraints": {
            "depthwise_constraint": constraints.MaxNorm(2.0),
            "pointwise_constraint": constraints.MinMaxNorm(0.0, 2.0),
            "bias_constraint": constraints.UnitNorm(),
        },
        "no bias": {"use_bias": False},
    }
    for (kind, shape), (name, given) in itertools.product(
        {"SeparableConv1D": (7, 3), "SeparableConv2D": (7, 6, 3)}.items(), options.items()
    ):
        if kind == "SeparableConv1D" and name == "no bias":
            continue
        make = getattr(layers, kind)
        yield Case(
            f"{kind}, {name}",
            _TRANSFORMS,
            _chain(
                lambda shape=shape: layers.Input(shape, batch_size=2),
                lambda make=make, given=given: make(filters=2, kernel_size=3, **given),
            ),
            quick=name in ("strides 2", "constraints"),
        )


def _two_inputs(*parts: Callable[[], Any], shape: tuple[int, ...] = (3,)) -> Callable[[], Any]:
    """Two inputs, joined by the first layer; the others follow."""

    def build() -> Any:
        inputs = [layers.Input(shape), layers.Input(shape)]
        x: Any = inputs
        for part in parts:
            x = part()(x)
        return tf_keras.Model(inputs, x)

    return build


def _concatenated(first: Callable[[], Any], shape: tuple[int, ...], shared: bool) -> Any:
    inputs = [layers.Input(shape) for _ in range(1 if shared else 2)]
    ends = [first()(x) for x in (inputs * 2 if shared else inputs)]
    return tf_keras.Model(inputs, layers.Concatenate()(ends))


def _concatenated_levels() -> Any:
    inputs = layers.Input((3,))
    x = layers.Dense(3)(inputs)
    for _ in range(3):
        x = layers.Concatenate()([x, layers.Dense(3)(inputs)])
    return tf_keras.Model(inputs, x)


def _concatenated_pairs() -> Any:
    inputs = [layers.Input((1, 2, 2)) for _ in range(4)]
    flat = [layers.Flatten()(x) for x in inputs]
    pairs = [layers.Concatenate()(flat[i : i + 2]) for i in (0, 2)]
    return tf_keras.Model(inputs, layers.Concatenate()(pairs))


def _transforms() -> Iterable[Case]:
    yield from _groups()
    yield from _separable()
    relus = {
        "ReLU(6)": lambda: layers.ReLU(6.0),
        'Activation("relu")': lambda: layers.Activation("relu"),
    }
    for name, relu in relus.items():
        yield Case(f"Add, {name}", _TRANSFORMS, _two_inputs(layers.Add, relu))
        conv = _chain(lambda: layers.Conv2D(5, 2, input_shape=(3, 3, 3)), relu)
        yield Case(f"Conv2D, {name}", _TRANSFORMS, conv, quick=name == "ReLU(6)")
    yield Case("two inputs, Concatenate", _TRANSFORMS, _two_inputs(layers.Concatenate))
    yield Case(
        "two Dense, Concatenate",
        _TRANSFORMS,
        lambda: _concatenated(_dense(3), (2,), shared=True),
        quick=True,
    )
    yield Case("Concatenate of Concatenate, three levels", _TRANSFORMS, _concatenated_levels)
    yield Case(
        "two Activation, Concatenate",
        _TRANSFORMS,
        lambda: _concatenated(lambda: layers.Activation("relu"), (2,), shared=False),
    )
    yield Case("four Flatten, Concatenate in pairs", _TRANSFORMS, _concatenated_pairs)


# --- default_8bit/quantize_numerical_test.py --------------------------------------------------


def _numerical() -> Iterable[Case]:
    stride = {"strides": (2, 2)}
    norm, relu = layers.BatchNormalization, layers.ReLU

    def conv(filters: int, step: int = 2, activation: Any = None) -> Callable[[], Any]:
        return lambda: layers.Conv2D(filters, 3, strides=step, activation=activation)

    def separable1d() -> Any:
        return layers.SeparableConv1D(5, 3, strides=2)

    stacked = [conv(10, 1, "relu"), *(conv(n, 2, "relu") for n in (10, 10, 5, 2))]
    nets: dict[str, tuple] = {
        "Conv2D, strides 2": ((32, 32, 3), conv(2)),
        "Dense alone": ((5,), _dense(3)),
        'Conv2D("relu"), ReLU': ((6, 6, 3), conv(2, 2, "relu"), relu),
        "five Conv2D": ((64, 64, 3), *stacked),
        "Conv2D, BatchNormalization, ReLU": ((6, 6, 3), conv(3), norm, relu),
        "DepthwiseConv2D, BatchNormalization, ReLU": (
            (6, 6, 3),
            lambda: layers.DepthwiseConv2D(3, **stride),
            norm,
            relu,
        ),
        "SeparableConv2D, BatchNormalization, ReLU": (
            (12, 12, 3),
            lambda: layers.SeparableConv2D(5, 3, **stride),
            norm,
            relu,
        ),
        "SeparableConv1D, BatchNormalization, ReLU": ((8, 3), separable1d, norm, relu),
        "SeparableConv1D, BatchNormalization": ((8, 3), separable1d, norm),
        "two SeparableConv1D with BatchNormalization, ReLU": (
            (8, 3),
            *(separable1d, norm, separable1d, norm, relu),
        ),
        "UpSampling2D (3, 4), nearest": (
            (32, 32, 3),
            lambda: layers.UpSampling2D((3, 4), interpolation="nearest"),
        ),
        "UpSampling2D (1, 5), bilinear": (
            (1, 3, 1),
            lambda: layers.UpSampling2D((1, 5), interpolation="bilinear"),
        ),
        "Conv2DTranspose, strides 2": (
            (32, 32, 3),
            lambda: layers.Conv2DTranspose(2, 3, **stride),
        ),
    }
    quick = ('Conv2D("relu"), ReLU', "two SeparableConv1D with BatchNormalization, ReLU")
    for name, (shape, *parts) in nets.items():
        yield Case(
            name,
            "default_8bit/quantize_numerical_test.py",
            _functional(shape, *parts),
            inactive="bilinear" in name,
            quick=name in quick,
        )


# --- quantize_functional_test.py --------------------------------------------------------------

_FUNCTIONAL = "quantize_functional_test.py"
_FLAT, _SERIES, _IMAGE, _VOLUME = (5,), (3, 6), (4, 6, 1), (3, 4, 6, 1)
_FILTERS = {"filters": 4, "kernel_size": 2}


def _single_layers() -> Iterable[Case]:
    rows: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("ReLU", _FLAT, {}),
        ("Softmax", _FLAT, {}),
        ("Conv1D", _SERIES, _FILTERS),
        ("Conv2D", _IMAGE, _FILTERS),
        ("Conv3D", _VOLUME, _FILTERS),
        ("Conv2DTranspose", _IMAGE, _FILTERS),
        ("Conv3DTranspose", _VOLUME, _FILTERS),
        ("UpSampling1D", _SERIES, {}),
        ("UpSampling2D", _IMAGE, {"interpolation": "nearest"}),
        ("UpSampling2D", _IMAGE, {"interpolation": "bilinear"}),
        ("UpSampling3D", _VOLUME, {}),
        ("ActivityRegularization", _FLAT, {}),
        ("Dense", _FLAT, {"units": 2}),
        ("Dropout", _FLAT, {"rate": 0.2}),
        ("Flatten", _FLAT, {}),
        ("Masking", _FLAT, {}),
        ("Permute", (10, 64), {"dims": (2, 1)}),
        ("RepeatVector", _FLAT, {"n": 3}),
        ("Reshape", _FLAT, {"target_shape": (5, 1, 1)}),
    ]
    for name, given in {
        "Cropping": {},
        "ZeroPadding": {},
        "SpatialDropout": {"rate": 0.2},
        "AveragePooling": {},
        "GlobalAveragePooling": {},
        "GlobalMaxPooling": {},
        "MaxPooling": {},
    }.items():
        for rank, shape in enumerate((_SERIES, _IMAGE, _VOLUME), start=1):
            rows.append((f"{name}{rank}D", shape, given))
    for rank, shape in enumerate((_SERIES, _IMAGE), start=1):
        for way in (1, 2, 3):
            rows.append((f"LocallyConnected{rank}D", shape, {**_FILTERS, "implementation": way}))
    of_no_test = (
        *("Conv1D", "Conv3D", "Conv3DTranspose", "AveragePooling3D", "MaxPooling1D"),
        *("MaxPooling3D", "ZeroPadding3D", "Masking", "RepeatVector", "UpSampling1D"),
        *("UpSampling3D", "LocallyConnected1D", "LocallyConnected2D", "ActivityRegularization"),
        *("Dropout", "Flatten", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    )
    for name, shape, given in rows:
        detail = "".join(f", {given[k]}" for k in ("interpolation",) if k in given)
        detail += f", way {given['implementation']}" if "implementation" in given else ""
        yield Case(
            f"one layer: {name}{detail}",
            _FUNCTIONAL,
            _chain(
                lambda name=name, shape=shape, given=given: getattr(layers, name)(
                    input_shape=shape, **given
                )
            ),
            inactive=name in of_no_test,
            quick=name in ("Conv1D", "LocallyConnected1D", "Masking") and "2" not in detail,
        )


def _digits() -> list[Any]:
    """The layers of `test_utils_mnist.py`."""
    return [
        layers.Conv2D(32, 5, padding="same", activation="relu", input_shape=(28, 28, 1)),
        layers.MaxPooling2D((2, 2), (2, 2), padding="same"),
        layers.Conv2D(64, 5, padding="same", activation="relu"),
        layers.MaxPooling2D((2, 2), (2, 2), padding="same"),
        layers.Flatten(),
        layers.Dense(1024, "relu"),
        layers.Dropout(0.4),
        layers.Dense(10, "softmax"),
    ]


def _functional_tests() -> Iterable[Case]:
    yield from _single_layers()
    yield Case("net for digits, sequential", _FUNCTIONAL, lambda: tf_keras.Sequential(_digits()))
    functional = _functional((28, 28, 1), *(lambda i=i: _digits()[i] for i in range(8)))
    yield Case("net for digits, functional", _FUNCTIONAL, functional, inactive=True)


# --- quantize_models_test.py ------------------------------------------------------------------


def _application(name: str, size: int) -> Callable[[], Any]:
    make = getattr(tf_keras.applications, name)
    return lambda: make(weights=None, input_shape=(size, size, 3))


def _applications() -> Iterable[Case]:
    for name, size in {"InceptionV3": 75, "MobileNet": 32, "MobileNetV2": 32}.items():
        yield Case(name, "quantize_models_test.py", _application(name, size))


# --- quantize_integration_test.py -------------------------------------------------------------

_INTEGRATION = "quantize_integration_test.py"


def simple_dense() -> Any:
    """The model of `test_utils.build_simple_dense_model`."""
    return tf_keras.Sequential(
        [layers.Dense(8, "relu", input_shape=(10,)), layers.Dense(5, "softmax")]
    )


class PlainConfig(tfmot.QuantizeConfig):
    """A user's config that quantizes nothing."""

    def get_weights_and_quantizers(self, layer: Any) -> list:
        """None."""
        return []

    def get_activations_and_quantizers(self, layer: Any) -> list:
        """None."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list) -> None:
        """Nothing to set."""
        return

    def set_quantize_activations(self, layer: Any, quantize_activations: list) -> None:
        """Nothing to set."""
        return

    def get_output_quantizers(self, layer: Any) -> list:
        """None."""
        return []

    def get_config(self) -> dict[str, Any]:
        """No arguments."""
        return {}


class ClippedQuantizer(tfmot.quantizers.Quantizer):
    """A user's quantizer: weights stay within -1 and 1."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """No variables."""
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict, **kwargs: Any) -> Any:
        """What is within."""
        return tf.clip_by_value(inputs, -1.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """No arguments."""
        return {}


class _KernelConfig(PlainConfig):
    """A user's config of a dense layer."""

    def get_weights_and_quantizers(self, layer: Any) -> list:
        """The kernel."""
        return [(layer.kernel, self.quantizer())]

    def get_activations_and_quantizers(self, layer: Any) -> list:
        """The activation, which is quantized in no way that is set."""
        moving = tfmot.quantizers.MovingAverageQuantizer(
            num_bits=8, per_axis=False, symmetric=False, narrow_range=False
        )
        return [(layer.activation, moving)]

    def set_quantize_weights(self, layer: Any, quantize_weights: list) -> None:
        """The kernel."""
        layer.kernel = quantize_weights[0]

    def quantizer(self) -> Any:
        """A new quantizer for a kernel."""
        raise NotImplementedError


class LastValueConfig(_KernelConfig):
    """With tfmot's own quantizer."""

    def quantizer(self) -> Any:
        """One of 8 bits."""
        return tfmot.quantizers.LastValueQuantizer(
            num_bits=8, per_axis=False, symmetric=False, narrow_range=False
        )


class ClippedConfig(_KernelConfig):
    """With the user's."""

    def quantizer(self) -> Any:
        """One that clips."""
        return ClippedQuantizer()


def _integration() -> Iterable[Case]:
    for kind in (LastValueConfig, ClippedConfig):

        def build(kind: Any = kind) -> Any:
            return tf_keras.Sequential(
                [
                    annotate(layers.Dense(8, input_shape=(10,)), kind()),
                    annotate(layers.Dense(5), kind()),
                ]
            )

        yield Case(
            f"user's config and quantizer: {kind.__name__}",
            _INTEGRATION,
            build,
            scope={kind.__name__: kind, "ClippedQuantizer": ClippedQuantizer},
            quick=kind is ClippedConfig,
        )
    files = (".h5", ".weights.h5", "SavedModel", "checkpoint")
    yield Case("two Dense in files", _INTEGRATION, simple_dense, files=files, quick=True)


# --- quantize_test.py -------------------------------------------------------------------------

_QUANTIZE = "quantize_test.py"


class CustomDense(layers.Dense):
    """A user's layer that is a Dense by another name."""


class CustomConv(layers.Layer):
    """A user's layer around a convolution."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.conv1 = layers.Conv2D(2, 2)

    def build(self, input_shape: Any) -> None:
        """Builds the convolution."""
        self.conv1.build(input_shape)

    def call(self, inputs: Any) -> Any:
        """The convolution."""
        return self.conv1(inputs)


class CustomConvConfig(PlainConfig):
    """Its config: the kernel inside."""

    def get_weights_and_quantizers(self, layer: Any) -> list:
        """The kernel."""
        quantizer = tfmot.quantizers.LastValueQuantizer(
            num_bits=8, symmetric=True, narrow_range=False, per_axis=False
        )
        return [(layer.conv1.kernel, quantizer)]

    def set_quantize_weights(self, layer: Any, quantize_weights: list) -> None:
        """The kernel."""
        layer.conv1.kernel = quantize_weights[0]


class _Subclassed(tf_keras.Model):
    """A model of no layers that tfmot could see."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """The inputs."""
        return inputs


def _conv(**kwargs: Any) -> Callable[[], Any]:
    return lambda: layers.Conv2D(32, 5, activation="relu", **kwargs)


def _annotated(make: Callable[[], Any], config: Any = None) -> Callable[[], Any]:
    return lambda: annotate(make(), config)


def _nested(inner_annotated: bool) -> Callable[[], Any]:
    inner = _chain(_dense(10, input_shape=(2,)))
    return _chain(inner, _dense(10) if inner_annotated else _annotated(_dense(10)))


def _fixed_range(model: Any) -> Any:
    """What has the inputs and outputs of a quantized model at given ranges."""
    from tensorflow_model_optimization.python.core.quantization.keras import quantize

    return quantize.fix_input_output_range(model)


def _of_dict() -> Any:
    inputs = layers.Input((5,), name="x")
    return tf_keras.Model({"x": inputs}, {"y": layers.Dense(10)(inputs)})


def _quantize() -> Iterable[Case]:
    image = (28, 28, 1)
    ends = [_annotated(_dense(10, "relu")), _annotated(_dense(5, "softmax"))]
    custom, plain = {"CustomDense": CustomDense}, {"PlainConfig": PlainConfig}

    def case(name: str, build: Any, **options: Any) -> Case:
        return Case(name, _QUANTIZE, build, **options)

    yield case("Dense, Dropout", _chain(_dense(10, input_shape=(5,)), lambda: layers.Dropout(0.4)))
    yield case("two Dense", simple_dense)
    yield case(
        "Dense, Dense with the user's config",
        _chain(_annotated(_dense(10, input_shape=(5,))), _annotated(_dense(5), PlainConfig())),
        scope=plain,
        quick=True,
    )
    yield case(
        "user's layer without config or scope",
        _chain(_annotated(lambda: CustomDense(3, input_shape=(2,)))),
        error_at="apply",
    )
    yield case(
        "user's layer without config",
        _chain(_annotated(lambda: CustomDense(3, input_shape=(2,)))),
        scope=custom,
        error_at="apply",
        quick=True,
    )
    yield case(
        "user's layer with the user's config",
        _chain(_annotated(lambda: CustomDense(3, input_shape=(2,)), PlainConfig())),
        scope={**custom, **plain},
    )
    yield case("one Dense annotated", _chain(_annotated(_dense(3, input_shape=(2,)))))
    yield case(
        "Dense with the user's config",
        _chain(_annotated(_dense(3, input_shape=(2,)), PlainConfig())),
        scope=plain,
    )
    yield case(
        "user's layer around Conv2D, with the user's config",
        _chain(_annotated(lambda: CustomConv(input_shape=(28, 28, 3)), CustomConvConfig())),
        scope={"CustomConv": CustomConv, "CustomConvConfig": CustomConvConfig},
    )
    yield case("Conv2D float, two Dense annotated", _chain(_conv(input_shape=image), *ends))
    yield case(
        "the same, functional",
        _functional(image, _conv(), *ends),
        quick=True,
    )
    yield case(
        "Conv2D and Dense float, Dense annotated",
        _chain(_conv(input_shape=image), _dense(10, "relu"), ends[1]),
    )
    yield case("that, functional", _functional(image, _conv(), _dense(10, "relu"), ends[1]))
    yield case("Conv2D and Dense annotated", _functional(image, _annotated(_conv()), ends[0]))
    yield case(
        "Dense, Dropout, Lambda",
        _chain(
            *(_dense(10, input_shape=(5,)), lambda: layers.Dropout(0.4)),
            lambda: layers.Lambda(lambda x: x + 1.0),
        ),
        quick=True,
    )
    yield case("a nested model that is not annotated", _nested(False), quick=True)
    yield case("a nested model", _nested(True), error_at="annotate")
    yield case("a subclassed model", _Subclassed, error_at="annotate")
    yield case("a model that is not built", _chain(_annotated(_dense(10))), error_at="apply")
    ranges = {
        "sequential": _chain(_dense(10, input_shape=(5,))),
        "functional": _functional((5,), _dense(10)),
        "of dictionaries": _of_dict,
    }
    for name, build in ranges.items():
        yield case(f"fix_input_output_range, {name}", build, after=_fixed_range)


# --- The other test files ---------------------------------------------------------------------


class MinimalCell(layers.Layer):
    """A recurrent cell of a user."""

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, input_shape: Any) -> None:
        """One kernel."""
        self.kernel = self.add_weight("kernel", (input_shape[-1], self.units))

    def call(self, inputs: Any, states: Any) -> Any:
        """The sum of the product and the state."""
        output = tf.matmul(inputs, self.kernel) + states[0]
        return output, [output]

    def get_config(self) -> dict[str, Any]:
        """The argument."""
        return {**super().get_config(), "units": self.units}


def _recurrent() -> Iterable[Case]:
    cells: dict[str, Callable[[], Any]] = {
        "LSTM": lambda: layers.LSTM(10),
        "GRU": lambda: layers.GRU(10),
        "RNN(LSTMCell)": lambda: layers.RNN(layers.LSTMCell(10)),
        "RNN([LSTMCell, GRUCell])": lambda: layers.RNN([layers.LSTMCell(10), layers.GRUCell(10)]),
        "RNN(the user's cell)": lambda: layers.RNN(MinimalCell(10)),
        "RNN([LSTMCell, the user's cell])": lambda: layers.RNN(
            [layers.LSTMCell(10), MinimalCell(10)]
        ),
    }
    for name, make in cells.items():
        yield Case(
            name,
            "default_8bit/default_8bit_quantize_registry_test.py",
            _functional((3, 2), make),
            inactive=True,
            scope={"MinimalCell": MinimalCell},
            error_at="apply" if "user" in name else "",
            quick=name in ("RNN([LSTMCell, GRUCell])", "RNN(the user's cell)"),
        )


def _given_kernel(shape: Any, dtype: Any = None, **kwargs: Any) -> np.ndarray:
    return np.array([[-1.0, 0.0], [0.0, 1.0]], np.float32)


def _two_outputs(as_dict: bool) -> Any:
    inputs = {f"input{i}": layers.Input((3,), name=f"input{i}") for i in (1, 2)}
    if not as_dict:
        inputs = dict.fromkeys(inputs, inputs["input1"])
    ends = [layers.ReLU(6.0)(layers.Dense(2)(x)) for x in inputs.values()]
    if not as_dict:
        return tf_keras.Model(inputs["input1"], ends)
    return tf_keras.Model(inputs, {f"output{i}": end for i, end in enumerate(ends, start=1)})


def _others() -> Iterable[Case]:
    wrapper, transformer = "quantize_wrapper_test.py", "graph_transformations/"
    transformer += "model_transformer_test.py"
    yield from _recurrent()
    yield Case(
        "Dense, its kernel from a function",
        wrapper,
        _chain(lambda: layers.Dense(2, kernel_initializer=_given_kernel, input_shape=(2,))),
        scope={"_given_kernel": _given_kernel},
    )
    yield Case("ReLU of two dimensions", wrapper, _chain(lambda: layers.ReLU(input_shape=(2, 1))))
    yield Case(
        "annotated with the user's config",
        "quantize_annotate_test.py",
        _chain(_annotated(_dense(5, "relu", input_shape=(10,)), PlainConfig())),
        scope={"PlainConfig": PlainConfig},
    )
    relu = _chain(_dense(2, input_shape=(3,)), lambda: layers.ReLU(6.0))
    yield Case("Dense, ReLU(6)", transformer, relu)
    yield Case("two Dense, ReLU(6), each an output", transformer, lambda: _two_outputs(False))
    yield Case("dictionaries of inputs and outputs", transformer, lambda: _two_outputs(True))
    clustered = "collab_opts/cluster_preserve/cluster_preserve_integration_test.py"
    first = _dense(5, "softmax", input_shape=(10,))
    yield Case("Dense, Flatten", clustered, _chain(first, layers.Flatten))
    yield Case(
        "two Dense of width 5", clustered, _chain(_dense(5, "relu", input_shape=(10,)), first)
    )
    yield Case(
        "Reshape, Conv2D, MaxPool2D, Flatten",
        clustered,
        _functional(
            (32, 32),
            lambda: layers.Reshape((32, 32, 1)),
            lambda: layers.Conv2D(8, 3, activation="relu"),
            lambda: layers.MaxPool2D(2, 2),
            layers.Flatten,
        ),
    )
    yield Case(
        "the same with Dense",
        "collab_opts/cluster_preserve/mnist_prune_cluster_preserve_qat_test.py",
        _functional(
            (28, 28),
            lambda: layers.Reshape((28, 28, 1)),
            lambda: layers.Conv2D(12, 3, activation="relu"),
            lambda: layers.MaxPool2D(2, 2),
            layers.Flatten,
            _dense(10),
        ),
    )


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    cases = [
        *_quantize(),
        *_integration(),
        *_functional_tests(),
        *_applications(),
        *_transforms(),
        *_numerical(),
        *_others(),
    ]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), [n for n in names if names.count(n) > 1]
    return cases
