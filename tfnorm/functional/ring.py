"""Ring buffers of past steps as tensors [steps, groups, ...]."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def put(
    held: Sequence[tf.Tensor], step: tf.Tensor, new: Sequence[tf.Tensor], is_seen: tf.Tensor
) -> list[tf.Tensor]:
    """The buffers `held`, of one length and rank, with `new` [groups, ...] in the slots of `step`.

    A group that has seen nothing (is_seen [groups, 1]) keeps what its slot holds.
    """
    steps, groups, *rest = held[0].shape
    ones = [1] * len(rest)
    slots = np.arange(steps, dtype=step.dtype.as_numpy_dtype).reshape([steps, 1, *ones])
    if len(rest) > 1:
        is_seen = tf.reshape(is_seen, [groups, *ones])
    is_written = tf.logical_and(tf.equal(slots, step % steps), is_seen)
    return [tf.where(is_written, value, old) for value, old in zip(new, held, strict=True)]


def put_and_average(
    held: Sequence[tf.Tensor], step: tf.Tensor, new: tf.Tensor, is_seen: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """`put` into values and weights, and the average of all values that are known.

    A step of which some replicas knew nothing when they were synchronized has a value and a weight
    in proportion.
    """
    put_in = put(held, step, (new, tf.ones([1, 1], new.dtype)), is_seen)
    values, weights = (tf.reduce_sum(buffer, 0) for buffer in put_in)
    return tf.math.divide_no_nan(values, weights), put_in
