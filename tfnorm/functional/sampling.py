"""A few of the positions of a batch, spread over all of them."""

import numpy as np
import tensorflow as tf

# Fractions of 2¹⁶ near the golden ratio and √2 − 1, of which few multiples lie far from each other:
# steps that follow each other look at other places of a part, and so do the parts of one step. Both
# are odd, so that each goes through all fractions.
_FRACTIONS = 2**16
_BY_STEP, _BY_PART = 40_503, 27_145


def spread(step: tf.Tensor, count: int | tf.Tensor, samples: int) -> tf.Tensor:
    """The numbers of some of `count` positions: one in each of so many equal parts of them.

    Its place in its part depends on the step and the part alone, and over steps goes through all of
    it. Where there are as many samples as positions, they are all of these.

    Args:
        step: a whole number.
        count: how many positions there are: a number, or [G, 1].
        samples: S.

    Returns:
        int32, [S] or [G, S], from 0 to count − 1; 0 of no position.
    """
    count = tf.cast(count, tf.int64)
    parts = np.arange(samples, dtype=np.int64)
    first, end = parts * count // samples, (parts + 1) * count // samples
    fraction = (_BY_STEP * tf.cast(step, tf.int64) + _BY_PART * parts) % _FRACTIONS
    return tf.cast(first + (end - first) * fraction // _FRACTIONS, tf.int32)


def where_valid(ranks: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The numbers of the positions of which these are the numbers among the valid ones.

    Args:
        ranks: int32 [G, S], from 0.
        mask: [G, M, 1], True where valid.

    Returns:
        int32 [G, S]; the last position in place of one that is not there, 0 of no position.
    """
    counts = tf.cumsum(tf.cast(tf.squeeze(mask, -1), tf.int32), axis=1)
    found = tf.searchsorted(counts, ranks + 1)
    return tf.maximum(tf.minimum(found, tf.shape(counts)[1] - 1), 0)
