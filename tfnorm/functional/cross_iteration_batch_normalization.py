"""Cross-iteration batch normalization (Yao et al. 2021)."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import tensorflow as tf

from tfnorm.functional import channelwise, sampling, xla
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.sizes import dimensions, with_any_row
from tfnorm.functional.suited import suited
from tfnorm.functional.then import NOTHING, Then
from tfnorm.functional.traced_once import traced_for_any_size
from tfnorm.functional.view import View

GRADIENTS = ("current", "window")
"""What `cross_iteration_batch_normalization` takes as `gradient`."""
_FEW = 2**18  # elements, of which plain operations take less time than what a kernel costs


class PastMoments(NamedTuple):
    """Mean and variance [K, G, C] of K past steps, and the weight [K, G, 1] of each, 0 if empty."""

    mean: tf.Tensor
    variance: tf.Tensor
    weight: tf.Tensor


def are_few(covariance: tf.Tensor) -> bool:
    """Whether D, of a size that is known, is so small that plain operations suit it."""
    return (covariance.shape.num_elements() or _FEW) < _FEW


def compensate(
    past: PastMoments,
    mean_patch: tf.Tensor,
    covariance: tf.Tensor,
    kernel: tf.Tensor,
    *,
    few: bool | None = None,
) -> PastMoments:
    """The past moments as the kernel of today would have made them (equations 7 and 8).

    A convolution without bias is linear in its kernel θ, z_j = ⟨patch, θ_j⟩. So ∂μ_j/∂θ_j is the
    mean input patch P, the same for every channel j (Appendix B), and
        μ_τ(θ) = ⟨P_τ, θ⟩ exactly, ν_τ(θ) ≈ ⟨∂ν_τ, θ⟩ − ν_τ,
    the paper's Taylor terms without any past kernel, because ⟨∂ν_τ, θ_τ⟩ = 2·ν_τ. About the mean,
    with D_τ = 2·mean((z − μ_τ)·patch) = ∂ν_τ − 2·μ_τ·P_τ, that reads
        ν_τ(θ) − μ_τ(θ)² = ⟨D_τ, θ⟩ − σ²_τ − (μ_τ(θ) − μ_τ)²,
    which keeps a small variance beside a large mean in float32.

    Args:
        past: moments of each past step under its own kernel.
        mean_patch: P, [K, G, Q, g]: Q kernel elements for each of g channel groups.
        covariance: D, [K, G, Q, g, c]: c output channels in each channel group.
        kernel: θ of today, [Q, g, c].
        few: `are_few` of D, for those who know it where its size is left open.

    Returns:
        The compensated moments, C = g·c; the variance may be negative (see equation 10).
    """
    mean = _outputs(mean_patch, kernel)
    few = are_few(covariance) if few is None else few
    projection = _inner_products(covariance, kernel, few)
    variance = projection - past.variance - tf.math.squared_difference(mean, past.mean)
    return PastMoments(mean, variance, past.weight)


def _inner_products(covariance: tf.Tensor, kernel: tf.Tensor, few: bool) -> tf.Tensor:
    """⟨D, θ⟩ of each channel: of [K, G, Q, g, c] and [Q, g, c], [K, G, C]."""
    steps, groups, elements, *channels = dimensions(covariance)
    shape = [steps, groups, math.prod(channels)]
    if few or xla.is_compiling():
        return tf.reshape(tf.reduce_sum(covariance * kernel, 2), shape)
    # Of much as a depthwise convolution: one pass over D, in a third of the time of a product and
    # its sum and a tenth of an einsum's; of little that takes 100 µs more.
    projection = tf.nn.depthwise_conv2d(
        tf.reshape(covariance, [-1, elements, 1, shape[-1]]),
        tf.reshape(kernel, [elements, 1, shape[-1], 1]),
        strides=[1, 1, 1, 1],
        padding="VALID",
    )
    return tf.reshape(projection, shape)


def compensate_by_samples(
    past: PastMoments,
    mean_patch: tf.Tensor,
    patches: tf.Tensor,
    outputs: tf.Tensor,
    kernel: tf.Tensor,
) -> PastMoments:
    """`compensate` with the change of the variance estimated from S positions of each past step.

    Of these there are the input patches less the mean one, p_s, and the outputs less their mean,
    ẑ_s = ⟨p_s, θ_τ⟩. With b = mean_s(ẑ_s·(⟨p_s, θ⟩ − ẑ_s)) / ((mean_s(ẑ_s²) + σ²_τ)/2), by which
    the outputs grow,
        ν_τ(θ) − μ_τ(θ)² ≈ σ²_τ·(1 + 2·b) − (μ_τ(θ) − μ_τ)²,
    and μ_τ(θ) = ⟨P_τ, θ⟩ as ever. Of all positions b is ⟨D_τ, θ − θ_τ⟩/(2·σ²_τ): what `compensate`
    gives. Of some it is an estimate, of a change alone: under θ_τ nothing is estimated. Samples
    that are means over R replicas make b about 2/(R + 1) of what it is.

    Args:
        past: moments of each past step under its own kernel.
        mean_patch: P, [K, G, Q, g]: Q kernel elements for each of g channel groups.
        patches: p, [K, G, S, Q, g].
        outputs: ẑ, [K, G, S, C].
        kernel: θ of today, [Q, g, c].

    Returns:
        The compensated moments, C = g·c; the variance may be negative (see equation 10).
    """
    # Together, for the kernel is read once then. By σ² alone b would have no bias; by mean(ẑ²)
    # alone no error where θ is a multiple of θ_τ, but any where no sample has much of a channel. By
    # their mean the error of eight samples is 0.9 of that by either.
    found = _outputs(tf.concat([tf.expand_dims(mean_patch, 2), patches], 2), kernel)
    mean, today = found[:, :, 0], found[:, :, 1:]
    grown = tf.reduce_sum(outputs * (today - outputs), 2)
    samples = tf.cast(dimensions(patches)[2], outputs.dtype)
    squares = tf.reduce_sum(tf.square(outputs), 2) + samples * past.variance
    growth = tf.math.divide_no_nan(2 * grown, squares)
    variance = past.variance * (1 + 2 * growth) - tf.math.squared_difference(mean, past.mean)
    return PastMoments(mean, variance, past.weight)


def _outputs(patches: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """What a kernel [Q, g, c] makes of input patches [..., Q, g]: [..., C]."""
    elements, groups, channels = dimensions(kernel)
    rows = tf.reshape(patches, [-1, elements, groups])
    if isinstance(groups, int) and groups == 1:  # of matrices, in 70 µs less than of one stack
        outputs = tf.matmul(tf.squeeze(rows, 2), tf.squeeze(kernel, 1))
    else:  # a product for each channel group; an einsum takes three times as long
        rows = tf.transpose(rows, [2, 0, 1])
        outputs = tf.transpose(tf.matmul(rows, tf.transpose(kernel, [1, 0, 2])), [1, 0, 2])
    return tf.reshape(outputs, [*dimensions(patches)[:-2], groups * channels])


def centred_samples(
    x: tf.Tensor,
    own: Moments,
    step: tf.Tensor,
    samples: int,
    *,
    axis: int = -1,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Some positions of a convolution's output in each group, spread over all of them.

    Args:
        x: the output, channels on `axis`.
        own: its moments in each group of the batch.
        step: a whole number, which says what positions they are (`sampling.spread`).
        samples: S.
        axis: the channel axis.
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.

    Returns:
        Their numbers in the batch, int32 [G·S], and x − μ there, [G, S, C].
    """
    groups = own.count.shape[0]
    if groups == 1 and mask is None:  # of whatever size
        x, valid = _positions(x, axis), None
    else:
        view = View(x, axis, groups)
        x, valid = view.flatten(x), view.flatten_mask(mask)
    _, size, channels = dimensions(x)
    if valid is None:
        positions = tf.broadcast_to(sampling.spread(step, size, samples), [groups, samples])
    else:
        count = channelwise.at_least_one(own.count)
        positions = sampling.where_valid(sampling.spread(step, count, samples), valid)
    positions = tf.reshape(positions + size * tf.range(groups)[:, None], [-1])
    found = tf.gather(with_any_row(tf.reshape(x, [-1, channels])), positions)
    return positions, channelwise.centre(tf.reshape(found, [groups, samples, channels]), own.mean)


