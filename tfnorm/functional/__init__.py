"""The mathematics: tensors in, tensors out, each with its closed-form gradient."""

from tfnorm.functional.batch_normalization import batch_normalization
from tfnorm.functional.batch_renormalization import batch_renormalization
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.inference import normalize_by_moving_statistics
from tfnorm.functional.synchronized_batch_normalization import synchronized_batch_normalization

__all__ = [
    "Moments",
    "batch_normalization",
    "batch_renormalization",
    "normalize_by_moving_statistics",
    "synchronized_batch_normalization",
]
