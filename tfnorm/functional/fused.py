"""The functions of channelwise.py by TensorFlow's fused kernels, for what these apply to.

They do to one group without a mask in a dtype that they know: on a CPU forward and backward of
batch normalization of large tensors together take 0.4 of the time of the separate operations of
Keras' layer (`python -m benchmarks.layers`). suited.py says for which tensors they are taken. What
is traced for XLA takes the plain functions: it fuses by itself, and has E[x²] − E[x]² in place of
the kernel, which cancels beside a large mean.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm.functional import channelwise, forward_mode, rounding, second_derivative, xla
from tfnorm.functional.channelwise import Moments, at_positions, of_channels
from tfnorm.functional.sizes import dimensions
from tfnorm.functional.traced_once import traced_once

_DTYPES = (tf.float32, tf.bfloat16, tf.float16)
KEEPS_WIDTH = True
"""One kernel may not run at once for two widths: it keeps the width in itself while it runs.

So what is traced with these functions is for inputs of one width.
"""
RUNS_ALONE = [int(part) for part in tf.__version__.split(".")[:2]] < [2, 21]
"""One kernel may not run at once for two calls: before TensorFlow 2.21 it keeps statistics, too.

So each layer's graph has these functions for itself there.
"""
# A pooling kernel adds one position after the other, which of many more would round too much.
_POOLED_POSITIONS = 4096


def moments(x: tf.Tensor, mask: tf.Tensor | None = None, *, epsilon: float) -> Moments:
    """`channelwise.moments`; ε is what the kernel wants for the backward pass."""
    del mask
    mean, variance, *saved = _moments(x, epsilon=epsilon)
    mean, variance = (of_channels(values, x) for values in (mean, variance))
    return Moments(channelwise.positions(x), mean, variance, (*saved,))


@traced_once
def _moments(x: tf.Tensor, *, epsilon: float) -> tuple[tf.Tensor, ...]:
    """(Mean, variance, what the kernel wants to see in the backward pass)."""
    own: Any = None

    @tf.custom_gradient
    def compute(x: tf.Tensor):  # noqa: ANN202
        # The unused output costs less than a second, separate reduction (0.85 of its time).
        nonlocal own
        _, own = _batch_normalize(x, None, None, epsilon)

        # TensorFlow's own takes the moments for constants. No first derivative needs this one; a
        # gradient of a gradient does.
        def gradient(dmean: tf.Tensor, dvariance: tf.Tensor) -> tf.Tensor:
            dx = at_positions(dmean / channelwise.at_least_one(own.count))
            through_variance = channelwise.variance_cotangent(x, own)
            return tf.cast(dx + at_positions(dvariance) * through_variance, x.dtype)

        return (own.mean, own.variance), gradient

    return *compute(x), *own.saved


def normalize(
    x: tf.Tensor,
    mean: tf.Tensor | None,
    variance: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    epsilon: float,
) -> tf.Tensor:
    """`channelwise.normalize`, in one pass over x in place of three."""
    mean = tf.zeros_like(variance) if mean is None else mean
    y = tf.raw_ops.FusedBatchNormV3(
        x=_as_images(x),
        scale=of_one_group(scale),
        offset=of_one_group(offset),
        mean=of_one_group(mean),
        variance=of_one_group(variance),
        epsilon=epsilon,
        is_training=False,
    ).y
    return _from_images(y, x)


def normalize_gradient(
    dy: tf.Tensor,
    x: tf.Tensor,
    mean: tf.Tensor | None,
    variance: tf.Tensor,
    scale: tf.Tensor,
    epsilon: float,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`channelwise.normalize_gradient`, in two passes (0.4 of the time)."""
    del mask
    mean = tf.zeros_like(variance) if mean is None else mean
    direct, *sums = _normalize_gradient(dy, x, mean, variance, scale, epsilon=epsilon)
    return channelwise.shaped(direct, x), *(of_channels(values, x) for values in sums)


