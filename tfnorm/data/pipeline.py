"""Batches of examples in an order that is a function of (seed, epoch) alone.

Not of the number of replicas or workers, not of where a run was interrupted: an epoch is a matrix
of numbers of examples, [steps, global batch], of which a worker fetches the rows of its replicas.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfnorm.data import sampling, untuned
from tfnorm.data.records import Example, Records, Transform, of_epoch
from tfnorm.errors import UserError

_BUFFERED = 4  # batches

Fetch = Callable[[tf.Tensor], Example]


def training_batches(
    records: Records,
    transform: Transform,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    skip: int = 0,
    replicas: int = 1,
    local: range | None = None,
    sampled: str = "shuffled",
    sharing: int = 1,
) -> tf.data.Dataset:
    """Batches of one epoch in an order fixed by (seed, epoch); the remainder is dropped.

    Args:
        records: Training examples.
        transform: Makes of a batch of records what is delivered.
        batch_size: Examples of a (global) batch.
        seed: Seed of the run, ≥ 0.
        epoch: Number of the epoch, from 0.
        skip: Batches to leave out at the beginning; none of them is read.
        replicas: Deliver every batch as so many consecutive elements of equal size, replica r's
            being rows [r·b, (r+1)·b), b = batch_size / replicas.
        local: Deliver only the elements of these replicas, those of one worker; None is all.
        sampled: A key of `data.SAMPLINGS`.
        sharing: Number of consecutive examples that share statistics, which some samplings ask.

    Returns:
        tf.data.Dataset of examples [b, ...].

    Raises:
        UserError: Unknown sampling, or a batch larger than the data set.
    """
    steps = steps_per_epoch(records, batch_size)
    rng = np.random.default_rng((seed, epoch))
    order = sampling.order(sampled, rng, records, sharing)
    transform = of_epoch(transform, rng, len(records))
    rows = rows_by_replica(order[: steps * batch_size].reshape(steps, -1), replicas, local)
    rows = rows[skip * (len(rows) // steps) :]
    return batches(records, transform, rows, (seed, epoch))


def evaluation_batches(
    records: Records,
    transform: Transform,
    batch_size: int,
    *,
    replicas: int = 1,
    local: range | None = None,
) -> tf.data.Dataset:
    """Every example exactly once, in order; the last batch is filled up with weight 0.

    Args:
        records: Examples.
        transform: Makes of a batch of records what is delivered.
        batch_size: Examples of a (global) batch.
        replicas: As in `training_batches`.
        local: As in `training_batches`.

    Returns:
        tf.data.Dataset of examples [b, ...] with their index and weight, as many elements for every
        replica.
    """
    total = len(records)
    steps = -(-total // batch_size)
    order = np.arange(steps * batch_size).reshape(steps, -1)
    rows = rows_by_replica(order, replicas, local)

    def weighted(indices: tf.Tensor) -> Example:
        weight = tf.cast(indices < total, tf.float32)
        indices = tf.minimum(indices, total - 1)
        batch = transform(records.fetch(indices), _seeds((0, 0), indices))
        return {**batch, "index": indices, "weight": weight}

    return _pipeline(records, rows, weighted)


def batches(
    records: Records, transform: Transform, rows: np.ndarray, seed: tuple[int, int]
) -> tf.data.Dataset:
    """The examples of these numbers.

    Args:
        records: Examples.
        transform: Makes of a batch of records what is delivered; of one epoch where it is drawn for
            a whole one.
        rows: [batches, b], numbers of examples.
        seed: That of a run and the number of an epoch.
    """
    return _pipeline(
        records, rows, lambda indices: transform(records.fetch(indices), _seeds(seed, indices))
    )


def steps_per_epoch(records: Records, batch_size: int) -> int:
    """Number of whole batches in the examples.

    Raises:
        UserError: There is none.
    """
    if batch_size > len(records):
        raise UserError(
            f"the global batch of {batch_size} is larger than the {len(records)} training "
            "examples; lower --replica_batch_size or --num_replicas"
        )
    return len(records) // batch_size


def rows_by_replica(order: np.ndarray, replicas: int, local: range | None) -> np.ndarray:
    """[steps, global batch] -> [steps · local replicas, batch of a replica]."""
    steps, batch_size = order.shape
    by_replica = order.reshape(steps, replicas, batch_size // replicas)
    if local is not None:
        by_replica = by_replica[:, local.start : local.stop]
    return by_replica.reshape(-1, batch_size // replicas)


def _seeds(seed: tuple[int, int], indices: tf.Tensor) -> tf.Tensor:
    """[b, 2]: what (seed, epoch) come to, and the number of each example."""
    (epochs,) = np.random.SeedSequence(seed).generate_state(1, np.uint64).astype(np.int64)
    return tf.stack([tf.fill(tf.shape(indices), tf.constant(epochs)), indices], axis=1)


def _pipeline(records: Records, rows: np.ndarray, fetch: Fetch) -> tf.data.Dataset:
    """The batches of some rows of numbers.

    Examples that come encoded are decoded one by one, each by a thread, and then put together: a
    batch is as soon there as its work can be divided. Others are fetched as whole batches.
    """
    encoded = any(spec.dtype == tf.string for spec in records.spec.values())
    numbers = rows.astype(np.int64)
    numbers = numbers.reshape(-1, 1) if encoded else numbers

    # As it is: AutoGraph would turn the errors of data that are first read here into others.
    @tf.autograph.experimental.do_not_convert
    def element(indices: tf.Tensor) -> Example:
        found = fetch(indices)
        return tf.nest.map_structure(lambda x: x[0], found) if encoded else found

    batches = tf.data.Dataset.from_tensor_slices(numbers)
    batches = batches.map(element, num_parallel_calls=untuned.THREADS, deterministic=True)
    if encoded:
        batches = batches.batch(rows.shape[1], drop_remainder=True)
    return batches.prefetch(_BUFFERED).with_options(untuned.options())
