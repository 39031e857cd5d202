"""Large ring buffers of past steps: variables [steps, groups, ...], a slot of which is written."""

import keras
import tensorflow as tf

from tfnorm.functional import xla
from tfnorm.layers import state
from tfnorm.layers.state import Writer


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
    writer: Writer, buffer: keras.Variable, held: tf.Tensor, slot: tf.Tensor, value: tf.Tensor
) -> None:
    """Puts `value` [1, groups, ...] into the slot [1] of one large buffer, and touches no other.

    It has to follow from what the slot held, and not by a control dependency alone, which may get
    lost (see `ChannelNormalization.then_move`).
    """
    if state.handle(buffer) is None:
        writer.assign(buffer, tf.tensor_scatter_nd_update(held, slot[:, None], value), held)
    else:
        writer.assign_slot(buffer, slot, value, held)
