"""What the tests of tf_lns.tfmot share: its import, which other tests must not feel, and nets.

tfmot sets TF_USE_LEGACY_KERAS when it is imported, and `tf.keras` becomes tf_keras the first time
that it is touched after that. So `tf.keras` is touched before, which makes it Keras 3 for the rest
of the process, and the variable is put back, for processes that other tests start.
"""

import os

import pytest
import tensorflow as tf

_before = os.environ.get("TF_USE_LEGACY_KERAS")
assert tf.keras.layers.Dense.__module__.startswith("keras."), "tf.keras is tf_keras already"
tfmot = pytest.importorskip("tensorflow_model_optimization").quantization.keras
tf_keras = pytest.importorskip("tf_keras")
if _before is None:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)

layers = tf_keras.layers


def quantized(model, scheme):
    """A model under a scheme, all its layers annotated."""
    return tfmot.quantize_apply(tfmot.quantize_annotate_model(model), scheme=scheme)
