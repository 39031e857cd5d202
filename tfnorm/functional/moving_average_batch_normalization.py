"""Moving average batch normalization (Yan et al. 2020)."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import tensorflow as tf

from tfnorm.functional import channelwise, moving, ring
from tfnorm.functional.suited import suited
from tfnorm.functional.then import Then
from tfnorm.functional.traced_once import traced_for_any_size
from tfnorm.functional.view import View

Buffers = tuple[tf.Tensor, tf.Tensor]
"""Values [window, G, C] of past steps and their weights [window, G, 1], 0 of what is not known."""


class PastAverages(NamedTuple):
    """The state from before a step.

    step: the number of training calls before it, []. mean_square: χ̂² [C]. squares: of χ²_B.
    gradients: of Ψ_B.
    """

    step: tf.Tensor
    mean_square: tf.Tensor
    squares: Buffers
    gradients: Buffers


class MovedAverages(NamedTuple):
    """The state after the forward pass of a step.

    step: the number of training calls, []. mean_square: χ̂² [C]. squares: of χ²_B.
    """

    step: tf.Tensor
    mean_square: tf.Tensor
    squares: Sequence[tf.Tensor]


_SILENT = Then(lambda is_seen, is_finite: is_seen)


def moving_average_batch_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    past: PastAverages,
    keep_gradients: Callable[[Sequence[tf.Tensor]], None],
    *,
    last_step_of_warmup: int,
    correction_start_step: int,
    correction_limit: float,
    momentum: float,
    loss_scale: tf.Tensor | None = None,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    unless_finite: Then = _SILENT,
) -> tuple[tf.Tensor, MovedAverages]:
    """Normalizes by averages over past steps, forward and backward (equations 15 to 20).

    With χ²_B = mean(x²) of this step and its average χ̄²: Y = x/sqrt(χ̄² + ε),
    r = clip(sqrt(χ̄² + ε)/sqrt(χ̂² + ε), 1/λ, λ), y = γ·r·Y + β, χ̂² ← α·χ̂² + (1 − α)·χ̄².
    The backward pass is the method's own, not the derivative of the forward pass: with
    G = γ·r·∂L/∂y, Ψ_B = mean(G·Y) of this step and its average Ψ̄,
    ∂L/∂x = (G − Y·Ψ̄)/sqrt(χ̄² + ε), ∂L/∂γ = Σ ∂L/∂y·r·Y, ∂L/∂β = Σ ∂L/∂y.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        past: the state, of as many groups G of the batch as there shall be.
        keep_gradients: called in the backward pass with the buffers of Ψ_B after this step.
        last_step_of_warmup: until which, counted from 1, the averages are this step's own values.
        correction_start_step: until which r is 1.
        correction_limit: λ.
        momentum: α.
        loss_scale: the factor of the loss, 1 if None. Ψ_B is kept in units of the loss itself.
        epsilon: added to the mean squares, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, or broadcastable to it; True where valid.
        unless_finite: called with which groups go into the state and which had finite moments,
            [G, 1]; returns the first of them.

    Returns:
        y, of the shape and dtype of x, and the state after this step, through which no gradient
        flows. A group without a valid position, or whose moments are not finite, leaves the
        state as it was.

    Raises:
        ValueError: the number of groups does not divide the batch.
    """
    view = View(x, axis, past.squares[0].shape[1])
    x, mask = view.flatten(x), view.flatten_mask(mask)
    options = {
        "by": suited(x, mask),
        "last_step_of_warmup": last_step_of_warmup,
        "epsilon": epsilon,
    }
    correction = {
        "correction_start_step": correction_start_step,
        "correction_limit": correction_limit,
        "momentum": momentum,
        "unless_finite": unless_finite.function,
    }
    moved: Any = None

    @tf.custom_gradient
    def normalize(x: tf.Tensor, *parameters: tf.Tensor):  # noqa: ANN202
        nonlocal moved
        past_squares, arguments = past[:3], unless_finite.arguments
        y, kept, moved = _normalize(
            x, parameters, past_squares, mask, arguments, **correction, **options
        )

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dy, history = channelwise.shaped(dy, x), (past.step, past.gradients, loss_scale)
            dx, *shares, buffers = _differentiate(dy, x, kept, parameters, history, mask, **options)
            keep_gradients(buffers)
            return channelwise.shaped(dx, x), *shares

        return channelwise.shaped(y, x), gradient

    y = normalize(x, *channelwise.scale_and_offset(x, gamma, beta))
    return view.restore(y), moved


class _Kept(NamedTuple):
    """What the backward pass needs of the forward pass.

    count: the number of valid positions, at least 1. square: χ̄². is_seen: which groups have seen x.
    """

    count: tf.Tensor
    square: tf.Tensor
    r: tf.Tensor
    is_seen: tf.Tensor


@traced_for_any_size
def _normalize(
    x: tf.Tensor,
    parameters: tuple[tf.Tensor, tf.Tensor],
    past: tuple[tf.Tensor, tf.Tensor, Buffers],
    mask: tf.Tensor | None,
    arguments: tuple[tf.Tensor, ...],
    *,
    by: ModuleType,
    last_step_of_warmup: int,
    correction_start_step: int,
    correction_limit: float,
    momentum: float,
    unless_finite: Callable,
    epsilon: float,
) -> tuple[tf.Tensor, _Kept, MovedAverages]:
    """y, what the backward pass needs, and the state after the step (equations 15 to 17)."""
    gamma, beta = parameters
    steps_before, old, held = past
    step = steps_before + 1
    count = channelwise.positions(x, mask)
    square = channelwise.mean_square(x, mask, count)
    found = moving.which_have_seen(count, square)
    is_seen = unless_finite(*found, *arguments)
    average, buffers = ring.put_and_average(held, step, square, is_seen)
    square = tf.where(step <= last_step_of_warmup, square, average)
    r = tf.sqrt((square + epsilon) / (old + epsilon))
    r = tf.clip_by_value(r, 1 / correction_limit, correction_limit)
    r = tf.where(step <= correction_start_step, tf.ones([], r.dtype), r)
    y = by.normalize(x, None, square, gamma * r, beta, epsilon)
    moved = moving.of_groups(moving.average(old, square, momentum), old, is_seen)
    # Detached here, where it is done once for all layers.
    moved = tf.nest.map_structure(tf.stop_gradient, MovedAverages(step, moved, buffers))
    return y, _Kept(channelwise.at_least_one(count), square, r, is_seen), moved


@traced_for_any_size
def _differentiate(
    dy: tf.Tensor,
    x: tf.Tensor,
    kept: _Kept,
    parameters: tuple[tf.Tensor, tf.Tensor],
    history: tuple[tf.Tensor, Buffers, tf.Tensor | None],
    mask: tf.Tensor | None,
    *,
    by: ModuleType,
    last_step_of_warmup: int,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Sequence[tf.Tensor]]:
    """(∂L/∂x, ∂L/∂γ, ∂L/∂β, the buffers of Ψ_B after the step) (equations 19 and 20)."""
    gamma, _ = parameters
    count, square, r, is_seen = kept
    steps_before, held, loss_scale = history
    scale = gamma * r
    direct, dy_y_sum, dy_sum = by.normalize_gradient(dy, x, None, square, scale, epsilon, mask)
    psi = scale * dy_y_sum / count
    average, buffers = _put_and_average(held, steps_before + 1, psi, is_seen, loss_scale)
    psi = tf.where(steps_before < last_step_of_warmup, psi, average)
    dx = channelwise.add_scaled(direct, x, -psi / (square + epsilon), mask)
    shares = r * dy_y_sum, dy_sum
    return dx, *map(channelwise.gradient_of, parameters, shares), buffers


def _put_and_average(
    held: Buffers,
    step: tf.Tensor,
    psi: tf.Tensor,
    is_seen: tf.Tensor,
    loss_scale: tf.Tensor | None,
) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
    """Ψ̄, and the buffers: without the `loss_scale`, which changes from step to step."""
    kept = psi if loss_scale is None else psi / loss_scale
    is_finite = tf.reduce_all(tf.math.is_finite(kept), -1, keepdims=True)
    average, buffers = ring.put_and_average(held, step, kept, tf.logical_and(is_seen, is_finite))
    return average if loss_scale is None else average * loss_scale, buffers
