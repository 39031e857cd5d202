"""The normalizers as Keras layers."""

from tfnorm.layers.absorbed import Absorbed, Apart
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_kalman_normalization import BatchKalmanNormalization
from tfnorm.layers.batch_normalization import BatchNormalization
from tfnorm.layers.batch_renormalization import BatchRenormalization
from tfnorm.layers.cross_iteration_batch_normalization import CrossIterationBatchNormalization
from tfnorm.layers.moving_average_batch_normalization import MovingAverageBatchNormalization
from tfnorm.layers.weight_centralization import WeightCentralization

__all__ = [
    "Absorbed",
    "Apart",
    "BatchKalmanNormalization",
    "BatchNormalization",
    "BatchRenormalization",
    "ChannelNormalization",
    "CrossIterationBatchNormalization",
    "MovingAverageBatchNormalization",
    "WeightCentralization",
]
