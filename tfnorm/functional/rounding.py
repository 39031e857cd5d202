"""Large values that are almost equal, of which rounding the mean makes a variance.

Of many equal values of 1e10 in float32 it is 1.7e7 and not 0. Some values of each channel say where
it may be so. Of kernels and of few values the moments say it; then all values are taken less one of
them, and the moments again: hardly ever.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Up to so many values of each channel are looked at, spread over all of them.
_LOOKS = 64
# A mean of float32 may be rounded by so much of itself: a thousand units of its last place.
_ROUNDING = 1000 * float(np.finfo(np.float32).eps)


def may_be_rounded(mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """Of which channels the variance is no more than a rounding of the mean makes."""
    return tf.sqrt(variance) < _ROUNDING * tf.abs(mean)


def again_where_rounded(
    compute: Callable[[tf.Tensor], list[tf.Tensor]], x: tf.Tensor
) -> list[tf.Tensor]:
    """What `compute` returns of x [G, M, C]: mean and variance [G, C], and others.

    It returns those of the values less one of them, where the variance may be one of rounding.
    """
    own = compute(x)
    is_doubtful = may_be_rounded(own[0], own[1])

    def shifted() -> list[tf.Tensor]:
        shift = shift_of(x, is_doubtful)
        mean, *others = compute(x - tf.expand_dims(tf.cast(shift, x.dtype), 1))
        return [mean + shift, *others]

    result = tf.cond(tf.reduce_any(is_doubtful), shifted, lambda: own)
    for value, known in zip(result, own):
        value.set_shape(known.shape)
    return result


def shift_of(x: tf.Tensor, is_shifted: tf.Tensor) -> tf.Tensor:
    """The largest value of each channel of x [G, M, C] that `is_shifted` says [G, C], 0 of others.

    Of a channel with such a small deviation any value is near the mean.
    """
    value = tf.stop_gradient(tf.cast(tf.reduce_max(x, 1), tf.float32))
    return tf.where(is_shifted, value, tf.zeros_like(value))


def mean_without(x: tf.Tensor, mask: tf.Tensor | None, mean: tf.Tensor) -> tf.Tensor:
    """The mean [G, C] of x [G, M, C] without a rounding of equal values.

    It is the value where all that are looked at have the same, from which the mean is no further
    away than rounding may move it. If some of the others differ these are few, and then the two are
    a small part of a deviation apart.
    """
    if x.dtype == tf.float64:  # where it makes 1e-9 of 1e10
        return mean
    looks = every(x)
    least, largest = (
        reduce(looks if mask is None else tf.where(every(mask), looks, otherwise), 1)
        for reduce, otherwise in ((tf.reduce_min, np.inf), (tf.reduce_max, -np.inf))
    )
    is_rounded = tf.abs(largest - mean) < _ROUNDING * tf.abs(largest)
    # It differs from the mean by what both have no derivative of, and exactly.
    return tf.where((least == largest) & is_rounded, mean + tf.stop_gradient(largest - mean), mean)


def typical(x: tf.Tensor, mask: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
    """The mean [G, C] of the valid ones of some values of x [G, M, C], 0 of none; a constant.

    Of equal values it is that value, without rounding.
    """
    # They are cast, and not x: else XLA would write all of that in the other dtype.
    looks = tf.cast(every(x), dtype)
    valid = tf.ones_like(looks, tf.bool) if mask is None else every(mask)
    least, largest = (
        reduce(tf.where(valid, looks, otherwise), 1)
        for reduce, otherwise in ((tf.reduce_min, dtype.max), (tf.reduce_max, dtype.min))
    )
    number = tf.reduce_sum(tf.cast(valid, dtype), 1)
    mean = tf.reduce_sum(tf.where(valid, looks, 0), 1) / tf.maximum(number, 1)
    mean = tf.where(number > 0, tf.clip_by_value(mean, least, largest), 0)
    return tf.stop_gradient(mean)


def every(x: tf.Tensor) -> tf.Tensor:
    """Some positions of [G, M, ...], spread over all of them."""
    # Not x[:, ::step]: that copies number by number, which takes ten times as long.
    size = x.shape[1]
    if size is not None:
        step = max(-(-size // _LOOKS), 1)
        return x if step == 1 else tf.gather(x, np.arange(0, size, step, np.int32), axis=1)
    size = tf.shape(x)[1]
    return tf.gather(x, tf.range(0, size, tf.maximum(-(-size // _LOOKS), 1)), axis=1)
