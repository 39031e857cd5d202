"""The state in which each replica differs from the others, read from all and given back to all.

A checkpoint holds the replicas' mean, and a run that saves one on schedule gives the mean to all
replicas first: it goes on with what is saved. A checkpoint off schedule must not do that, or the
run would end with other weights than one that was never stopped; it keeps every replica's state.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfnorm.layers import replicas


def read(
    strategy: tf.distribute.Strategy, model: keras.Model, others: Sequence[tf.Variable] = ()
) -> np.ndarray | None:
    """What each replica of all workers keeps for itself.

    Args:
        strategy: That of the run.
        model: Its network.
        others: Variables beside the model's in which replicas differ.

    Returns:
        [replicas, values] float64, the same in every worker; None for a single replica.
    """
    variables = _own_variables(strategy, model, others)
    if not variables:
        return None

    def pack() -> tf.Tensor:
        parts = [tf.reshape(tf.cast(v, tf.float64), [-1]) for v in variables]
        return replicas.gather(tf.concat(parts, 0))

    gathered = tf.function(lambda: strategy.run(pack))()
    return strategy.experimental_local_results(gathered)[0].numpy()


def assign(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    state: np.ndarray,
    others: Sequence[tf.Variable] = (),
) -> None:
    """Gives every replica its row of what `read` returned."""
    variables = _own_variables(strategy, model, others)

    def unpack() -> None:
        row = tf.distribute.get_replica_context().replica_id_in_sync_group
        parts = tf.split(tf.gather(state, row), [math.prod(v.shape) for v in variables])
        for variable, part in zip(variables, parts):
            variable.assign(tf.cast(tf.reshape(part, variable.shape), variable.dtype))

    tf.function(lambda: strategy.run(unpack))()


def _own_variables(
    strategy: tf.distribute.Strategy, model: keras.Model, others: Sequence[tf.Variable]
) -> list[tf.Variable]:
    if strategy.num_replicas_in_sync == 1:
        return []
    on_read = tf.VariableSynchronization.ON_READ
    own = [v.value for v in model.non_trainable_variables if v.value.synchronization == on_read]
    return [*own, *others]
