"""Moving average batch normalization (Yan et al. 2020)."""

from collections.abc import Callable

import tensorflow as tf

from tfnorm.functional import channelwise, fused
from tfnorm.functional.view import View

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
    view = View(x, axis, groups)
    valid = view.flatten_mask(mask)

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):  # noqa: ANN202
        count, batch_square = channelwise.mean_square(x, valid)
        square, r = smooth_square(batch_square, count)
        scale, zero = gamma * r, tf.zeros_like(gamma)
        y = fused.normalize(x, zero, square, scale, beta, epsilon)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            direct, dy_y_sum, dy_sum = fused.normalize_gradient(
                dy, x, zero, square, scale, epsilon, valid
            )
            psi = smooth_gradient(scale * dy_y_sum / channelwise.at_least_one(count))
            dx = channelwise.add_scaled(direct, x, -psi / (square + epsilon), valid)
            dgamma = channelwise.gradient_of(gamma, r * dy_y_sum)
            return dx, dgamma, channelwise.gradient_of(beta, dy_sum)

        return y, gradient

    x = view.flatten(x)
    return view.restore(normalize(x, *channelwise.scale_and_offset(x, gamma, beta)))
