"""What every example is normalized by for itself: its moments, and a map of its own.

x is [n, P, C], P positions of n examples, in the dtype of the statistics; see `View.by_example`.
Per-example arrays are [n, C]. The functions are differentiable in all they are given; masked
positions count in no sum, and their own gradient is the direct one alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfnorm.functional import channelwise, elementwise, fused, rounding
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.sizes import dimensions
from tfnorm.functional.then import NOTHING, Then
from tfnorm.functional.traced_once import traced_for_any_small_size


class Mixture(NamedTuple):
    """How a method makes a map of each example of its moments and the batch's.

    Attributes:
        compute: from the `Moments` of the examples, mean and variance of the batch (to broadcast
            with [n, C]), the parameters and the options to mean, scale and offset, each of a shape
            to broadcast to [n, C].
        gradient: from their cotangents [n, C] and all of these to those of mean and variance of
            the examples, of mean and variance of the batch in each example, and of the parameters.
    """

    compute: Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
    gradient: Callable[..., tuple[tf.Tensor, ...]]


def moments(x: tf.Tensor, mask: tf.Tensor | None = None) -> Moments:
    """Count [n, 1], mean and biased variance [n, C] of each example.

    For inference: by operations that LiteRT, ONNX and XLA have, too.
    """
    count = channelwise.positions(x, mask)
    if x.shape[1] == 1:  # as behind a dense layer
        value = tf.squeeze(x, 1)
        value = value if mask is None else tf.where(tf.squeeze(mask, 1), value, 0)
        return Moments(count, value, tf.zeros_like(value))

    @tf.custom_gradient
    def compute(x: tf.Tensor):  # noqa: ANN202
        mean = rounding.mean_without(x, mask, channelwise.mean(x, mask))
        variance = channelwise.mean(tf.square(channelwise.centre(x, mean)), mask)

        def gradient(dmean: tf.Tensor, dvariance: tf.Tensor) -> tf.Tensor:
            # ∂mean/∂x = 1/m, ∂variance/∂x = 2·(x − mean)/m.
            share = 1 / channelwise.at_least_one(count)
            nothing = tf.zeros([], x.dtype)
            return channelwise.add_affine(
                nothing, x, mean, 2 * share * dvariance, share * dmean, mask
            )

        return (mean, variance), gradient

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
    moving: tuple[tf.Tensor, tf.Tensor] | None = None,
    mask: tf.Tensor | None = None,
    *,
    groups: int = 1,
    ddof: int = 0,
    then: Then = NOTHING,
    **options: Any,
) -> tuple[tf.Tensor, Moments | None]:
    """Scale·(x − mean) + offset, by what a mixture makes of statistics of examples and the batch.

    In training it is one operation each way, whose gradient computes the mixture anew.

    Args:
        x: [n, P, C].
        mixture: that of the method.
        parameters: tensors, through which gradient flows as it does through the moments.
        moving: (mean, variance), each [C], in place of the batch's: inference.
        mask: [n, P, 1], True where valid.
        groups: into how many the examples are split, each with its own batch.
        ddof: of an example's m positions, variances are sums of squares divided by m − ddof.
        then: what else to make of the batch's moments, their `derived`; not at inference.
        **options: constants of the mixture.

    Returns:
        The result, and the `Moments` of each group (no gradient flows through them); at inference,
        which needs none, None.
    """
    if moving is not None:
        own = _divided(moments(x, mask), ddof)
        mixed = mixture.compute(own, *moving, *map(awaited, parameters), **options)
        return transform(x, *mixed, mask), None
    options.update(mixture=mixture, groups=groups, ddof=ddof)
    batch = derived = None

    @tf.custom_gradient
    def compute(x: tf.Tensor, *parameters: tf.Tensor):  # noqa: ANN202
        nonlocal batch, derived
        given = x, parameters, mask, then.arguments
        y, centred, own, batch, derived = _normalize(*given, then=then.function, **options)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dx, *others = _normalize_gradient(dy, centred, own, batch, parameters, mask, **options)
            return channelwise.shaped(dx, x), *map(channelwise.shaped, others, parameters)

        return channelwise.shaped(y, x), gradient

    y = compute(x, *parameters)
    return y, channelwise.detached(batch._replace(derived=derived))


@traced_for_any_small_size
def _normalize(
    x: tf.Tensor,
    parameters: tuple[tf.Tensor, ...],
    mask: tf.Tensor | None,
    arguments: tuple[tf.Tensor, ...],
    *,
    mixture: Mixture,
    groups: int,
    ddof: int,
    then: Callable,
    **options: Any,
) -> tuple[tf.Tensor, tf.Tensor, Moments, Moments, Any]:
    """The result, x − mean, the moments of the examples and the batch, what `then` makes of it."""
    own = channelwise.moments(x, mask)
    instance = _divided(own, ddof)
    batch = of_batch(instance, groups)
    by = (to_examples(v, own.mean, groups) for v in batch[1:3])
    mean, scale, offset = mixture.compute(instance, *by, *parameters, **options)
    centred = channelwise.centre(x, tf.broadcast_to(mean, tf.shape(own.mean)))
    shape = tf.shape(own.mean)
    y = channelwise.affine(centred, *(tf.broadcast_to(v, shape) for v in (scale, offset)))
    return y, centred, own, batch, then(batch, *arguments)


@traced_for_any_small_size
def _normalize_gradient(
    dy: tf.Tensor,
    centred: tf.Tensor,
    own: Moments,
    batch: Moments,
    parameters: tuple[tf.Tensor, ...],
    mask: tf.Tensor | None,
    *,
    mixture: Mixture,
    groups: int,
    ddof: int,
    **options: Any,
) -> tuple[tf.Tensor, ...]:
    """Of x and the parameters."""
    instance = _divided(own, ddof)
    by = [to_examples(v, own.mean, groups) for v in batch[1:3]]
    mean, scale, _ = mixture.compute(instance, *by, *parameters, **options)
    dscale, doffset = fused.sums(dy, centred, mask)
    cotangents = -scale * doffset, dscale, doffset
    dmean, dvariance, *more = mixture.gradient(*cotangents, instance, *by, *parameters, **options)
    of_by, dparameters = more[:2], more[2:]
    # Of the batch, by ∂μ/∂mean = w and ∂σ²/∂variance = w, ∂σ²/∂mean = 2·w·(mean − μ).
    dbatch_mean, dbatch_variance = (
        to_examples(tf.reduce_sum(of_groups(v, groups), 1), own.mean, groups) for v in of_by
    )
    total = to_examples(channelwise.at_least_one(batch.count), own.count, groups)
    weight = own.count / total
    dmean += weight * (dbatch_mean + 2 * (own.mean - by[0]) * dbatch_variance)
    dvariance += weight * dbatch_variance
    if ddof:
        dvariance *= _correction(own.count, ddof)
    # Of x, by ∂mean/∂x = 1/m and ∂variance/∂x = 2·(x − own mean)/m.
    share = 1 / channelwise.at_least_one(own.count)
    factor = 2 * share * dvariance
    through = share * dmean + factor * (mean - own.mean)
    scale = tf.broadcast_to(scale, tf.shape(own.mean))
    dx = elementwise.add_affine(dy, scale, centred, factor, through, mask, dtype=dy.dtype)
    return dx, *map(channelwise.after_reading, parameters, dparameters)


def _divided(own: Moments, ddof: int) -> Moments:
    """With variances that are sums of squares divided by m − ddof."""
    if not ddof:
        return own
    return own._replace(variance=own.variance * _correction(own.count, ddof))


def _correction(count: tf.Tensor, ddof: int) -> tf.Tensor:
    return count / channelwise.at_least_one(count - ddof)


@tf.custom_gradient
def awaited(parameter: tf.Tensor):  # noqa: ANN201
    """A parameter whose gradient waits for it to be read; see `channelwise.after_reading`."""
    wait = functools.partial(channelwise.after_reading, parameter)
    return tf.identity(parameter), wait


def of_groups(values: tf.Tensor, groups: int) -> tf.Tensor:
    """[n, ...] as [G, n/G, ...], the examples of each group together."""
    examples, *sizes = dimensions(values)
    length = examples // groups if isinstance(examples, int) else -1
    return tf.reshape(values, [groups, length, *sizes])


def of_batch(own: Moments, groups: int) -> Moments:
    """The moments [G, ...] of each group, by Chan's formula from those of its examples."""
    return channelwise.merged(*(of_groups(v, groups) for v in own[:3]))


def to_examples(values: tf.Tensor, like: tf.Tensor, groups: int) -> tf.Tensor:
    """What each group has, [G, C], for each of its examples: to broadcast with `like` [n, C]."""
    if groups == 1:
        return values
    spread = tf.broadcast_to(tf.expand_dims(values, 1), tf.shape(of_groups(like, groups)))
    return tf.reshape(spread, tf.shape(like))
