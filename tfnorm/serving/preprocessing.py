"""Images as they come, of type uint8, to what a model takes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfnorm import pixels
from tfnorm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Makes an export take uint8 images; it brings them to the model's size and scale itself.

    The model is fed (pixel / 255 − mean) / std.

    Attributes:
        mean: of pixel / 255, for each channel, or one number for all.
        std: standard deviation in the same way.
        resize: whether images of any size are taken. They are brought to the model's size by
            bilinear interpolation without antialiasing, as Keras' Resizing layer does.

    Raises:
        UserError: if a standard deviation is not positive, a number is not finite, or the numbers
            do not pair up.
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    resize: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if len(self.mean) != len(self.std) or not self.mean or not self._are_finite():
            raise UserError(
                f"Preprocessing has mean {self.mean} and std {self.std}. Give as many of one as of "
                "the other, one for each channel, all of them finite, and each std above 0."
            )

    def _are_finite(self) -> bool:
        return all(map(math.isfinite, (*self.mean, *self.std))) and min(self.std) > 0

    def spec(self, fed: tf.TensorSpec) -> tf.TensorSpec:
        """What the export takes where the model is fed `fed`.

        Raises:
            UserError: if these are not images of as many channels, or of no size to resize to.
        """
        shape = fed.shape.as_list()
        channels = (len(self.mean),) if len(self.mean) > 1 else (1, 3, 4)
        if len(shape) != 4 or not fed.dtype.is_floating or shape[-1] not in channels:
            raise UserError(
                f"Preprocessing of images needs a model that takes floats of shape [batch, height, "
                f"width, {' or '.join(map(str, channels))}]; its input {fed.name!r} is "
                f"{fed.dtype.name} {shape}."
            )
        if not self.resize:
            return tf.TensorSpec(shape, tf.uint8, fed.name)
        if None in shape[1:3]:
            raise UserError(
                f"The input {fed.name!r} of the model takes images of any size, {shape}: there is "
                "no size to resize to. Leave resize out."
            )
        return tf.TensorSpec([shape[0], None, None, shape[3]], tf.uint8, fed.name)

    def __call__(self, images: tf.Tensor, fed: tf.TensorSpec) -> tf.Tensor:
        """Images of type uint8 to a tensor that fits `fed`."""
        if self.resize:
            images = tf.image.resize(tf.cast(images, tf.float32), fed.shape[1:3])
        return tf.cast(pixels.standardize(images, self.mean, self.std), fed.dtype)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)
