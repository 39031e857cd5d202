"""A random part of the image, resized: the training crop of ImageNet."""

import dataclasses

import tensorflow as tf

from tfnorm.data import decoding
from tfnorm.data.example import Example
from tfnorm.data.transforms.placing import Placing, place

_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts out a part of random area and aspect ratio and resizes it (Szegedy et al. 2015, §6).

    The part's share of the area is uniform in `area`, its aspect ratio in `aspect`; where none of
    10 draws fits into the image, the part is the whole image. Of a JPEG only the part is decoded.

    Keras' RandomCrop cuts parts of one size, out of decoded images.

    Attributes:
        size: Height and width of the result.
        channels: Of the image.
        area: Least and greatest share of the image.
        aspect: Least and greatest width / height.
    """

    size: tuple[int, int]
    channels: int
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """The part of one example that its seed [2] draws."""
        shape = tf.concat([decoding.size(example["image"]), [self.channels]], axis=0)
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            seed,
            aspect_ratio_range=self.aspect,
            area_range=self.area,
            max_attempts=_ATTEMPTS,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        return place(example, Placing(window, self.size), self.channels)
