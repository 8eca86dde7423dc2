"""LNS for tf_keras models that are trained with tensorflow-model-optimization.

    import tf_lns.tfmot
    model = tfmot.quantization.keras.quantize_apply(
        annotated, scheme=tf_lns.tfmot.LNSScheme(tf_lns.LNSConfig()))

Importing it imports tensorflow_model_optimization, which sets TF_USE_LEGACY_KERAS: from then on
`tf.keras` is tf_keras, unless it was touched before. Importing tf_lns alone does neither.
"""

from tf_lns.tfmot.callback import EnergyCallback
from tf_lns.tfmot.convert import convert
from tf_lns.tfmot.optimizer import LNSSGD, InverseSqrtDecay, LNSAdamW, LNSMadam
from tf_lns.tfmot.quantize_config import LNSQuantizeConfig
from tf_lns.tfmot.quantizer import LNSQuantizer
from tf_lns.tfmot.scheme import LNSScheme
from tf_lns.tfmot.strip import strip

__all__ = [
    "LNSSGD",
    "EnergyCallback",
    "InverseSqrtDecay",
    "LNSAdamW",
    "LNSMadam",
    "LNSQuantizeConfig",
    "LNSQuantizer",
    "LNSScheme",
    "convert",
    "strip",
]
