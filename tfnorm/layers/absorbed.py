"""What stands where a layer stood that a conversion in place has joined or taken apart."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfnorm")
class Absorbed(keras.layers.Layer):
    """Returns its input: the place of a normalizer that another layer has taken into itself.

    `tfnorm.convert(model, "cbn", in_place=True)` puts the normalizer around the convolution before
    it, and this where it stood, because the model's code goes on to call both.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The inputs; `training` and `mask` are taken as a normalizer takes them."""
        del training, mask
        return inputs

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's."""
        return input_shape


@keras.saving.register_keras_serializable(package="tfnorm")
class Apart(keras.Sequential):
    """A layer and the normalizer behind it, where one layer stood that was both."""
