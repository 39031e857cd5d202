"""Linear recurrences along the examples of a batch, in few operations."""

import tensorflow as tf

from tfnorm.functional import xla
from tfnorm.functional.sizes import dimensions

# Up to so many steps all are taken together at once; more are taken block by block.
_FEW = 64
_BLOCK = 16


def recurrence(
    factors: tf.Tensor | float, terms: tf.Tensor, start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Solves s ← f_i·s + t_i for i = 0, 1, ..., T − 1: s before each step, and after the last.

    Several steps together are a step of the same form, (f_i, t_i) and (f_j, t_j) one of
    (f_j·f_i, f_j·t_i + t_j). So what each step makes of `start` can be found for many at a time.

    Args:
        factors: f [G, T, C] or [G, T, 1]; a number if it is the same in every step.
        terms: t [G, T, C].
        start: s before the first step, [G, C].

    Returns:
        s before each step [G, T, C], and after the last [G, C].
    """
    length = terms.shape[1]
    is_of_channels = not isinstance(factors, float) and factors.shape[-1] != 1
    if length is None and isinstance(factors, float):
        shape = tf.concat([tf.shape(terms)[:2], [1]], 0)
        factors = tf.fill(shape, tf.constant(factors, terms.dtype))
    if not is_of_channels and xla.is_for_cpu():
        return _by_substitution(factors, terms, start)
    if length is None or length > _FEW:
        return _by_blocks(factors, terms, start)
    return _at_once(factors, terms, start)


def _by_substitution(
    factors: tf.Tensor | float, terms: tf.Tensor, start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """As the solution of s_{i+1} − f_i·s_i = t_i, in one operation (0.5 of the time of others)."""
    if isinstance(factors, float):
        factors = tf.constant(factors, terms.dtype, [1, terms.shape[1], 1])
    start = tf.expand_dims(start, 1)
    # The start stands there twice, because the operation wants two rows and there may be no step.
    below = tf.pad(-tf.squeeze(factors, 2), [[0, 0], [2, 0]])
    sums = tf.raw_ops.BandedTriangularSolve(
        matrix=tf.stack([tf.ones_like(below), below], 1),
        rhs=tf.concat([start, start, terms], 1),
        lower=True,
        adjoint=False,
    )
    return sums[:, 1:-1], sums[:, -1]


def _at_once(
    factors: tf.Tensor | float, terms: tf.Tensor, start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    start = tf.expand_dims(start, 1)
    if isinstance(factors, float):
        sums = _of_one_factor(factors, tf.concat([start, terms], 1))
    else:
        factors, terms = _by_doubling(factors, terms)
        sums = tf.concat([start, _step(factors, terms, start)], 1)
    return sums[:, :-1], sums[:, -1]


def _of_one_factor(factor: float, sums: tf.Tensor) -> tf.Tensor:
    """Doublings of a number's powers, in half of the operations."""
    reach = 1
    while reach < sums.shape[1]:
        sums += factor**reach * _moved_on(sums, reach)
        reach *= 2
    return sums


def _by_blocks(
    factors: tf.Tensor | float, terms: tf.Tensor, start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """From block to block of steps, each block a step; then step after step in all blocks at once.

    That touches each of many steps some times, where doublings touch it log2 T times.
    """
    length = terms.shape[1]
    solve = recurrence if length is not None else _at_once
    length = tf.shape(terms)[1] if length is None else length
    padding = [[0, 0], [0, -length % _BLOCK], [0, 0]]
    each_term = tf.unstack(_blocks(tf.pad(terms, padding)), axis=2)
    if isinstance(factors, float):
        each_factor = [factors] * _BLOCK
    else:
        each_factor = tf.unstack(_blocks(tf.pad(factors, padding, constant_values=1)), axis=2)
    (factor, *others), (term, *_) = each_factor, each_term
    for own, own_term in zip(others, each_term[1:]):
        factor, term = factor * own, _step(own, own_term, term)
    state, last = solve(factor, term, start)
    before = []
    for own, own_term in zip(each_factor, each_term):
        before.append(state)
        state = _step(own, own_term, state)
    before = _joined(tf.stack(before, 2))[:, :length]
    if isinstance(factors, float):  # which goes on in the padding
        last = _step(factors, terms[:, -1], before[:, -1])
    return before, last


def _step(factors: tf.Tensor | float, terms: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    if isinstance(factors, float):
        return factors * before + terms
    # Where factors are large, their product may be infinite and what it is a factor of still 0.
    return tf.math.multiply_no_nan(factors, before) + terms


def _by_doubling(factors: tf.Tensor, terms: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """In log2 T times over all of them (Hillis & Steele, "Data parallel algorithms", 1986)."""
    length = terms.shape[1]
    if length is not None:
        reach = 1
        while reach < length:
            factors, terms = _doubled(factors, terms, reach)
            reach *= 2
        return factors, terms
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
    return factors, terms


def _doubled(
    factors: tf.Tensor, terms: tf.Tensor, reach: tf.Tensor | int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Each step together with the one `reach` before it; the first follow one without effect."""
    factors_before, terms_before = _moved_on(factors, reach, 1), _moved_on(terms, reach)
    return factors * factors_before, _step(factors, terms, terms_before)


def _moved_on(values: tf.Tensor, reach: tf.Tensor | int, before: int = 0) -> tf.Tensor:
    if tf.is_tensor(reach):  # XLA neither slices nor pads by what a loop computes
        source = tf.range(tf.shape(values)[1]) - reach
        moved = tf.gather(values, tf.maximum(source, 0), axis=1)
        return tf.where(source[:, None] >= 0, moved, tf.cast(before, values.dtype))
    return tf.pad(values[:, :-reach], [[0, 0], [reach, 0], [0, 0]], constant_values=before)


def _blocks(values: tf.Tensor) -> tf.Tensor:
    """[G, T, C] as [G, T/B, B, C]."""
    groups, _, channels = dimensions(values)
    return tf.reshape(values, [groups, -1, _BLOCK, channels])


def _joined(values: tf.Tensor) -> tf.Tensor:
    groups, *_, channels = dimensions(values)
    return tf.reshape(values, [groups, -1, channels])
