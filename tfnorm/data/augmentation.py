"""How training images are varied: by name, for images of one size and for photographs.

What is random about an example is a function of (seed, epoch) and its number alone. So a run that
resumes in mid-epoch, or on another number of replicas, sees the same.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfnorm.data import transforms
from tfnorm.data.records import Example, Transform
from tfnorm.data.transforms.each import OneTransform
from tfnorm.data.transforms.placing import Fill
from tfnorm.errors import UserError


class Draws(NamedTuple):
    """What is random about each example in an epoch."""

    top: np.ndarray  # [examples] int32, first row of the crop in the padded image
    left: np.ndarray  # [examples] int32, first column
    flip: np.ndarray  # [examples] bool, mirror left and right


class Augmentation(NamedTuple):
    """What happens to training images.

    Attributes:
        sizing: From encoded or decoded images of any size to float32 images of one size, pixels 0
            to 255; None is what happens in an evaluation.
        standardized: Of standardized images of one size, not of what lies beside them; or None.
    """

    sizing: Transform | None = None
    standardized: Transform | None = None


class PadCrop:
    """Pads standardized images with zeros (the mean colour), and crops each at its own place.

    An `EpochTransform`, whose draws are arrays with one row an example: it works on whole batches,
    which for small images is much less work. By how much it pads is what `padding_of` says.

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


def _pad_crop(image_shape: tuple[int, int, int], fill: Fill, *, flip: bool) -> Augmentation:
    return Augmentation(standardized=PadCrop(image_shape, flip))


def _random_resized_crop(
    image_shape: tuple[int, int, int], fill: Fill, *others: Callable[[], OneTransform]
) -> Augmentation:
    height, width, channels = image_shape
    crop = transforms.RandomResizedCrop((height, width), channels)
    return Augmentation(sizing=transforms.each(crop, *(make() for make in others)))


def _random_crop(image_shape: tuple[int, int, int], fill: Fill) -> Augmentation:
    height, width, channels = image_shape
    crop = transforms.RandomCrop((height, width), channels, fill)
    return Augmentation(sizing=transforms.each(crop, transforms.RandomFlip()))


def _scale_jitter(
    image_shape: tuple[int, int, int], fill: Fill, *, scale: tuple[float, float]
) -> Augmentation:
    height, width, channels = image_shape
    jitter = transforms.ScaleJitter((height, width), channels, scale, fill)
    return Augmentation(sizing=transforms.each(jitter, transforms.RandomFlip()))


def _color(image_shape: tuple[int, int, int], fill: Fill) -> Augmentation:
    if image_shape[-1] != 3:
        raise UserError(
            "augmentation 'random_resized_crop_flip_color' is for images of 3 channels, these have "
            f"{image_shape[-1]}; choose random_resized_crop_flip"
        )
    return _random_resized_crop(image_shape, fill, transforms.RandomFlip, transforms.ColorJitter)


AUGMENTATIONS: dict[str, Callable[[tuple[int, int, int], Fill], Augmentation]] = {
    "none": lambda image_shape, fill: Augmentation(),
    "pad_crop": functools.partial(_pad_crop, flip=False),
    "pad_crop_flip": functools.partial(_pad_crop, flip=True),
    "random_resized_crop": _random_resized_crop,
    "random_resized_crop_flip": lambda shape, fill: _random_resized_crop(
        shape, fill, transforms.RandomFlip
    ),
    "random_resized_crop_flip_color": _color,
    "random_crop_flip": _random_crop,
    "scale_jitter_flip": functools.partial(_scale_jitter, scale=(0.8, 1.25)),
    "large_scale_jitter_flip": functools.partial(_scale_jitter, scale=(0.1, 2.0)),
}
"""What `--augment` takes.

Each makes an augmentation from (height, width, channels) of the images that the network takes, and
the pixel that pads them.
"""


def get(name: str, image_shape: tuple[int, int, int], fill: Fill = 0.0) -> Augmentation:
    """The augmentation of this name.

    Args:
        name: A key of `AUGMENTATIONS`.
        image_shape: (height, width, channels) of the images that the network takes.
        fill: Pixel value where there is no image, or one a channel.

    Raises:
        UserError: There is none, or it is not for such images.
    """
    if name not in AUGMENTATIONS:
        raise UserError(
            f"unknown augmentation '{name}'; known augmentations: {', '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[name](image_shape, fill)


def get_with_targets(name: str, image_shape: tuple[int, int, int], fill: Fill) -> Augmentation:
    """One that acts on masks, boxes and instances as on images.

    Raises:
        UserError: There is none of this name, or it acts on images alone.
    """
    found = get(name, image_shape, fill)
    if found.standardized is not None:
        others = ", ".join(n for n in AUGMENTATIONS if not n.startswith("pad_crop"))
        raise UserError(
            f"--augment={name} moves images and not their masks or boxes; choose one of {others}"
        )
    return found


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
