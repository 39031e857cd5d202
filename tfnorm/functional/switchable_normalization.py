"""Switchable normalization (Luo et al. 2018)."""

import tensorflow as tf

from tfnorm.functional import channelwise, examplewise
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.view import View


def switchable_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    mean_weights: tf.Tensor,
    variance_weights: tf.Tensor,
    moving: tuple[tf.Tensor, tf.Tensor] | None = None,
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    groups: int = 1,
) -> tuple[tf.Tensor, Moments]:
    """Normalizes by a weighted mean of instance, layer and batch statistics (equations 3 to 5).

    mean = Σ softmax(a)_k·μ_k, variance = Σ softmax(b)_k·σ²_k, y = γ·(x − mean)/sqrt(variance + ε)
    + β. Instance statistics are those of an example's channel, its variance Bessel's as in the
    official code; layer statistics those of all channels of an example, batch statistics those of a
    channel over all examples of a group, both computed from the instances'. Gradient flows through
    all of them.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        mean_weights: a [3], of the means of instance, layer and batch, before the softmax.
        variance_weights: b [3], likewise.
        moving: (mean, variance), each [C], in place of the batch's: inference.
        epsilon: added to the variance, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, True where valid.
        groups: the number of virtual replicas, consecutive parts of the batch.

    Returns:
        y, of the shape and dtype of x, and the `Moments` of each group.

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = View(x, axis, groups)
    valid = view.by_example(view.flatten_mask(mask))
    rows = tf.cast(view.by_example(view.flatten(x)), channelwise.statistics_dtype(x))
    parameters = channelwise.scale_and_offset(rows, gamma, beta)
    gamma, beta = map(examplewise.awaited, parameters)
    instance = _unbiased(examplewise.moments(rows, valid))
    batch = examplewise.of_batch(instance, groups)
    of_batch = (batch.mean, batch.variance) if moving is None else moving
    layer_mean = tf.reduce_mean(instance.mean, -1, keepdims=True)
    spread = instance.variance + tf.square(instance.mean - layer_mean)
    layer_variance = tf.reduce_mean(spread, -1, keepdims=True)
    of_mean, of_variance = (
        tf.unstack(tf.nn.softmax(tf.cast(weights, rows.dtype)))
        for weights in (mean_weights, variance_weights)
    )
    batch_mean, batch_variance = (examplewise.to_examples(v, instance.mean) for v in of_batch)
    mean = of_mean[0] * instance.mean + of_mean[1] * layer_mean + of_mean[2] * batch_mean
    variance = (
        of_variance[0] * instance.variance
        + of_variance[1] * layer_variance
        + of_variance[2] * batch_variance
    )
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    y = examplewise.transform(rows, mean, scale, beta, valid)
    return tf.cast(view.restore(y), x.dtype), batch


def _unbiased(own: Moments) -> Moments:
    """With the variance divided by m − 1, as the official code does; 0 for a single position."""
    bessel = own.count / channelwise.at_least_one(own.count - 1)
    return own._replace(variance=own.variance * bessel)
