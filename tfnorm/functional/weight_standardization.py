"""Weight standardization (Qiao et al. 2019)."""

import tensorflow as tf

from tfnorm.functional.weight_centralization import centralize, mean

EPSILON = 1e-5
"""Added to the standard deviation, not to the variance, as in the official code."""


def standardize(kernel: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """Ŵ = (W − mean W)/(s + 1e-5), with s the biased standard deviation, both over `axes`.

    Backward, with c = W − mean W: dc = dŴ/(s + 1e-5) − c·mean(dŴ·c)/(s·(s + 1e-5)²) and
    dW = dc − mean(dc). A kernel of equal elements becomes 0 and has the first term alone.
    """
    wide = tf.cast(kernel, tf.float64 if kernel.dtype == tf.float64 else tf.float32)

    @tf.custom_gradient
    def divide(centred: tf.Tensor):  # noqa: ANN202
        deviation = tf.sqrt(mean(tf.square(centred), axes))
        inverse = 1 / (deviation + EPSILON)

        def gradient(dkernel: tf.Tensor) -> tf.Tensor:
            along = tf.math.divide_no_nan(mean(dkernel * centred, axes), deviation)
            return dkernel * inverse - centred * (along * tf.square(inverse))

        return centred * inverse, gradient

    return tf.cast(divide(centralize(wide, axes)), kernel.dtype)
