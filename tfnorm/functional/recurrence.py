"""Linear recurrences along the examples of a batch, in few operations."""

import tensorflow as tf

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
    if isinstance(factors, float):
        if terms.shape[1] is not None:
            return _of_one_factor(factors, terms, start)
        shape = tf.concat([tf.shape(terms)[:2], [1]], 0)
        factors = tf.fill(shape, tf.constant(factors, terms.dtype))
    factors, terms = _from_the_first(factors, terms)
    start = tf.expand_dims(start, 1)
    everything = tf.concat([start, _step(factors, terms, start)], 1)
    return everything[:, :-1], everything[:, -1]


def _of_one_factor(
    factor: float, terms: tf.Tensor, start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The same by its powers, in half of the operations."""
    length = terms.shape[1]
    if length <= _FEW:
        sums = tf.concat([tf.expand_dims(start, 1), terms], 1)
        reach = 1
        while reach <= length:
            sums += factor**reach * _moved_on(sums, reach)
            reach *= 2
        return sums[:, :-1], sums[:, -1]
    blocks = _blocks(tf.pad(terms, [[0, 0], [0, -length % _BLOCK], [0, 0]]))
    first, *others = tf.unstack(blocks, axis=2)
    inside = [tf.zeros_like(first), first]
    for term in others:
        inside.append(factor * inside[-1] + term)
    starts, _ = _of_one_factor(factor**_BLOCK, inside.pop(), start)
    powers = tf.constant([[factor**i] for i in range(_BLOCK)], terms.dtype)
    before = _joined(tf.stack(inside, 2) + powers * tf.expand_dims(starts, 2))[:, :length]
    return before, factor * before[:, -1] + terms[:, -1]


def _step(factors: tf.Tensor, terms: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    # Where factors are large, their product may be infinite and what it is a factor of still 0.
    return tf.math.multiply_no_nan(before, factors) + terms


def _from_the_first(factors: tf.Tensor, terms: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(f, t) of all steps up to each of them, this one included."""
    length = terms.shape[1]
    if length is None:
        return _by_blocks(factors, terms, tf.shape(terms)[1])
    return _by_blocks(factors, terms, length) if length > _FEW else _by_doubling(factors, terms)


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
    """Each step together with the one `reach` before it; the first have none before them."""
    factors_before, terms_before = _later(factors, terms, reach)
    return factors * factors_before, _step(factors, terms, terms_before)


def _later(
    factors: tf.Tensor, terms: tf.Tensor, reach: tf.Tensor | int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Both moved on by `reach`; before them stand steps that change nothing."""
    return _moved_on(factors, reach, 1), _moved_on(terms, reach)


def _moved_on(values: tf.Tensor, reach: tf.Tensor | int, before: int = 0) -> tf.Tensor:
    return tf.pad(values[:, :-reach], [[0, 0], [reach, 0], [0, 0]], constant_values=before)


def _by_blocks(
    factors: tf.Tensor, terms: tf.Tensor, length: tf.Tensor | int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Step after step in all blocks of steps at once, then likewise from block to block.

    That touches each of many steps some times, where doublings touch it log2 T times.
    """
    padding = [[0, 0], [0, -length % _BLOCK], [0, 0]]
    factors, terms = tf.pad(factors, padding, constant_values=1), tf.pad(terms, padding)
    one = tf.ones([], terms.dtype)
    together = [(one, tf.zeros([], terms.dtype))]
    for factor, term in zip(*(tf.unstack(_blocks(v), axis=2) for v in (factors, terms))):
        factor_before, term_before = together[-1]
        together.append((factor * factor_before, _step(factor, term, term_before)))
    factors, terms = (tf.stack(v, 2) for v in zip(*together[1:]))
    last = factors[:, :, -1], terms[:, :, -1]
    of_blocks = _by_doubling(*last) if tf.is_tensor(length) else _from_the_first(*last)
    factors_before, terms_before = (tf.expand_dims(v, 2) for v in _later(*of_blocks, 1))
    terms = _step(factors, terms, terms_before)
    factors = factors * factors_before
    return tuple(_joined(v)[:, :length] for v in (factors, terms))


def _blocks(values: tf.Tensor) -> tf.Tensor:
    """[G, T, C] as [G, T/B, B, C]."""
    groups, _, channels = values.shape
    return tf.reshape(values, [groups, -1, _BLOCK, channels])


def _joined(values: tf.Tensor) -> tf.Tensor:
    groups, *_, channels = values.shape
    return tf.reshape(values, [groups, -1, channels])
