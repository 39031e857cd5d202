"""From pixels to what networks are fed: the one place that says how."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def standardize(
    images: np.ndarray | tf.Tensor,
    mean: Sequence[float] | np.ndarray,
    std: Sequence[float] | np.ndarray,
) -> tf.Tensor:
    """(pixel / 255 − mean) / std, in one multiplication and one subtraction.

    Args:
        images: [..., channels], pixels from 0 to 255 of any type.
        mean: Of pixel / 255, for each channel, or one number for all.
        std: Standard deviation in the same way.

    Returns:
        Float32 tensor of the same shape.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    scale, offset = (1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32)
    return tf.cast(images, tf.float32) * scale - offset
