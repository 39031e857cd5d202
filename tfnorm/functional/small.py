"""The functions of channelwise.py for few values in one group, without a mask.

Here the number of operations counts, and not that of passes over x.
"""

import tensorflow as tf

from tfnorm.functional import channelwise, rounding
from tfnorm.functional.channelwise import (
    Moments,
    add_affine,
    normalize,
    normalize_gradient,
)
from tfnorm.functional.traced_once import traced_for_any_size

__all__ = [
    "add_affine",
    "batch_normalize",
    "batch_normalize_gradient",
    "moments",
    "normalize",
    "normalize_gradient",
]


def moments(x: tf.Tensor, mask: None = None, *, epsilon: float = 0) -> Moments:
    """`channelwise.moments`; what is saved is x − mean."""
    del mask, epsilon

    def about_mean(values: tf.Tensor) -> list[tf.Tensor]:
        mean = channelwise.mean(values)
        centred = channelwise.centre(values, mean)
        return [mean, channelwise.mean_square(centred), centred]

    x = tf.cast(x, channelwise.statistics_dtype(x))
    mean, variance, centred = rounding.again_where_rounded(about_mean, x)
    return Moments(channelwise.positions(x), mean, variance, (centred,))


def batch_normalize(
    x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float, mask: None = None
) -> tuple[tf.Tensor, Moments]:
    """`channelwise.batch_normalize`."""
    del mask
    own = moments(x)
    factor = scale * tf.math.rsqrt(own.variance + epsilon)
    return channelwise.affine(*own.saved, factor, offset, x.dtype), own


@traced_for_any_size
def batch_normalize_gradient(
    dy: tf.Tensor,
    x: tf.Tensor | None,
    own: Moments,
    scale: tf.Tensor,
    mask: None = None,
    *,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`channelwise.batch_normalize_gradient`, of what is saved."""
    del x, mask
    about_mean = own._replace(mean=None)
    dx, *sums = channelwise.batch_normalize_gradient(
        dy, *own.saved, about_mean, scale, epsilon=epsilon
    )
    return tf.cast(dx, dy.dtype), *sums
