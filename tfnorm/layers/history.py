"""Ring buffers of past steps: variables of shape [steps, groups, ...]."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfnorm.functional import xla
from tfnorm.layers import state
from tfnorm.layers.state import Writer


def write(
    writer: Writer,
    buffers: Sequence[keras.Variable],
    held: Sequence[tf.Tensor],
    step: tf.Tensor,
    new: Sequence[tf.Tensor],
    is_seen: tf.Tensor,
) -> list[tf.Tensor]:
    """Puts `new` [groups, ...] into the slots of `step`, and returns the buffers after that.

    The buffers are of one length and rank. `held` is what they hold: a graph reads it once a step
    (see `update_moving`). A group that has seen nothing (is_seen [groups, 1]) keeps what its slot
    holds.
    """
    steps, groups, *rest = held[0].shape
    ones = [1] * len(rest)
    # A constant in place of a tf.range, and values that broadcast by themselves: each operation
    # less in every layer is time of tracing (188 operations of MABN became 149).
    slots = np.arange(steps, dtype=step.dtype.as_numpy_dtype).reshape([steps, 1, *ones])
    if len(rest) > 1:
        is_seen = tf.reshape(is_seen, [groups, *ones])
    is_written = tf.logical_and(tf.equal(slots, step % steps), is_seen)
    updated = [tf.where(is_written, value, old) for value, old in zip(new, held, strict=True)]
    for buffer, value, old in zip(buffers, updated, held, strict=True):
        writer.assign(buffer, value, old)
    return updated


def read_shared(buffer: keras.Variable) -> tf.Tensor:
    """What the buffer holds, without a copy although `write_slot` writes it.

    A variable of which one slot was ever written is copied whole by every read from then on, to be
    safe from the next write. But that copies by itself if a reader is still there: so reads are
    made to share again. To read 66 MB, to use it and to write a slot takes half of the time so.
    """
    handle = state.handle(buffer)
    # XLA has no such copies, and does not know the operation.
    if handle is not None and not xla.is_compiling():
        tf.raw_ops.DisableCopyOnRead(resource=handle)
    return state.read(buffer)


def slot_of(step: tf.Tensor, held: tf.Tensor) -> tf.Tensor:
    """The place [1] of a step in a buffer."""
    return tf.reshape(step % held.shape[0], [1])


def write_slot(
    writer: Writer,
    buffer: keras.Variable,
    held: tf.Tensor,
    step: tf.Tensor,
    new: tf.Tensor,
    is_seen: tf.Tensor,
) -> None:
    """`write` for one large buffer, of which it touches the slot alone."""
    if state.handle(buffer) is None:
        write(writer, [buffer], [held], step, [new], is_seen)
        return
    slot = slot_of(step, held)
    # What the slot holds is read for its value, and not by a control dependency alone, which may
    # get lost (see `update_moving`).
    is_seen = tf.reshape(is_seen, [1, -1] + [1] * (len(new.shape) - 1))
    writer.assign_slot(buffer, slot, tf.where(is_seen, new, tf.gather(held, slot)), held)
