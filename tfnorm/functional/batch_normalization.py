"""Batch normalization (Ioffe & Szegedy 2015)."""

import tensorflow as tf

from tfnorm.functional import channelwise, fused
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.view import View


def batch_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None = None,
    beta: tf.Tensor | None = None,
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    groups: int = 1,
) -> tuple[tf.Tensor, Moments]:
    """Normalizes each channel of each group by its own batch statistics.

    y = γ·(x − μ_B)/sqrt(σ²_B + ε) + β, with μ_B and σ²_B the mean and the biased variance of the
    channel's valid positions. Backward, with x̂ the normalized x, g = mean(∂L/∂x̂) and
    Ψ = mean(x̂·∂L/∂x̂): ∂L/∂x = (∂L/∂x̂ − g − x̂·Ψ)/σ_B. A masked position counts in neither
    statistic nor in ∂L/∂γ and ∂L/∂β; its own gradient is γ/σ_B·∂L/∂y.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        epsilon: added to the variance, inside the root.
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

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):  # noqa: ANN202
        y, own = fused.batch_normalize(x, gamma, beta, epsilon, valid)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dx, dgamma, dbeta = fused.batch_normalize_gradient(dy, x, own, gamma, epsilon, valid)
            if own.saved:  # The kernel waits for that of the forward pass.
                return dx, channelwise.over_groups(dgamma), channelwise.over_groups(dbeta)
            return dx, *map(channelwise.gradient_of, (gamma, beta), (dgamma, dbeta))

        return (y, own.mean, own.variance), gradient

    x = view.flatten(x)
    y, mean, variance = normalize(x, *channelwise.scale_and_offset(x, gamma, beta))
    return view.restore(y), Moments(channelwise.positions(x, valid), mean, variance)
