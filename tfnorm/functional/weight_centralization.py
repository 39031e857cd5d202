"""Weight centralization (Yan et al. 2020, equation 18)."""

import tensorflow as tf


def centralize(kernel: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """W − mean(W over `axes`), whose gradient is the same of the gradient: dW − mean(dW).

    Said so, because a tape would write mean(dW) out in the shape of W, twice: ten passes over a
    kernel where these are six.
    """

    def subtract(kernel: tf.Tensor) -> tf.Tensor:
        return kernel - mean(kernel, axes)

    return tf.custom_gradient(lambda kernel: (subtract(kernel), subtract))(kernel)


def with_mean(kernel: tf.Tensor, axes: tuple[int, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    """The kernel, and its mean over `axes`, whose gradients join in one pass over the kernel."""

    @tf.custom_gradient
    def split(kernel: tf.Tensor):  # noqa: ANN202
        average = mean(kernel, axes)
        ratio = kernel.shape.num_elements() // average.shape.num_elements()
        return (tf.identity(kernel), average), lambda dkernel, dmean: dkernel + dmean / ratio

    return split(kernel)


def mean(kernel: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """The mean over `axes`, which are kept as 1 or, where they are all but the last, left out."""
    # Half precision would add up in half precision: thousands of elements, most of them in vain.
    wide = tf.cast(kernel, tf.float64 if kernel.dtype == tf.float64 else tf.float32)
    if axes == tuple(range(kernel.shape.rank - 1)):
        # The sum over all but the last axis by the kernel made for it (0.75 of the time).
        sums = tf.raw_ops.BiasAddGrad(out_backprop=wide)
        average = sums / (kernel.shape.num_elements() // kernel.shape[-1])
    else:
        average = tf.reduce_mean(wide, axes, keepdims=True)
    return tf.cast(average, kernel.dtype)
