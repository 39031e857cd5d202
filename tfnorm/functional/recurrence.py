"""Linear recurrences along the examples of a batch, in few operations."""

import tensorflow as tf


def recurrence(
    factors: tf.Tensor, terms: tf.Tensor, start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Solves s ← f_i·s + t_i for i = 0, 1, ..., T − 1: s before each step, and after the last.

    Two steps together are a step of the same form, (f_i, t_i) and (f_j, t_j) one of
    (f_j·f_i, f_j·t_i + t_j). So log2 T doublings of what is taken together (Hillis & Steele, "Data
    parallel algorithms", 1986) do the work of T steps one after the other.

    Args:
        factors: f [G, T, C] or [G, T, 1].
        terms: t [G, T, C].
        start: s before the first step, [G, C].

    Returns:
        s before each step [G, T, C], and after the last [G, C].
    """
    length = terms.shape[1]
    if length is not None:
        reach = 1
        while reach < length:
            factors, terms = _doubled(factors, terms, reach)
            reach *= 2
    else:
        unknown = tf.shape(terms)[1]
        shapes = (
            tf.TensorShape([]),
            *(tf.TensorShape([v.shape[0], None, v.shape[2]]) for v in (factors, terms)),
        )
        _, factors, terms = tf.while_loop(
            lambda reach, *_: reach < unknown,
            lambda reach, factors, terms: (2 * reach, *_doubled(factors, terms, reach)),
            (tf.constant(1), factors, terms),
            shape_invariants=shapes,
        )
    start = tf.expand_dims(start, 1)
    after = tf.math.multiply_no_nan(start, factors) + terms
    everything = tf.concat([start, after], 1)
    return everything[:, :-1], everything[:, -1]


def _doubled(
    factors: tf.Tensor, terms: tf.Tensor, reach: tf.Tensor | int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Each step together with the one `reach` before it; the first have none before them."""
    padding = [[0, 0], [reach, 0], [0, 0]]
    factors_before = tf.pad(factors[:, :-reach], padding, constant_values=1)
    terms_before = tf.pad(terms[:, :-reach], padding)
    # Where factors are large, their product may be infinite and what it is a factor of still 0.
    return factors * factors_before, tf.math.multiply_no_nan(terms_before, factors) + terms
