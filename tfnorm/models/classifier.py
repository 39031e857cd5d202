"""Classification on any backbone."""

from typing import Any

import keras

from tfnorm.layers.norms import Normalizer
from tfnorm.models.pyramid import Features


def classifier(
    features: Features,
    normalizer: Normalizer,
    input_shape: tuple[int | None, int | None, int],
    num_classes: int,
    *,
    name: str,
) -> keras.Model:
    """The deepest feature map of a backbone, average-pooled, and a dense layer.

    Args:
        features: the backbone.
        normalizer: of the head, which has none to place.
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        name: of the model.

    Returns:
        A functional model from images to float32 logits [batch, num_classes].
    """
    del normalizer
    images = keras.Input(input_shape, name="image")
    pyramid = features(images)
    x: Any = keras.layers.GlobalAveragePooling2D()(pyramid.levels[pyramid.deepest])
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name=name)
