"""Online normalization (Chiley et al. 2019)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfnorm.functional import channelwise, elementwise, examplewise, forward_mode, fused, xla
from tfnorm.functional.channelwise import Moments
from tfnorm.functional.recurrence import recurrence
from tfnorm.functional.sizes import dimensions
from tfnorm.functional.then import NOTHING, Then
from tfnorm.functional.traced_once import traced_for_any_small_size
from tfnorm.functional.view import View

# So many times the variance may a mean square be to be trusted with all but 4 bits of its digits.
_DOMINANCE = 16

SUMS = Then(lambda sums, *_: sums)
"""What `online_normalization` keeps in the backward pass if nobody wants anything else."""


def online_normalization(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    mean: tf.Tensor,
    variance: tf.Tensor,
    gradient_sum: tf.Tensor,
    product_sum: tf.Tensor,
    keep: Callable[..., None],
    *,
    forward_decay: float = 0.999,
    backward_decay: float = 0.99,
    clamp: float | None = None,
    epsilon: float = 1e-3,
    axis: int = -1,
    mask: tf.Tensor | None = None,
    groups: int = 1,
    then: Then = NOTHING,
    then_backward: Then = SUMS,
) -> tuple[tf.Tensor, Moments]:
    """Normalizes example by example, each by the statistics of all before it (equations 8 to 11).

    In the order of the batch, with μ_i and v_i an example's own mean and biased variance:
        y_i = (x_i − μ)/sqrt(σ² + ε),
        σ² ← α_f·σ² + (1 − α_f)·v_i + α_f·(1 − α_f)·(μ_i − μ)², μ ← α_f·μ + (1 − α_f)·μ_i,
    then γ·y_i + β, then the clamp. Backward in the same order, with G = γ·∂L/∂output where nothing
    was clamped and means over an example's positions:
        g = G − (1 − α_b)·w·y_i, w ← w + mean(g·y_i),
        h = g/σ_i − (1 − α_b)·u, u ← u + mean(h), ∂L/∂x_i = h.
    All four recurrences are linear and over [C] alone: mean(g·y_i) = mean(G·y_i) −
    (1 − α_b)·w·mean(y_i²), and mean(y_i²) follows from the example's moments, as does mean(h). So
    the passes over x are those of batch normalization. An example without a valid position changes
    nothing.

    Args:
        x: any rank from 2, channels on `axis`.
        gamma: scale [C], 1 if None.
        beta: offset [C], 0 if None.
        mean: μ of each group before the batch, [G, C].
        variance: σ² likewise.
        gradient_sum: u of each group before the batch, [G, C].
        product_sum: w likewise.
        keep: called once in the backward pass, with what `then_backward` makes: without one, u and
            w after the batch and the number of valid positions [G, 1].
        forward_decay: α_f.
        backward_decay: α_b.
        clamp: the largest |output|; None is without a clamp.
        epsilon: added to the variance, inside the root.
        axis: the channel axis.
        mask: the shape of x without its channel axis, True where valid.
        groups: the number of virtual replicas, consecutive parts of the batch.
        then: what else to make of the `Moments`, their `derived`.
        then_backward: what to keep of u, w and the number of valid positions, a tuple, and of what
            `then` derived.

    Returns:
        The output, of the shape and dtype of x, and as `Moments` the number of valid positions, μ
        and σ² of each group after the batch (no gradient flows through them).

    Raises:
        ValueError: `groups` does not divide the batch.
    """
    view = View(x, axis, groups)
    rows = view.by_example(view.flatten(x))
    valid = view.by_example(view.flatten_mask(mask))
    options = {"clamp": clamp, "epsilon": epsilon, "groups": groups}
    forward = {"decay": float(forward_decay), **options}
    backward = {"decay": float(backward_decay), **options}
    after = derived = None

    @tf.custom_gradient
    def normalize(rows: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):  # noqa: ANN202
        nonlocal after, derived
        given = rows, gamma, beta, mean, variance, valid, then.arguments
        y, after, derived, saved = _normalize(*given, then=then.function, **forward)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            sums = gradient_sum, product_sum
            given = dy, y, saved, gamma, *sums, valid, derived, then_backward.arguments
            (dx, *shares), kept = _gradient(*given, then=then_backward.function, **backward)
            keep(*kept)
            shares = map(channelwise.after_reading, (gamma, beta), shares)
            return channelwise.shaped(dx, rows), *shares

        return channelwise.shaped(y, rows), gradient

    y = normalize(rows, *channelwise.scale_and_offset(rows, gamma, beta))
    return view.restore(y), channelwise.detached(after._replace(derived=derived))


class _Saved(NamedTuple):
    """What the backward pass wants to see of the forward pass.

    Attributes:
        values: x, or x less the mean before each example.
        centres: what has to be taken off values yet, [G, T, C].
        square: mean squares about the mean before each example, likewise.
        variances: σ² before each example, likewise.
        distance: mean of each example less the mean before it, likewise.
    """

    values: tf.Tensor
    centres: tf.Tensor
    square: tf.Tensor
    variances: tf.Tensor
    distance: tf.Tensor


@traced_for_any_small_size
def _normalize(
    rows: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    valid: tf.Tensor | None,
    arguments: tuple[tf.Tensor, ...],
    *,
    decay: float,
    clamp: float | None,
    epsilon: float,
    groups: int,
    then: Callable,
) -> tuple[tf.Tensor, Moments, Any, _Saved]:
    """The output, the moments after the batch, what `then` makes of them, and what is saved."""
    is_value = _is_value(rows, valid)
    grouped = functools.partial(examplewise.of_groups, groups=groups)
    wide = tf.cast(rows, mean.dtype)
    # No pooling of what was cast: TensorFlow's optimizer would cast all of x for it again.
    average = fused.mean if wide.dtype == rows.dtype else channelwise.mean
    own_mean = grouped(average(wide, valid))
    count = grouped(channelwise.positions(rows, valid))
    keeps = _decay(decay, count)
    means, last_mean = recurrence(keeps, (1 - keeps) * own_mean, mean)
    distance = own_mean - means

    def follow(square: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Mean squares about μ, σ² before each example and after the last."""
        # v + α·(μ_i − μ)² by the mean square about μ; the maximum is against rounding.
        lag = tf.square(distance)
        spread = keeps * lag
        if not is_value:  # whose variance is 0
            spread = tf.maximum(square - (1 - keeps) * lag, spread)
        return square, *recurrence(keeps, (1 - keeps) * spread, variance)

    def centred() -> tuple[tf.Tensor, ...]:
        values = channelwise.centre(wide, _flattened(means))
        return values, tf.zeros_like(means), *follow(mean_square(values))

    def centred_value() -> tuple[tf.Tensor, ...]:
        values = channelwise.at_positions(_flattened(distance))
        return values, tf.zeros_like(means), *follow(tf.square(distance))

    def mean_square(values: tf.Tensor) -> tf.Tensor:
        return grouped(channelwise.mean_square(values, valid))

    if is_value:
        found = centred_value()
    elif rows.shape[1] == 1 or xla.is_compiling() or forward_mode.follows(rows):
        found = centred()
    else:
        # Where no mean is large beside its deviation, x does as well as x − μ, a pass less.
        raw = mean_square(wide)
        followed = follow(raw + means * (means - 2 * own_mean))
        found = tf.cond(
            tf.reduce_all(raw <= _DOMINANCE * (followed[1] + epsilon)),
            lambda: (wide, means, *followed),
            centred,
        )
    values, centres, square, variances, last_variance = found
    factor = gamma * _flattened(tf.math.rsqrt(variances + epsilon))
    offset = beta - factor * _flattened(centres)
    y = elementwise.affine(values, factor, offset, bound=clamp, dtype=rows.dtype)
    after = Moments(tf.reduce_sum(count, 1), last_mean, last_variance)
    saved = _Saved(values, centres, square, variances, distance)
    return y, after, then(after, *arguments), saved


