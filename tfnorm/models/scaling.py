"""The scale of pixels that a network was made for."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfnorm import pixels


@dataclasses.dataclass(frozen=True)
class PixelScaling:
    """A network is fed (pixel / 255 − mean) / std, pixels from 0 to 255 in the order R, G, B.

    It is what `tfnorm.export.Preprocessing(mean, std)` does to uint8 images in an export.

    Attributes:
        mean: for each channel.
        std: for each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_affine(cls, scale: np.ndarray, offset: np.ndarray, channels: int) -> "PixelScaling":
        """That of a network which is fed scale·pixel + offset, of each of three channels.

        For images of another number of channels, the mean of its mean and std over the three.
        """
        mean, std = (np.asarray(x, "float64") for x in (0 - offset / scale / 255, 1 / scale / 255))
        if channels != len(mean):
            mean, std = (np.full(channels, x.mean()) for x in (mean, std))
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, images: np.ndarray | tf.Tensor) -> tf.Tensor:
        """What the network is fed for images [..., channels] of any type, float32."""
        return pixels.standardize(images, self.mean, self.std)
