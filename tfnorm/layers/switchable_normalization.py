"""Switchable normalization."""

from typing import Any

import keras
import tensorflow as tf

from tfnorm import functional
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.of_examples import OfExamples


@keras.saving.register_keras_serializable(package="tfnorm")
class SwitchableNormalization(OfExamples, ChannelNormalization):
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
    there. Nothing is communicated.

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

    def normalize_batch(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the mixture with the statistics of each group."""
        outputs, own = self._normalize(inputs, mask=mask, groups=self.virtual_replicas)
        is_seen = self.has_seen(own.count, own.variance)
        self.update_moving(self.moving_mean, own.mean, is_seen)
        self.update_moving(self.moving_variance, own.variance, is_seen)
        return outputs

    def infer(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the mixture with the moving statistics."""
        moving = self.moving_mean, self.moving_variance
        outputs, _ = self._normalize(inputs, tuple(map(tf.convert_to_tensor, moving)), mask=mask)
        return outputs

    def _normalize(self, inputs: tf.Tensor, *moving: Any, **options: Any) -> tuple:
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
