"""Switchable normalization."""

from typing import Any

import keras
import tensorflow as tf

from tfnorm import functional
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.of_examples import Mixture


@keras.saving.register_keras_serializable(package="tfnorm")
class SwitchableNormalization(Mixture, ChannelNormalization):
    """SN: learns how much of instance, layer and batch statistics to normalize by.

    With (μ_k, σ²_k) those of an example's channel (instance), of all channels of an example (layer)
    and of a channel over the batch:
        mean = Σ softmax(a)_k·μ_k, variance = Σ softmax(b)_k·σ²_k,
        y = γ·(x − mean)/sqrt(variance + ε) + β; moving ← α·moving + (1 − α)·(μ, σ²)_batch.
    At inference the batch's are the moving ones, the others each example's own: it does not fold,
    and serving costs the passes of an instance normalization.

    Weights after γ and β: mean_weights a [3] and variance_weights b [3], in the order instance,
    layer, batch, initially 0: a third each. State: moving_mean [C] and moving_variance [C], each
    replica's own until synchronized.

    When: few images on each device, where serving may cost; it moves to the statistics that are
    there. Nothing is communicated. Cost: about the time of Keras' batch normalization, a
    quarter more where examples have one position, as behind a dense layer.

    Source: Luo et al., "Differentiable Learning-to-Normalize via Switchable Normalization", 2018,
    equations 3 to 5. As in the official code the instances' variance is Bessel's, and those of
    layer and batch follow from it.

    Paper: https://arxiv.org/abs/1806.10779

    Example:
        y = SwitchableNormalization()(keras.Input((32, 32, 16)))

    Its arguments are those of `ChannelNormalization` and of `keras.layers.Layer`.
    """

    def build_state(self) -> None:
        """Creates the two weightings."""
        self.mean_weights, self.variance_weights = (
            self.add_weight(name=name, shape=(3,), initializer="zeros", autocast=False)
            for name in ("mean_weights", "variance_weights")
        )

    def mix(
        self, inputs: tf.Tensor, *moving: Any, **options: Any
    ) -> tuple[tf.Tensor, functional.Moments]:
        """By the function of this method, with the layer's weights."""
        return functional.switchable_normalization(
            inputs,
            self.gamma,
            self.beta,
            self.mean_weights,
            self.variance_weights,
            *moving,
            epsilon=self.epsilon,
            axis=self.axis,
            **options,
        )
