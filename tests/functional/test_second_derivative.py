"""The derivative of the kernel's gradient, against that of the plain functions in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm.functional import channelwise, fused

EPSILON = 1e-3


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_of_all_that_the_gradient_at_inference_takes(rng, wrap):
    shapes = [(1, 32, 5), (1, 32, 5), (1, 5), (1, 5), (5,)]
    values = [rng.normal(size=shape) for shape in shapes]
    values[3] = np.square(values[3]) + 0.5
    along = [rng.normal(size=shape) for shape in ((1, 32, 5), (5,), (5,))]

    def derivatives(by, dtype):
        arguments = [tf.constant(v, dtype) for v in values]
        weights = [tf.constant(v, dtype) for v in along]

        @wrap
        def compute(arguments):
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                results = by.normalize_gradient(*arguments, EPSILON)
                loss = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(results, weights)])
            return tape.gradient(loss, arguments)

        return compute(arguments)

    wanted = derivatives(channelwise, tf.float64)
    for got, want in zip(derivatives(fused, tf.float32), wanted, strict=True):
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
