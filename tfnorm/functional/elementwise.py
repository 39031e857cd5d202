"""Maps of every element by numbers of each example's channels, in one pass where x is large.

x is [n, P, C], P positions of n examples; see `View.by_example`. Per-example arrays are [n, C].
For gradients and what has one of its own; what inference needs must run without a compiler.
"""

import tensorflow as tf

from tfnorm.functional import channelwise
from tfnorm.functional.traced_once import compiled_once


@compiled_once
def affine(
    x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, *, bound: float | None, dtype: tf.DType
) -> tf.Tensor:
    """Scale·x + offset, clipped to ±`bound`, as `dtype`."""
    y = channelwise.affine(x, scale, offset)
    # Not ClipByValue, which takes three times as long as both of these in place.
    return tf.cast(y if bound is None else tf.clip_by_value(y, -bound, bound), dtype)


@compiled_once
def add_affine(
    dy: tf.Tensor,
    scale: tf.Tensor,
    x: tf.Tensor,
    factor: tf.Tensor,
    offset: tf.Tensor,
    mask: tf.Tensor | None = None,
    *,
    dtype: tf.DType,
) -> tf.Tensor:
    """Scale·dy + factor·x + offset, but scale·dy where masked, as `dtype`."""
    through = channelwise.keep(channelwise.affine(x, factor, offset), mask)
    return tf.cast(dy * channelwise.at_positions(scale) + through, dtype)
