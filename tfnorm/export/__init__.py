"""From a trained model to one that serves: folded, written as a SavedModel, verified."""

from tfnorm.export.fold import fold
from tfnorm.export.quantization import Quantization
from tfnorm.export.report import Report, Row
from tfnorm.export.saved_model import ExportResult, export_saved_model
from tfnorm.export.verify import Verification
from tfnorm.serving.postprocessing import Postprocessing
from tfnorm.serving.preprocessing import Preprocessing

__all__ = [
    "ExportResult",
    "Postprocessing",
    "Preprocessing",
    "Quantization",
    "Report",
    "Row",
    "Verification",
    "export_saved_model",
    "fold",
]
