"""How images are seen when nothing is random."""

import dataclasses

import tensorflow as tf

from tfnorm.data import decoding
from tfnorm.data.example import Example
from tfnorm.data.transforms.placing import Placing, place


@dataclasses.dataclass(frozen=True)
class ResizeAndCenterCrop:
    """Resizes the image and takes its centre, of a JPEG decoding no more than that.

    The centre is the largest window of the result's aspect, `share` of its height and width: at
    224 and 0.875 the same as to resize the shorter side to 256 and to take the central 224.

    Attributes:
        size: Height and width of the result.
        channels: Of the image.
        share: How much of the largest window is seen.
    """

    size: tuple[int, int]
    channels: int
    share: float = 0.875

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """One example; nothing in it is random."""
        image = decoding.size(example["image"])
        size = tf.constant(self.size, tf.float32)
        scale = tf.reduce_min(tf.cast(image, tf.float32) / size) * self.share
        part = tf.clip_by_value(tf.cast(tf.round(size * scale), tf.int32), 1, image)
        window = tf.concat([(image - part) // 2, part], axis=0)
        return place(example, Placing(window, self.size), self.channels)


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes the whole image, whatever its aspect.

    Attributes:
        size: Height and width of the result.
        channels: Of the image.
    """

    size: tuple[int, int]
    channels: int

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """One example; nothing in it is random."""
        return place(example, Placing(size=self.size), self.channels)


@dataclasses.dataclass(frozen=True)
class WholeImage:
    """Decodes the image and leaves it as it is: in a batch all have to be of one size.

    Attributes:
        channels: Of the image.
    """

    channels: int

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """One example; nothing in it is random."""
        return place(example, Placing(), self.channels)
