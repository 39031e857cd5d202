"""Batch normalization (Ioffe & Szegedy 2015)."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from tfnorm.functional import channelwise
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.suited import suited
from tfnorm.functional.then import NOTHING, Then
from tfnorm.functional.traced_once import traced_for_any_size
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
    then: Then = NOTHING,
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
        then: what else to make of the `Moments`, their `derived`.

    Returns:
        y, of the shape and dtype of x, and the `Moments` of each group (no gradient flows
        through them).

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = View(x, axis, groups)
    x, mask = view.flatten(x), view.flatten_mask(mask)
    own = derived = None

    @tf.custom_gradient
    def normalize(x: tf.Tensor, *parameters: tf.Tensor):  # noqa: ANN202
        nonlocal own, derived
        by = suited(x, mask)
        y, own, derived = _normalize(
            x, parameters, mask, then.arguments, by=by, then=then.function, epsilon=epsilon
        )
        own = channelwise.with_known_sizes(x, mask, own)
        values = None if own.saved else x  # of which what it needs is saved

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dy = channelwise.shaped(dy, x)
            dx, *sums = by.batch_normalize_gradient(
                dy, values, own, parameters[0], mask, epsilon=epsilon
            )
            return channelwise.shaped(dx, x), *map(channelwise.gradient_of, parameters, sums)

        return channelwise.shaped(y, x), gradient

    y = normalize(x, *channelwise.scale_and_offset(x, gamma, beta))
    return view.restore(y), channelwise.detached(own._replace(derived=derived))


@traced_for_any_size
def _normalize(
    x: tf.Tensor,
    parameters: tuple[tf.Tensor, tf.Tensor],
    mask: tf.Tensor | None,
    arguments: tuple[tf.Tensor, ...],
    *,
    by: ModuleType,
    then: Callable,
    epsilon: float,
) -> tuple[tf.Tensor, Moments, Any]:
    """y, the moments of each group, and what `then` makes of them and its arguments."""
    y, own = by.batch_normalize(x, *parameters, epsilon, mask)
    return y, own, then(own, *arguments)
