"""Batch normalization over all replicas, by one collective forward and one backward."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from tfnorm.functional import channelwise
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.suited import suited
from tfnorm.functional.traced_once import traced_for_any_size
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
    x, mask = view.flatten(x), view.flatten_mask(mask)
    options = {"by": suited(x, mask), "epsilon": epsilon}
    channels = x.shape[-1]
    merged: Any = None

    @tf.custom_gradient
    def normalize(x: tf.Tensor, *parameters: tf.Tensor):  # noqa: ANN202
        nonlocal merged
        packed = _pack(x, mask, **options)
        packed.set_shape([1 + 2 * channels])  # for the collectives
        y, merged = _normalize(x, gather(packed), parameters, **options)
        for values in merged[1:3]:
            channelwise.of_channels(values, x)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dy = channelwise.shaped(dy, x)
            direct, packed, *shares = _differentiate(dy, x, merged, parameters, mask, **options)
            packed.set_shape([2 * channels])
            dx = _add(direct, x, reduce_sum(packed), merged, parameters, mask, **options)
            return channelwise.shaped(dx, x), *shares

        return channelwise.shaped(y, x), gradient

    y = normalize(x, *channelwise.scale_and_offset(x, gamma, beta))
    return view.restore(y), channelwise.detached(merged)


@traced_for_any_size
def _pack(x: tf.Tensor, mask: tf.Tensor | None, *, by: ModuleType, epsilon: float) -> tf.Tensor:
    """(Count, mean, variance) of this replica in one vector, [1 + 2C]."""
    count, mean, variance, *_ = by.moments(x, mask, epsilon=epsilon)
    packed = tf.concat([count[0], mean[0], variance[0]], 0)
    if channelwise.is_statically_positive(count):
        return packed
    # An empty replica's moments may be anything, also NaN: it says 0.
    return tf.where(count[0] == 0, tf.zeros_like(packed), packed)


@traced_for_any_size
def _normalize(
    x: tf.Tensor,
    packed: tf.Tensor,
    parameters: tuple[tf.Tensor, tf.Tensor],
    *,
    by: ModuleType,
    epsilon: float,
) -> tuple[tf.Tensor, Moments]:
    """y, and the moments of all replicas, of [R, 1 + 2C]."""
    count, both = packed[None, :, :1], packed[None, :, 1:]
    merged = channelwise.merged(count, *tf.split(both, 2, axis=2))
    y = by.normalize(x, merged.mean, merged.variance, *parameters, epsilon)
    return y, merged


@traced_for_any_size
def _differentiate(
    dy: tf.Tensor,
    x: tf.Tensor,
    merged: Moments,
    parameters: tuple[tf.Tensor, tf.Tensor],
    mask: tf.Tensor | None,
    *,
    by: ModuleType,
    epsilon: float,
) -> tuple[tf.Tensor, ...]:
    """(What reaches x directly, both sums in one vector, this replica's ∂L/∂γ and ∂L/∂β)."""
    direct, *sums = by.normalize_gradient(
        dy, x, merged.mean, merged.variance, parameters[0], epsilon, mask
    )
    packed = tf.concat([channelwise.over_groups(values) for values in sums], 0)
    return direct, packed, *map(channelwise.gradient_of, parameters, sums)


@traced_for_any_size
def _add(
    direct: tf.Tensor,
    x: tf.Tensor,
    sums: tf.Tensor,
    merged: Moments,
    parameters: tuple[tf.Tensor, tf.Tensor],
    mask: tf.Tensor | None,
    *,
    by: ModuleType,
    epsilon: float,
) -> tf.Tensor:
    """∂L/∂x: what reaches x through the moments is added to what reaches it directly."""
    count = channelwise.at_least_one(merged.count)
    through = channelwise.through_moments(
        tf.split(sums, 2), parameters[0], merged.variance, count, epsilon
    )
    return by.add_affine(direct, x, merged.mean, *through, mask)
