"""Batch-instance normalization."""

from typing import Any

import keras
import tensorflow as tf

from tfnorm import functional
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.of_examples import Mixture


@keras.saving.register_keras_serializable(package="tfnorm")
class UnitInterval(keras.constraints.Constraint):
    """Keeps a weight between 0 and 1."""

    def __call__(self, w: Any) -> Any:
        """The nearest values between 0 and 1."""
        return keras.ops.clip(w, 0, 1)


@keras.saving.register_keras_serializable(package="tfnorm")
class BatchInstanceNormalization(Mixture, ChannelNormalization):
    """BIN: a learned mixture of batch and instance normalization for each channel.

    With x̂ = (x − μ)/sqrt(σ² + ε) by the moments of a channel over the batch, or over one example:
        y = γ·(ρ·x̂_batch + (1 − ρ)·x̂_instance) + β; moving ← α·moving + (1 − α)·(μ, σ²)_batch.
    At inference the batch's moments are the moving ones, an instance's its own: it does not fold.
    With ρ = 1 it is batch normalization, with ρ = 0 instance normalization.

    Weights after γ and β: gate ρ [C], kept in [0, 1] by a constraint, initially 1. State:
    moving_mean [C] and moving_variance [C], each replica's own until synchronized.

    When: images whose style (contrast, colour, texture) says nothing of their class; it normalizes
    that away where it disturbs. Nothing is communicated.

    Source: Nam & Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural
    Networks", 2018, equation 3. The moving variance is biased, as everywhere here; in the official
    code it is Bessel's. The paper trains ρ with ten times the learning rate.

    Paper: https://arxiv.org/abs/1805.07925

    Example:
        y = BatchInstanceNormalization()(keras.Input((32, 32, 16)))

    Its arguments are those of `ChannelNormalization` and of `keras.layers.Layer`.
    """

    def build_state(self) -> None:
        """Creates ρ."""
        self.gate = self.add_weight(
            name="gate",
            shape=(self.channels,),
            initializer="ones",
            constraint=UnitInterval(),
            autocast=False,
        )

    def mix(
        self, inputs: tf.Tensor, *moving: Any, **options: Any
    ) -> tuple[tf.Tensor, functional.Moments]:
        """By the function of this method, with the layer's weights."""
        return functional.batch_instance_normalization(
            inputs,
            self.gamma,
            self.beta,
            self.gate,
            *moving,
            epsilon=self.epsilon,
            axis=self.axis,
            **options,
        )
