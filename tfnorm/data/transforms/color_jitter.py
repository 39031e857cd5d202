"""Random brightness, contrast, saturation and hue."""

from typing import Any

import keras
import tensorflow as tf

from tfnorm.data.example import Example


class ColorJitter:
    """Keras' own augmentations of colour, one after the other, for images of three channels.

    Keras' layers draw from generators with a state, which would make an epoch depend on what came
    before it. Their `get_random_transformation` takes the generator as an argument, though: here it
    gets one without a state, that hands out seeds made of the example's. (Keras' layers of geometry
    are not used: they know neither encoded images nor instances.)

    Args:
        brightness: Greatest change, as a share of the range of pixels.
        contrast: Distances from the mean are multiplied by 1 − contrast to 1 + contrast.
        saturation: It is multiplied by (1 − saturation) / (1 + saturation) to the inverse.
        hue: Greatest change, as a share of the circle of colours.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.05,
    ) -> None:
        layers, pixels = keras.layers, (0, 255)
        # With a seed, for without one they draw it from Python's, which others count on.
        common = {"dtype": "float32", "seed": 0}
        self._layers = [
            layers.RandomBrightness(brightness, pixels, **common),
            # Of one number Keras makes factors above 1 alone.
            layers.RandomContrast((contrast, contrast), pixels, **common),
            # It counts from 0 (grey) over 0.5 (no change) to 1, and its range is the saturation's.
            layers.RandomSaturation(((1 - saturation) / 2, (1 + saturation) / 2), (0, 1), **common),
            layers.RandomHue(2 * hue, pixels, **common),  # It counts half circles.
        ]

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """One example with image [h, w, 3], its colours changed as its seed [2] draws."""
        image = example["image"][None]  # Keras changes the saturation of batches only.
        for number, layer in enumerate(self._layers):
            seeds: Any = _Seeds(tf.random.fold_in(seed, number))
            drawn = layer.get_random_transformation(image, training=True, seed=seeds)
            image = layer.transform_images(image, drawn, training=True)
        return {**example, "image": tf.ensure_shape(image[0], example["image"].shape)}


class _Seeds(keras.random.SeedGenerator):
    """A generator that derives its seeds from one given as a tensor, and has no state."""

    def __init__(self, seed: tf.Tensor) -> None:
        # Not Keras' own, which makes a variable.
        self._seed, self._drawn = seed, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """The next seed."""
        del ordered  # There is one order only.
        self._drawn += 1
        return tf.random.fold_in(self._seed, self._drawn)
