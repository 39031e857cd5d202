"""The plain mathematics of every element of x, in reductions and broadcasts, and nothing else.

x is [G, M, C]: see view.py. Per-channel arrays are [G, C] or, shared by all groups, [C]. A mask is
[G, M, 1], True where a position is valid, or None. Statistics are float32, or float64 for a float64
x, whatever the dtype of x.

Methods call these functions from where suited.py finds faster ones: fused.py or small.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfnorm.functional import forward_mode, rounding, xla
from tfnorm.functional.sizes import dimensions
from tfnorm.functional.traced_once import traced_for_any_size


class Moments(NamedTuple):
    """Number [G, 1], mean [G, C] and biased variance [G, C] of a channel's valid positions.

    `saved` is what the function that computed them wants to see again in the backward pass; the
    first of it has the shape of x.
    `derived` is what a `Then` has made of them.
    """

    count: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor
    saved: tuple[tf.Tensor, ...] = ()
    derived: Any = ()


def detached(own: Moments) -> Moments:
    """Moments for others than the gradient: none flows through them.

    Outside of what is traced once, whose own gradient tf.cond would look for.
    """
    mean, variance, derived = tf.nest.map_structure(
        tf.stop_gradient, (own.mean, own.variance, own.derived)
    )
    return Moments(own.count, mean, variance, derived=derived)


def shaped(dy: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The cotangent of what has the shape of x, which it may not know."""
    dy.set_shape(x.shape)
    return dy


