"""Batch normalization over all replicas, by one collective forward and one backward."""

from collections.abc import Callable

import tensorflow as tf

from tfnorm.functional import channelwise, fused
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.view import View


def synchronized_batch_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    gather: Callable[[tf.Tensor], tf.Tensor],
    reduce_sum: Callable[[tf.Tensor], tf.Tensor],
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, Moments]:
    """Normalizes each channel by the moments of the valid positions of all replicas.

    The formulas are those of `batch_normalization`. Forward, the packed (count, mean, variance)
    of every replica are gathered and merged by Chan's formula, which is free of the cancellation
    of E[x²] − E[x]²; backward, the packed (Σ ∂L/∂y, Σ ∂L/∂y·x̂) are summed. A replica without a
    valid position takes part with count 0.

    Args:
        x: this replica's part of the batch, any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        gather: from a vector [n] of each replica to all of them [R, n], on every replica.
        reduce_sum: from a vector [n] of each replica to their sum [n], on every replica.
        epsilon: added to the variance, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.

    Returns:
        y, of the shape and dtype of x, and the `Moments` of all replicas. The gradients of γ
        and β are this replica's share; the optimizer sums them as it does for every weight.
    """
    view = View(x, axis)
    valid = view.flatten_mask(mask)

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):  # noqa: ANN202
        merged = _merge(gather(_pack(fused.moments(x, epsilon, valid))))
        y = fused.normalize(x, merged.mean, merged.variance, gamma, beta, epsilon)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            direct, *sums = fused.normalize_gradient(
                dy, x, merged.mean, merged.variance, gamma, epsilon, valid
            )
            dy_x_mean, dy_mean = tf.split(
                reduce_sum(tf.concat([sums[0][0], sums[1][0]], 0)) / tf.maximum(merged.count[0], 1),
                2,
            )
            rstd = tf.math.rsqrt(merged.variance + epsilon)
            factor = gamma * rstd
            dx = fused.add_affine(
                direct, x, merged.mean, -factor * rstd * dy_x_mean, -factor * dy_mean, valid
            )
            return dx, *map(channelwise.gradient_of, (gamma, beta), sums)

        return (y, merged.count, merged.mean, merged.variance), gradient

    x = view.flatten(x)
    y, count, mean, variance = normalize(x, *channelwise.scale_and_offset(x, gamma, beta))
    return view.restore(y), Moments(count, mean, variance)


def _pack(own: Moments) -> tf.Tensor:
    packed = tf.concat([own.count[0], own.mean[0], own.variance[0]], 0)
    if channelwise.is_statically_positive(own.count):
        return packed
    # An empty replica's moments may be anything, also NaN: it says 0.
    return tf.where(own.count[0] == 0, tf.zeros_like(packed), packed)


def _merge(packed: tf.Tensor) -> Moments:
    """Chan, Golub & LeVeque (1979): count-weighted mean, and variance about it, of [R, 1 + 2C]."""
    channels = (packed.shape[-1] - 1) // 2
    count, mean, variance = tf.split(packed, [1, channels, channels], axis=1)
    total = tf.reduce_sum(count, 0, keepdims=True)
    weight = count / tf.maximum(total, 1)
    merged_mean = tf.reduce_sum(weight * mean, 0, keepdims=True)
    spread = variance + tf.math.squared_difference(mean, merged_mean)
    return Moments(total, merged_mean, tf.reduce_sum(weight * spread, 0, keepdims=True))
