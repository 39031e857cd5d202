"""Normalization layers for Keras that train at any batch size, fold into convolutions and serve."""

from tfnorm import quiet

if quiet.is_command():
    quiet.import_tensorflow()

from tfnorm import functional, layers, models, schedules, training
from tfnorm.conversion import convert
from tfnorm.errors import RunError, UserError
from tfnorm.export import export_saved_model, fold
from tfnorm.training import recalibrate
from tfnorm.version import __version__

__all__ = [
    "RunError",
    "UserError",
    "__version__",
    "convert",
    "export_saved_model",
    "fold",
    "functional",
    "layers",
    "models",
    "recalibrate",
    "schedules",
    "training",
]
