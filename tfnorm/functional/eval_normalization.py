"""EvalNorm (Singh & Shrivastava 2019): an example's own statistics, as a share, at inference."""

import tensorflow as tf

from tfnorm.functional import channelwise, examplewise
from tfnorm.functional.channelwise import Moments, at_least_one
from tfnorm.functional.traced_once import traced_for_any_small_size
from tfnorm.functional.view import View

EXAMPLES = 32
"""Of so many examples of a group a step estimates the shares: behind a dense layer there may be
thousands of them, whose every value would be passed over many times."""


def eval_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    moving_mean: tf.Tensor,
    moving_variance: tf.Tensor,
    mean_share: tf.Tensor | float,
    variance_share: tf.Tensor | float,
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Normalizes each example by a mixture of its own moments and the moving ones: inference.

    With μ_x and σ²_x an example's own, mean = α·μ_x + (1 − α)·μ and variance = β·σ²_x + (1 − β)·σ²
    + α·(1 − α)·(μ_x − μ)², the last being what the mixing of two means adds to a variance.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        moving_mean: μ [C].
        moving_variance: σ² [C].
        mean_share: α, between 0 and 1.
        variance_share: β, between 0 and 1.
        epsilon: added to the variance, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, True where valid.

    Returns:
        y, of the shape and dtype of x.
    """
    view = View(x, axis)
    valid = view.by_example(view.flatten_mask(mask))
    rows = tf.cast(view.by_example(view.flatten(x)), channelwise.statistics_dtype(x))
    parameters = channelwise.scale_and_offset(rows, gamma, beta)
    gamma, beta = map(examplewise.awaited, parameters)
    own = examplewise.moments(rows, valid)
    shares = (tf.cast(share, rows.dtype) for share in (mean_share, variance_share))
    mean, variance = _mixture(own, moving_mean, moving_variance, *shares)
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    y = examplewise.transform(rows, own.mean, scale, beta + scale * (own.mean - mean), valid)
    return tf.cast(view.restore(y), x.dtype)


def estimate_shares(
    x: tf.Tensor,
    batch: Moments,
    moving_mean: tf.Tensor,
    moving_variance: tf.Tensor,
    mean_share: tf.Tensor,
    variance_share: tf.Tensor,
    rate: float,
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    is_seen: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """A step of α and β towards those under which inference would see what training saw.

    They minimize J(α, β), the mean over all values of (x̂_mixture − x̂_batch)², with x̂_batch as the
    moments of the batch make it. x̂_mixture − x̂_batch is affine in x, so that J follows from the
    moments of the examples: those of the first `EXAMPLES` of each group, which is plenty for two
    numbers. The step is Newton's for each of the two, with the curvature of Gauss
    and Newton, `rate` of it: no scale of the inputs has an influence on it.

    Args:
        x: the training batch.
        batch: its `Moments` in each of G groups.
        moving_mean: μ [C].
        moving_variance: σ² [C].
        mean_share: α of each group, [G, 1].
        variance_share: β of each group, [G, 1].
        rate: share of a Newton step, between 0 and 1.
        epsilon: added to the variances, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, True where valid.
        is_seen: the groups [G, 1] whose shares change; None is all.

    Returns:
        The new α and β, [G, 1], between 0 and 1; no gradient flows through them.
    """
    groups = batch.mean.shape[0]
    view = View(x, axis, groups)
    valid = view.by_example(view.flatten_mask(mask))
    rows = view.by_example(view.flatten(x))
    if rows.shape[0] is None or rows.shape[0] > groups * EXAMPLES:
        rows, valid = (_first_of_groups(v, groups) for v in (rows, valid))
    # Of what nobody differentiates, TensorFlow prepares no gradient.
    rows = tf.stop_gradient(tf.cast(rows, channelwise.statistics_dtype(x)))
    known = rows, *batch[1:3], moving_mean, moving_variance, mean_share, variance_share
    shares = _estimate(*known, valid, is_seen, groups=groups, rate=rate, epsilon=epsilon)
    return tuple(map(tf.stop_gradient, shares))


@traced_for_any_small_size
def _estimate(
    rows: tf.Tensor,
    batch_mean: tf.Tensor,
    batch_variance: tf.Tensor,
    moving_mean: tf.Tensor,
    moving_variance: tf.Tensor,
    mean_share: tf.Tensor,
    variance_share: tf.Tensor,
    valid: tf.Tensor | None,
    is_seen: tf.Tensor | None,
    *,
    groups: int,
    rate: float,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`estimate_shares` of some examples [n, P, C]."""
    own = channelwise.moments(rows, valid)
    count, *own = (examplewise.of_groups(v, groups) for v in own[:3])
    own = Moments(count, *own)
    weight = count / at_least_one(tf.reduce_sum(count, 1, keepdims=True))
    batch_mean, batch_variance, alpha, beta = (
        v[:, None] for v in (batch_mean, batch_variance, mean_share, variance_share)
    )
    rstd = tf.math.rsqrt(batch_variance + epsilon)
    mean, variance = _mixture(own, moving_mean, moving_variance, alpha, beta)
    mixed = tf.math.rsqrt(variance + epsilon)
    # x̂_mixture − x̂_batch = level + slope·(x − μ_x), and what α and β do to the two.
    slope = mixed - rstd
    level = (own.mean - mean) * mixed - (own.mean - batch_mean) * rstd
    distance = own.mean - moving_mean
    by_variance = -0.5 * tf.square(mixed) * mixed
    of_alpha, of_beta = (1 - 2 * alpha) * tf.square(distance), own.variance - moving_variance
    slopes = by_variance * of_alpha, by_variance * of_beta
    levels = tuple((own.mean - mean) * each for each in slopes)
    levels = (levels[0] - distance * mixed, levels[1])
    new = []
    for share, dslope, dlevel in zip((alpha, beta), slopes, levels):
        gradient = tf.reduce_sum(
            weight * (dlevel * level + dslope * slope * own.variance), [1, 2], keepdims=True
        )
        curvature = tf.reduce_sum(
            weight * (tf.square(dlevel) + tf.square(dslope) * own.variance), [1, 2], keepdims=True
        )
        moved = share - rate * tf.math.divide_no_nan(gradient, curvature)
        moved = tf.squeeze(tf.clip_by_value(moved, 0, 1), 1)
        new.append(moved if is_seen is None else tf.where(is_seen, moved, tf.squeeze(share, 1)))
    return new[0], new[1]


def _first_of_groups(values: tf.Tensor | None, groups: int) -> tf.Tensor | None:
    if values is None:
        return None
    first = examplewise.of_groups(values, groups)[:, :EXAMPLES]
    rows = tf.reshape(first, tf.concat([[-1], tf.shape(values)[1:]], 0))
    return tf.ensure_shape(rows, [None, *values.shape[1:]])


def _mixture(
    own: Moments,
    moving_mean: tf.Tensor,
    moving_variance: tf.Tensor,
    alpha: tf.Tensor,
    beta: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    mean = alpha * own.mean + (1 - alpha) * moving_mean
    between = alpha * (1 - alpha) * tf.square(own.mean - moving_mean)
    return mean, beta * own.variance + (1 - beta) * moving_variance + between
