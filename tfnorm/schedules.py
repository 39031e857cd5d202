"""Values that change with a layer's own step counter."""

import functools
import math
from collections.abc import Callable

import keras
import tensorflow as tf

from tfnorm.functional.then import Then


@keras.saving.register_keras_serializable(package="tfnorm")
class LinearRamp:
    """start_value until start_step, end_value from end_step on, a straight line between them.

    At the two steps themselves it is that to rounding, and never beyond.

    It has no state: a layer calls it with its own counter, which checkpoints keep.

    Args:
        start_value: value up to and at `start_step`.
        end_value: value at and after `end_step`.
        start_step: last step of the start value, in training calls of the layer.
        end_step: first step of the end value.

    Raises:
        ValueError: `end_step` comes before `start_step`, or a value is not finite.
    """

    def __init__(
        self, start_value: float, end_value: float, start_step: int, end_step: int
    ) -> None:
        if end_step < start_step:
            raise ValueError(
                "LinearRamp needs end_step at or after start_step. "
                f"Received start_step={start_step}, end_step={end_step}. Exchange them?"
            )
        if not (math.isfinite(start_value) and math.isfinite(end_value)):
            raise ValueError(
                "LinearRamp needs finite values. "
                f"Received start_value={start_value}, end_value={end_value}."
            )
        self.start_value = float(start_value)
        self.end_value = float(end_value)
        self.start_step = int(start_step)
        self.end_step = int(end_step)

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """The value [] at `step`, float64: exact steps above 2²⁴, and for float64 layers."""
        return self.then(step).of()

    def then(self, step: tf.Tensor | int) -> Then:
        """The value at `step`, for an operation that computes more than it."""
        line = _line(self.start_value, self.end_value, self.start_step, self.end_step)
        return Then(line, (tf.convert_to_tensor(step),))

    def get_config(self) -> dict:
        """The four arguments."""
        return {
            "start_value": self.start_value,
            "end_value": self.end_value,
            "start_step": self.start_step,
            "end_step": self.end_step,
        }

    @classmethod
    def from_config(cls, config: dict) -> "LinearRamp":
        """The schedule of a configuration."""
        return cls(**config)


def value_at(
    step: tf.Tensor, schedule: float | Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor | float | Then:
    """What a schedule is at `step`; a number is itself, and a LinearRamp is to be computed yet."""
    if type(schedule) is LinearRamp:
        return schedule.then(step)
    return schedule(step) if callable(schedule) else schedule


@functools.cache
def _line(start_value: float, end_value: float, start_step: int, end_step: int) -> Callable:
    """One function for all ramps that are the same."""
    slope = (end_value - start_value) / max(end_step - start_step, 1)
    bounds = sorted((start_value, end_value))

    def value(step: tf.Tensor) -> tf.Tensor:
        line = tf.cast(step, tf.float64) * slope + (start_value - slope * start_step)
        return tf.clip_by_value(line, *bounds)

    return value
