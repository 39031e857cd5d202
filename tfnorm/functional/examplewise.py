"""What every example is normalized by for itself: its moments, and a map of its own.

x is [n, P, C], P positions of n examples, in the dtype of the statistics; see `View.by_example`.
Per-example arrays are [n, C]. The functions are differentiable in all they are given; masked
positions count in no sum, and their own gradient is the direct one alone.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfnorm.functional import channelwise, elementwise, fused
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.sizes import dimensions
from tfnorm.functional.traced_once import traced_once

Mixture = Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


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


def normalize(
    x: tf.Tensor,
    mixture: Mixture,
    parameters: Sequence[tf.Tensor],
    mask: tf.Tensor | None = None,
    **options: Any,
) -> tuple[tf.Tensor, Moments]:
    """`transform` by what a mixture makes of `moments`, for training: one operation each way.

    Args:
        x: [n, P, C].
        mixture: from the moments of the examples, the parameters and the options to mean, scale and
            offset, each [n, C] or [C]; its gradient computes it anew.
        parameters: tensors, through which gradient flows as it does through the moments.
        mask: [n, P, 1], True where valid.
        **options: constants of the mixture.

    Returns:
        Scale·(x − mean) + offset, and the moments.
    """

    @tf.custom_gradient
    def compute(x: tf.Tensor, *parameters: tf.Tensor):  # noqa: ANN202
        y, centred, *own = _normalize(x, parameters, mask, mixture=mixture, **options)

        def gradient(dy: tf.Tensor, *down: tf.Tensor) -> tuple[tf.Tensor, ...]:
            given = centred, parameters, own, mask
            return _normalize_gradient(dy, down, *given, mixture=mixture, **options)

        return (y, *own), gradient

    y, *own = compute(x, *parameters)
    return y, Moments(channelwise.positions(x, mask), *own)


@traced_once
def _normalize(
    x: tf.Tensor,
    parameters: Sequence[tf.Tensor],
    mask: tf.Tensor | None,
    *,
    mixture: Mixture,
    **options: Any,
) -> tuple[tf.Tensor, ...]:
    """The result, x − mean, and mean and variance of the examples."""
    own = channelwise.moments(x, mask)
    mean, scale, offset = _mixed(own, parameters, mixture, options)
    centred = channelwise.centre(x, mean)
    return channelwise.affine(centred, scale, offset), centred, own.mean, own.variance


@traced_once
def _normalize_gradient(
    dy: tf.Tensor,
    down: Sequence[tf.Tensor],
    centred: tf.Tensor,
    parameters: Sequence[tf.Tensor],
    own: Sequence[tf.Tensor],
    mask: tf.Tensor | None,
    *,
    mixture: Mixture,
    **options: Any,
) -> tuple[tf.Tensor, ...]:
    """Of x and the parameters; `down` is what comes to mean and variance from elsewhere."""
    moments = Moments(channelwise.positions(centred, mask), *own)
    watched = [*own, *parameters]
    tape = tf.GradientTape()
    with tape:
        tape.watch(watched)
        mixed = _mixed(moments, parameters, mixture, options)
    mean, scale, _ = mixed
    dscale, doffset = fused.sums(dy, centred, mask)
    cotangents = [-scale * doffset, dscale, doffset]
    # A tape records nothing while something is traced for all, see tf.init_scope.
    gradients = tape.gradient if tf.executing_eagerly() else tf.gradients
    dmean, dvariance, *dparameters = gradients(
        mixed, watched, cotangents, unconnected_gradients="zero"
    )
    dmean, dvariance = dmean + down[0], dvariance + down[1]
    # By ∂mean/∂x = 1/m and ∂variance/∂x = 2·(x − own mean)/m.
    share = 1 / channelwise.at_least_one(moments.count)
    factor = 2 * share * dvariance
    through = share * dmean + factor * (mean - moments.mean)
    dx = elementwise.add_affine(dy, scale, centred, factor, through, mask, dtype=dy.dtype)
    return dx, *dparameters


def _mixed(
    own: Moments, parameters: Sequence[tf.Tensor], mixture: Mixture, options: Mapping[str, Any]
) -> list[tf.Tensor]:
    shape = tf.shape(own.mean)
    return [tf.broadcast_to(v, shape) for v in mixture(own, *parameters, **options)]


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
