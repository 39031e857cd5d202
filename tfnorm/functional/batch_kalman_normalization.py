"""Batch Kalman normalization (Wang et al. 2018)."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import tensorflow as tf

from tfnorm.functional import channelwise
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.suited import suited
from tfnorm.functional.then import NOTHING, Then
from tfnorm.functional.traced_once import traced_for_any_size
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
    return Estimate(mean, covariance + noise * tf.eye(tf.shape(matrix)[0], dtype=matrix.dtype))


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


class _Estimated(NamedTuple):
    """An `Estimate`, the diagonal of its covariance, what of it was predicted, and an offset.

    x − μ̂ is x − x̄ and a shift of each channel: so in groups x − x̄ is what all passes share (0.9 of
    the time), and y = γ·(x − x̄)/σ̂ + offset.
    """

    mean: tf.Tensor
    covariance: tf.Tensor
    variance: tf.Tensor
    predicted: Estimate | None
    offset: tf.Tensor


def _estimate(
    observed: Estimate,
    transition: Transition | None,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
) -> _Estimated:
    predicted = None
    mean, covariance = observed
    if transition is not None:
        predicted = _predict(transition)
        mean, covariance = _fuse(observed, predicted, transition.gain)
    variance = covariance if covariance.shape.rank == 2 else tf.linalg.diag_part(covariance)
    offset = beta + gamma * tf.math.rsqrt(variance + epsilon) * (observed.mean - mean)
    return _Estimated(mean, covariance, variance, predicted, offset)


def _estimate_gradient(
    destimate: tuple[tf.Tensor, tf.Tensor],
    sums: tuple[tf.Tensor, tf.Tensor],
    observed: Estimate,
    estimated: _Estimated,
    transition: Transition | None,
    gamma: tf.Tensor,
    epsilon: float,
) -> tuple[Estimate, tf.Tensor, Transition | None]:
    """The gradient by the batch's moments, by γ, and by the transition.

    Args:
        destimate: the gradient by the estimate that was handed on.
        sums: Σ dy·(x − x̄)/σ̂ and Σ dy.
        observed: the batch's moments.
        estimated: of the forward pass.
        transition: of the forward pass.
        gamma: γ.
        epsilon: of the forward pass.
    """
    (dmean, dcovariance), (dy_x_sum, dy_sum) = destimate, sums
    rstd = tf.math.rsqrt(estimated.variance + epsilon)
    factor = gamma * rstd
    dy_x_sum += rstd * (observed.mean - estimated.mean) * dy_sum
    dvariance = -0.5 * factor * rstd * dy_x_sum
    dmean -= factor * dy_sum
    dcovariance += tf.linalg.diag(dvariance) if dcovariance.shape.rank == 3 else dvariance
    down, through = Estimate(dmean, dcovariance), None
    if transition is not None:
        down, through = _kalman_gradient(*down, observed, estimated.predicted, transition)
    return down, dy_x_sum, through


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
    then: Then = NOTHING,
) -> tuple[tf.Tensor, Estimate, Moments]:
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
        then: what else to make of the `Moments` by which it normalizes, their `derived`.

    Returns:
        y, of the shape and dtype of x; the estimate, in float32 (float64 for float64); the
        `Moments` by which it normalizes: mean and variance of the estimate, through which no
        gradient flows.

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = View(x, axis, groups)
    x, mask = view.flatten(x), view.flatten_mask(mask)
    options = {
        "by": suited(x, mask),
        "is_full": full_covariance,
        "epsilon": epsilon,
    }
    used: Any = None

    @tf.custom_gradient
    def normalize(x: tf.Tensor, *parameters: Any):  # noqa: ANN202
        nonlocal used
        parameters, given = parameters[:2], parameters[2:]
        given = tf.nest.pack_sequence_as(transition, given) if given else None
        y, kept, derived = _normalize(
            x, parameters, given, mask, then.arguments, then=then.function, **options
        )
        own, estimate = channelwise.with_known_sizes(x, mask, kept.own), kept.estimated[:2]
        used = Moments(own.count, kept.estimated.mean, kept.estimated.variance, derived=derived)
        for values in estimate:
            values.set_shape([x.shape[0], *[x.shape[-1]] * (values.shape.rank - 1)])

        def gradient(dy: tf.Tensor, *destimate: tf.Tensor) -> list[tf.Tensor]:
            dx, *shares = _differentiate(
                channelwise.shaped(dy, x), destimate, x, kept, parameters, given, mask, **options
            )
            shares = [share for share in tf.nest.flatten(shares) if share is not None]
            return [channelwise.shaped(dx, x), *shares]

        return (channelwise.shaped(y, x), *estimate), gradient

    parameters = [] if transition is None else tf.nest.flatten(transition)
    y, mean, covariance = normalize(x, *channelwise.scale_and_offset(x, gamma, beta), *parameters)
    return view.restore(y), Estimate(mean, covariance), channelwise.detached(used)


class _Kept(NamedTuple):
    """What the backward pass needs of the forward pass: the batch's moments, and the estimate."""

    own: Moments
    observed: Estimate
    estimated: _Estimated


@traced_for_any_size
def _normalize(
    x: tf.Tensor,
    parameters: tuple[tf.Tensor, tf.Tensor],
    transition: Transition | None,
    mask: tf.Tensor | None,
    arguments: tuple[tf.Tensor, ...],
    *,
    by: ModuleType,
    then: Callable,
    is_full: bool,
    epsilon: float,
) -> tuple[tf.Tensor, _Kept, Any]:
    """y, what the backward pass needs, and what `then` makes of the moments that it used."""
    own = by.moments(x, mask, epsilon=epsilon)._replace(saved=())
    covariance = channelwise.covariance(x, own, mask) if is_full else own.variance
    observed = Estimate(own.mean, covariance)
    estimated = _estimate(observed, transition, *parameters, epsilon)
    y = by.normalize(x, own.mean, estimated.variance, parameters[0], estimated.offset, epsilon)
    used = Moments(own.count, estimated.mean, estimated.variance)
    return y, _Kept(own, observed, estimated), then(used, *arguments)


@traced_for_any_size
def _differentiate(
    dy: tf.Tensor,
    destimate: tuple[tf.Tensor, tf.Tensor],
    x: tf.Tensor,
    kept: _Kept,
    parameters: tuple[tf.Tensor, tf.Tensor],
    transition: Transition | None,
    mask: tf.Tensor | None,
    *,
    by: ModuleType,
    is_full: bool,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Transition | None]:
    """(∂L/∂x, ∂L/∂γ, ∂L/∂β, the gradient by the transition)."""
    own, observed, estimated = kept
    gamma, beta = parameters
    direct, *sums = by.normalize_gradient(dy, x, own.mean, estimated.variance, gamma, epsilon, mask)
    down, dgamma, through = _estimate_gradient(
        destimate, sums, observed, estimated, transition, gamma, epsilon
    )
    count = channelwise.at_least_one(own.count)
    if is_full:
        direct += channelwise.covariance_gradient(down.covariance, x, own, mask)
        factor = tf.zeros_like(down.mean)
    else:
        factor = 2 * down.covariance / count
    dx = by.add_affine(direct, x, own.mean, factor, down.mean / count, mask)
    dgamma, dbeta = map(channelwise.gradient_of, (gamma, beta), (dgamma, sums[1]))
    return dx, dgamma, dbeta, through
