"""Derivatives of what backward passes take of kernels, against the plain functions in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm.functional import channelwise, fused
from tfnorm.functional.traced_once import traced_once

EPSILON = 1e-3


def derivatives(by, wrap, dtype, compute, values, along):
    """Of the sum of all that `compute` returns, by weights, to all that it is given."""
    arguments, weights = ([tf.constant(v, dtype) for v in each] for each in (values, along))

    @wrap
    def run(arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            results = tf.nest.flatten(compute(by, *arguments))
            loss = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(results, weights, strict=True)])
        return tape.gradient(loss, arguments)

    return run(arguments)


def gradient_at_inference(by, dy, x, mean, variance, scale):
    return by.normalize_gradient(dy, x, mean, tf.square(variance) + 0.5, scale, EPSILON)


def gradient_in_training(by, dy, x, scale):
    own = by.batch_normalize(x, scale, tf.zeros_like(scale), EPSILON)[1]
    return by.batch_normalize_gradient(dy, x, own, scale, epsilon=EPSILON)


def affine(by, direct, x, mean, factor, offset):
    return by.add_affine(direct, x, mean, factor, offset)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
@pytest.mark.parametrize("compute", [gradient_at_inference, affine])
def test_of_all_that_is_taken(rng, compute, wrap):
    image, channels = (1, 32, 5), (1, 5)
    values = [rng.normal(size=shape) for shape in (image, image, channels, channels, channels)]
    along = [rng.normal(size=image)]
    if compute is gradient_at_inference:
        along += [rng.normal(size=5) for _ in range(2)]
    wanted = derivatives(channelwise, wrap, tf.float64, compute, values, along)
    got = derivatives(fused, wrap, tf.float32, compute, values, along)
    for ours, theirs in zip(got, wanted, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
@pytest.mark.parametrize("once", [lambda f: f, traced_once], ids=["plain", "traced once"])
def test_in_training_where_moments_follow_from_what_is_given(rng, wrap, once):
    image = (1, 32, 5)
    values = [rng.normal(size=shape) for shape in (image, image, (5,))]
    along = [rng.normal(size=image), *(rng.normal(size=5) for _ in range(2))]

    @once
    def by_kernel(dy, x, scale):
        return gradient_in_training(fused, dy, x, scale)

    wanted = derivatives(channelwise, wrap, tf.float64, gradient_in_training, values, along)
    got = derivatives(None, wrap, tf.float32, lambda _, *given: by_kernel(*given), values, along)
    for ours, theirs in zip(got, wanted, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
