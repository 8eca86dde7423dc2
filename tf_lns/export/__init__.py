"""Hand-over to hardware: a model's codes, constants and test vectors as files, and back."""

from tf_lns.export.exported import Export, load_export
from tf_lns.export.vectors import ExportedProduct
from tf_lns.export.weights import ExportedWeight
from tf_lns.export.writing import export_model

__all__ = ["Export", "ExportedProduct", "ExportedWeight", "export_model", "load_export"]
