"""The mathematics: tensors in, tensors out, each with its closed-form gradient."""

from tfnorm.functional.batch_instance_normalization import batch_instance_normalization
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
    GRADIENTS,
    PastMoments,
    are_few,
    centred_samples,
    compensate,
    compensate_by_samples,
    covariance_cotangent,
    cross_iteration_batch_normalization,
    patch_cotangent,
)
from tfnorm.functional.eval_normalization import estimate_shares, eval_normalization
from tfnorm.functional.inference import normalize_by_moving_statistics
from tfnorm.functional.moving import move_mean_and_deviation, move_moments
from tfnorm.functional.moving_average_batch_normalization import (
    MovedAverages,
    PastAverages,
    moving_average_batch_normalization,
)
from tfnorm.functional.online_normalization import online_normalization, scale_layers
from tfnorm.functional.switchable_normalization import switchable_normalization
from tfnorm.functional.synchronized_batch_normalization import synchronized_batch_normalization
from tfnorm.functional.then import Then
from tfnorm.functional.weight_centralization import centralize
from tfnorm.functional.weight_standardization import standardize

__all__ = [
    "GRADIENTS",
    "Estimate",
    "Moments",
    "MovedAverages",
    "PastAverages",
    "PastMoments",
    "Then",
    "Transition",
    "are_few",
    "batch_instance_normalization",
    "batch_kalman_normalization",
    "batch_normalization",
    "batch_renormalization",
    "centralize",
    "centred_samples",
    "compensate",
    "compensate_by_samples",
    "covariance_cotangent",
    "cross_iteration_batch_normalization",
    "estimate_shares",
    "eval_normalization",
    "is_statically_positive",
    "kalman_update",
    "move_mean_and_deviation",
    "move_moments",
    "moving_average_batch_normalization",
    "normalize_by_moving_statistics",
    "online_normalization",
    "patch_cotangent",
    "scale_layers",
    "standardize",
    "switchable_normalization",
    "synchronized_batch_normalization",
]
