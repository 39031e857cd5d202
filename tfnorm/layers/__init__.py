"""The normalizers as Keras layers."""

from tfnorm.layers.absorbed import Absorbed, Apart
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_instance_normalization import BatchInstanceNormalization
from tfnorm.layers.batch_kalman_normalization import BatchKalmanNormalization
from tfnorm.layers.batch_normalization import BatchNormalization
from tfnorm.layers.batch_renormalization import BatchRenormalization
from tfnorm.layers.cross_iteration_batch_normalization import CrossIterationBatchNormalization
from tfnorm.layers.eval_normalization import EvalNormalization
from tfnorm.layers.moving_average_batch_normalization import MovingAverageBatchNormalization
from tfnorm.layers.online_normalization import OnlineNormalization
from tfnorm.layers.switchable_normalization import SwitchableNormalization
from tfnorm.layers.weight_centralization import WeightCentralization
from tfnorm.layers.weight_standardization import WeightStandardization

__all__ = [
    "Absorbed",
    "Apart",
    "BatchInstanceNormalization",
    "BatchKalmanNormalization",
    "BatchNormalization",
    "BatchRenormalization",
    "ChannelNormalization",
    "CrossIterationBatchNormalization",
    "EvalNormalization",
    "MovingAverageBatchNormalization",
    "OnlineNormalization",
    "SwitchableNormalization",
    "WeightCentralization",
    "WeightStandardization",
]
