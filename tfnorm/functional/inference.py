"""The one formula of inference, the same for every normalizer."""

import tensorflow as tf

from tfnorm.functional import channelwise
from tfnorm.functional.suited import suited
from tfnorm.functional.view import View


def normalize_by_moving_statistics(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    moving_mean: tf.Tensor,
    moving_variance: tf.Tensor,
    *,
    epsilon: float = 1e-3,
    axis: int = -1,
) -> tf.Tensor:
    """Computes y = γ·(x − moving_mean)/sqrt(moving_variance + ε) + β, differentiable in x, γ and β.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        moving_mean: [C].
        moving_variance: [C].
        epsilon: added to the variance, inside the root.
        axis: the channel axis.

    Returns:
        y, of the shape and dtype of x.
    """
    view = View(x, axis)
    x = view.flatten(x)
    scale, offset = channelwise.scale_and_offset(x, gamma, beta)
    statistics = (tf.cast(value, scale.dtype) for value in (moving_mean, moving_variance))
    return view.restore(suited(x).normalize(x, *statistics, scale, offset, epsilon))
