"""All of tf.distribute that the layers use: per-replica state, and two collectives."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf


def state_variable(
    initializer: keras.initializers.Initializer | Callable | str,
    shape: tuple[int, ...],
    dtype: str,
    name: str,
) -> keras.Variable:
    """A statistic of which every replica has its own copy, read from outside as their mean.

    A replica writes and reads its copy without a word to the others, so that a training step
    communicates nothing; a checkpoint holds the mean.
    """
    return _on_read(initializer, shape, dtype, name, "mean")


def step_counter() -> keras.Variable:
    """A count of training calls, the same on every replica; a checkpoint holds the first's."""
    return _on_read("zeros", (), "int32", "step", "only_first_replica")


def _on_read(
    initializer: keras.initializers.Initializer | Callable | str,
    shape: tuple[int, ...],
    dtype: str,
    name: str,
    aggregation: str,
) -> keras.Variable:
    # Layer.add_weight has no `synchronization`; a variable set as an attribute is tracked as well.
    return keras.Variable(
        keras.initializers.get(initializer),
        shape=shape,
        dtype=dtype,
        trainable=False,
        autocast=False,
        synchronization="on_read",
        aggregation=aggregation,
        name=name,
    )


def gather(vector: tf.Tensor) -> tf.Tensor:
    """[n] of each replica as [replicas, n] on all of them.

    It is one all-reduce in which each replica fills its own row: `ReplicaContext.all_gather` takes
    two collectives under MultiWorkerMirroredStrategy, the first for the shapes.
    """
    context = _replica_context()
    if context is None:
        return vector[None]
    own = context.replica_id_in_sync_group
    known = tf.get_static_value(own)
    # A constant, where it is known, saves operations of every layer.
    rows = np.arange(context.num_replicas_in_sync, dtype=np.int32)[:, None]
    return _all_reduce(context, tf.where(rows == (own if known is None else known), vector, 0))


def reduce_sum(vector: tf.Tensor) -> tf.Tensor:
    """[n] of each replica summed over all of them."""
    context = _replica_context()
    if context is None:
        return vector
    return _all_reduce(context, vector)


def _all_reduce(context: tf.distribute.ReplicaContext, vector: tf.Tensor) -> tf.Tensor:
    """The sum over replicas, which is its own gradient.

    A gradient given here, of a sum behind which TensorFlow sees none, keeps tf.custom_gradient in
    the callers from walking back over the graphs of all other replicas in search of variables.
    """

    @tf.custom_gradient
    def reduce(vector: tf.Tensor):  # noqa: ANN202
        for payloads in _recordings.active:
            payloads.append(vector.dtype.size * vector.shape.num_elements())
        total = _sum_of_replicas(context, tf.stop_gradient(vector))
        return total, lambda gradient: _all_reduce(context, gradient)

    return reduce(vector)


def _sum_of_replicas(context: tf.distribute.ReplicaContext, vector: tf.Tensor) -> tf.Tensor:
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        # Each replica is compiled by itself, on GPUs, and cannot wait for the others' graphs.
        return context.all_reduce(tf.distribute.ReduceOp.SUM, vector)
    # The same all-reduce on GPUs, TPUs and between workers. But devices of one CPU add up on the
    # first of them, which takes a quarter of the time of the ring that all_reduce makes there.
    return context.merge_call(_reduce, args=(vector,))


def _reduce(strategy: tf.distribute.Strategy, vector: tf.Tensor) -> tf.Tensor:
    return strategy.extended.reduce_to(tf.distribute.ReduceOp.SUM, vector, vector)


class _Recordings(threading.local):
    """Each replica is traced in a thread of its own."""

    def __init__(self) -> None:
        self.active: list[list[int]] = []


_recordings = _Recordings()


@contextlib.contextmanager
def recorded() -> Iterator[list[int]]:
    """Notes the collectives that a replica takes part in: the bytes that it hands to each.

    Within a tf.function they are noted when it is traced, and are those of each call. Collectives
    that others than this module make are not seen.
    """
    payloads: list[int] = []
    _recordings.active.append(payloads)
    try:
        yield payloads
    finally:
        _recordings.active.remove(payloads)


def are_several() -> bool:
    """Whether there are replicas beside the one that calls."""
    return _replica_context() is not None


def replica_id() -> int:
    """Which replica calls, among those of all workers; 0 without any, or from outside of them."""
    context = _replica_context()
    return 0 if context is None else int(tf.get_static_value(context.replica_id_in_sync_group))


def _replica_context() -> tf.distribute.ReplicaContext | None:
    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def synchronize_statistics(model: keras.Model | keras.layers.Layer) -> None:
    """Gives every replica the mean of all replicas' statistics.

    Call it before an evaluation, a checkpoint or an export, outside `strategy.run`; without a
    strategy it does nothing. Inside a replica a statistic is the replica's own, so that an
    evaluation would otherwise differ from replica to replica.
    """
    for variable in model.non_trainable_variables:
        value = variable.value
        strategy = getattr(value, "distribute_strategy", None)
        on_read = tf.VariableSynchronization.ON_READ
        if strategy is not None and value.synchronization == on_read:
            with strategy.scope():
                value.assign(value.read_value())