@traced_once
def _normalize_gradient(
    dy: tf.Tensor,
    x: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    scale: tf.Tensor,
    *,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The kernel's gradient at inference is these three."""
    known = of_one_group(mean), of_one_group(variance), tf.zeros([0])
    direct, *sums = _gradient(dy, x, scale, known, epsilon, is_training=False)
    if x.dtype != mean.dtype:
        rstd = tf.math.rsqrt(variance + epsilon)
        direct = tf.cast(dy, mean.dtype) * at_positions(scale * rstd)
    return direct, *sums


def add_affine(
    direct: tf.Tensor,
    x: tf.Tensor,
    mean: tf.Tensor,
    factor: tf.Tensor,
    offset: tf.Tensor,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """`channelwise.add_affine`, in one operation in place of three (0.6 of the time)."""
    del mask
    return channelwise.shaped(_add_affine(direct, x, mean, factor, offset), x)


@traced_once
def _add_affine(
    direct: tf.Tensor, x: tf.Tensor, mean: tf.Tensor, factor: tf.Tensor, offset: tf.Tensor
) -> tf.Tensor:
    if x.dtype != mean.dtype:
        # Rounded to half precision only once both parts are added, because they may cancel.
        return channelwise.add_scaled(direct + at_positions(offset - factor * mean), x, factor)
    y = second_derivative.kernel_affine(_as_images(x), *map(of_one_group, (factor, offset, mean)))
    return direct + _from_images(y, x)


def batch_normalize(
    x: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    epsilon: float,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, Moments]:
    """`channelwise.batch_normalize`, in one kernel."""
    del mask
    return _batch_normalize(x, scale, offset, epsilon)


def batch_normalize_gradient(
    dy: tf.Tensor,
    x: tf.Tensor,
    own: Moments,
    scale: tf.Tensor,
    mask: tf.Tensor | None = None,
    *,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`channelwise.batch_normalize_gradient`, in one kernel."""
    del x, mask
    values, *reserved = own.saved
    return _gradient(dy, values, scale, reserved, epsilon, is_training=True)


def mean(x: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """`channelwise.mean` of many groups, such as examples (0.8 of the time)."""
    if not _pools(x):
        return channelwise.mean(x, mask)
    total = _pooled_sum(tf.cast(x, channelwise.statistics_dtype(x)), mask)
    return total / channelwise.at_least_one(channelwise.positions(x, mask))


def sums(
    dy: tf.Tensor, centred: tf.Tensor, mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """`channelwise.sums` likewise."""
    if not _pools(dy):
        return channelwise.sums(dy, centred, mask)
    return _pooled_sum(dy * centred, mask), _pooled_sum(dy, mask)


def clip_gradient(dy: tf.Tensor, y: tf.Tensor, bound: float) -> tf.Tensor:
    """The gradient of `tf.clip_by_value(…, -bound, bound)` by its result y: dy, 0 at the bounds."""
    if xla.is_compiling():
        return tf.where(tf.abs(y) < bound, dy, tf.zeros([], dy.dtype))

    @tf.custom_gradient
    def select(dy: tf.Tensor, y: tf.Tensor):  # noqa: ANN202
        # That of another operation which clips, in one pass (0.4 of the time); it includes bounds.
        dtype = y.dtype.as_numpy_dtype
        inside = np.nextafter(dtype(bound), dtype(0))
        dx = tf.raw_ops.QuantizeAndDequantizeV4Grad(
            gradients=dy, input=y, input_min=-inside, input_max=inside
        ).input_backprop
        return dx, lambda d: (clip_gradient(d, y, bound), None)

    # A tape takes what it is given: in a backward pass, not a tensor of the forward pass's graph.
    return select(dy, tf.identity(y))


def applies(x: tf.Tensor, mask: tf.Tensor | None = None) -> bool:
    """Whether kernels compute what belongs to x [G, M, C] and its mask."""
    is_one_group = mask is None and x.shape[0] == 1 and x.dtype in _DTYPES
    # Forward mode would take the statistics in the kernels for constants, as TensorFlow's own
    # derivatives of them do, where it differentiates the plain functions operation by operation.
    return is_one_group and not xla.is_compiling() and not forward_mode.follows(x)


def _pools(x: tf.Tensor) -> bool:
    """Whether the sums of the groups may be those of a pooling kernel over their positions."""
    groups, positions, _ = x.shape
    is_small = positions is not None and 1 < positions <= _POOLED_POSITIONS
    return groups != 1 and is_small and xla.is_for_cpu()


def _pooled_sum(x: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    positions = x.shape[1]
    image = _as_image(channelwise.keep(x, mask))
    mean = tf.nn.avg_pool2d(image, [1, positions, 1, 1], strides=1, padding="VALID")
    return tf.squeeze(mean, [1, 2]) * positions


def _batch_normalize(
    x: tf.Tensor, scale: tf.Tensor | None, offset: tf.Tensor | None, epsilon: float
) -> tuple[tf.Tensor, Moments]:
    y, mean, variance, *saved = _by_kernel(x, scale, offset, epsilon=epsilon)
    mean, variance = (of_channels(values, x) for values in (mean, variance))
    return channelwise.shaped(y, x), Moments(channelwise.positions(x), mean, variance, (*saved,))


@traced_once
def _by_kernel(
    x: tf.Tensor, scale: tf.Tensor | None, offset: tf.Tensor | None, *, epsilon: float
) -> tuple[tf.Tensor, ...]:
    """(y, mean [1, C], biased variance [1, C], what the kernel wants to see in the backward pass).

    One operation in the graphs of all layers, with the other way of doubtful means in it.
    """
    scale, offset = channelwise.scale_and_offset(x, scale, offset)
    kernel = functools.partial(_training_kernel, scale=scale, offset=offset, epsilon=epsilon)
    mean, variance, y, *saved = rounding.again_where_rounded(kernel, x)
    return y, mean, variance, *saved


def _training_kernel(
    x: tf.Tensor, *, scale: tf.Tensor, offset: tf.Tensor, epsilon: float
) -> list[tf.Tensor]:
    images = _as_images(x)
    result = tf.raw_ops.FusedBatchNormV3(
        x=images,
        scale=scale,
        offset=offset,
        mean=[],
        variance=[],
        epsilon=epsilon,
        is_training=True,
    )
    count = channelwise.positions(x)
    # The kernel's public variance is Bessel's; reserve_space_2 is the biased one on a CPU or TPU,
    # but 1/σ on a GPU, so the public one it is.
    several = tf.maximum(count, 2) if x.shape[1] is None else max(x.shape[1], 2)
    biased = tf.expand_dims(result.batch_variance, 0) * ((several - 1) / several)
    mean = tf.expand_dims(result.batch_mean, 0)
    if not channelwise.is_statically_positive(count):
        # The kernel's moments of no positions are NaN.
        is_any = count > 0
        mean, biased = (tf.where(is_any, v, tf.zeros([], v.dtype)) for v in (mean, biased))
    reserved = result.reserve_space_1, result.reserve_space_2, result.reserve_space_3
    return [mean, biased, _from_images(result.y, x), x, *reserved]


def _gradient(
    dy: tf.Tensor,
    x: tf.Tensor,
    scale: tf.Tensor,
    reserved: Sequence[tf.Tensor],
    epsilon: float,
    *,
    is_training: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(dx, Σ dy·x̂, Σ dy); in training x and `reserved` are as the forward kernel has saved them.

    At inference these are x and (mean, variance, nothing).
    """
    # At inference this kernel alone is slower on many images (1.1 times); in training it has to
    # see what the forward kernel saw.
    view = _as_images if is_training else _as_image
    dx, *sums = second_derivative.kernel_gradient(
        view(dy), view(x), of_one_group(scale), *reserved, epsilon=epsilon, is_training=is_training
    )
    return _from_images(dx, dy), *sums


def _as_image(x: tf.Tensor) -> tf.Tensor:
    """[1, M, C] as the images that a fused kernel wants: one."""
    return tf.expand_dims(x, 2)


def _as_images(x: tf.Tensor) -> tf.Tensor:
    """[1, M, C] as images of 16 positions.

    With oneDNN these take 0.92 to 0.96 of the time of one image forward and 0.88 to 0.96 at
    inference for 64 channels, 0.88 to 0.96 and 0.84 to 0.88 for 256; in bfloat16 0.96 to 1.02 for
    64.
    """
    if not xla.is_for_cpu():  # cuDNN takes up to 65,535 images
        return _as_image(x)
    _, positions, channels = dimensions(x)
    divides = positions % 16 == 0
    size = (
        tf.where(divides, 16, positions) if tf.is_tensor(divides) else 16 if divides else positions
    )
    return tf.reshape(x, [-1, size, 1, channels])


def _from_images(y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Back to the [1, M, C] of x."""
    return tf.reshape(y, tf.shape(x))


def of_one_group(values: tf.Tensor) -> tf.Tensor:
    """[1, C] or [C] as [C]."""
    return values if values.shape.rank == 1 else tf.squeeze(values, 0)
