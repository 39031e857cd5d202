"""Batch normalization over all replicas, by one collective forward and one backward."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfnorm.functional import channelwise, fused
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.traced_once import traced_once
from tfnorm.functional.view import Layout, View


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
    options = {"layout": Layout(axis), "epsilon": epsilon}
    merged: Any = None

    @tf.custom_gradient
    def normalize(x: tf.Tensor, *parameters: tf.Tensor):  # noqa: ANN202
        nonlocal merged
        packed = gather(_pack(x, mask, **options))
        y, merged = _normalize(x, packed, parameters, **options)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            direct, packed, *dparameters = _differentiate(
                dy, x, merged, parameters, mask, **options
            )
            sums = reduce_sum(packed)
            return _add(direct, x, sums, merged, parameters, mask, **options), *dparameters

        return y, gradient

    y = normalize(x, *channelwise.scale_and_offset(x, gamma, beta, axis))
    return y, channelwise.detached(merged)


@traced_once
def _pack(x: tf.Tensor, mask: tf.Tensor | None, *, layout: Layout, epsilon: float) -> tf.Tensor:
    """(Count, mean, variance) of this replica in one vector, [1 + 2C]."""
    view = View(x, *layout)
    x, mask = view.flatten(x), view.flatten_mask(mask)
    count, mean, variance, _ = fused.moments(x, mask, epsilon=epsilon)
    packed = tf.concat([count[0], mean[0], variance[0]], 0)
    if channelwise.is_statically_positive(count):
        return packed
    # An empty replica's moments may be anything, also NaN: it says 0.
    return tf.where(count[0] == 0, tf.zeros_like(packed), packed)


@traced_once
def _normalize(
    x: tf.Tensor,
    packed: tf.Tensor,
    parameters: tuple[tf.Tensor, tf.Tensor],
    *,
    layout: Layout,
    epsilon: float,
) -> tuple[tf.Tensor, Moments]:
    """y, and the moments of all replicas, of [R, 1 + 2C]."""
    view = View(x, *layout)
    x = view.flatten(x)
    channels = x.shape[-1]
    merged = channelwise.merged(*tf.split(packed[None], [1, channels, channels], axis=2))
    y = fused.normalize(x, merged.mean, merged.variance, *parameters, epsilon)
    return view.restore(y), merged


@traced_once
def _differentiate(
    dy: tf.Tensor,
    x: tf.Tensor,
    merged: Moments,
    parameters: tuple[tf.Tensor, tf.Tensor],
    mask: tf.Tensor | None,
    *,
    layout: Layout,
    epsilon: float,
) -> tuple[tf.Tensor, ...]:
    """(What reaches x directly, both sums in one vector, this replica's ∂L/∂γ and ∂L/∂β)."""
    view = View(x, *layout)
    dy, x, mask = view.flatten(dy), view.flatten(x), view.flatten_mask(mask)
    direct, *sums = fused.normalize_gradient(
        dy, x, merged.mean, merged.variance, parameters[0], epsilon, mask
    )
    packed = tf.concat([channelwise.over_groups(values) for values in sums], 0)
    return direct, packed, *map(channelwise.gradient_of, parameters, sums)


@traced_once
def _add(
    direct: tf.Tensor,
    x: tf.Tensor,
    sums: tf.Tensor,
    merged: Moments,
    parameters: tuple[tf.Tensor, tf.Tensor],
    mask: tf.Tensor | None,
    *,
    layout: Layout,
    epsilon: float,
) -> tf.Tensor:
    """∂L/∂x: what reaches x through the moments is added to what reaches it directly."""
    view = View(x, *layout)
    x, mask = view.flatten(x), view.flatten_mask(mask)
    count = channelwise.at_least_one(merged.count)
    through = channelwise.through_moments(
        tf.split(sums, 2), parameters[0], merged.variance, count, epsilon
    )
    return view.restore(fused.add_affine(direct, x, merged.mean, *through, mask))
