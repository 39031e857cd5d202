"""Switchable normalization (Luo et al. 2018)."""

import tensorflow as tf

from tfnorm.functional import channelwise, examplewise, fused
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
    flat = tf.cast(view.flatten(x), channelwise.statistics_dtype(x))
    parameters = channelwise.scale_and_offset(flat, gamma, beta)
    gamma, beta = map(examplewise.awaited, parameters)
    of_mean, of_variance = (
        tf.unstack(tf.nn.softmax(tf.cast(weights, flat.dtype)))
        for weights in (mean_weights, variance_weights)
    )
    if view.has_one_position and mask is None:
        batch = fused.moments(flat, epsilon=epsilon)
        of_batch = (batch.mean, batch.variance) if moving is None else moving
        centred, variance = _of_one_position(flat, of_batch, of_mean, of_variance)
        y = centred * tf.math.rsqrt(variance + epsilon) * gamma + beta
        return tf.cast(view.restore(y), x.dtype), batch
    valid = view.by_example(view.flatten_mask(mask))
    rows = view.by_example(flat)
    instance = _unbiased(examplewise.moments(rows, valid))
    batch = examplewise.of_batch(instance, groups)
    of_batch = (batch.mean, batch.variance) if moving is None else moving
    layer_mean = tf.reduce_mean(instance.mean, -1, keepdims=True)
    spread = instance.variance + tf.square(instance.mean - layer_mean)
    layer_variance = tf.reduce_mean(spread, -1, keepdims=True)
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


def _of_one_position(
    x: tf.Tensor,
    of_batch: tuple[tf.Tensor, tf.Tensor],
    of_mean: list[tf.Tensor],
    of_variance: list[tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """(x − mean, variance) of x [G, n, C], as behind a dense layer: an instance is its own mean."""
    batch_mean, batch_variance = map(channelwise.at_positions, of_batch)
    layer_mean = tf.reduce_mean(x, -1, keepdims=True)
    about_layer = x - layer_mean
    layer_variance = tf.reduce_mean(tf.square(about_layer), -1, keepdims=True)
    # a_1·(x − layer mean) + a_2·(x − batch mean), by products of the means alone.
    apart = of_mean[2] * layer_mean - of_mean[2] * batch_mean
    centred = (of_mean[1] + of_mean[2]) * about_layer + apart
    return centred, of_variance[1] * layer_variance + of_variance[2] * batch_variance


def _unbiased(own: Moments) -> Moments:
    """With the variance divided by m − 1, as the official code does; 0 for a single position."""
    bessel = own.count / channelwise.at_least_one(own.count - 1)
    return own._replace(variance=own.variance * bessel)
