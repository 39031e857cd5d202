"""Batch-instance normalization (Nam & Kim 2018)."""

import tensorflow as tf

from tfnorm.functional import channelwise, examplewise
from tfnorm.functional.batch_normalization import batch_normalization
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.inference import normalize_by_moving_statistics
from tfnorm.functional.then import NOTHING, Then
from tfnorm.functional.view import View


def batch_instance_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    gate: tf.Tensor,
    moving: tuple[tf.Tensor, tf.Tensor] | None = None,
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    groups: int = 1,
    then: Then = NOTHING,
) -> tuple[tf.Tensor, Moments | None]:
    """Mixes what batch and instance normalization make of x, channel by channel (equation 3).

    y = γ·(ρ·x̂_batch + (1 − ρ)·x̂_instance) + β, with x̂ = (x − μ)/sqrt(σ² + ε) by the moments of a
    channel over all examples of a group, and of one example. Gradient flows through both.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        gate: ρ [C].
        moving: (mean, variance), each [C], in place of the batch's: inference.
        epsilon: added to the variances, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, True where valid.
        groups: the number of virtual replicas, consecutive parts of the batch.
        then: what else to make of the `Moments`, their `derived`; not at inference.

    Returns:
        y, of the shape and dtype of x, and the `Moments` of each group (no gradient flows
        through them); at inference, which needs none, None.

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = View(x, axis, groups)
    if view.has_one_position:
        # What an example normalizes by itself is 0 then, whatever x is.
        return _of_batch_alone(x, gamma, beta, gate, moving, epsilon, axis, mask, groups, then)
    rows = tf.cast(view.by_example(view.flatten(x)), channelwise.statistics_dtype(x))
    parameters = *channelwise.scale_and_offset(rows, gamma, beta), tf.cast(gate, rows.dtype)
    valid = view.by_example(view.flatten_mask(mask))
    mixture = examplewise.Mixture(_mixture, _mixture_gradient)
    y, own = examplewise.normalize(
        rows, mixture, parameters, moving, valid, groups=groups, then=then, epsilon=epsilon
    )
    return tf.cast(view.restore(y), x.dtype), own


def _mixture(
    instance: Moments,
    batch_mean: tf.Tensor,
    batch_variance: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    gate: tf.Tensor,
    *,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mean, scale and offset of each example, of its moments and the batch's."""
    of_batch_scale = gate * tf.math.rsqrt(batch_variance + epsilon)
    of_instance_scale = (1 - gate) * tf.math.rsqrt(instance.variance + epsilon)
    # Both are one map of each example; about its mean, where nothing cancels.
    scale = gamma * (of_batch_scale + of_instance_scale)
    offset = beta + gamma * of_batch_scale * (instance.mean - batch_mean)
    return instance.mean, scale, offset


def _mixture_gradient(
    dmean: tf.Tensor,
    dscale: tf.Tensor,
    doffset: tf.Tensor,
    instance: Moments,
    batch_mean: tf.Tensor,
    batch_variance: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    gate: tf.Tensor,
    *,
    epsilon: float,
) -> tuple[tf.Tensor, ...]:
    """As `examplewise.Mixture` wants it."""
    del beta
    rstd, batch_rstd = (tf.math.rsqrt(v + epsilon) for v in (instance.variance, batch_variance))
    distance = instance.mean - batch_mean
    of_batch_scale = dscale + doffset * distance  # what comes to γ·ρ/σ_batch
    dgamma = gate * batch_rstd * of_batch_scale + (1 - gate) * rstd * dscale
    dgate = gamma * (batch_rstd * of_batch_scale - rstd * dscale)
    to_batch_mean = -gamma * gate * batch_rstd * doffset
    to_batch_variance = -0.5 * gamma * gate * batch_rstd * tf.square(batch_rstd) * of_batch_scale
    dvariance = -0.5 * gamma * (1 - gate) * rstd * tf.square(rstd) * dscale
    of_parameters = (tf.reduce_sum(v, 0) for v in (dgamma, doffset, dgate))
    return dmean - to_batch_mean, dvariance, to_batch_mean, to_batch_variance, *of_parameters


def _of_batch_alone(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    gate: tf.Tensor,
    moving: tuple[tf.Tensor, tf.Tensor] | None,
    epsilon: float,
    axis: int,
    mask: tf.Tensor | None,
    groups: int,
    then: Then,
) -> tuple[tf.Tensor, Moments | None]:
    dtype = channelwise.statistics_dtype(x)
    scale = tf.cast(gate, dtype) * (1 if gamma is None else tf.cast(gamma, dtype))
    options = {"epsilon": epsilon, "axis": axis}
    if moving is not None:
        return normalize_by_moving_statistics(x, scale, beta, *moving, **options), None
    return batch_normalization(x, scale, beta, mask=mask, groups=groups, then=then, **options)
