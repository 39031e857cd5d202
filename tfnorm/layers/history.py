"""Ring buffers of past steps: variables of shape [steps, groups, ...]."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import xla


def write(
    buffers: Sequence[keras.Variable],
    held: Sequence[tf.Tensor],
    step: tf.Tensor,
    new: Sequence[tf.Tensor],
    count: tf.Tensor,
) -> list[tf.Tensor]:
    """Puts `new` [groups, ...] into the slots of `step`, and returns the buffers after that.

    The buffers are of one length and rank. `held` is what they hold: a graph reads it once a step
    (see `update_moving`). A group without a valid position (count [groups, 1] of 0) keeps what its
    slot holds.
    """
    steps, groups, *rest = held[0].shape
    ones = [1] * len(rest)
    # A constant in place of a tf.range, and values that broadcast by themselves: each operation
    # less in every layer is time of tracing (188 operations of MABN became 149).
    slots = np.arange(steps, dtype=step.dtype.as_numpy_dtype).reshape([steps, 1, *ones])
    is_written = tf.equal(slots, step % steps)
    if not functional.is_statically_positive(count):
        is_written = tf.logical_and(is_written, tf.reshape(count > 0, [1, groups, *ones]))
    updated = [tf.where(is_written, value, old) for value, old in zip(new, held, strict=True)]
    for buffer, value in zip(buffers, updated, strict=True):
        buffer.assign(value)
    return updated


def read_shared(buffer: keras.Variable) -> tf.Tensor:
    """What the buffer holds, without a copy although `write_slot` writes it.

    A variable of which one slot was ever written is copied whole by every read from then on, to be
    safe from the next write. But that copies by itself if a reader is still there: so reads are
    made to share again. To read 66 MB, to use it and to write a slot takes 5 ms so, and else 10.
    """
    handle = _handle(buffer)
    # XLA has no such copies, and does not know the operation.
    if handle is not None and not xla.is_compiling():
        tf.raw_ops.DisableCopyOnRead(resource=handle)
    return tf.convert_to_tensor(buffer)


def write_slot(
    buffer: keras.Variable, held: tf.Tensor, step: tf.Tensor, new: tf.Tensor, count: tf.Tensor
) -> None:
    """`write` for one large buffer, of which it touches the slot alone."""
    handle = _handle(buffer)
    if handle is None:
        write([buffer], [held], step, [new], count)
        return
    slot = tf.reshape(step % held.shape[0], [1])
    # Both ways the buffer is read first because its value is needed, and not by a control
    # dependency alone, which may get lost (see `update_moving`).
    if functional.is_statically_positive(count):
        # The slot, in words of which TensorFlow cannot know that they do not need the value.
        any_held = tf.cast(tf.reshape(held, [-1])[:1], slot.dtype)
        slot = tf.where(step >= 0, slot, any_held)
    else:
        is_written = tf.reshape(count > 0, [-1] + [1] * (new.shape.rank - 1))
        new = tf.where(is_written, new, tf.gather(held, slot))
    # Not scatter_update: variables of tf.distribute that are read as a mean lack it.
    tf.raw_ops.ResourceScatterUpdate(
        resource=handle, indices=slot, updates=tf.reshape(new, [1, *held.shape[1:]])
    )


def _handle(buffer: keras.Variable) -> tf.Tensor | None:
    """Its resource; none where a keras.StatelessScope lends it a value of its own."""
    return getattr(buffer.value, "handle", None)
