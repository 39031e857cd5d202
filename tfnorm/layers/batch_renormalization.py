"""Batch renormalization."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfnorm import functional
from tfnorm.layers import arguments, replicas, state
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_method import AveragedSteps, averaged_by
from tfnorm.schedules import LinearRamp, value_at


@keras.saving.register_keras_serializable(package="tfnorm")
class BatchRenormalization(ChannelNormalization):
    """Batch renormalization: trains with what inference will see, within bounds.

    Training, with μ_B and σ_B = sqrt(σ²_B + ε) of the batch, μ and σ = sqrt(moving_variance + ε)
    from before the step:
        r = clip(σ_B/σ, 1/r_max, r_max), d = clip((μ_B − μ)/σ, −d_max, d_max), both constants,
        y = γ·(r·(x − μ_B)/σ_B + d) + β;
        μ ← α·μ + (1 − α)·μ_B, σ ← α·σ + (1 − α)·σ_B, kept as moving_variance = σ² − ε.
    With r_max = 1 and d_max = 0 it is batch normalization.

    State: moving_mean [C] and moving_variance [C], each replica's own until synchronized; step,
    the number of training calls, from which the schedules read (0 at the first call).

    When: 4 to 16 images on each device; it corrects the batch's mean and variance, but not the
    noise of the gradient's statistics, so that below 4 others do better. Cost: less time than
    Keras' BatchNormalization, with a mask or virtual replicas too; nothing is communicated.

    Source: Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in
    Batch-Normalized Models", 2017, Algorithm 1. The default schedules are the paper's, for a run
    of 130,000 steps: for another length scale them (4, 19 and 31 % of the run). The paper's
    averages are fast: for its update rate of 0.01 take momentum=0.99.

    Paper: https://arxiv.org/abs/1702.03275

    Example:
        r_max = LinearRamp(1.0, 3.0, 200, 1_550)  # of a run of 5,000 steps
        d_max = LinearRamp(0.0, 5.0, 200, 950)
        y = BatchRenormalization(r_max=r_max, d_max=d_max)(keras.Input((32, 32, 16)))

    Args:
        *args: those of `ChannelNormalization`, in its order: axis, momentum, epsilon, center, ...
        r_max: largest r, a number from 1 or a schedule, a callable from the step to a number.
        d_max: largest |d|, a number from 0 or a schedule.
        **kwargs: those of `ChannelNormalization`: axis, momentum, epsilon, center, scale, their
            initializers, regularizers and constraints, virtual_replicas; and of
            `keras.layers.Layer`.

    Raises:
        ValueError: r_max is below 1 or d_max below 0.
    """

    def __init__(
        self,
        *args: Any,
        r_max: float | Callable | dict = LinearRamp(1.0, 3.0, 5_000, 40_000),  # noqa: B008
        d_max: float | Callable | dict = LinearRamp(0.0, 5.0, 5_000, 25_000),  # noqa: B008
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.r_max = _bound("r_max", r_max, 1)
        self.d_max = _bound("d_max", d_max, 0)

    def build_state(self) -> None:
        """Creates the step counter."""
        self.step = replicas.step_counter()

    def normalize_batch(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the corrected moments of each group."""
        step, mean, variance = map(state.read, (self.step, self.moving_mean, self.moving_variance))
        r_max, d_max = (value_at(step, bound) for bound in (self.r_max, self.d_max))
        # The paper averages σ.
        move = functional.move_mean_and_deviation
        then = self.then_move((mean, variance), move, epsilon=self.epsilon)
        outputs, own = functional.batch_renormalization(
            inputs,
            self.gamma,
            self.beta,
            mean,
            variance,
            r_max,
            d_max,
            epsilon=self.epsilon,
            axis=self.axis,
            mask=mask,
            groups=self.virtual_replicas,
            then=then,
        )
        self.keep_moved(then, own.derived)
        self.count_step(self.step, step)
        return outputs

    def averaged_steps(self) -> AveragedSteps:
        """Forward the moving statistics (theorem 1 of Yan et al. 2020), backward this batch's."""
        return AveragedSteps(averaged_by(self.momentum), 1)

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor; schedules as their own configurations."""
        bounds = {
            name: keras.saving.serialize_keras_object(bound) if callable(bound) else bound
            for name, bound in (("r_max", self.r_max), ("d_max", self.d_max))
        }
        return {**super().get_config(), **bounds}


def _bound(name: str, value: float | Callable | dict, least: float) -> float | Callable:
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    if isinstance(value, LinearRamp) and min(value.start_value, value.end_value) < least:
        raise ValueError(
            f"{name} must be at least {least} all the way. Received a LinearRamp from "
            f"{value.start_value:g} to {value.end_value:g}."
        )
    if callable(value):
        return value
    if value == math.inf:  # No bound, which is what Keras' renorm=True has by default.
        return value
    try:
        return arguments.real(name, value, least)
    except ValueError as error:
        raise ValueError(
            f"{name} must be at least {least}, or a schedule such as "
            f"tfnorm.schedules.LinearRamp. Received: {name}={value}."
        ) from error
