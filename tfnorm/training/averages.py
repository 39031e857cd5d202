"""Averages of all weights over the steps of a run, by which it is evaluated and exported."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from tfnorm.layers.replicas import synchronize_statistics


class Averages(tf.Module):
    """avg ← d·avg + (1 − d)·w of every weight, moving statistics included, after every step.

    d = min(decay, (1 + t)/(10 + t)) in step t, counted from 1, so that the first weights, which are
    random, are soon forgotten: tf.train.ExponentialMovingAverage with num_updates, by which the
    Inception networks were evaluated (Ioffe 2017, section 4).

    Each replica averages what it has; nothing is communicated. What training keeps for itself, such
    as histories, is not averaged.

    Args:
        model: A built model.
        decay: d, above 0 and below 1.
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        super().__init__()
        self._model = [model]  # Not tracked: a checkpoint has it under its own name.
        self.decay = decay
        self.averages = [_beside(v) for v in model.variables if _is_averaged(v)]

    @property
    def _variables(self) -> list[keras.Variable]:
        return [v for v in self._model[0].variables if _is_averaged(v)]

    @property
    def per_replica(self) -> list[tf.Variable]:
        """Those in which each replica differs from the others."""
        mean = tf.VariableAggregation.MEAN
        return [average for average in self.averages if average.aggregation == mean]

    def update(self, step: tf.Tensor) -> None:
        """Within a replica, after step number `step` has been made, counted from 1."""
        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self.decay, (1 + step) / (10 + step))
        for average, variable in zip(self.averages, self._variables):
            value = tf.convert_to_tensor(variable.value)
            average.assign_add((value - average) * tf.cast(1 - decay, value.dtype))

    def assign_to_model(self) -> None:
        """Gives the model the averages, the mean of those of all replicas, for good."""
        for average, variable in zip(self.averages, self._variables):
            variable.assign(average.read_value())

    def synchronize(self) -> None:
        """Gives all replicas the mean of theirs, as `synchronize_statistics` does for a model."""
        for average in self.averages:
            average.assign(average.read_value())

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """While it is entered, the model has the averages; its statistics are synchronized."""
        synchronize_statistics(self._model[0])
        kept = [tf.identity(variable.value.read_value()) for variable in self._variables]
        try:
            self.assign_to_model()
            yield
        finally:
            for value, variable in zip(kept, self._variables):
                variable.assign(value)


def _is_averaged(variable: keras.Variable) -> bool:
    return variable.trainable or variable.name in ("moving_mean", "moving_variance")


def _beside(variable: keras.Variable) -> tf.Variable:
    """One of its own for every replica: of what is the same in all, any of them tells it."""
    is_per_replica = variable.value.synchronization == tf.VariableSynchronization.ON_READ
    first = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return tf.Variable(
        variable.value.read_value(),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN if is_per_replica else first,
    )
