"""Ring buffers of past steps: variables of shape [steps, groups, ...]."""

import keras
import tensorflow as tf

from tfnorm import functional


def write(
    buffer: keras.Variable, old: tf.Tensor, step: tf.Tensor, new: tf.Tensor, count: tf.Tensor
) -> tf.Tensor:
    """Puts `new` [groups, ...] into the slot of `step`, and returns the buffer after that.

    `old` is what the buffer holds: a graph reads it once a step (see `update_moving`). A group
    without a valid position (count [groups, 1] of 0) keeps what its slot holds.
    """
    steps, groups = old.shape[:2]
    is_slot = tf.equal(tf.range(steps), step % steps)[:, None]
    is_written = is_slot
    if not functional.is_surely_positive(count):
        is_written = tf.logical_and(is_slot, tf.reshape(count > 0, [1, groups]))
    is_written = tf.reshape(is_written, [steps, -1] + [1] * (old.shape.rank - 2))
    updated = tf.where(is_written, new[None], old)
    buffer.assign(updated)
    return updated
