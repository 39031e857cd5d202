"""Random crops and flips, drawn for a whole epoch at once and applied to whole batches.

The draws are NumPy arrays with one row an example, made from (seed, epoch) alone. So a run that
resumes in mid-epoch, or on another number of replicas, sees the same crops, and the pipeline
itself has no random op.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfnorm.errors import UserError


class Draws(NamedTuple):
    """What is random about each example in an epoch."""

    top: np.ndarray  # [examples] int32, first row of the crop in the padded image
    left: np.ndarray  # [examples] int32, first column
    flip: np.ndarray  # [examples] bool, mirror left and right


def _none(rng: np.random.Generator, examples: int, padding: int) -> None:
    return None


def _pad_crop(rng: np.random.Generator, examples: int, padding: int) -> Draws:
    top, left = rng.integers(0, 2 * padding, (2, examples), np.int32, endpoint=True)
    return Draws(top, left, np.zeros(examples, bool))


def _pad_crop_flip(rng: np.random.Generator, examples: int, padding: int) -> Draws:
    return _pad_crop(rng, examples, padding)._replace(flip=rng.integers(0, 2, examples) == 1)


AUGMENTATIONS: dict[str, Callable[[np.random.Generator, int, int], Draws | None]] = {
    "none": _none,
    "pad_crop": _pad_crop,
    "pad_crop_flip": _pad_crop_flip,
}


def draw(
    name: str, rng: np.random.Generator, examples: int, image_shape: tuple[int, int, int]
) -> Draws | None:
    """Draws the augmentation of every example of one epoch.

    Args:
        name: A key of `AUGMENTATIONS`.
        rng: Source of the numbers.
        examples: Number of examples.
        image_shape: (height, width, channels).

    Returns:
        The draws, or None if there is nothing to do.

    Raises:
        UserError: Unknown name.
    """
    if name not in AUGMENTATIONS:
        raise UserError(
            f"unknown augmentation '{name}'; known augmentations: {', '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[name](rng, examples, padding_of(image_shape))


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