def of_channels(values: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Values [..., C] of the channels of x, which they may not know."""
    values.set_shape([*values.shape[:-1], x.shape[-1]])
    return values


def with_known_sizes(x: tf.Tensor, mask: tf.Tensor | None, own: Moments) -> Moments:
    """The moments of x that what is traced for any size returns, with what is known of them here.

    The count is a constant again where shapes tell it.
    """
    for values in (own.mean, own.variance):
        of_channels(values, x)
    for values in own.saved[:1]:
        shaped(values, x)
    return own if mask is not None else own._replace(count=positions(x))


def statistics_dtype(x: tf.Tensor) -> tf.DType:
    """The dtype in which the statistics of x are computed and kept."""
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def scale_and_offset(
    x: tf.Tensor, gamma: tf.Tensor | None, beta: tf.Tensor | None, axis: int = -1
) -> tuple[tf.Tensor, tf.Tensor]:
    """γ and β [C] in the dtype of the statistics, 1 and 0 where there is none.

    `axis` is that of the channels of x.
    """
    dtype, size = statistics_dtype(x), x.shape[axis]
    shape = [tf.shape(x)[axis] if size is None else size]
    scale = tf.ones(shape, dtype) if gamma is None else tf.cast(gamma, dtype)
    offset = tf.zeros(shape, dtype) if beta is None else tf.cast(beta, dtype)
    return scale, offset


def positions(x: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """The number of valid positions in each group, [G, 1]; a constant where shapes tell it."""
    dtype = statistics_dtype(x)
    if mask is not None:
        return tf.reduce_sum(tf.cast(mask, dtype), axis=1)
    groups, size, _ = dimensions(x)
    if isinstance(groups, int) and isinstance(size, int):
        return tf.constant(size, dtype, [groups, 1])
    return tf.fill([groups, 1], tf.cast(size, dtype))


def is_statically_positive(count: tf.Tensor) -> bool:
    """Whether it is known, before anything runs, that no group is without a valid position."""
    known = tf.get_static_value(count)
    return known is not None and bool((known > 0).all())


def at_least_one(count: tf.Tensor) -> tf.Tensor:
    """The count [G, 1] to divide by, 1 where it is 0; no operation where it is known."""
    return count if is_statically_positive(count) else tf.maximum(count, 1)


def over_groups(values: tf.Tensor) -> tf.Tensor:
    """The sum over the groups of [G, C], as [C]; what is [C] is that of the only one."""
    if values.shape.rank == 1:
        return values
    return tf.squeeze(values, 0) if values.shape[0] == 1 else tf.reduce_sum(values, 0)


def gradient_of(parameter: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """The gradient of a parameter [C] from the shares [G, C] of the groups."""
    return after_reading(parameter, over_groups(shares))


def after_reading(parameter: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """The gradient of a parameter, which waits for the parameter to be read.

    A sum of ∂L/∂y does not by itself: where L is linear in y, an optimizer could update the
    variable before the forward pass has read it. TensorFlow orders the two by a control edge, which
    its graph optimizer can lose with the IdentityN of a tf.custom_gradient. No optimizer knows that
    a parameter is finite.
    """
    return tf.where(tf.math.is_finite(parameter), gradient, parameter)


def at_positions(values: tf.Tensor) -> tf.Tensor:
    """[G, C] as [G, 1, C], [C] as it is; values[:, None] would be four operations to trace."""
    return values if values.shape.rank == 1 else tf.expand_dims(values, 1)


def mean(x: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """The mean over the valid positions, [G, C]; 0 of none."""
    return _sum(tf.cast(x, statistics_dtype(x)), mask) / at_least_one(positions(x, mask))


def centre(x: tf.Tensor, mean: tf.Tensor | None) -> tf.Tensor:
    """Computes x − mean in the dtype of the statistics; a mean of None is 0."""
    x = tf.cast(x, statistics_dtype(x))
    return x if mean is None else x - at_positions(mean)


def _centre_again(x: tf.Tensor, mean: tf.Tensor | None) -> tf.Tensor:
    """`centre` in a backward pass."""
    x = tf.cast(x, statistics_dtype(x))
    # Not `x - mean`: that is in the forward pass, and a graph would keep it from there to here.
    return x if mean is None else x + -at_positions(mean)


def affine(
    x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, dtype: tf.DType | None = None
) -> tf.Tensor:
    """Scale·x + offset, cast to `dtype` if one is given."""
    y = x * at_positions(scale) + at_positions(offset)
    return y if dtype is None else tf.cast(y, dtype)


def sums(
    dy: tf.Tensor, centred: tf.Tensor, mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """(Σ dy·centred, Σ dy) over the valid positions, [G, C]."""
    return _sum(dy * centred, mask), _sum(dy, mask)


def moments(x: tf.Tensor, mask: tf.Tensor | None = None, *, epsilon: float = 0) -> Moments:
    """Count, mean and biased variance; the variance by two passes, about the mean.

    `epsilon` is what a kernel wants to know (fused.py).
    """
    del epsilon
    count = positions(x, mask)
    divisor = at_least_one(count)
    if xla.is_compiling():
        return Moments(count, *_in_one_pass(x, mask, divisor))
    x = tf.cast(x, statistics_dtype(x))
    # Before the variance, so that x − mean is there for a normalization by the two.
    mean = rounding.mean_without(x, mask, _sum(x, mask) / divisor)
    variance = _sum_of_squares(x - at_positions(mean), mask) / divisor
    return Moments(count, mean, variance)


def _in_one_pass(
    x: tf.Tensor, mask: tf.Tensor | None, divisor: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance by sums about a shift, which XLA takes in one pass over x.

    σ² = mean((x − s)²) − (mean(x) − s)² loses log2(1 + (mean(x) − s)²/σ²) bits: none with s near
    the mean, and of N values at most log2(1 + N/33) with s the mean of 33 of them, for these then
    are a part of σ² themselves.
    """
    shift = rounding.typical(x, mask, statistics_dtype(x))
    distance = tf.cast(x, shift.dtype) - at_positions(shift)
    first, second = (_sum(power, mask) / divisor for power in (distance, tf.square(distance)))
    return shift + first, tf.maximum(second - tf.square(first), 0)


def batch_normalize(
    x: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    epsilon: float,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, Moments]:
    """`normalize` with the moments of x itself, and these moments."""
    own = moments(x, mask)
    return normalize(x, own.mean, own.variance, scale, offset, epsilon), own


def merged(counts: tf.Tensor, means: tf.Tensor, variances: tf.Tensor) -> Moments:
    """The moments of all parts of a group together, by Chan, Golub & LeVeque (1979).

    Args:
        counts: of each part, [G, n, 1].
        means: likewise, [G, n, C].
        variances: likewise.
    """
    count = tf.reduce_sum(counts, 1)
    share = counts / tf.expand_dims(at_least_one(count), 1)
    # About one of the means: else rounding makes a variance of equal large ones.
    largest = tf.reduce_max(tf.where(counts > 0, means, means.dtype.min), 1, keepdims=True)
    is_usable = tf.math.is_finite(largest) & (tf.expand_dims(count, 1) > 0)
    shift = tf.stop_gradient(tf.where(is_usable, largest, 0))
    distances = means - shift
    distance = tf.reduce_sum(share * distances, 1, keepdims=True)
    spread = variances + tf.square(distances - distance)
    mean = tf.squeeze(shift + distance, 1)
    return Moments(count, mean, tf.reduce_sum(share * spread, 1))


def normalize(
    x: tf.Tensor,
    mean: tf.Tensor | None,
    variance: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    epsilon: float,
) -> tf.Tensor:
    """Scale·(x − mean)/sqrt(variance + ε) + offset, with statistics from anywhere.

    Of a method without means the mean is None, which is 0.
    """
    factor = scale * tf.math.rsqrt(variance + epsilon)
    return affine(centre(x, mean), factor, offset, x.dtype)


def normalize_gradient(
    dy: tf.Tensor,
    x: tf.Tensor,
    mean: tf.Tensor | None,
    variance: tf.Tensor,
    scale: tf.Tensor,
    epsilon: float,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradient of `normalize` beside its statistics: (scale/σ·dy, Σ dy·x̂, Σ dy).

    The sums are [G, C] (or [C], of one group by a fused kernel) and take the valid positions only;
    x̂ = (x − mean)/sqrt(variance + ε). What reaches x through the statistics as well is for
    `add_affine` to add: the first of the three is in the dtype of the statistics, because it may
    cancel against that.
    """
    rstd = tf.math.rsqrt(variance + epsilon)
    dy = tf.cast(dy, statistics_dtype(x))
    centred = _centre_again(x, mean)
    direct = dy * at_positions(scale * rstd)
    return direct, _sum(dy * centred, mask) * rstd, _sum(dy, mask)


def add_affine(
    direct: tf.Tensor,
    x: tf.Tensor,
    mean: tf.Tensor | None,
    factor: tf.Tensor,
    offset: tf.Tensor,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes dx = direct + factor·(x − mean) + offset in the dtype of x; if masked, `direct`.

    Every method's gradient has this form: what reaches x directly, and through the statistics, on
    which a masked position has no effect.
    """
    through = keep(affine(_centre_again(x, mean), factor, offset), mask)
    return tf.cast(tf.cast(direct, through.dtype) + through, x.dtype)


@traced_for_any_size
def batch_normalize_gradient(
    dy: tf.Tensor,
    x: tf.Tensor,
    own: Moments,
    scale: tf.Tensor,
    mask: tf.Tensor | None = None,
    *,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradient of `batch_normalize`: (dx, Σ dy·x̂, Σ dy), the sums as [G, C] or [C].

    dx = scale/σ·(dy − mean(dy) − x̂·mean(dy·x̂)), by the moments that the forward pass returned.
    """
    direct, *sums = normalize_gradient(dy, x, own.mean, own.variance, scale, epsilon, mask)
    through = through_moments(sums, scale, own.variance, at_least_one(own.count), epsilon)
    return add_affine(direct, x, own.mean, *through, mask), *sums


def through_moments(
    sums: Sequence[tf.Tensor],
    scale: tf.Tensor,
    variance: tf.Tensor,
    count: tf.Tensor,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What reaches x through the moments that normalized it: factor and offset of `add_affine`.

    They are −scale/σ²·Σ dy·x̂/count and −scale/σ·Σ dy/count, of `sums` (Σ dy·x̂, Σ dy).
    """
    dy_x_sum, dy_sum = sums
    rstd = tf.math.rsqrt(variance + epsilon)
    share = scale * rstd / count
    return -share * rstd * dy_x_sum, -share * dy_sum


def add_scaled(
    direct: tf.Tensor, x: tf.Tensor, factor: tf.Tensor, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """`add_affine` without mean and offset: direct + factor·x."""
    # In place of a normalization and an addition (0.8 of the time of a backward pass).
    through = keep(tf.cast(x, factor.dtype) * at_positions(factor), mask)
    return tf.cast(tf.cast(direct, factor.dtype) + through, x.dtype)


def mean_square(
    x: tf.Tensor, mask: tf.Tensor | None = None, count: tf.Tensor | None = None
) -> tf.Tensor:
    """The mean of x² [G, C] over the valid positions; `count` is their number, if it is known."""
    squares = _sum_of_squares(tf.cast(x, statistics_dtype(x)), mask)
    return squares / at_least_one(positions(x, mask) if count is None else count)


def mean_cotangent(x: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """The gradient of the mean to x: 1/m, [G, M, 1], 0 at masked positions."""
    share = at_positions(1 / at_least_one(positions(x, mask)))
    return keep(tf.broadcast_to(share, tf.concat([tf.shape(x)[:2], [1]], 0)), mask)


def variance_cotangent(x: tf.Tensor, own: Moments, mask: tf.Tensor | None = None) -> tf.Tensor:
    """The gradient of the variance to x: 2·(x − mean)/m, [G, M, C], 0 at masked positions."""
    centred = tf.cast(x, own.mean.dtype) - at_positions(own.mean)
    return keep(at_positions(2 / at_least_one(own.count)) * centred, mask)


def covariance(x: tf.Tensor, own: Moments, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Biased covariance matrix [G, C, C] of the channels about their means."""
    centred = keep(tf.cast(x, own.mean.dtype) - at_positions(own.mean), mask)
    return tf.matmul(centred, centred, transpose_a=True) / at_least_one(own.count)[:, :, None]


def covariance_gradient(
    dcovariance: tf.Tensor, x: tf.Tensor, own: Moments, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """The gradient of `covariance` to x: (x − mean)·(dS + dSᵀ)/m."""
    centred = keep(tf.cast(x, own.mean.dtype) - at_positions(own.mean), mask)
    both = dcovariance + tf.linalg.matrix_transpose(dcovariance)
    return tf.matmul(centred, both / at_least_one(own.count)[:, :, None])


def keep(x: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """X at the valid positions, 0 elsewhere."""
    # Not a product with 0 and 1: what is masked may be infinite or NaN.
    return x if mask is None else tf.where(mask, x, tf.zeros([], x.dtype))


def squared_norm(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Σ x² along an axis, whose size is 1 then.

    No array of squares is made, but for XLA, which lacks the norm and fuses the two, and where
    forward mode differentiates: bn in 16 groups takes 0.92 of its time so.
    """
    if xla.is_compiling() or forward_mode.follows(x):
        return tf.reduce_sum(tf.square(x), axis, keepdims=True)

    @tf.custom_gradient
    def compute(x: tf.Tensor):  # noqa: ANN202
        # A gradient of its own: the norm's is 0/0 for a channel of zeros.
        total = tf.square(tf.math.reduce_euclidean_norm(x, axis, keepdims=True))
        return total, lambda dtotal: 2 * x * dtotal

    return compute(x)


def _sum(x: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    x = keep(x, mask)
    if x.shape[1] == 1:
        return tf.squeeze(x, 1)
    # A reduction of the leading dimension is faster here than one of the middle (0.6 of its time).
    if x.shape[0] == 1:
        return tf.reduce_sum(tf.squeeze(x, 0), 0, keepdims=True)
    return tf.reduce_sum(x, 1)


def _sum_of_squares(x: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    x = keep(x, mask)
    if x.shape[1] == 1:
        return tf.square(tf.squeeze(x, 1))
    if x.shape[0] == 1:  # as in `_sum`
        return squared_norm(tf.squeeze(x, 0), 0)
    return tf.squeeze(squared_norm(x, 1), 1)
