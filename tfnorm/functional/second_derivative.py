"""The gradient of TensorFlow's fused batch normalization, with a derivative of its own.

TensorFlow's takes the statistics of inference for constants, and needs a tape, which records
nothing where a tf.autodiff.ForwardAccumulator differentiates a whole tf.function.
"""

from collections.abc import Sequence

import tensorflow as tf

_NAME = "TfnormSecondDerivativeOfBatchNormalization"

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

    inputs = dy, x, scale, *reserved
    if not tf.executing_eagerly():
        # The operations that tf.custom_gradient adds are more than these.
        graph = tf.compat.v1.get_default_graph()
        with graph.gradient_override_map({"FusedBatchNormGradV3": _NAME}):
            return run(*inputs)

    @tf.custom_gradient
    def differentiable(*inputs: tf.Tensor):  # noqa: ANN202
        def second(*along: tf.Tensor) -> Gradients:
            return _differentiate(inputs, along, epsilon, is_training)

        return run(*inputs), second

    return differentiable(*inputs)


@tf.RegisterGradient(_NAME)
def _of_operation(op: tf.Operation, *along: tf.Tensor) -> Gradients:
    return _differentiate(op.inputs, along[:3], op.get_attr("epsilon"), op.get_attr("is_training"))


def _differentiate(
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
