"""Batch renormalization (Ioffe 2017)."""

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


def batch_renormalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    moving_mean: tf.Tensor,
    moving_variance: tf.Tensor,
    r_max: tf.Tensor | float | Then,
    d_max: tf.Tensor | float | Then,
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    groups: int = 1,
    then: Then = NOTHING,
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
        r_max: largest r, at least 1; its inverse is the smallest. A `Then` of nothing but its
            arguments makes it within the operation that normalizes.
        d_max: largest |d|, at least 0; likewise.
        epsilon: added to the variances, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.
        groups: the number of virtual replicas, consecutive parts of the batch.
        then: what else to make of the `Moments`, their `derived`.

    Returns:
        y, of the shape and dtype of x, and the `Moments` of each group (no gradient flows
        through them).

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = View(x, axis, groups)
    x, mask = view.flatten(x), view.flatten_mask(mask)
    moving = moving_mean, moving_variance
    makers, bounds = zip(*map(_as_then, (r_max, d_max)))
    own = derived = None

    @tf.custom_gradient
    def normalize(x: tf.Tensor, *parameters: tf.Tensor):  # noqa: ANN202
        nonlocal own, derived
        by = suited(x, mask)
        options = {"by": by, "makers": makers, "then": then.function, "epsilon": epsilon}
        y, own, kept, derived = _normalize(
            x, parameters, moving, bounds, mask, then.arguments, **options
        )
        own = channelwise.with_known_sizes(x, mask, own)
        values = None if own.saved else x  # of which what it needs is saved

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dy = channelwise.shaped(dy, x)
            dx, dy_x_sum, dy_sum = by.batch_normalize_gradient(
                dy, values, own, kept.scale, mask, epsilon=epsilon
            )
            shares = kept.r * dy_x_sum + kept.d * dy_sum, dy_sum
            return channelwise.shaped(dx, x), *map(channelwise.gradient_of, parameters, shares)

        return channelwise.shaped(y, x), gradient

    y = normalize(x, *channelwise.scale_and_offset(x, gamma, beta))
    return view.restore(y), channelwise.detached(own._replace(derived=derived))


def _as_then(bound: tf.Tensor | float | Then) -> Then:
    if isinstance(bound, Then):
        return bound
    # In float64: of a Python number TensorFlow would make float32.
    return Then(tf.identity, (tf.convert_to_tensor(bound, dtype_hint=tf.float64),))


class _Kept(NamedTuple):
    """What the backward pass needs of the forward pass beside the moments: r, d and γ·r."""

    r: tf.Tensor
    d: tf.Tensor
    scale: tf.Tensor


@traced_for_any_size
def _normalize(
    x: tf.Tensor,
    parameters: tuple[tf.Tensor, tf.Tensor],
    moving: tuple[tf.Tensor, tf.Tensor],
    bounds: tuple[tuple[tf.Tensor, ...], ...],
    mask: tf.Tensor | None,
    arguments: tuple[tf.Tensor, ...],
    *,
    by: ModuleType,
    makers: tuple[Callable, Callable],
    then: Callable,
    epsilon: float,
) -> tuple[tf.Tensor, Moments, _Kept, Any]:
    """y, the moments of each group, what the backward pass needs, and what `then` makes of all."""
    gamma, beta = parameters
    r_max, d_max = (tf.cast(make(*of), gamma.dtype) for make, of in zip(makers, bounds))
    own = by.moments(x, mask, epsilon=epsilon)
    sigma = tf.sqrt(moving[1] + epsilon)
    r = tf.clip_by_value(tf.sqrt(own.variance + epsilon) / sigma, 1 / r_max, r_max)
    d = tf.clip_by_value((own.mean - moving[0]) / sigma, -d_max, d_max)
    # As the paper says of the backward pass, whose own gradient they are constants of as well.
    r, d = tf.stop_gradient(r), tf.stop_gradient(d)
    scale, offset = gamma * r, gamma * d + beta
    y = by.normalize(x, own.mean, own.variance, scale, offset, epsilon)
    return y, own, _Kept(r, d, scale), then(own, *arguments)
