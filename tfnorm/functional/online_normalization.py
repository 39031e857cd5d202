"""Online normalization (Chiley et al. 2019)."""

from collections.abc import Callable

import tensorflow as tf

from tfnorm.functional import channelwise, examplewise, xla
from tfnorm.functional.recurrence import recurrence
from tfnorm.functional.view import View

Keep = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], None]


def online_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    mean: tf.Tensor,
    variance: tf.Tensor,
    gradient_sum: tf.Tensor,
    product_sum: tf.Tensor,
    keep: Keep,
    *,
    forward_decay: float = 0.999,
    backward_decay: float = 0.99,
    clamp: float | None = None,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    groups: int = 1,
) -> tuple[tf.Tensor, channelwise.Moments]:
    """Normalizes example by example, each by the statistics of all before it (equations 8 to 11).

    In the order of the batch, with μ_i and v_i an example's own mean and biased variance:
        y_i = (x_i − μ)/sqrt(σ² + ε),
        σ² ← α_f·σ² + (1 − α_f)·v_i + α_f·(1 − α_f)·(μ_i − μ)², μ ← α_f·μ + (1 − α_f)·μ_i,
    then γ·y_i + β, then the clamp. Backward in the same order, with G = γ·∂L/∂output where nothing
    was clamped and means over an example's positions:
        g = G − (1 − α_b)·w·y_i, w ← w + mean(g·y_i),
        h = g/σ_i − (1 − α_b)·u, u ← u + mean(h), ∂L/∂x_i = h.
    All four recurrences are linear and over [C] alone: mean(g·y_i) = mean(G·y_i) −
    (1 − α_b)·w·mean(y_i²), and mean(y_i²) follows from the example's moments, as does mean(h). So
    the passes over x are those of batch normalization. An example without a valid position changes
    nothing.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        mean: μ of each group before the batch, [G, C].
        variance: σ² likewise.
        gradient_sum: u of each group before the batch, [G, C].
        product_sum: w likewise.
        keep: given u and w after the batch and the number of valid positions [G, 1]; called once
            in the backward pass.
        forward_decay: α_f.
        backward_decay: α_b.
        clamp: the largest |output|; None is without a clamp.
        epsilon: added to the variance, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, True where valid.
        groups: the number of virtual replicas, consecutive parts of the batch.

    Returns:
        The output, of the shape and dtype of x, and as `Moments` the number of valid positions, μ
        and σ² of each group after the batch (no gradient flows through them).

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = View(x, axis, groups)
    valid = None if mask is None else view.by_example(view.flatten_mask(mask))
    flat = view.flatten(x)

    def grouped(values: tf.Tensor) -> tf.Tensor:
        return examplewise.of_groups(values, groups)

    def flattened(values: tf.Tensor) -> tf.Tensor:
        return tf.reshape(values, [-1, values.shape[-1]])

    def decay(value: float, count: tf.Tensor) -> tf.Tensor:
        """[G, T, 1]: that of each example, 1 where it is empty."""
        value = tf.constant(value, count.dtype)
        if channelwise.is_statically_positive(count):
            return tf.fill(tf.shape(count), value)
        return tf.where(count > 0, value, tf.ones_like(count))

    @tf.custom_gradient
    def normalize(rows: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):  # noqa: ANN202
        own = channelwise.moments(rows, valid)
        count, own_mean, own_variance = map(grouped, own[:3])
        keeps = decay(forward_decay, count)
        means, last_mean = recurrence(keeps, (1 - keeps) * own_mean, mean)
        distance = own_mean - means
        spread = own_variance + keeps * tf.square(distance)
        variances, last_variance = recurrence(keeps, (1 - keeps) * spread, variance)
        before = flattened(means), flattened(variances)
        free = channelwise.normalize(rows, *before, gamma, beta, epsilon)
        y = free if clamp is None else _clip(free, clamp)
        is_free = tf.equal(y, free)  # a byte an element to keep for the way back

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            if clamp is not None:
                dy = tf.where(is_free, dy, tf.zeros([], dy.dtype))
            direct, dgamma, dbeta = channelwise.normalize_gradient(
                dy, rows, *before, gamma, epsilon, valid
            )
            rstd = tf.math.rsqrt(variances + epsilon)
            own_y = distance * rstd
            own_square = (own_variance + tf.square(distance)) * tf.square(rstd)
            mean_g, mean_product = (
                grouped(gamma * total / channelwise.at_least_one(own.count))
                for total in (dbeta, dgamma)
            )
            keeps = decay(backward_decay, count)
            leak = 1 - keeps
            products, last_product = recurrence(1 - leak * own_square, mean_product, product_sum)
            mean_g -= leak * products * own_y
            sums, last_sum = recurrence(keeps, mean_g * rstd, gradient_sum)
            keep(last_sum, last_product, tf.reduce_sum(count, 1))
            factor, offset = -leak * products * tf.square(rstd), -leak * sums
            dx = channelwise.add_affine(
                direct, rows, before[0], flattened(factor), flattened(offset), valid
            )
            return dx, tf.reduce_sum(dgamma, 0), tf.reduce_sum(dbeta, 0)

        return (y, last_mean, last_variance), gradient

    rows = view.by_example(flat)
    parameters = channelwise.scale_and_offset(rows, gamma, beta)
    y, *last = normalize(rows, *map(examplewise.awaited, parameters))
    return view.restore(y), channelwise.Moments(
        channelwise.positions(flat, view.flatten_mask(mask)), *last
    )


def scale_layers(
    y: tf.Tensor, *, epsilon: float = 1e-3, axis: int = -1, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Divides each example by the root of its mean square over all channels and valid positions.

    y/sqrt(mean(y²) + ε), which the paper calls layer scaling (section 3.3).
    """
    view = View(y, axis)
    valid = None if mask is None else view.by_example(view.flatten_mask(mask))
    rows = tf.cast(view.by_example(view.flatten(y)), channelwise.statistics_dtype(y))
    own = examplewise.moments(rows, valid)
    square = tf.reduce_mean(own.variance + tf.square(own.mean), -1, keepdims=True)
    scale = tf.broadcast_to(tf.math.rsqrt(square + epsilon), tf.shape(own.mean))
    nothing = tf.zeros_like(scale)
    return tf.cast(
        view.restore(examplewise.transform(rows, nothing, scale, nothing, valid)), y.dtype
    )


def _clip(y: tf.Tensor, clamp: float) -> tf.Tensor:
    if xla.is_compiling():
        return tf.clip_by_value(y, -clamp, clamp)
    # One pass in place of two.
    bounds = (tf.constant(bound, y.dtype) for bound in (-clamp, clamp))
    return tf.raw_ops.ClipByValue(t=y, **dict(zip(("clip_value_min", "clip_value_max"), bounds)))
