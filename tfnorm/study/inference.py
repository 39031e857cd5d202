"""What the trained models of a grid cost at inference, once folded."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfnorm.export import fold
from tfnorm.study.timing import interleaved_medians


@dataclasses.dataclass(frozen=True)
class Inference:
    """A folded model at work.

    Attributes:
        seconds: Median time of one batch.
        folded: How many normalizers are folded.
        normalizers: Of how many.
    """

    seconds: float
    folded: int
    normalizers: int

    @property
    def foldable(self) -> bool:
        """Whether no normalizer is left."""
        return self.folded == self.normalizers


def measure(models: Sequence[keras.Model], images: np.ndarray) -> list[Inference]:
    """Folds models and times them in turn, in one process.

    Args:
        models: Trained models of the same inputs.
        images: [n, height, width, channels], the batch that all are timed on.
    """
    batch = tf.constant(images)
    folded, reports = zip(*map(fold, models))
    functions = [tf.function(model) for model in folded]

    def answer(function: Callable) -> list[np.ndarray]:
        return [output.numpy() for output in tf.nest.flatten(function(batch, training=False))]

    times = interleaved_medians([functools.partial(answer, function) for function in functions])
    return [
        Inference(seconds, report.folded, len(report.rows))
        for seconds, report in zip(times, reports)
    ]
