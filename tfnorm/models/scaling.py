"""The scale of pixels that a network was made for."""

import dataclasses

import numpy as np
import tensorflow as tf


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

    def __call__(self, images: np.ndarray | tf.Tensor) -> tf.Tensor:
        """What the network is fed for images [..., channels] of any type, float32."""
        mean, std = np.array(self.mean), np.array(self.std)
        scale, offset = (1 / (255 * std)).astype("float32"), (mean / std).astype("float32")
        return tf.cast(images, tf.float32) * scale - offset
