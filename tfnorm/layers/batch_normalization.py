"""Batch normalization, a drop-in for Keras' own."""

from typing import Any

import keras
import tensorflow as tf

from tfnorm import functional
from tfnorm.layers import arguments, replicas
from tfnorm.layers.base import ChannelNormalization


@keras.saving.register_keras_serializable(package="tfnorm")
class BatchNormalization(ChannelNormalization):
    """Batch normalization: arguments, weights, outputs and gradients of Keras' own, faster.

    Training, with μ_B and σ²_B the mean and the biased variance of a channel's valid positions in
    the batch: y = γ·(x − μ_B)/sqrt(σ²_B + ε) + β; moving ← α·moving + (1 − α)·(μ_B, σ²_B).
    Inference: y = γ·(x − moving_mean)/sqrt(moving_variance + ε) + β.

    State: moving_mean [C] and moving_variance [C], each replica's own until they are synchronized
    (`tfnorm.training.SynchronizeStatistics`, or a checkpoint, which holds their mean).

    When: 16 or more images on each device. Below that, its statistics are noise: see the other
    layers. Cost: less time than Keras' layer, with a mask or virtual replicas too;
    `synchronized=True` adds one all-reduce forward and one backward for each layer and step.

    Differs from Keras' layer: a masked position counts in no gradient statistic either (Keras
    lets ∂L/∂y of masked positions into ∂L/∂x of valid ones); statistics are float32 under every
    policy; replicas do not drift apart unseen; a replica without a sample leaves its state alone.

    Source: Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", 2015, Algorithms 1 and 2.

    Paper: https://arxiv.org/abs/1502.03167

    Example:
        y = BatchNormalization(synchronized=True)(keras.Input((32, 32, 16)))

    Args:
        axis: the channel axis.
        momentum: decay α of the moving statistics.
        epsilon: added to the variance, inside the root.
        center: whether there is a β.
        scale: whether there is a γ.
        beta_initializer: of β.
        gamma_initializer: of γ.
        moving_mean_initializer: of the moving mean.
        moving_variance_initializer: of the moving variance.
        beta_regularizer: of β.
        gamma_regularizer: of γ.
        beta_constraint: of β.
        gamma_constraint: of γ.
        renorm: must be False; `tfnorm.layers.BatchRenormalization` is the layer for it.
        renorm_clipping: without effect, as in Keras' layer while renorm=False.
        renorm_momentum: without effect, as in Keras' layer while renorm=False.
        synchronized: whether the moments are those of all replicas (and of all virtual ones).
        virtual_replicas: into how many consecutive parts a training batch is split that are
            normalized as if each stood on a replica of its own.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: dict | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        virtual_replicas: int = 1,
        **kwargs: Any,
    ) -> None:
        if renorm:
            raise ValueError(
                "BatchNormalization does not take renorm=True. Use "
                "tfnorm.layers.BatchRenormalization(r_max=..., d_max=...), which also takes "
                "schedules for both."
            )
        super().__init__(
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            virtual_replicas=virtual_replicas,
            **kwargs,
        )
        self.synchronized = arguments.yes_or_no("synchronized", synchronized)

    def normalize_batch(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the moments of the batch, of each group or of all replicas."""
        options = {"epsilon": self.epsilon, "axis": self.axis, "mask": mask}
        if self.synchronized and replicas.are_several():
            outputs, own = functional.synchronized_batch_normalization(
                inputs, self.gamma, self.beta, replicas.gather, replicas.reduce_sum, **options
            )
            self.update_moments(own)
        else:
            groups, then = 1 if self.synchronized else self.virtual_replicas, self.then_move()
            outputs, own = functional.batch_normalization(
                inputs, self.gamma, self.beta, groups=groups, then=then, **options
            )
            self.keep_moved(then, own.derived)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor that have an effect."""
        return {**super().get_config(), "synchronized": self.synchronized}