@traced_for_any_small_size
def _gradient(
    dy: tf.Tensor,
    y: tf.Tensor,
    saved: _Saved,
    gamma: tf.Tensor,
    gradient_sum: tf.Tensor,
    product_sum: tf.Tensor,
    valid: tf.Tensor | None,
    derived: Any,
    arguments: tuple[tf.Tensor | None, ...],
    *,
    decay: float,
    clamp: float | None,
    epsilon: float,
    groups: int,
    then: Callable,
) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
    """The gradients of x, γ and β, and what `then` makes of u and w after the batch."""
    grouped = functools.partial(examplewise.of_groups, groups=groups)
    values, *of_examples = saved
    length = grouped(values).shape[1]
    centres, square, variances, distance = (
        tf.ensure_shape(each, [groups, length, None]) for each in of_examples
    )
    count = channelwise.positions(values, valid)
    rstd = tf.math.rsqrt(variances + epsilon)
    dy = tf.cast(dy, values.dtype)
    if clamp is not None:
        bound = float(y.dtype.as_numpy_dtype(clamp))  # rounded as y is
        dy = fused.clip_gradient(dy, tf.cast(y, dy.dtype), bound)
    product, total = fused.sums(dy, values, valid)
    product -= _flattened(centres) * total
    dgamma = product * _flattened(rstd)
    own_y = distance * rstd
    own_square = square * tf.square(rstd)
    mean_g, mean_product = (
        grouped(gamma * each / channelwise.at_least_one(count)) for each in (total, dgamma)
    )
    keeps = _decay(decay, grouped(count))
    leak = 1 - keeps
    products, last_product = recurrence(1 - leak * own_square, mean_product, product_sum)
    mean_g -= leak * products * own_y
    mean_h = mean_g * rstd
    sums, last_sum = recurrence(keeps, mean_h, gradient_sum)
    after = last_sum, last_product, tf.reduce_sum(grouped(count), 1)
    kept = then(after, derived, *arguments)
    of_parameters = tf.reduce_sum(dgamma, 0), tf.reduce_sum(total, 0)
    if _is_value(values, valid):
        dx = channelwise.at_positions(_flattened(mean_h - leak * sums))
        return (tf.cast(dx, y.dtype), *of_parameters), kept
    through = -leak * products * tf.square(rstd)
    offset = -leak * sums - through * centres
    # Once the sums are there, dy may be multiplied in place (0.9 of the backward pass).
    with tf.control_dependencies([product, total]):
        of_y = gamma * _flattened(rstd), values, *map(_flattened, (through, offset)), valid
        dx = elementwise.add_affine(dy, *of_y, dtype=y.dtype)
    return (dx, *of_parameters), kept


