"""The mathematics: tensors in, tensors out, each with its closed-form gradient."""

from tfnorm.functional.batch_kalman_normalization import (
    Estimate,
    Transition,
    batch_kalman_normalization,
    kalman_update,
)
from tfnorm.functional.batch_normalization import batch_normalization
from tfnorm.functional.batch_renormalization import batch_renormalization
from tfnorm.functional.channelwise import Moments, is_statically_positive
from tfnorm.functional.cross_iteration_batch_normalization import (
    PastMoments,
    compensate,
    covariance_cotangent,
    cross_iteration_batch_normalization,
    patch_cotangent,
)
from tfnorm.functional.inference import normalize_by_moving_statistics
from tfnorm.functional.moving_average_batch_normalization import (
    moving_average_batch_normalization,
)
from tfnorm.functional.synchronized_batch_normalization import synchronized_batch_normalization

__all__ = [
    "Estimate",
    "Moments",
    "PastMoments",
    "Transition",
    "batch_kalman_normalization",
    "batch_normalization",
    "batch_renormalization",
    "compensate",
    "covariance_cotangent",
    "cross_iteration_batch_normalization",
    "is_statically_positive",
    "kalman_update",
    "moving_average_batch_normalization",
    "normalize_by_moving_statistics",
    "patch_cotangent",
    "synchronized_batch_normalization",
]
