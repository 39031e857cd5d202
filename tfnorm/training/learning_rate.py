"""The learning rate of a run, as a function of the step."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

SCHEDULES = ("cosine", "step", "polynomial")

_POWER = 0.9  # Liu, Rabinovich & Berg 2015, and segmentation since.


class WarmedUp(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise to the peak, then a decay until the last step.

    Args:
        kind: "cosine" (to zero, Loshchilov & Hutter 2017), "step" (a tenth after each of some
            parts of all steps, He et al. 2015) or "polynomial" (to zero as (1 − t)^0.9 with t from
            0 to 1 after the rise, Liu et al. 2015).
        peak: Highest rate.
        warmup_steps: Steps of the rise.
        total_steps: Steps of the run.
        drops: Parts of all steps, for "step".
    """

    def __init__(
        self,
        kind: str,
        peak: float,
        warmup_steps: int,
        total_steps: int,
        drops: Sequence[float] = (0.5, 0.75),
    ) -> None:
        self.kind = kind
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.drops = tuple(drops)

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """The rate of a step, counted from 0."""
        step = tf.cast(step, tf.float32)
        rise = (step + 1) / max(self.warmup_steps, 1)
        decay = getattr(self, f"_{self.kind}")(step)
        return self.peak * tf.where(step < self.warmup_steps, rise, decay)

    def get_config(self) -> dict:
        """The arguments."""
        return dict(vars(self))

    def _progress(self, step: tf.Tensor) -> tf.Tensor:
        """From 0, where the rise ends, to 1."""
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return tf.clip_by_value(progress, 0.0, 1.0)

    def _cosine(self, step: tf.Tensor) -> tf.Tensor:
        return 0.5 * (1 + tf.cos(math.pi * self._progress(step)))

    def _polynomial(self, step: tf.Tensor) -> tf.Tensor:
        return tf.pow(1 - self._progress(step), _POWER)

    def _step(self, step: tf.Tensor) -> tf.Tensor:
        rates = tf.constant([0.1**n for n in range(len(self.drops) + 1)])
        passed = [tf.cast(step >= part * self.total_steps, tf.int32) for part in self.drops]
        return tf.gather(rates, tf.add_n([tf.constant(0), *passed]))
