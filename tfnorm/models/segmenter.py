"""What all segmentation networks end in: a logit a class and pixel."""

from typing import Any

import keras

from tfnorm.models.resizing import ResizeLike


def segmenter(images: Any, x: Any, num_classes: int, name: str) -> keras.Model:
    """A 1×1 convolution to float32 logits and bilinear interpolation to the images' size.

    Args:
        images: the input [batch, height, width, channels].
        x: the last feature map.
        num_classes: number of logits.
        name: of the model.

    Returns:
        A functional model from images to logits [batch, height, width, num_classes].
    """
    logits = keras.layers.Conv2D(num_classes, 1, dtype="float32", name="logits")(x)
    outputs = ResizeLike(dtype="float32", name="logits_of_pixels")([logits, images])
    return keras.Model(images, outputs, name=name)
