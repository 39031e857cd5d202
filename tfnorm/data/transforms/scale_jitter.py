"""Images at random scales on a canvas of one size: the training crop of detectors."""

import dataclasses

import tensorflow as tf

from tfnorm.data import decoding
from tfnorm.data.example import Example
from tfnorm.data.transforms.placing import Fill, Placing, place
from tfnorm.data.transforms.random_crop import random_window
from tfnorm.data.transforms.resize_with_padding import scaled


@dataclasses.dataclass(frozen=True)
class ScaleJitter:
    """Resizes by a random factor, then crops at a random place or pads (Ghiasi et al. 2021, §3).

    The factor is relative to that by which the whole image just fits the canvas. The crop is taken
    from the image before it is resized, so that no pixel is resized in vain and of a JPEG only the
    crop is decoded.

    Attributes:
        size: Height and width of the canvas.
        channels: Of the image.
        scale: Least and greatest factor: (0.8, 1.25) is the paper's standard jittering, (0.1, 2.0)
            its large-scale jittering.
        fill: Pixel value of the padding, at bottom and right.
    """

    size: tuple[int, int]
    channels: int
    scale: tuple[float, float] = (0.8, 1.25)
    fill: Fill = 0.0

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """One example at the scale and place that its seed [2] draws."""
        image = decoding.size(example["image"])
        of_scale, of_place = tf.unstack(tf.random.split(seed, 2))
        factor = tf.random.stateless_uniform([], of_scale, *self.scale)
        resized = scaled(image, self.size, factor)
        shown = tf.minimum(resized, self.size)
        # What is shown of the resized image, in pixels of the image.
        share = tf.cast(shown, tf.float32) / tf.cast(resized, tf.float32)
        part = tf.cast(tf.round(share * tf.cast(image, tf.float32)), tf.int32)
        window = random_window(image, tf.clip_by_value(part, 1, image), of_place)
        return place(example, Placing(window, shown, self.size), self.channels, self.fill)
