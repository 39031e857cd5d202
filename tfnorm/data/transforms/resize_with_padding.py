"""The whole image on a canvas of one size, its aspect kept."""

import dataclasses

import tensorflow as tf

from tfnorm.data import decoding
from tfnorm.data.example import Example
from tfnorm.data.transforms.placing import Fill, Placing, place


@dataclasses.dataclass(frozen=True)
class ResizeWithPadding:
    """Resizes by the factor by which the whole image just fits, and pads at bottom and right.

    So a point (y, x) of the result is (y, x) / factor of the image.

    Attributes:
        size: Height and width of the canvas.
        channels: Of the image.
        fill: Pixel value of the padding.
    """

    size: tuple[int, int]
    channels: int
    fill: Fill = 0.0

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """One example; nothing in it is random."""
        resized = scaled(decoding.size(example["image"]), self.size, 1.0)
        placing = Placing(size=resized, canvas=self.size)
        return place(example, placing, self.channels, self.fill)


def scaled(image: tf.Tensor, size: tuple[int, int], factor: tf.Tensor | float) -> tf.Tensor:
    """Height and width of an image when its aspect is kept.

    Args:
        image: [..., 2] int32, height and width.
        size: What it fits at a factor of 1.
        factor: By how much it is larger.

    Returns:
        [..., 2] int32, at least 1.
    """
    sides = tf.cast(image, tf.float32)
    fitting = tf.reduce_min(tf.constant(size, tf.float32) / sides, -1, keepdims=True)
    return tf.maximum(tf.cast(tf.round(sides * fitting * factor), tf.int32), 1)
