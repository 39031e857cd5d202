"""Sizes of tensors, whether they are known before anything runs or not."""

import tensorflow as tf


def dimensions(x: tf.Tensor) -> list[int | tf.Tensor]:
    """The sizes of x, as tensors where they are not known beforehand."""
    if x.shape.is_fully_defined():
        return list(x.shape)
    shape = tf.unstack(tf.shape(x), x.shape.rank)  # of each for itself it would be four operations
    return [found if size is None else size for found, size in zip(shape, x.shape)]
