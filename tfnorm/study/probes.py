"""What is measured beside the task's metrics while a cell's run is made, or at its end."""

import json
import math
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm import training
from tfnorm.data import Example, pipeline, sampling
from tfnorm.errors import UserError
from tfnorm.files import write_text
from tfnorm.tasks import Task
from tfnorm.training import batches
from tfnorm.training.statistics_monitor import spread
from tfnorm.training.tapping import discard_updates, normalizers
from tfnorm.training.training_pass import VariancePass

# Of the statistics over training: points of a run, and images that are looked at.
_POINTS, _IMAGES = 60, 256
# Of the variance gap: calls of the model, and at most so many batches and channels are kept.
_BATCHES, _CHANNELS, _LAYERS = 40, 32, 3


class BatchStatistics(keras.callbacks.Callback):
    """At the end: the test metrics where normalizers go on as in training, with batches' own.

    No state changes. The micro-batches are as large as in training; examples that make no whole
    batch are left out.

    Args:
        config: The run.
        task: Its task, with its data.
    """

    def __init__(self, config: training.Config, task: Task) -> None:
        super().__init__()
        self._config, self._task = config, task

    def on_train_end(self, logs: dict | None = None) -> None:
        """Measures."""
        config, task, records = self._config, self._task, self._task.dataset.test
        batch = images_of_call(config)

        @tf.function(reduce_retracing=True, autograph=False)
        def sums(examples: Example) -> tf.Tensor:
            with discard_updates(self.model):
                outputs = self.model(examples["image"], training=True)
                losses = task.losses(outputs, examples)
                return task.sums(outputs, {**examples, "weight": tf.ones_like(losses)}, losses)

        def headline(order: np.ndarray) -> float:
            rows = order[: len(order) // batch * batch].reshape(-1, batch)
            found = pipeline.batches(records, task.transform(training=False), rows, (0, 0))
            total = np.sum([sums(examples).numpy() for examples in found], 0, np.float64)
            return task.results(total)[task.headline]

        name = f"test_{task.headline}_batch_statistics"
        self._result = {name: headline(np.arange(len(records)))}
        if config.sampling != "shuffled":
            rng = np.random.default_rng(config.seed)
            order = sampling.order(config.sampling, rng, records, config.statistics_batch_size)
            self._result[f"{name}_sampled"] = headline(order)

    def result(self) -> dict[str, float]:
        """test_HEADLINE_batch_statistics: of the test examples in their order.

        test_HEADLINE_batch_statistics_sampled: of test examples that come together as the training
        examples did, where these were not drawn one by one.
        """
        return self._result


class StatisticsSeries(training.StatisticsMonitor):
    """Over training: the batch statistics of a layer in the middle of the network.

    They are those that `tfnorm.training.StatisticsMonitor` measures. What a run has measured before
    it was interrupted is kept in its model_dir.

    Args:
        config: The run.
        task: Its task, with its data.
    """

    def __init__(self, config: training.Config, task: Task) -> None:
        batch = max(config.num_replicas, 1) * config.replica_batch_size
        train = task.dataset.train
        of_step = batch * config.accumulate_steps
        steps = config.steps or config.epochs * pipeline.steps_per_epoch(train, of_step)
        examples = batches.of_epoch(config, task, 0, min(_IMAGES, len(train)))
        super().__init__(
            examples.map(lambda example: (example["image"], example)),
            batch,
            # Within a call of the training loop there is nothing new to see.
            every=max(math.ceil(steps / _POINTS), min(config.steps_per_loop, steps)),
            layers=1,
            large_batch=_IMAGES,
            loss=lambda example, outputs: task.losses(outputs, example),
            notice=lambda text: None,
        )
        self._file = pathlib.Path(config.model_dir, "statistics.json") if config.model_dir else None

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Takes up what an earlier part of the run has measured."""
        super().on_train_begin(logs)
        if self._file and self._file.exists():
            self.history[:] = json.loads(self._file.read_text())

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Measures if it is due and there is a layer to measure, and keeps what it has."""
        if not normalizers(self.model):
            return
        measured = self._measured
        super().on_train_batch_end(batch, logs)
        if self._file and self._measured > measured:
            write_text(self._file, json.dumps(self.history))

    def result(self) -> dict[str, Any]:
        """The columns of the monitor's history by name; empty for norms of single images.

        layer, norm, images and large_images (of the large batch) once; step a list; mean, variance,
        gradient, gradient_product and noise their lists by name, None where there is no number.
        """
        if not self.history:
            return {}
        first, last = self.history[0], self.history[-1]
        result = {name: first[name] for name in ("layer", "norm", "images", "large_images")}
        result["step"] = [row["step"] for row in self.history]
        for name, values in last.items():
            if isinstance(values, dict):
                result[name] = {
                    key: [_rounded(row[name].get(key), 5) for row in self.history] for key in values
                }
        return result


class VarianceGap(keras.callbacks.Callback):
    """At the end: how far the variances of batches are from the moving variance.

    The batches are those of training; of BKN it is the variance that its chain estimates (Wang et
    al. 2018, figure 8), of MABN the mean square.

    Args:
        config: The run.
        task: Its task, with its data.
    """

    def __init__(self, config: training.Config, task: Task) -> None:
        super().__init__()
        self._config, self._task = config, task
        self._layers: list[dict[str, Any]] = []

    def on_train_end(self, logs: dict | None = None) -> None:
        """Measures."""
        config = self._config
        layers = spread(normalizers(self.model), _LAYERS) if normalizers(self.model) else []
        examples = batches.of_epoch(config, self._task, 0, images_of_call(config))
        measure = VariancePass(self.model, layers).variances
        found = [measure(batch["image"]) for batch in examples.take(_BATCHES)]
        self._layers = [_gap(layer, np.concatenate(parts)) for layer, *parts in zip(layers, *found)]

    def result(self) -> dict[str, Any]:
        """mean_relative_gap: over all batches, channels and layers; None without any layer.

        layers: of each its name, its mean_relative_gap, and for some of its channels the
        moving_variance and the gap |variance − moving_variance|, [channels, batches].
        """
        gaps = [layer["mean_relative_gap"] for layer in self._layers]
        return {"mean_relative_gap": np.mean(gaps).item() if gaps else None, "layers": self._layers}


def _gap(layer: keras.layers.Layer, variances: np.ndarray) -> dict[str, Any]:
    moving = keras.ops.convert_to_numpy(layer.moving_variance).astype(np.float64)
    gap = np.abs(variances - moving)
    channels = spread(range(len(moving)), _CHANNELS)
    return {
        "layer": layer.name,
        "mean_relative_gap": float((gap / (moving + layer.epsilon)).mean()),
        "moving_variance": [_rounded(value, 4) for value in moving[channels]],
        "gap": [[_rounded(value, 4) for value in row] for row in gap[:_BATCHES, channels].T],
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def images_of_call(config: training.Config) -> int:
    """Images of one call of the model that has the training's micro-batches."""
    if config.normalizer().is_synchronized:
        return max(config.num_replicas, 1) * config.replica_batch_size
    return config.replica_batch_size


Factory = Callable[[training.Config, Task], keras.callbacks.Callback]

# Each makes a callback with a method `result`, whose dictionary a record keeps.
PROBES: Mapping[str, Factory] = types.MappingProxyType(
    {
        "batch_statistics": BatchStatistics,
        "statistics": StatisticsSeries,
        "variance_gap": VarianceGap,
    }
)


def build(
    names: Sequence[str], config: training.Config, task: Task
) -> dict[str, keras.callbacks.Callback]:
    """The probes of these names for a run.

    Raises:
        UserError: There is none of a name; the message lists those that there are.
    """
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        raise UserError(f"unknown probe '{unknown[0]}'; known: {', '.join(PROBES)}")
    return {name: PROBES[name](config, task) for name in names}


def results(probes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the probes of a run that has ended have found."""
    return {name: probe.result() for name, probe in probes.items()}
