"""Batch Kalman normalization (Wang et al. 2018)."""

from typing import NamedTuple

import tensorflow as tf

from tfnorm.functional import channelwise, fused
from tfnorm.functional.view import View


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
    return _fuse(observed, _predict(transition), transition.gain)


def _predict(transition: Transition) -> Estimate:
    previous, matrix, _, noise = transition
    mean = tf.matmul(previous.mean, matrix, transpose_b=True)
    if previous.covariance.shape.rank == 2:
        covariance = tf.matmul(previous.covariance, tf.square(matrix), transpose_b=True)
        return Estimate(mean, covariance + noise)
    covariance = tf.einsum("ij,gjk,lk->gil", matrix, previous.covariance, matrix)
    return Estimate(mean, covariance + noise * tf.eye(matrix.shape[0], dtype=matrix.dtype))


def _fuse(observed: Estimate, predicted: Estimate, q: tf.Tensor) -> Estimate:
    p = 1 - q
    outer = _outer(observed.mean - predicted.mean, predicted)
    return Estimate(
        p * predicted.mean + q * observed.mean,
        p * predicted.covariance + q * observed.covariance + p * q * outer,
    )


def _outer(surprise: tf.Tensor, predicted: Estimate) -> tf.Tensor:
    if predicted.covariance.shape.rank == 2:
        return tf.square(surprise)
    return surprise[:, :, None] * surprise[:, None, :]


def _kalman_gradient(
    dmean: tf.Tensor,
    dcovariance: tf.Tensor,
    observed: Estimate,
    predicted: Estimate,
    transition: Transition,
) -> tuple[Estimate, Transition]:
    """The gradient of `kalman_update` to what it takes.

    Written out: a tape over it has a third more operations for a layer to trace.
    """
    previous, matrix, q, _ = transition
    p = 1 - q
    surprise = observed.mean - predicted.mean
    gained = observed.covariance - predicted.covariance + (p - q) * _outer(surprise, predicted)
    dgain = tf.reduce_sum(surprise * dmean) + tf.reduce_sum(gained * dcovariance)
    dpredicted = p * dcovariance
    if predicted.covariance.shape.rank == 2:
        dsurprise = 2 * q * dpredicted * surprise
        dnoise = tf.reduce_sum(dpredicted)
        dprevious = tf.matmul(dpredicted, tf.square(matrix))
        # The 2 before the product: after it, it would be another pass over a matrix.
        of_covariance = matrix * tf.matmul(2 * dpredicted, previous.covariance, transpose_a=True)
    else:
        both = dpredicted + tf.linalg.matrix_transpose(dpredicted)
        dsurprise = q * tf.linalg.matvec(both, surprise)
        dnoise = tf.reduce_sum(tf.linalg.trace(dpredicted))
        dprevious = tf.einsum("ji,gjk,kl->gil", matrix, dpredicted, matrix)
        of_covariance = tf.einsum("gij,jk,gkl->il", dpredicted, matrix, previous.covariance)
        of_covariance += tf.einsum("gji,jk,glk->il", dpredicted, matrix, previous.covariance)
    down = p * dmean - dsurprise
    dmatrix = tf.matmul(down, previous.mean, transpose_a=True) + of_covariance
    return Estimate(q * dmean + dsurprise, q * dcovariance), Transition(
        Estimate(tf.matmul(down, matrix), dprevious), dmatrix, dgain, dnoise
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
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.
        groups: the number of virtual replicas, consecutive parts of the batch.

    Returns:
        y, of the shape and dtype of x; the estimate, in float32 (float64 for float64); the number
        of valid positions [G, 1].

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = View(x, axis, groups)
    valid = view.flatten_mask(mask)

    @tf.custom_gradient
    def normalize(  # noqa: ANN202
        x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *parameters: tf.Tensor
    ):
        own = fused.moments(x, epsilon, valid)
        spread = channelwise.covariance(x, own, valid) if full_covariance else own.variance
        observed = Estimate(own.mean, spread)
        if parameters:
            given = tf.nest.pack_sequence_as(transition, parameters)
            predicted = _predict(given)
            mean, covariance = _fuse(observed, predicted, given.gain)
        else:
            mean, covariance = map(tf.identity, observed)
        variance = tf.linalg.diag_part(covariance) if full_covariance else covariance
        rstd = tf.math.rsqrt(variance + epsilon)
        factor = gamma * rstd
        # x − μ̂ is x − x̄ and this: so in groups x − x̄ is what all passes share (0.9 of the time).
        shift = own.mean - mean
        y = fused.normalize(x, own.mean, variance, gamma, beta + factor * shift, epsilon)

        def gradient(dy: tf.Tensor, dmean: tf.Tensor, dcovariance: tf.Tensor):  # noqa: ANN202
            direct, dy_x_sum, dy_sum = fused.normalize_gradient(
                dy, x, own.mean, variance, gamma, epsilon, valid
            )
            dy_x_sum += rstd * shift * dy_sum
            dvariance = -0.5 * factor * rstd * dy_x_sum
            dmean -= factor * dy_sum
            dcovariance += tf.linalg.diag(dvariance) if full_covariance else dvariance
            down, down_parameters = Estimate(dmean, dcovariance), []
            if parameters:
                down, through = _kalman_gradient(*down, observed, predicted, given)
                down_parameters = tf.nest.flatten(through)
            count = channelwise.at_least_one(own.count)
            down_variance = tf.zeros_like(down.mean) if full_covariance else down.covariance
            if full_covariance:
                direct += channelwise.covariance_gradient(down.covariance, x, own, valid)
            dx = fused.add_affine(
                direct, x, own.mean, 2 * down_variance / count, down.mean / count, valid
            )
            dgamma = channelwise.gradient_of(gamma, dy_x_sum)
            return dx, dgamma, channelwise.gradient_of(beta, dy_sum), *down_parameters

        return (y, mean, covariance), gradient

    x = view.flatten(x)
    parameters = [] if transition is None else tf.nest.flatten(transition)
    y, mean, covariance = normalize(x, *channelwise.scale_and_offset(x, gamma, beta), *parameters)
    return view.restore(y), Estimate(mean, covariance), channelwise.positions(x, valid)
