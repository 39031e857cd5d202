"""What backward passes take of TensorFlow's fused batch normalization, with derivatives of its own.

TensorFlow's take the statistics of inference for constants. That of its gradient needs a tape,
which records nothing where a tf.autodiff.ForwardAccumulator differentiates a whole tf.function. And
they are kernels again, which one trace for all widths may not have (fused.py): these are plain.
"""

import contextlib
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfnorm.functional.traced_once import is_traced

_OF_GRADIENT = "TfnormDerivativeOfBatchNormalizationGradient"
_OF_AFFINE = "TfnormDerivativeOfAffine"
# Any that a GPU's kernel takes: at least 1e-5.
_UNIT_EPSILON = 1e-3

Gradients = tuple[tf.Tensor | None, ...]


def kernel_gradient(
    dy: tf.Tensor,
    x: tf.Tensor,
    scale: tf.Tensor,
    *reserved: tf.Tensor,
    epsilon: float,
    is_training: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(dx, Σ dy·x̂, Σ dy) of images, by the kernel.

    `reserved` is what the forward kernel has saved in training, at inference (mean, variance,
    nothing).
    """

    def run(*inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        names = "y_backprop", "x", "scale", "reserve_space_1", "reserve_space_2", "reserve_space_3"
        result = tf.raw_ops.FusedBatchNormGradV3(
            **dict(zip(names, inputs, strict=True)), epsilon=epsilon, is_training=is_training
        )
        return result.x_backprop, result.scale_backprop, result.offset_backprop

    inputs, names = (dy, x, scale, *reserved), {"FusedBatchNormGradV3": _OF_GRADIENT}
    if is_training:  # of which a tape that sees it has TensorFlow's own, which is right
        with _overridden(names):
            return run(*inputs)
    return _differentiable(
        run, inputs, lambda *of: _differentiate_gradient(*of, epsilon, is_training), names
    )


def kernel_affine(x: tf.Tensor, factor: tf.Tensor, offset: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
    """Computes factor·(x − mean) + offset of images, by the kernel."""

    def run(*inputs: tf.Tensor) -> tf.Tensor:
        # It is a normalization by the variance 1.
        unit = tf.fill(tf.shape(mean), tf.constant(1 - _UNIT_EPSILON, mean.dtype))
        names = "x", "scale", "offset", "mean"
        result = tf.raw_ops.FusedBatchNormV3(
            **dict(zip(names, inputs, strict=True)),
            variance=unit,
            epsilon=_UNIT_EPSILON,
            is_training=False,
        )
        return result.y

    inputs = x, factor, offset, mean
    return _differentiable(run, inputs, _differentiate_affine, {"FusedBatchNormV3": _OF_AFFINE})


def _differentiable(
    run: Callable, inputs: Sequence[tf.Tensor], differentiate: Callable, names: dict[str, str]
) -> tf.Tensor | tuple[tf.Tensor, ...]:
    """`run` of the inputs, with the gradient that `differentiate` makes of them and cotangents.

    Within what is traced once it is that of the operations of these `names`: what
    tf.custom_gradient adds to a graph is more than they are.
    """
    if is_traced():
        with _overridden(names):
            return run(*inputs)

    @tf.custom_gradient
    def compute(*inputs: tf.Tensor):  # noqa: ANN202
        return run(*inputs), lambda *along: differentiate(inputs, along)

    return compute(*inputs)


def _overridden(names: dict[str, str]) -> contextlib.AbstractContextManager:
    """Operations of a graph have these gradients for those who differentiate the graph.

    A tape that sees the operations themselves does not.
    """
    if tf.executing_eagerly():
        return contextlib.nullcontext()
    return tf.compat.v1.get_default_graph().gradient_override_map(names)


@tf.RegisterGradient(_OF_AFFINE)
def _of_affine(op: tf.Operation, *along: tf.Tensor) -> Gradients:
    return *_differentiate_affine(op.inputs[:4], along[:1]), None


def _differentiate_affine(inputs: Sequence[tf.Tensor], along: Sequence[tf.Tensor]) -> Gradients:
    x, factor, _, mean = inputs
    (dy,) = along
    dy_sum = tf.reduce_sum(dy, [0, 1, 2])
    to_factor = tf.reduce_sum(dy * (x - mean), [0, 1, 2])
    return factor * dy, to_factor, dy_sum, -factor * dy_sum


@tf.RegisterGradient(_OF_GRADIENT)
def _of_gradient(op: tf.Operation, *along: tf.Tensor) -> Gradients:
    attributes = op.get_attr("epsilon"), op.get_attr("is_training")
    return _differentiate_gradient(op.inputs, along[:3], *attributes)


def _differentiate_gradient(
    inputs: Sequence[tf.Tensor], along: Sequence[tf.Tensor], epsilon: float, is_training: bool
) -> Gradients:
    """The gradient of the kernel's gradient to dy, x, scale and, at inference, mean and variance.

    It is that of <a, dx> + <b, dscale> + <c, doffset>, with r = 1/σ and x̂ = r·(x − mean). At
    inference dx = scale·r·dy; in training, with m = mean(dy·x̂), dx = scale·r·(dy − mean(dy) − x̂·m).
    """
    dy, x, scale, mean, variance, _ = inputs
    a, b, c = along
    dtype = x.dtype
    dy, x, a = (tf.cast(v, scale.dtype) for v in (dy, x, a))

    def average(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(values, [0, 1, 2])

    def total(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(values, [0, 1, 2])

    if is_training:
        # Not of what the forward kernel saved: that is another thing on every device.
        mean = average(x)
        variance = average(tf.math.squared_difference(x, mean))
    r = tf.math.rsqrt(variance + epsilon)
    x = (x - mean) * r
    if is_training:
        dy, a = dy - average(dy), a - average(a)
        m, n, together = average(dy * x), average(a * x), average(a * dy)
        to_dy = scale * r * (a - x * n) + b * x + c
        to_scale = total(a * r * (dy - x * m))
        to_x = -r * (
            x * (scale * r * (together - 3 * m * n) + b * m)
            + (scale * r * n - b) * dy
            + scale * r * m * a
        )
        to_statistics = None, None
    else:
        to_dy, to_x, to_scale = scale * r * a + b * x + c, b * r * dy, total(a * r * dy)
        to_variance = -0.5 * r * r * (scale * to_scale + b * total(dy * x))
        to_statistics = -b * r * total(dy), to_variance
    return tf.cast(to_dy, dtype), tf.cast(to_x, dtype), to_scale, *to_statistics, None
