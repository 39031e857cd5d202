"""Sizes of tensors, whether they are known before anything runs or not."""

import tensorflow as tf


def dimensions(x: tf.Tensor) -> list[int | tf.Tensor]:
    """The sizes of x, as tensors where they are not known beforehand."""
    if x.shape.is_fully_defined():
        return list(x.shape)
    shape = tf.unstack(tf.shape(x), x.shape.rank)  # of each for itself it would be four operations
    return [found if size is None else size for found, size in zip(shape, x.shape)]


def with_any_row(values: tf.Tensor) -> tf.Tensor:
    """Values [n, C] to choose rows from: a row of zeros where there is none, as of no example."""
    if values.shape[0]:
        return values
    missing = tf.cast(tf.equal(tf.shape(values)[0], 0), tf.int32)
    return tf.pad(values, [[0, missing], [0, 0]])
