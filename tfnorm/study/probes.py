"""What is measured beside accuracy while a cell's run is made, or at its end."""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm import training
from tfnorm.data import Dataset, sampling
from tfnorm.errors import UserError
from tfnorm.training.tapping import without_trace


class BatchStatistics(keras.callbacks.Callback):
    """At the end: the test accuracy where normalizers go on as in training, with batches' own.

    No state changes. The micro-batches are as large as in training; images that make no whole
    batch are left out.

    Args:
        config: The run.
        dataset: Its data.
    """

    def __init__(self, config: training.Config, dataset: Dataset) -> None:
        super().__init__()
        self._config, self._dataset = config, dataset

    def on_train_end(self, logs: dict | None = None) -> None:
        """Measures."""
        images, labels = self._dataset.test
        config, batch = self._config, images_of_call(self._config)

        @tf.function(reduce_retracing=True, autograph=False)
        def answers(images: tf.Tensor) -> tf.Tensor:
            with without_trace(self.model):
                return tf.argmax(self.model(images, training=True), -1)

        def accuracy(order: np.ndarray) -> float:
            order = order[: len(order) // batch * batch]
            found = [
                answers(self._dataset.standardize(images[part]))
                for part in order.reshape(-1, batch)
            ]
            return float(np.mean(np.concatenate(found) == labels[order]))

        self._result = {"test_accuracy_batch_statistics": accuracy(np.arange(len(labels)))}
        if config.sampling != "shuffled":
            rng = np.random.default_rng(config.seed)
            order = sampling.order(config.sampling, rng, labels, config.images_of_statistics)
            self._result["test_accuracy_batch_statistics_sampled"] = accuracy(order)

    def result(self) -> dict[str, float]:
        """test_accuracy_batch_statistics: of the test images in their order.

        test_accuracy_batch_statistics_sampled: of test images that come together as the training
        images did, where these were not drawn one by one.
        """
        return self._result


def images_of_call(config: training.Config) -> int:
    """Images of one call of the model that has the training's micro-batches."""
    if config.norm == "syncbn":
        return max(config.num_replicas, 1) * config.replica_batch_size
    return config.replica_batch_size


Factory = Callable[[training.Config, Dataset], keras.callbacks.Callback]

# Each makes a callback with a method `result`, whose dictionary a record keeps.
PROBES: Mapping[str, Factory] = types.MappingProxyType({"batch_statistics": BatchStatistics})


def build(
    names: Sequence[str], config: training.Config, dataset: Dataset
) -> dict[str, keras.callbacks.Callback]:
    """The probes of these names for a run.

    Raises:
        UserError: There is none of a name; the message lists those that there are.
    """
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        raise UserError(f"unknown probe '{unknown[0]}'; known: {', '.join(PROBES)}")
    return {name: PROBES[name](config, dataset) for name in names}


def results(probes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the probes of a run that has ended have found."""
    return {name: probe.result() for name, probe in probes.items()}
