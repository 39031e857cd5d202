"""The derivative of the gradient of TensorFlow's fused batch normalization.

TensorFlow's own needs a tape, which records nothing where a tf.autodiff.ForwardAccumulator
differentiates a whole tf.function: there is no derivative of that then.
"""

import contextlib
from typing import Any

import tensorflow as tf

_NAME = "TfnormSecondDerivativeOfBatchNormalization"


def in_graphs() -> contextlib.AbstractContextManager:
    """What stands in it has this derivative where it is in a graph."""
    if tf.executing_eagerly():
        return contextlib.nullcontext()
    graph = tf.compat.v1.get_default_graph()
    return graph.gradient_override_map({"FusedBatchNormGradV3": _NAME})


@tf.RegisterGradient(_NAME)
def _second_derivative(
    op: tf.Operation,
    along_dx: tf.Tensor,
    along_dscale: tf.Tensor,
    along_doffset: tf.Tensor,
    *_: Any,
) -> tuple[tf.Tensor | None, ...]:
    """The gradient of the kernel's gradient to dy, x and scale.

    It is that of <a, dx> + <b, dscale> + <c, doffset>, with r = 1/σ and x̂ = r·(x − mean). At
    inference dx = scale·r·dy; in training, with m = mean(dy·x̂), dx = scale·r·(dy − mean(dy) − x̂·m).
    """
    dy, x, scale, mean, variance, _ = op.inputs
    dtype = x.dtype
    dy, x, a = (tf.cast(v, scale.dtype) for v in (dy, x, along_dx))
    b, c = along_dscale, along_doffset

    def average(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(values, [0, 1, 2])

    def total(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(values, [0, 1, 2])

    is_training = op.get_attr("is_training")
    if is_training:
        # Not of what the forward kernel saved: that is another thing on every device.
        mean = average(x)
        variance = average(tf.math.squared_difference(x, mean))
    r = tf.math.rsqrt(variance + op.get_attr("epsilon"))
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
    else:
        to_dy, to_x, to_scale = scale * r * a + b * x + c, b * r * dy, total(a * r * dy)
    return tf.cast(to_dy, dtype), tf.cast(to_x, dtype), to_scale, None, None, None
