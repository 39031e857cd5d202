"""What a layer wants beside the outputs, computed in the same operation."""

import numpy as np
import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import Then


def test_equal_functions_share_a_trace_and_no_gradient_flows_through_what_they_make(rng):
    calls = []

    def deviation(own, factor):
        calls.append(own)
        return factor * tf.sqrt(own.variance)

    @tf.function
    def twice(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            found = []
            for factor in (2.0, 3.0):
                then = Then(deviation, (tf.constant(factor),))
                found.append(functional.batch_normalization(x, then=then)[1].derived)
            total = tf.reduce_sum(found)
        return found, tape.gradient(total, x)

    x = rng.normal(1, 2, (6, 5, 3)).astype("float32")
    found, gradient = twice(tf.constant(x))
    assert len(calls) == 1 and gradient is None
    for factor, values in zip((2, 3), found, strict=True):
        np.testing.assert_allclose(values, factor * x.std((0, 1))[None], 1e-5)


def test_bounds_that_are_computed_in_the_operation(rng):
    x = tf.constant(rng.normal(1, 2, (6, 5, 3)), tf.float32)
    moving = tf.zeros([3]), tf.ones([3])
    half = Then(lambda step: tf.cast(step, tf.float64) / 2, (tf.constant(3),))
    for r_max, d_max in ((half, 0.3), (2.0, half)):
        numbers = (1.5 if isinstance(bound, Then) else bound for bound in (r_max, d_max))
        found, _ = functional.batch_renormalization(x, None, None, *moving, r_max, d_max)
        wanted, _ = functional.batch_renormalization(x, None, None, *moving, *numbers)
        np.testing.assert_array_equal(found, wanted)
