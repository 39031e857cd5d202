"""Values that change with a layer's own step counter."""

from collections.abc import Callable

import keras
import tensorflow as tf

from tfnorm.functional.traced_once import traced_once


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
        ValueError: `end_step` comes before `start_step`.
    """

    def __init__(
        self, start_value: float, end_value: float, start_step: int, end_step: int
    ) -> None:
        if end_step < start_step:
            raise ValueError(
                "LinearRamp needs end_step at or after start_step. "
                f"Received start_step={start_step}, end_step={end_step}. Exchange them?"
            )
        self.start_value = float(start_value)
        self.end_value = float(end_value)
        self.start_step = int(start_step)
        self.end_step = int(end_step)

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """The value [] at `step`, float64: exact steps above 2²⁴, and for float64 layers."""
        (value,) = _ramps(tf.convert_to_tensor(step), lines=(self._line(),))
        return value

    def _line(self) -> tuple[float, float, int, int]:
        return self.start_value, self.end_value, self.start_step, self.end_step

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


def values_at(
    step: tf.Tensor | int, *schedules: float | Callable[[tf.Tensor], tf.Tensor]
) -> list[tf.Tensor | float]:
    """What each schedule is at `step`; a number is itself.

    All of them that are a LinearRamp are one operation of a graph.
    """
    step = tf.convert_to_tensor(step)
    lines = tuple(s._line() for s in schedules if type(s) is LinearRamp)
    of_ramps = iter(_ramps(step, lines=lines) if lines else ())
    return [
        next(of_ramps)
        if type(schedule) is LinearRamp
        else schedule(step)
        if callable(schedule)
        else schedule
        for schedule in schedules
    ]


@traced_once
def _ramps(step: tf.Tensor, *, lines: tuple[tuple[float, float, int, int], ...]) -> list[tf.Tensor]:
    return [_ramp(tf.cast(step, tf.float64), *line) for line in lines]


def _ramp(
    step: tf.Tensor, start_value: float, end_value: float, start_step: int, end_step: int
) -> tf.Tensor:
    slope = (end_value - start_value) / max(end_step - start_step, 1)
    line = step * slope + (start_value - slope * start_step)
    return tf.clip_by_value(line, *sorted((start_value, end_value)))
