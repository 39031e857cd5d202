"""Moving average batch normalization."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm import functional
from tfnorm.layers import arguments, loss_scaling, notices, replicas, state
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_method import AveragedSteps


@keras.saving.register_keras_serializable(package="tfnorm")
class MovingAverageBatchNormalization(ChannelNormalization):
    """MABN: averages over past steps in place of batch statistics, forward and backward.

    Training step t, from 1, with χ²_B = mean(x²) of the batch (no mean is subtracted):
        χ̄² = mean of χ²_B over the last `window` steps,
        Y = x/sqrt(χ̄² + ε), r = clip(sqrt(χ̄² + ε)/sqrt(χ̂² + ε), 1/λ, λ), y = γ·r·Y + β,
        χ̂² ← α·χ̂² + (1 − α)·χ̄², kept as moving_variance; moving_mean stays 0.
    Backward, with G = γ·r·∂L/∂y and Ψ̄ the mean of Ψ_B = mean(G·Y) over the last
    `gradient_window` steps:
        ∂L/∂x = (G − Y·Ψ̄)/sqrt(χ̄² + ε).
    While t ≤ window (the longer one) or t < warmup_steps the averages are this step's own values;
    while t ≤ correction_start_step, r = 1.

    Follow a layer of zero-mean kernels with it: `WeightCentralization(layer)` does that (the
    paper's section 4.2; without it the missing mean hurts).

    State: moving_mean [C], moving_variance [C]; square_history [window, virtual_replicas, C], the
    last χ²_B, and gradient_history [gradient_window, virtual_replicas, C], the last Ψ_B, written in
    the backward pass; square_weight and gradient_weight, the same with 1 in place of C: 0 for the
    steps that a group has not known yet, being empty, which count in no average; step, the number
    of training calls. All of it is each replica's own until synchronized.

    When: 1 to 8 images on each device, runs of more than some thousand steps. Not: short runs
    (fewer steps than `correction_start_step` are plain normalization by averages), after a layer
    whose kernel cannot be centralized, or at learning rates so high that the network changes within
    a window: Ψ̄ lags by half of it, and what it does not take off the gradient moves the kernels'
    scales. A RetinaNet on bccd, one image, 150 steps at 0.05, has an AP of 17 % with this step's
    own values throughout (bn 13 %). With averages from step 37 on, while the rate is at its
    highest, it diverges (0 %); it does not with gradient_window=1 (15 %), window=8 (16 %), at a
    rate of 0.02 (20 %), or with averages from step 75 on (21 %). One run each. The paper's Mask
    R-CNN has the batch's own in its heads for 10,000 steps at first (appendix B.3).
    Cost: less time than Keras' BatchNormalization, with a mask or virtual replicas too; nothing is
    communicated.

    Source: Yan et al., "Towards Stabilizing Batch Statistics in Backward Propagation of Batch
    Normalization", 2020, equations 15 to 20. As in the official code, and unlike the text, the
    exponential average takes χ̄² and not χ²_B.

    Paper: https://arxiv.org/abs/2001.06838

    Example:
        z = WeightCentralization(keras.layers.Conv2D(8, 3))(keras.Input((32, 32, 16)))
        y = MovingAverageBatchNormalization(correction_start_step=300)(z)

    Args:
        axis: the channel axis.
        momentum: decay α of the moving variance.
        *args: more of those of `ChannelNormalization`, in its order: epsilon, center, ...
        window: number of steps that the averages cover.
        warmup_steps: steps before the averages are used.
        correction_start_step: last step with r = 1.
        correction_limit: λ, the largest r; its inverse is the smallest.
        gradient_window: number of steps that the average of Ψ covers, `window` if None. With 1
            the backward pass takes this step's own.
        **kwargs: those of `ChannelNormalization` and of `keras.layers.Layer`.

    Raises:
        ValueError: window, gradient_window or correction_limit is below 1.
    """

    subtracts_mean = False

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.98,
        *args: Any,
        window: int = 16,
        warmup_steps: int = 100,
        correction_start_step: int = 1000,
        correction_limit: float = 5.0,
        gradient_window: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, momentum, *args, **kwargs)
        averaged = ", the number of steps averaged"
        self.window = arguments.window("window", window, averaged)
        self.gradient_window = self.window
        if gradient_window is not None:
            self.gradient_window = arguments.window("gradient_window", gradient_window, averaged)
        self.warmup_steps = arguments.whole("warmup_steps", warmup_steps, 0)
        self.correction_start_step = arguments.whole(
            "correction_start_step", correction_start_step, 0
        )
        self.correction_limit = arguments.real(
            "correction_limit",
            correction_limit,
            1,
            meaning=": the correction lies between its inverse and it",
        )

    def build_state(self) -> None:
        """Creates the two histories, which of their steps are known, and the step counter."""
        groups = self.virtual_replicas
        self.square_history = self.add_state("square_history", (self.window, groups))
        self.gradient_history = self.add_state("gradient_history", (self.gradient_window, groups))
        self.square_weight = self._add_weight_of_steps("square_weight", self.window)
        self.gradient_weight = self._add_weight_of_steps("gradient_weight", self.gradient_window)
        self.step = replicas.step_counter()

    def _add_weight_of_steps(self, name: str, window: int) -> keras.Variable:
        (variable,) = self.add_histories({name: (window, self.virtual_replicas, 1)})
        return variable

    def normalize_batch(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the averages of each group."""
        writer, backward_writer = state.Writer(), state.BackwardWriter()
        squares = self.square_history, self.square_weight
        gradients = self.gradient_history, self.gradient_weight
        kept = self.step, self.moving_variance, squares, gradients
        past = functional.PastAverages(*tf.nest.map_structure(state.read, kept))
        outputs, moved = functional.moving_average_batch_normalization(
            inputs,
            self.gamma,
            self.beta,
            past,
            lambda buffers: backward_writer.assign_all(gradients, buffers, past.gradients),
            last_step_of_warmup=max(self.window, self.gradient_window, self.warmup_steps - 1),
            correction_start_step=self.correction_start_step,
            correction_limit=self.correction_limit,
            momentum=self.momentum,
            loss_scale=loss_scaling.scale(writer.optimizer, self.statistics_dtype),
            epsilon=self.epsilon,
            axis=self.axis,
            mask=mask,
            unless_finite=functional.Then(notices.unless_finite, (notices.key(self),)),
        )
        backward_writer.open()
        writer.assign_all(squares, moved.squares, past.squares)
        writer.assign(self.moving_variance, moved.mean_square, past.mean_square)
        writer.assign(self.step, moved.step, past.step)
        return outputs

    def averaged_steps(self) -> AveragedSteps:
        """Those of the two windows."""
        return AveragedSteps(self.window, self.gradient_window)

    def step_averages(self, group: int) -> Mapping[str, np.ndarray]:
        """The averages of χ²_B and Ψ_B over the windows that are full."""
        step = int(keras.ops.convert_to_numpy(self.step))
        found = {}
        for name, *window in (
            ("variance", self.square_history, self.square_weight),
            ("gradient_product", self.gradient_history, self.gradient_weight),
        ):
            values, weights = (keras.ops.convert_to_numpy(v)[:, group].sum(0) for v in window)
            if step >= window[0].shape[0] and weights > 0:
                found[name] = values / weights
        return found

    def variance_in_training(
        self, mean: tf.Tensor, variance: tf.Tensor, outputs: tf.Tensor
    ) -> tf.Tensor:
        """The mean square."""
        del outputs
        return variance + tf.square(mean)

    def population_statistics(
        self,
        mean: np.ndarray,
        variance: np.ndarray,
        previous: Sequence[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """No mean, and the mean square in place of the variance."""
        del previous
        return np.zeros_like(mean), variance + np.square(mean)

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {
            **super().get_config(),
            "window": self.window,
            "warmup_steps": self.warmup_steps,
            "correction_start_step": self.correction_start_step,
            "correction_limit": self.correction_limit,
            "gradient_window": self.gradient_window,
        }
