"""Moving average batch normalization (Yan et al. 2020)."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfnorm.functional import channelwise, fused, moving, ring
from tfnorm.functional.traced_once import traced_for_any_width, traced_once
from tfnorm.functional.view import Layout, View

Smooth = Callable[[tf.Tensor], tf.Tensor]
SmoothAndCorrect = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def moving_average_batch_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    smooth_square: SmoothAndCorrect,
    smooth_gradient: Smooth,
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    groups: int = 1,
) -> tf.Tensor:
    """Normalizes by averages over past steps, forward and backward (equations 15 to 20).

    With χ²_B = mean(x²) of this step and its average χ̄²: Y = x/sqrt(χ̄² + ε), y = γ·r·Y + β.
    The backward pass is the method's own, not the derivative of the forward pass: with
    G = γ·r·∂L/∂y, Ψ_B = mean(G·Y) of this step and its average Ψ̄,
    ∂L/∂x = (G − Y·Ψ̄)/sqrt(χ̄² + ε), ∂L/∂γ = Σ ∂L/∂y·r·Y, ∂L/∂β = Σ ∂L/∂y.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        smooth_square: from (χ²_B [G, C], number of valid positions [G, 1]) to (χ̄², r), each
            [G, C]; called once in the forward pass.
        smooth_gradient: from Ψ_B to Ψ̄; called in the backward pass.
        epsilon: added to the mean square, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.
        groups: the number of virtual replicas, consecutive parts of the batch.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    layout = Layout(axis, groups)
    options = {"layout": layout, "epsilon": epsilon}

    @tf.custom_gradient
    def normalize(x: tf.Tensor, *parameters: tf.Tensor):  # noqa: ANN202
        square, r = smooth_square(*_mean_square(x, mask, layout=layout))
        y = _normalize(x, square, r, *parameters, **options)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            direct, psi, *dparameters = _differentiate(
                dy, x, square, r, parameters, mask, **options
            )
            smooth_psi = smooth_gradient(psi)
            return _add(direct, x, smooth_psi, square, mask, **options), *dparameters

        return y, gradient

    return normalize(x, *channelwise.scale_and_offset(x, gamma, beta, axis))


class Smoothed(NamedTuple):
    """What `smooth_square` makes of a step.

    average is χ̄² [G, C], correction r [G, C], moved χ̂² after the step [C], buffers the values and
    weights after it; is_seen and is_finite [G, 1] say which groups have seen something of use.
    """

    average: tf.Tensor
    correction: tf.Tensor
    moved: tf.Tensor
    buffers: list[tf.Tensor]
    is_seen: tf.Tensor
    is_finite: tf.Tensor


@traced_for_any_width
def smooth_square(
    square: tf.Tensor,
    count: tf.Tensor | None,
    steps_before: tf.Tensor,
    old: tf.Tensor,
    held: tuple[tf.Tensor, tf.Tensor],
    *,
    last_step_of_warmup: int,
    correction_start_step: int,
    correction_limit: float,
    momentum: float,
    epsilon: float,
) -> Smoothed:
    """Equations 15 and 16: χ̄² over the window, and r, clipped.

    Args:
        square: χ²_B of this step, [G, C].
        count: of valid positions, [G, 1]; None if it is known to be above 0.
        steps_before: training calls before this one.
        old: χ̂² before this step, [C].
        held: values [window, G, C] and weights [window, G, 1] of the steps before.
        last_step_of_warmup: until which χ̄² is χ²_B.
        correction_start_step: until which r is 1.
        correction_limit: λ.
        momentum: α of χ̂².
        epsilon: added to the mean squares, inside the root.
    """
    step = steps_before + 1
    is_seen, is_finite = moving.which_have_seen(count, square)
    average, buffers = ring.put_and_average(held, step, square, is_seen)
    square = tf.where(step <= last_step_of_warmup, square, average)
    r = tf.sqrt((square + epsilon) / (old + epsilon))
    r = tf.clip_by_value(r, 1 / correction_limit, correction_limit)
    r = tf.where(step <= correction_start_step, tf.ones_like(r), r)
    moved = moving.of_groups(moving.average(old, square, momentum), old, is_seen)
    return Smoothed(square, r, moved, buffers, is_seen, is_finite)


@traced_for_any_width
def smooth_gradient(
    psi: tf.Tensor,
    steps_before: tf.Tensor,
    held: tuple[tf.Tensor, tf.Tensor],
    is_seen: tf.Tensor,
    loss_scale: tf.Tensor | None,
    *,
    last_step_of_warmup: int,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Ψ̄ (equation 19) and the buffers after this step, with arguments as in `smooth_square`.

    They are kept in units of the loss itself, because the `loss_scale` in them, where there is one,
    changes from step to step.
    """
    step = steps_before + 1
    kept = psi if loss_scale is None else psi / loss_scale
    is_finite = tf.reduce_all(tf.math.is_finite(kept), -1, keepdims=True)
    is_kept = tf.logical_and(is_seen, is_finite)
    average, buffers = ring.put_and_average(held, step, kept, is_kept)
    if loss_scale is not None:
        average *= loss_scale
    return tf.where(step <= last_step_of_warmup, psi, average), buffers


@traced_once
def _mean_square(
    x: tf.Tensor, mask: tf.Tensor | None, *, layout: Layout
) -> tuple[tf.Tensor, tf.Tensor]:
    """χ²_B and the number of valid positions."""
    view = View(x, *layout)
    x, mask = view.flatten(x), view.flatten_mask(mask)
    return channelwise.mean_square(x, mask), channelwise.positions(x, mask)


@traced_once
def _normalize(
    x: tf.Tensor,
    square: tf.Tensor,
    r: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    *,
    layout: Layout,
    epsilon: float,
) -> tf.Tensor:
    """γ·r·x/sqrt(χ̄² + ε) + β."""
    view = View(x, *layout)
    zero = tf.zeros_like(gamma)
    return view.restore(fused.normalize(view.flatten(x), zero, square, gamma * r, beta, epsilon))


@traced_once
def _differentiate(
    dy: tf.Tensor,
    x: tf.Tensor,
    square: tf.Tensor,
    r: tf.Tensor,
    parameters: tuple[tf.Tensor, tf.Tensor],
    mask: tf.Tensor | None,
    *,
    layout: Layout,
    epsilon: float,
) -> tuple[tf.Tensor, ...]:
    """(G/sqrt(χ̄² + ε), Ψ_B, ∂L/∂γ, ∂L/∂β)."""
    view = View(x, *layout)
    dy, x, mask = view.flatten(dy), view.flatten(x), view.flatten_mask(mask)
    gamma, beta = parameters
    direct, dy_y_sum, dy_sum = fused.normalize_gradient(
        dy, x, tf.zeros_like(gamma), square, gamma * r, epsilon, mask
    )
    psi = gamma * r * dy_y_sum / channelwise.at_least_one(channelwise.positions(x, mask))
    dgamma = channelwise.gradient_of(gamma, r * dy_y_sum)
    return direct, psi, dgamma, channelwise.gradient_of(beta, dy_sum)


@traced_once
def _add(
    direct: tf.Tensor,
    x: tf.Tensor,
    psi: tf.Tensor,
    square: tf.Tensor,
    mask: tf.Tensor | None,
    *,
    layout: Layout,
    epsilon: float,
) -> tf.Tensor:
    """∂L/∂x: to what is direct −Ψ̄/(χ̄² + ε)·x is added."""
    view = View(x, *layout)
    x, mask = view.flatten(x), view.flatten_mask(mask)
    return view.restore(channelwise.add_scaled(direct, x, -psi / (square + epsilon), mask))
