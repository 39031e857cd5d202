"""From a trained model to one that serves: folded, written as a SavedModel, verified."""

from tfnorm.export.fold import fold
from tfnorm.export.report import Report, Row

__all__ = ["Report", "Row", "fold"]