def _is_value(rows: tf.Tensor, valid: tf.Tensor | None) -> bool:
    """Whether each example is one valid position, which is its own mean."""
    return rows.shape[1] == 1 and valid is None


def _decay(value: float, count: tf.Tensor) -> tf.Tensor | float:
    """That of every example or, where some may be empty, of each: [G, T, 1], 1 if it is."""
    if channelwise.is_statically_positive(count):
        return value
    return tf.where(count > 0, tf.constant(value, count.dtype), tf.ones_like(count))


def _flattened(values: tf.Tensor) -> tf.Tensor:
    """[G, T, C] as [n, C]."""
    groups, length, channels = dimensions(values)
    return tf.reshape(values, [groups * length, channels])


def scale_layers(
    y: tf.Tensor, *, epsilon: float = 1e-3, axis: int = -1, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Divides each example by the root of its mean square over all channels and valid positions.

    y/sqrt(mean(y²) + ε), which the paper calls layer scaling (section 3.3).
    """
    view = View(y, axis)
    valid = view.by_example(view.flatten_mask(mask))
    rows = tf.cast(view.by_example(view.flatten(y)), channelwise.statistics_dtype(y))
    own = examplewise.moments(rows, valid)
    square = tf.reduce_mean(own.variance + tf.square(own.mean), -1, keepdims=True)
    scale = tf.broadcast_to(tf.math.rsqrt(square + epsilon), tf.shape(own.mean))
    nothing = tf.zeros_like(scale)
    return tf.cast(
        view.restore(examplewise.transform(rows, nothing, scale, nothing, valid)), y.dtype
    )
