"""Moving statistics: averages that leave out groups which have seen nothing of use."""

import tensorflow as tf

from tfnorm.functional.channelwise import Moments, is_statically_positive


def move_moments(
    own: Moments, old: tuple[tf.Tensor, tf.Tensor], is_seen: tf.Tensor, *, momentum: float
) -> list[tf.Tensor]:
    """Moving mean and variance [C]: α·old + (1 − α)·own, of each group, then the mean of these.

    A group that has not seen anything of use (is_seen, [G, 1]) takes `old` for its own.
    """
    moved = [average(a, b, momentum) for a, b in zip(old, own[1:3])]
    return [of_groups(a, b, is_seen) for a, b in zip(moved, old)]


def move_mean_and_deviation(
    own: Moments,
    old: tuple[tf.Tensor, tf.Tensor],
    is_seen: tf.Tensor,
    *,
    momentum: float,
    epsilon: float,
) -> list[tf.Tensor]:
    """`move_moments`, but σ = sqrt(variance + ε) is averaged; the variance is σ² − ε of that.

    So that inference has one formula. The mean over groups is of the variance, as the mean over
    replicas is.
    """
    sigma = average(tf.sqrt(old[1] + epsilon), tf.sqrt(own.variance + epsilon), momentum)
    # Rounding must not make it negative where the variance is zero.
    moved = average(old[0], own.mean, momentum), tf.maximum(tf.square(sigma) - epsilon, 0)
    return [of_groups(a, b, is_seen) for a, b in zip(moved, old)]


def which_have_seen(count: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Which groups have seen something that may go into the state, and which are finite, [G, 1].

    Not those without a valid position (count [G, 1] of 0), nor those with moments that are not
    finite, which make the variance [G, C] so.
    """
    is_finite = tf.reduce_all(tf.math.is_finite(variance), -1, keepdims=True)
    if is_statically_positive(count):
        return is_finite, is_finite
    return tf.logical_and(is_finite, count > 0), is_finite


def average(old: tf.Tensor, new: tf.Tensor, momentum: float) -> tf.Tensor:
    """α·old + (1 − α)·new."""
    return momentum * old + (1 - momentum) * new


def of_groups(moved: tf.Tensor, old: tf.Tensor, is_seen: tf.Tensor) -> tf.Tensor:
    """The mean over groups of `moved`, or of `old` where a group has not seen anything."""
    kept = tf.where(is_seen, moved, old)
    return tf.squeeze(kept, 0) if kept.shape[0] == 1 else tf.reduce_mean(kept, axis=0)
