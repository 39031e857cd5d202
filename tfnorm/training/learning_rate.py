"""The learning rate of a run, as a function of the step."""

import math

import keras
import tensorflow as tf


class WarmedUp(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise to the peak, then a decay until the last step.

    Args:
        kind: "cosine" (to zero, Loshchilov & Hutter 2017) or "step" (a tenth after one half and
            again after three quarters of all steps, He et al. 2015).
        peak: Highest rate.
        warmup_steps: Steps of the rise.
        total_steps: Steps of the run.
    """

    def __init__(self, kind: str, peak: float, warmup_steps: int, total_steps: int) -> None:
        self.kind = kind
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """The rate of a step, counted from 0."""
        step = tf.cast(step, tf.float32)
        rise = (step + 1) / max(self.warmup_steps, 1)
        decay = _DECAYS[self.kind](step, self.warmup_steps, self.total_steps)
        return self.peak * tf.where(step < self.warmup_steps, rise, decay)

    def get_config(self) -> dict:
        """The arguments."""
        return dict(vars(self))


def _cosine(step: tf.Tensor, warmup_steps: int, total_steps: int) -> tf.Tensor:
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))


def _step(step: tf.Tensor, warmup_steps: int, total_steps: int) -> tf.Tensor:
    del warmup_steps
    return tf.where(step < 0.5 * total_steps, 1.0, tf.where(step < 0.75 * total_steps, 0.1, 0.01))


_DECAYS = {"cosine": _cosine, "step": _step}
