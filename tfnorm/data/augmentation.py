"""Random crops and flips of images of one size, drawn for a whole epoch at once.

The draws are NumPy arrays with one row an example, made from (seed, epoch) alone. So a run that
resumes in mid-epoch, or on another number of replicas, sees the same crops, and the pipeline
itself has no random op.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfnorm.data.records import Example, Transform, compose
from tfnorm.errors import UserError


class Draws(NamedTuple):
    """What is random about each example in an epoch."""

    top: np.ndarray  # [examples] int32, first row of the crop in the padded image
    left: np.ndarray  # [examples] int32, first column
    flip: np.ndarray  # [examples] bool, mirror left and right


class PadCrop:
    """Pads standardized images with zeros (the mean colour), and crops each at its own place.

    An `EpochTransform`; by how much it pads is what `padding_of` says.

    Args:
        image_shape: (height, width, channels).
        flip: Whether to mirror half of the images, too.
    """

    def __init__(self, image_shape: tuple[int, int, int], flip: bool) -> None:
        self._padding = padding_of(image_shape)
        self._flip = flip

    def draw(self, rng: np.random.Generator, examples: int) -> Draws:
        """Draws for every example of one epoch."""
        size = (2, examples)
        top, left = rng.integers(0, 2 * self._padding, size, np.int32, endpoint=True)
        flip = rng.integers(0, 2, examples) == 1 if self._flip else np.zeros(examples, bool)
        return Draws(top, left, flip)

    def for_epoch(self, rng: np.random.Generator, examples: int) -> Transform:
        """The transform of one epoch."""
        draws = [tf.constant(values) for values in self.draw(rng, examples)]

        def transform(batch: Example, seeds: tf.Tensor) -> Example:
            own = (tf.gather(values, seeds[:, 1]) for values in draws)
            return {**batch, "image": crop(batch["image"], *own)}

        return transform

    def __call__(self, batch: Example, seeds: tf.Tensor) -> Example:
        """Raises TypeError: there is nothing to apply before an epoch is drawn."""
        raise TypeError("PadCrop is drawn for a whole epoch; call what for_epoch returns")


def _none(image_shape: tuple[int, int, int]) -> Transform:
    return compose()


# From (height, width, channels) to a transform of standardized images of this size.
AUGMENTATIONS: dict[str, Callable[[tuple[int, int, int]], Transform]] = {
    "none": _none,
    "pad_crop": functools.partial(PadCrop, flip=False),
    "pad_crop_flip": functools.partial(PadCrop, flip=True),
}


def get(name: str, image_shape: tuple[int, int, int]) -> Transform:
    """The augmentation of this name for standardized images of one size.

    Raises:
        UserError: There is none.
    """
    if name not in AUGMENTATIONS:
        raise UserError(
            f"unknown augmentation '{name}'; known augmentations: {', '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[name](image_shape)


def padding_of(image_shape: tuple[int, int, int]) -> int:
    """An eighth of the height: the literature's 4 pixels at 32×32, 1 pixel at 8×8."""
    return max(1, image_shape[0] // 8)


def crop(images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """Pads standardized images with zeros (the mean colour), then crops and flips each its own way.

    Args:
        images: [n, height, width, channels] floats.
        top: [n] int32, first row of each crop in the padded image.
        left: [n] int32, first column.
        flip: [n] bool.

    Returns:
        [n, height, width, channels].
    """
    _, height, width, _ = images.shape
    padding = padding_of(images.shape[1:])
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    rows = top[:, None] + tf.range(height)
    columns = tf.range(width)
    columns = left[:, None] + tf.where(flip[:, None], columns[::-1], columns)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)
