"""The functions of channelwise.py for few values of float32 in one group, without a mask, on a CPU.

Here the number of operations counts, and not that of passes over x.
"""

import tensorflow as tf

from tfnorm.functional import channelwise, fused, rounding
from tfnorm.functional.channelwise import (
    Moments,
    add_affine,
    normalize,
    normalize_gradient,
)
from tfnorm.functional.fused import batch_normalize_gradient

__all__ = [
    "add_affine",
    "batch_normalize",
    "batch_normalize_gradient",
    "moments",
    "normalize",
    "normalize_gradient",
]


def moments(x: tf.Tensor, mask: None = None, *, epsilon: float = 0) -> Moments:
    """`channelwise.moments`."""
    del mask, epsilon
    return _centre(x)[1]


def batch_normalize(
    x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float, mask: None = None
) -> tuple[tf.Tensor, Moments]:
    """`channelwise.batch_normalize`."""
    del mask
    centred, own = _centre(x)
    return normalize(centred, None, own.variance, scale, offset, epsilon), own


def _centre(x: tf.Tensor) -> tuple[tf.Tensor, Moments]:
    """Computes x − mean, and the moments; in the backward pass a kernel sees it, of mean 0."""
    mean, variance, centred = rounding.again_where_rounded(_about_mean, x)
    reserved = fused.of_one_group(tf.zeros_like(mean)), fused.of_one_group(variance), tf.zeros([0])
    saved = centred, *reserved
    return centred, Moments(channelwise.positions(x), mean, variance, saved)


def _about_mean(x: tf.Tensor) -> list[tf.Tensor]:
    mean = channelwise.mean(x)
    centred = channelwise.centre(x, mean)
    return [mean, channelwise.mean_square(centred), centred]
