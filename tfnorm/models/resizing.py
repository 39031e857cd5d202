"""Layers that bring feature maps to other sizes, whatever the size of the images."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfnorm")
class ResizeLike(keras.layers.Layer):
    """Resizes the first of two feature maps to height and width of the second.

    Bilinear interpolation takes corners of pixels for the same (not their centres at the border),
    and is computed in float32; nearest takes the pixel at floor(position · size / new size).

    Args:
        interpolation: "bilinear" or "nearest".
        **kwargs: those of `keras.layers.Layer`.

    Example:
        y = ResizeLike()([x, images])
    """

    def __init__(self, interpolation: str = "bilinear", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if interpolation not in ("bilinear", "nearest"):
            raise ValueError(
                f'interpolation must be "bilinear" or "nearest". Received: {interpolation!r}.'
            )
        self.interpolation = interpolation

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """The first of the inputs, at the size of the second."""
        x, like = inputs
        size, new = size_of(x), size_of(like)
        is_known = all(isinstance(n, int) for n in (*size, *new))
        if is_known and size == new:
            return x
        if self.interpolation == "bilinear":
            return tf.cast(tf.image.resize(x, new), x.dtype)
        if is_known and new == tuple(2 * n for n in size):
            return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)
        for axis, (old, count) in enumerate(zip(size, new), 1):
            x = tf.gather(x, tf.range(count) * old // count, axis=axis)
        return x

    def compute_output_shape(self, input_shape: list[tuple]) -> tuple:
        """Batch and channels of the first, height and width of the second."""
        x, like = input_shape
        return (x[0], *like[1:3], x[3])

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {**super().get_config(), "interpolation": self.interpolation}


@keras.saving.register_keras_serializable(package="tfnorm")
class AverageBins(keras.layers.Layer):
    """The means of `bins` × `bins` parts of a feature map of any size: adaptive average pooling.

    Part i of a side of n pixels is floor(i·n / bins) to ceil((i + 1)·n / bins), so that parts may
    share pixels, and none is empty.

    Args:
        bins: number of parts along each side.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(self, bins: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Means of [batch, height, width, channels], as [batch, bins, bins, channels]."""
        rows, columns = (self._shares(n, inputs.dtype) for n in size_of(inputs))
        means = tf.einsum("ih,bhwc->biwc", rows, inputs)
        return tf.einsum("jw,biwc->bijc", columns, means)

    def _shares(self, size: int | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """[bins, size]: what share a pixel has in a part."""
        part, pixel = tf.range(self.bins)[:, None], tf.range(size)[None]
        start, end = part * size // self.bins, ((part + 1) * size + self.bins - 1) // self.bins
        inside = tf.cast((start <= pixel) & (pixel < end), tf.float32)
        return tf.cast(inside / tf.cast(end - start, tf.float32), dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """[batch, bins, bins, channels]."""
        return (input_shape[0], self.bins, self.bins, input_shape[3])

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {**super().get_config(), "bins": self.bins}


def size_of(x: tf.Tensor) -> tuple:
    """(height, width) of [batch, height, width, channels], as numbers where they are known."""
    known = x.shape[1:3]
    if None not in known:
        return tuple(known)
    shape = tf.shape(x)
    return tuple(shape[i] if n is None else n for i, n in enumerate(known, 1))
