"""traced_once: one trace and one operation for all callers, and the function itself elsewhere."""

import numpy as np
import tensorflow as tf

from tfnorm.functional.traced_once import traced_once


def counted():
    """A function that is traced once, and how often it has run in Python."""
    calls = []

    @traced_once
    def scale(pair, offset, *, factor):
        calls.append(factor)
        a, b = pair
        return a * b * factor, (a if offset is None else a + offset)

    return scale, calls


def test_callers_of_one_signature_share_a_trace(rng):
    scale, calls = counted()
    a, b = (tf.constant(rng.normal(size=5)) for _ in range(2))

    @tf.function
    def network(a, b):
        for _ in range(3):
            with tf.device("CPU:0"):
                a, b = scale((a, b), None, factor=2.0)
        return a, b

    first = network.get_concrete_function(a, b)
    operations = [node.op for node in first.graph.as_graph_def().node]
    assert sum("PartitionedCall" in op for op in operations) == 3 and "Mul" not in operations
    tf.function(lambda a, b: scale((a, b), None, factor=2.0))(a, b)
    assert calls == [2.0]
    wanted = a, b
    for _ in range(3):
        wanted = wanted[0] * wanted[1] * 2, wanted[0]
    for got, want in zip(network(a, b), wanted, strict=True):
        np.testing.assert_allclose(got, want)


def test_constants_shapes_and_what_is_missing_have_traces_of_their_own(rng):
    scale, calls = counted()
    for factor, size, has_offset in [
        (2.0, 5, False),
        (3.0, 5, False),
        (2.0, 4, False),
        (2.0, 4, 1),
    ]:
        a, b, c = (tf.constant(rng.normal(size=size)) for _ in range(3))
        offset = c if has_offset else None
        product, moved = tf.function(lambda *x, f=factor, o=offset: scale(x, o, factor=f))(a, b)
        np.testing.assert_allclose(product, a * b * factor)
        np.testing.assert_allclose(moved, a + c if has_offset else a)
    assert len(calls) == 4


def test_eagerly_and_for_xla_it_is_the_function(rng):
    scale, calls = counted()
    a, b = (tf.constant(rng.normal(size=5)) for _ in range(2))
    scale((a, b), None, factor=2.0)
    compiled = tf.function(lambda a, b: scale((a, b), None, factor=2.0), jit_compile=True)
    concrete = compiled.get_concrete_function(a, b)
    assert "Mul" in [node.op for node in concrete.graph.as_graph_def().node]
    assert len(calls) == 2


def test_derivatives_of_both_orders_pass_through(rng):
    scale, _ = counted()
    a, b = (tf.constant(rng.normal(size=5)) for _ in range(2))

    @tf.function
    def derivatives(a, b):
        with tf.GradientTape() as outer:
            outer.watch([a, b])
            with tf.GradientTape() as inner:
                inner.watch(a)
                loss = tf.reduce_sum(scale((a, b), None, factor=2.0)[0] ** 2)
            first = inner.gradient(loss, a)
        return first, outer.gradient(first, b)

    first, second = derivatives(a, b)
    np.testing.assert_allclose(first, 8 * a * b * b)
    np.testing.assert_allclose(second, 16 * a * b)
