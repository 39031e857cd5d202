"""What every example is normalized by for itself: its moments, and a map of its own.

x is [n, P, C], P positions of n examples, in the dtype of the statistics; see `View.by_example`.
Per-example arrays are [n, C]. Both functions are differentiable in all they are given; masked
positions count in no sum, and their own gradient is the direct one alone.
"""

import functools

import tensorflow as tf

from tfnorm.functional import channelwise, fused
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.sizes import dimensions


def moments(x: tf.Tensor, mask: tf.Tensor | None = None) -> Moments:
    """Count [n, 1], mean and biased variance [n, C] of each example."""
    count = channelwise.positions(x, mask)
    if x.shape[1] == 1:  # as behind a dense layer
        value = tf.squeeze(x, 1)
        value = value if mask is None else tf.where(tf.squeeze(mask, 1), value, 0)
        return Moments(count, value, tf.zeros_like(value))

    @tf.custom_gradient
    def compute(x: tf.Tensor):  # noqa: ANN202
        own = channelwise.moments(x, mask)

        def gradient(dmean: tf.Tensor, dvariance: tf.Tensor) -> tf.Tensor:
            # ∂mean/∂x = 1/m, ∂variance/∂x = 2·(x − mean)/m.
            share = 1 / channelwise.at_least_one(count)
            nothing = tf.zeros([], x.dtype)
            return channelwise.add_affine(
                nothing, x, own.mean, 2 * share * dvariance, share * dmean, mask
            )

        return (own.mean, own.variance), gradient

    return Moments(count, *compute(x))


def transform(
    x: tf.Tensor,
    mean: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Scale·(x − mean) + offset, of the three [n, C] or [C]."""
    shape = tf.shape(x)[::2]
    mean, scale, offset = (tf.broadcast_to(v, shape) for v in (mean, scale, offset))

    @tf.custom_gradient
    def compute(x: tf.Tensor, mean: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor):  # noqa: ANN202
        centred = channelwise.centre(x, mean)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dscale, doffset = fused.sums(dy, centred, mask)
            return dy * channelwise.at_positions(scale), -scale * doffset, dscale, doffset

        return channelwise.affine(centred, scale, offset), gradient

    return compute(x, mean, scale, offset)


@tf.custom_gradient
def awaited(parameter: tf.Tensor):  # noqa: ANN201
    """A parameter whose gradient waits for it to be read; see `channelwise.after_reading`."""
    wait = functools.partial(channelwise.after_reading, parameter)
    return tf.identity(parameter), wait


def of_groups(values: tf.Tensor, groups: int) -> tf.Tensor:
    """[n, ...] as [G, n/G, ...], the examples of each group together."""
    return tf.reshape(values, [groups, -1, *dimensions(values)[1:]])


def of_batch(own: Moments, groups: int) -> Moments:
    """The moments [G, ...] of each group, by Chan's formula from those of its examples."""
    return channelwise.merged(*(of_groups(v, groups) for v in own[:3]))


def to_examples(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """What a group has [G, C], or all groups share [C], for each of its examples, as `like`."""
    if values.shape.rank == 1:
        return tf.broadcast_to(values, tf.shape(like))
    groups = values.shape[0]
    spread = tf.broadcast_to(tf.expand_dims(values, 1), tf.shape(of_groups(like, groups)))
    return tf.reshape(spread, tf.shape(like))
