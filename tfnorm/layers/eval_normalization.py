"""EvalNorm."""

from typing import Any

import keras
import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import Moments
from tfnorm.layers import arguments, replicas, state
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.of_examples import OfExamples


@keras.saving.register_keras_serializable(package="tfnorm")
class EvalNormalization(OfExamples, ChannelNormalization):
    """EvalNorm: trains as batch normalization; at inference an example counts for itself too.

    A small training batch's statistics owe a share to each example in it, which moving statistics
    do not. With an example's own moments μ_x, σ²_x and the moving ones, at inference:
        mean = α·μ_x + (1 − α)·μ,
        variance = β·σ²_x + (1 − β)·σ² + α·(1 − α)·(μ_x − μ)²,
        y = γ·(x − mean)/sqrt(variance + ε) + β_offset.
    α and β are 1/B for training_batch_size = B, an example's share in the mean of B; or they are
    estimated: each training call takes a step towards the α and β that minimize the mean of
    (x̂_mixture − x̂_batch)², without gradient into the network and at no pass over the activations
    but that for the examples' moments. Of a larger batch, or virtual replica, its first 32
    examples are used for that, which is plenty for two numbers. They start at 0, which is batch
    normalization, so that a network that is already trained can be converted; training calls, also
    without an optimizer, estimate them.

    State: moving_mean [C] and moving_variance [C]; where they are estimated also mean_share and
    variance_share [1, virtual_replicas, 1]. Each replica's own until synchronized.

    When: networks that were trained with BN on 2 to 8 images a device, where serving may cost. It
    does not fold. Nothing is communicated.

    Source: Singh & Shrivastava, "EvalNorm: Estimating Batch Normalization Statistics for
    Evaluation", 2019. There is no official code. From the paper: the mixture of moments, one α and
    one β a layer, and the objective. Ours: what the mixing of means adds to the variance (the law
    of total variance), the rule 1/B as an option, and the steps (Gauss and Newton's, 1 − momentum
    of each) in place of a learning rate.

    Paper: https://arxiv.org/abs/1904.06031

    Example:
        y = EvalNormalization(training_batch_size=4)(keras.Input((32, 32, 16)))

    Args:
        *args: those of `ChannelNormalization`, in its order: axis, momentum, epsilon, center, ...
        training_batch_size: B, examples that shared statistics in training; None estimates.
        **kwargs: those of `ChannelNormalization` and of `keras.layers.Layer`.

    Raises:
        ValueError: training_batch_size is below 1.
    """

    def __init__(self, *args: Any, training_batch_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.training_batch_size = None
        if training_batch_size is not None:
            self.training_batch_size = arguments.whole(
                "training_batch_size",
                training_batch_size,
                1,
                meaning=", the examples that shared statistics in training, or None",
            )

    def build_state(self) -> None:
        """Creates α and β where they are estimated."""
        if self.training_batch_size is None:
            shape = (1, self.virtual_replicas, 1)
            self.mean_share, self.variance_share = (
                replicas.state_variable("zeros", shape, self.statistics_dtype, name)
                for name in ("mean_share", "variance_share")
            )

    def normalize_batch(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the moments of each group, as batch normalization does."""
        moving = tuple(map(state.read, (self.moving_mean, self.moving_variance)))
        options = {"epsilon": self.epsilon, "axis": self.axis, "mask": mask}
        then = self.then_move(moving)
        outputs, own = functional.batch_normalization(
            inputs, self.gamma, self.beta, groups=self.virtual_replicas, then=then, **options
        )
        is_seen = self.keep_moved(then, own.derived)
        if self.training_batch_size is None:
            self._estimate(inputs, own, is_seen, moving, options)
        return outputs

    def _estimate(
        self,
        inputs: tf.Tensor,
        own: Moments,
        is_seen: tf.Tensor,
        moving: tuple[tf.Tensor, tf.Tensor],
        options: dict[str, Any],
    ) -> None:
        variables = self.mean_share, self.variance_share
        shares = [state.read(v) for v in variables]
        before = (tf.squeeze(share, 0) for share in shares)
        after = functional.estimate_shares(
            inputs, own, *moving, *before, 1 - self.momentum, is_seen=is_seen, **options
        )
        state.Writer().assign_all(variables, (tf.expand_dims(v, 0) for v in after), shares)

    def infer(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the mixture of each example's moments and the moving ones."""
        return functional.eval_normalization(
            inputs,
            self.gamma,
            self.beta,
            *map(tf.convert_to_tensor, (self.moving_mean, self.moving_variance)),
            *self._shares(),
            epsilon=self.epsilon,
            axis=self.axis,
            mask=mask,
        )

    def _shares(self) -> tuple[tf.Tensor | float, tf.Tensor | float]:
        if self.training_batch_size is None:
            shares = (self.mean_share, self.variance_share)
            means = (tf.reduce_mean(tf.convert_to_tensor(share)) for share in shares)
            # Others may assign what is no share.
            return tuple(tf.clip_by_value(mean, 0, 1) for mean in means)
        return (1 / self.training_batch_size,) * 2

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {**super().get_config(), "training_batch_size": self.training_batch_size}
