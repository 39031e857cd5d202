"""Large values that are almost equal, of which rounding the mean makes a variance.

Of many equal values of 1e10 in float32 it is 1.7e7 and not 0. Some values of each channel say where
it may be so. Of a kernel that cannot be helped then all values are taken less one of them: hardly
ever, so that this stands in a branch of a function that all layers share, in their graphs one
operation.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Up to so many values of each channel are looked at, spread over all of them.
_LOOKS = 64
# A mean of float32 may be rounded by so much of itself: a thousand units of its last place.
_ROUNDING = 1000 * float(np.finfo(np.float32).eps)


def shifted(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(x − shift, shift [G, C]) for x [G, M, C]; the shift is a value of x, or 0.

    It is 0 for every channel whose values lie further apart than a mean is rounded.
    """
    values, shift = _shared(x.dtype)(tf.stop_gradient(x))
    values.set_shape(x.shape)
    shift.set_shape([x.shape[0], x.shape[2]])
    return _as_if_of(x, values), shift


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
    return tf.where((least == largest) & is_rounded, tf.stop_gradient(largest), mean)


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


@functools.cache
def _shared(dtype: tf.DType) -> Callable:
    in_graph = tf.function(
        _shifted, input_signature=[tf.TensorSpec([None, None, None], dtype)], autograph=False
    )
    return lambda x: _shifted(x) if tf.executing_eagerly() else in_graph(x)


def _shifted(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    looks = tf.cast(every(x), tf.float32)
    least, largest = tf.reduce_min(looks, 1), tf.reduce_max(looks, 1)
    size = tf.maximum(tf.abs(least), tf.abs(largest))
    shift = tf.where(largest - least < _ROUNDING * size, largest, 0)
    values = tf.cond(
        tf.reduce_any(shift != 0), lambda: x - tf.cast(shift[:, None], x.dtype), lambda: x
    )
    return values, shift


@tf.custom_gradient
def _as_if_of(x: tf.Tensor, values: tf.Tensor):  # noqa: ANN202
    """The values, which are x less a constant: a branch has hidden where they come from."""
    del x
    return tf.identity(values), lambda gradient: (gradient, None)
