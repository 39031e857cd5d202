"""Batch renormalization (Ioffe 2017)."""

import tensorflow as tf

from tfnorm.functional import channelwise, fused
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.traced_once import traced_for_any_size
from tfnorm.functional.view import View


def batch_renormalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    moving_mean: tf.Tensor,
    moving_variance: tf.Tensor,
    r_max: tf.Tensor | float,
    d_max: tf.Tensor | float,
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    groups: int = 1,
) -> tuple[tf.Tensor, Moments]:
    """Normalizes by batch statistics, corrected towards the moving ones (Algorithm 1).

    y = γ·(r·(x − μ_B)/σ_B + d) + β with σ_B = sqrt(σ²_B + ε), σ = sqrt(moving_variance + ε),
    r = clip(σ_B/σ, 1/r_max, r_max) and d = clip((μ_B − moving_mean)/σ, −d_max, d_max), both
    constants of the backward pass: ∂L/∂x is that of BN with the scale γ·r (the paper's closed
    form, page 4), ∂L/∂γ = Σ ∂L/∂y·(r·x̂ + d), ∂L/∂β = Σ ∂L/∂y.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        moving_mean: [C], from before this step.
        moving_variance: [C], from before this step.
        r_max: largest r, at least 1; its inverse is the smallest.
        d_max: largest |d|, at least 0.
        epsilon: added to the variances, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.
        groups: the number of virtual replicas, consecutive parts of the batch.

    Returns:
        y, of the shape and dtype of x, and the `Moments` of each group (no gradient flows
        through them).

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = View(x, axis, groups)
    valid = view.flatten_mask(mask)

    bounds = tuple(_in_dtype(bound, channelwise.statistics_dtype(x)) for bound in (r_max, d_max))

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):  # noqa: ANN202
        own = fused.moments(x, epsilon, valid)
        r, d, scale, offset = _correct(
            (own.mean, own.variance), (moving_mean, moving_variance), bounds, gamma, beta,
            epsilon=epsilon,
        )  # fmt: skip
        y = fused.normalize(x, own.mean, own.variance, scale, offset, epsilon)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dx, *sums = fused.batch_normalize_gradient(dy, x, own, scale, epsilon, valid)
            return dx, *_differentiate((gamma, beta), (r, d), *sums)

        return (y, own.mean, own.variance), gradient

    x = view.flatten(x)
    y, mean, variance = normalize(x, *channelwise.scale_and_offset(x, gamma, beta))
    return view.restore(y), Moments(channelwise.positions(x, valid), mean, variance)


def _in_dtype(bound: tf.Tensor | float, dtype: tf.DType) -> tf.Tensor:
    # tf.cast alone would see a Python number as float32.
    return tf.cast(tf.convert_to_tensor(bound, dtype_hint=dtype), dtype)


@traced_for_any_size
def _correct(
    own: tuple[tf.Tensor, tf.Tensor],
    moving: tuple[tf.Tensor, tf.Tensor],
    bounds: tuple[tf.Tensor, tf.Tensor],
    gamma: tf.Tensor,
    beta: tf.Tensor,
    *,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(r, d, γ·r, γ·d + β), of means and variances."""
    r_max, d_max = bounds
    sigma = tf.sqrt(moving[1] + epsilon)
    r = tf.clip_by_value(tf.sqrt(own[1] + epsilon) / sigma, 1 / r_max, r_max)
    d = tf.clip_by_value((own[0] - moving[0]) / sigma, -d_max, d_max)
    # As the paper says of the backward pass, whose own gradient they are constants of as well.
    r, d = tf.stop_gradient(r), tf.stop_gradient(d)
    return r, d, gamma * r, gamma * d + beta


@traced_for_any_size
def _differentiate(
    parameters: tuple[tf.Tensor, tf.Tensor],
    correction: tuple[tf.Tensor, tf.Tensor],
    dy_x_sum: tf.Tensor,
    dy_sum: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """(∂L/∂γ, ∂L/∂β)."""
    (gamma, beta), (r, d) = parameters, correction
    dgamma = channelwise.gradient_of(gamma, r * dy_x_sum + d * dy_sum)
    return dgamma, channelwise.gradient_of(beta, dy_sum)