def _positions(x: tf.Tensor, axis: int) -> tf.Tensor:
    """X as [1, M, C]."""
    if axis % x.shape.rank != x.shape.rank - 1:
        axes = list(range(x.shape.rank))
        axes.append(axes.pop(axis))
        x = tf.transpose(x, axes)
    return tf.reshape(x, [1, -1, dimensions(x)[-1]])


def patch_cotangent(
    x: tf.Tensor,
    groups: int,
    channel_groups: int,
    *,
    axis: int = -1,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """What to feed into a convolution's kernel gradient for P of `compensate`: 1/m.

    For batches with a mask: without one there is a cheaper way. It takes all groups
    at once, with an output channel in each channel group for each of the G groups of the batch,
    which is 0 at the positions of the others.

    Args:
        x: of the shape and dtype of the convolution's output, channels on `axis`.
        groups: G.
        channel_groups: g.
        axis: the channel axis.
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.

    Returns:
        The cotangent in the layout of x, with g·G channels, in the dtype of the statistics.
    """
    view = View(x, axis, groups)
    of_mean = channelwise.mean_cotangent(view.flatten(x), view.flatten_mask(mask))
    if groups > 1:
        of_mean *= tf.eye(groups, dtype=of_mean.dtype)[:, None]
    if channel_groups > 1:
        of_mean = tf.tile(of_mean, [1, 1, channel_groups])
    return view.restore(of_mean, groups * channel_groups)


def covariance_cotangent(
    x: tf.Tensor, own: Moments, *, axis: int = -1, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """What to feed into a convolution's kernel gradient for D of `compensate`: 2·(x − μ)/m.

    Args:
        x: the convolution's output, channels on `axis`.
        own: its moments in each group of the batch.
        axis: the channel axis.
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.

    Returns:
        The cotangent in the layout of x, in the dtype of the moments.
    """
    if own.count.shape[0] == 1 and mask is None:  # of whatever size
        ones = [1] * (x.shape.rank - 1)
        along = [*ones[: axis % x.shape.rank], -1, *ones[axis % x.shape.rank :]]
        centred = tf.cast(x, own.mean.dtype) - tf.reshape(own.mean, along)
        return tf.reshape(2 / channelwise.at_least_one(own.count), [1, *ones]) * centred
    view = View(x, axis, own.count.shape[0])
    x, valid = view.flatten(x), view.flatten_mask(mask)
    return view.restore(channelwise.variance_cotangent(x, own, valid))


def cross_iteration_batch_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    past: PastMoments,
    *,
    gradient: str = "current",
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    then: Then = NOTHING,
) -> tuple[tf.Tensor, Moments, Moments]:
    """Normalizes by the moments of this step and of past ones (equations 9 to 12).

    μ̄ = mean of the k values of μ, ν̄ = mean of max(ν, μ²), σ̄² = ν̄ − μ̄²,
    y = γ·(x − μ̄)/sqrt(σ̄² + ε) + β, where k counts this step and the weights of the past ones.
    σ̄² is computed as the mean of max(σ²_τ, 0) + (μ_τ − μ̄)², which is the same without
    cancellation. The gradient flows through the moments of this step alone:
    ∂L/∂x = (∂L/∂x̂ − (g + x̂·Ψ)·w)/σ̄, with g = mean(∂L/∂x̂), Ψ = mean(x̂·∂L/∂x̂), where w is the
    share 1/k of this step ("current", the paper's) or 1, as if every step of the window passed
    gradient ("window").

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        past: the moments of past steps, of as many groups as the batch shall have.
        gradient: "current" or "window".
        epsilon: added to the variance, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.
        then: what else to make of the `Moments` of the window, their `derived`.

    Returns:
        y, of the shape and dtype of x; the `Moments` of this step; those of the window, by which
        it normalized. No gradient flows through the moments.

    Raises:
        ValueError: the number of groups does not divide the batch.
    """
    view = View(x, axis, past.weight.shape[1])
    x, mask = view.flatten(x), view.flatten_mask(mask)
    options = {"by": suited(x, mask), "epsilon": epsilon}
    own: Any = None
    window: Any = None

    @tf.custom_gradient
    def normalize(x: tf.Tensor, *parameters: tf.Tensor):  # noqa: ANN202
        nonlocal own, window
        y, own, kept, derived = _normalize(
            x, parameters, past, mask, then.arguments, then=then.function, **options
        )
        own = channelwise.with_known_sizes(x, mask, own)
        window = channelwise.with_known_sizes(
            x, mask, own._replace(mean=kept.mean, variance=kept.variance)
        )
        window = window._replace(derived=derived)

        def backward(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dx, *shares = _differentiate(
                channelwise.shaped(dy, x), x, parameters, kept, mask, gradient=gradient, **options
            )
            return channelwise.shaped(dx, x), *shares

        return channelwise.shaped(y, x), backward

    y = normalize(x, *channelwise.scale_and_offset(x, gamma, beta))
    return view.restore(y), channelwise.detached(own), channelwise.detached(window)


class _Kept(NamedTuple):
    """μ̄, σ̄² and k_t of the window, for the backward pass."""

    mean: tf.Tensor
    variance: tf.Tensor
    steps: tf.Tensor


@traced_for_any_size
def _normalize(
    x: tf.Tensor,
    parameters: tuple[tf.Tensor, tf.Tensor],
    past: PastMoments,
    mask: tf.Tensor | None,
    arguments: tuple[tf.Tensor, ...],
    *,
    by: ModuleType,
    then: Callable,
    epsilon: float,
) -> tuple[tf.Tensor, Moments, _Kept, Any]:
    """y, the moments of this step, those of the window, and what `then` makes of the latter."""
    own = by.moments(x, mask, epsilon=epsilon)
    mean, variance, steps = _over_window((own.mean, own.variance), past)
    y = by.normalize(x, mean, variance, *parameters, epsilon)
    derived = then(Moments(own.count, mean, variance), *arguments)
    return y, Moments(*own[:3]), _Kept(mean, variance, steps), derived


def _over_window(
    own: tuple[tf.Tensor, tf.Tensor], past: PastMoments
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(μ̄, σ̄², k_t): of this step's mean and variance and the past ones."""
    steps = 1 + tf.reduce_sum(past.weight, 0)
    mean = (own[0] + tf.reduce_sum(past.weight * past.mean, 0)) / steps
    # Equation 10's max, for the past: the present variance cannot be negative.
    spread = tf.maximum(past.variance, 0) + tf.math.squared_difference(past.mean, mean)
    own_spread = own[1] + tf.math.squared_difference(own[0], mean)
    return mean, (own_spread + tf.reduce_sum(past.weight * spread, 0)) / steps, steps


@traced_for_any_size
def _differentiate(
    dy: tf.Tensor,
    x: tf.Tensor,
    parameters: tuple[tf.Tensor, tf.Tensor],
    window: _Kept,
    mask: tf.Tensor | None,
    *,
    by: ModuleType,
    gradient: str,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(∂L/∂x, ∂L/∂γ, ∂L/∂β)."""
    gamma, _ = parameters
    direct, *sums = by.normalize_gradient(dy, x, window.mean, window.variance, gamma, epsilon, mask)
    count = channelwise.at_least_one(channelwise.positions(x, mask))
    if gradient == "current":  # of k_t steps the present one has a share of one
        count = window.steps * count
    through = channelwise.through_moments(sums, gamma, window.variance, count, epsilon)
    dx = by.add_affine(direct, x, window.mean, *through, mask)
    return dx, *map(channelwise.gradient_of, parameters, sums)
