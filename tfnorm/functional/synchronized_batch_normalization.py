"""Batch normalization over all replicas, by one collective forward and one backward."""

from collections.abc import Callable

import tensorflow as tf

from tfnorm.functional import channelwise, fused
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.traced_once import traced_once
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
            packed, *dparameters = _pack_sums(*sums, gamma, beta)
            through = _through_moments(reduce_sum(packed), merged[:3], gamma, epsilon=epsilon)
            return fused.add_affine(direct, x, merged.mean, *through, valid), *dparameters

        return (y, merged.count, merged.mean, merged.variance), gradient

    x = view.flatten(x)
    y, count, mean, variance = normalize(x, *channelwise.scale_and_offset(x, gamma, beta))
    return view.restore(y), Moments(count, mean, variance)


def _pack(own: Moments) -> tf.Tensor:
    return _pack_moments(*own[:3], is_positive=channelwise.is_statically_positive(own.count))


@traced_once
def _pack_moments(
    count: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, *, is_positive: bool
) -> tf.Tensor:
    packed = tf.concat([count[0], mean[0], variance[0]], 0)
    if is_positive:
        return packed
    # An empty replica's moments may be anything, also NaN: it says 0.
    return tf.where(count[0] == 0, tf.zeros_like(packed), packed)


@traced_once
def _merge(packed: tf.Tensor) -> Moments:
    """The moments of all replicas, of [R, 1 + 2C]."""
    channels = (packed.shape[-1] - 1) // 2
    return channelwise.merged(*tf.split(packed[None], [1, channels, channels], axis=2))


@traced_once
def _pack_sums(
    dy_x_sum: tf.Tensor, dy_sum: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(Both sums in one vector, this replica's shares of ∂L/∂γ and ∂L/∂β)."""
    packed = tf.concat([channelwise.over_groups(dy_x_sum), channelwise.over_groups(dy_sum)], 0)
    dgamma = channelwise.gradient_of(gamma, dy_x_sum)
    return packed, dgamma, channelwise.gradient_of(beta, dy_sum)


@traced_once
def _through_moments(
    sums: tf.Tensor, merged: tuple[tf.Tensor, ...], gamma: tf.Tensor, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """What reaches x through the moments, as factor and offset of `add_affine`, [1, C]."""
    count, _, variance = merged
    count = channelwise.at_least_one(count)
    return channelwise.through_moments(tf.split(sums, 2), gamma, variance, count, epsilon)
