"""The batches of a run: its data through the transforms of its task."""

import numpy as np
import tensorflow as tf

from tfnorm.data import Records, pipeline
from tfnorm.tasks import Task
from tfnorm.training.config import Config


def of_epoch(
    config: Config,
    task: Task,
    epoch: int,
    batch_size: int,
    *,
    skip: int = 0,
    replicas: int = 1,
    local: range | None = None,
) -> tf.data.Dataset:
    """Training batches of an epoch, as `tfnorm.data.pipeline.training_batches` makes them.

    Args:
        config: The run.
        task: Its task.
        epoch: Number of the epoch, from 0.
        batch_size: Examples of a (global) batch.
        skip: Batches to leave out at the beginning.
        replicas: Into how many elements every batch is divided.
        local: Which of them are delivered; None is all.
    """
    return pipeline.training_batches(
        task.dataset.train,
        task.transform(training=True),
        batch_size,
        config.seed,
        epoch,
        skip=skip,
        replicas=replicas,
        local=local,
        sampled=config.sampling,
        sharing=config.statistics_batch_size,
    )


def of_evaluation(
    task: Task,
    records: Records,
    batch_size: int,
    *,
    replicas: int = 1,
    local: range | None = None,
) -> tf.data.Dataset:
    """Every example once, as `tfnorm.data.pipeline.evaluation_batches` makes them."""
    transform = task.transform(training=False)
    return pipeline.evaluation_batches(
        records, transform, batch_size, replicas=replicas, local=local
    )


def first(task: Task, records: Records, count: int) -> dict[str, np.ndarray]:
    """The first examples of a split as the network is fed, as many of `count` as fit a batch."""
    count = min(count, len(records), task.largest_evaluation_batch or count)
    batch = next(iter(of_evaluation(task, records, count)))
    return {name: values.numpy() for name, values in batch.items()}
