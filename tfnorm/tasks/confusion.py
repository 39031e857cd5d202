"""How well pixels are classified, from a confusion matrix."""

import numpy as np
import tensorflow as tf

from tfnorm.data.example import IGNORED


def confusion_matrix(
    truth: tf.Tensor, found: tf.Tensor, weight: tf.Tensor, num_classes: int
) -> tf.Tensor:
    """Counts pixels by their class and by what was found.

    Args:
        truth: [b, ...] int32, classes; `IGNORED` where a pixel does not count.
        found: [b, ...] int32, classes.
        weight: [b], of each example.
        num_classes: C.

    Returns:
        [C, C] float32: in row t and column p the weight of pixels of class t that were taken for p.
    """
    # In whole numbers: a sum of ones in float32 ends at 2^24, a large image or some small ones.
    is_counted = tf.cast(truth != IGNORED, tf.int32)
    cell = tf.where(truth == IGNORED, 0, truth * num_classes + found)
    images, cells = tf.shape(truth)[0], num_classes**2
    cell += cells * tf.reshape(tf.range(images), [-1] + [1] * (truth.shape.rank - 1))
    counts = tf.math.unsorted_segment_sum(
        tf.reshape(is_counted, [-1]), tf.reshape(cell, [-1]), images * cells
    )
    counts = tf.cast(tf.reshape(counts, [images, cells]), tf.float32)
    flat = tf.reduce_sum(counts * weight[:, None], 0)
    return tf.reshape(flat, [num_classes, num_classes])


def intersection_over_union(matrix: np.ndarray) -> np.ndarray:
    """Of each class, [C]: pixels rightly found / pixels of the class or found as such.

    NaN for a class that is neither in the truth nor found.
    """
    right = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - right
    return np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)
