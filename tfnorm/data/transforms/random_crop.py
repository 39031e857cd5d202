"""A random part of the image at its own scale."""

import dataclasses

import tensorflow as tf

from tfnorm.data import decoding
from tfnorm.data.example import Example
from tfnorm.data.transforms.placing import Fill, Placing, place


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cuts out a part of fixed size at a random place; what an image lacks of it is padded.

    Attributes:
        size: Height and width of the part.
        channels: Of the image.
        fill: Pixel value of the padding, at bottom and right.
    """

    size: tuple[int, int]
    channels: int
    fill: Fill = 0.0

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """The part of one example that its seed [2] draws."""
        image = decoding.size(example["image"])
        window = random_window(image, tf.minimum(image, self.size), seed)
        return place(example, Placing(window, canvas=self.size), self.channels, self.fill)


def random_window(image: tf.Tensor, part: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A window [4] of size `part` [2] within an image of size `image` [2], each place as likely."""
    places = image - part + 1
    drawn = tf.random.stateless_uniform([2], seed) * tf.cast(places, tf.float32)
    corner = tf.minimum(tf.cast(drawn, tf.int32), places - 1)  # Products may be rounded up.
    return tf.concat([corner, part], axis=0)
