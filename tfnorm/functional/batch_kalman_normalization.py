"""Batch Kalman normalization (Wang et al. 2018)."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfnorm.functional import channelwise


class Estimate(NamedTuple):
    """What a layer of the chain believes of its channels.

    mean is [G, C]; covariance is its diagonal [G, C] or, full, [G, C, C].
    """

    mean: tf.Tensor
    covariance: tf.Tensor


class Transition(NamedTuple):
    """How a layer's estimate follows from that of the layer before it.

    previous: its estimate, C' channels wide. matrix: A [C, C']. gain: q [] in (0, 1).
    process_noise: ρ [], R = ρI.
    """

    previous: Estimate
    matrix: tf.Tensor
    gain: tf.Tensor
    process_noise: tf.Tensor


def kalman_update(observed: Estimate, transition: Transition) -> Estimate:
    """Fuses the prediction from the layer before with the batch's own moments (equation 5).

    μ̃ = A·μ̂', Σ̃ = A·Σ̂'·Aᵀ + R, p = 1 − q, μ̂ = p·μ̃ + q·x̄,
    Σ̂ = p·Σ̃ + q·S + p·q·(x̄ − μ̃)(x̄ − μ̃)ᵀ; of a diagonal Σ only the diagonals.
    """
    previous, matrix, q, noise = transition
    p = 1 - q
    mean = tf.matmul(previous.mean, matrix, transpose_b=True)
    surprise = observed.mean - mean
    if previous.covariance.shape.rank == 2:
        predicted = tf.matmul(previous.covariance, tf.square(matrix), transpose_b=True) + noise
        outer = tf.square(surprise)
    else:
        predicted = tf.einsum("ij,gjk,lk->gil", matrix, previous.covariance, matrix)
        predicted += noise * tf.eye(matrix.shape[0], dtype=matrix.dtype)
        outer = surprise[:, :, None] * surprise[:, None, :]
    return Estimate(
        p * mean + q * observed.mean, p * predicted + q * observed.covariance + p * q * outer
    )


def batch_kalman_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    transition: Transition | None,
    *,
    full_covariance: bool = False,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    groups: int = 1,
) -> tuple[tf.Tensor, Estimate, tf.Tensor]:
    """Normalizes by the chain's estimate: y = γ·(x − μ̂)/sqrt(diag Σ̂ + ε) + β (Algorithm 1).

    Without a transition (the first layer of a chain) μ̂ = x̄ and Σ̂ = S, the batch's own moments,
    which is batch normalization; else `kalman_update`. Gradient flows to x, γ, β and, through μ̂
    and Σ̂, to every part of the transition; and from the returned estimate back into all of them.
    With g and h the gradients of L by x̄ and diag S, ∂L/∂x = γ/σ̂·∂L/∂y + g/m + 2·h·(x − x̄)/m.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        transition: from the previous layer's estimate, None at the start of a chain.
        full_covariance: whether estimates hold matrices instead of their diagonals.
        epsilon: added to the variance, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, True where valid.
        groups: the number of virtual replicas, consecutive parts of the batch.

    Returns:
        y, of the shape and dtype of x; the estimate, in float32 (float64 for float64); the number
        of valid positions [G, 1].

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = channelwise.View(x, axis, groups)
    valid = view.flatten_mask(mask)
    estimate = _estimator(transition)

    @tf.custom_gradient
    def normalize(  # noqa: ANN202
        x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *parameters: tf.Tensor
    ):
        own = channelwise.moments(x, epsilon, valid)
        spread = channelwise.covariance(x, own, valid) if full_covariance else own.variance
        mean, covariance = estimate(own.mean, spread, *parameters)
        variance = tf.linalg.diag_part(covariance) if full_covariance else covariance
        y = channelwise.normalize(x, mean, variance, gamma, beta, epsilon)

        def gradient(dy: tf.Tensor, dmean: tf.Tensor, dcovariance: tf.Tensor):  # noqa: ANN202
            direct, dy_x_sum, dy_sum = channelwise.normalize_gradient(
                dy, x, mean, variance, gamma, epsilon, valid
            )
            rstd = tf.math.rsqrt(variance + epsilon)
            factor = gamma * rstd
            dvariance = -0.5 * factor * rstd * dy_x_sum
            dmean -= factor * dy_sum
            dcovariance += tf.linalg.diag(dvariance) if full_covariance else dvariance
            # The chain between two layers is small, [C, C'] at most: no closed form needed.
            with tf.GradientTape() as tape:
                sources = [own.mean, spread, *parameters]
                tape.watch(sources)
                estimated = estimate(*sources)
            down_mean, down_spread, *down_parameters = tape.gradient(
                estimated, sources, [dmean, dcovariance], tf.UnconnectedGradients.ZERO
            )
            count = tf.maximum(own.count, 1)
            down_variance = tf.zeros_like(down_mean) if full_covariance else down_spread
            dx = channelwise.add_affine(
                direct, x, own.mean, 2 * down_variance / count, down_mean / count, valid
            )
            if full_covariance:
                dx += channelwise.covariance_gradient(down_spread, x, own, valid)
            dgamma, dbeta = channelwise.over_groups(dy_x_sum), channelwise.over_groups(dy_sum)
            return dx, dgamma, dbeta, *down_parameters

        return (y, mean, covariance), gradient

    x = view.flatten(x)
    parameters = [] if transition is None else tf.nest.flatten(transition)
    y, mean, covariance = normalize(x, *channelwise.scale_and_offset(x, gamma, beta), *parameters)
    return view.restore(y), Estimate(mean, covariance), channelwise.positions(x, valid)


def _estimator(transition: Transition | None) -> Callable[..., Estimate]:
    def estimate(mean: tf.Tensor, covariance: tf.Tensor, *parameters: tf.Tensor) -> Estimate:
        observed = Estimate(mean, covariance)
        if transition is None:
            return Estimate(*map(tf.identity, observed))
        return kalman_update(observed, tf.nest.pack_sequence_as(transition, parameters))

    return estimate
