"""The normalizers as Keras layers."""

from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_normalization import BatchNormalization
from tfnorm.layers.batch_renormalization import BatchRenormalization

__all__ = ["BatchNormalization", "BatchRenormalization", "ChannelNormalization"]
