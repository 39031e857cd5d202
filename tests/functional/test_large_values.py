"""Statistics of equal large values, whose mean float32 rounds: the variance is 0 all the same."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import functional


@pytest.mark.parametrize("jit_compile", [None, False, True])
@pytest.mark.parametrize("groups, masked", [(1, False), (1, True), (4, False)])
@pytest.mark.parametrize("dtype, value", [("float32", 1e10), ("bfloat16", 1e10), ("float16", 6e4)])
def test_the_variance_of_equal_values_is_0(rng, dtype, value, groups, masked, jit_compile):
    x = np.stack([np.full((64, 12), value), rng.normal(size=(64, 12))], -1)
    mask = tf.constant(rng.random((64, 12)) < 0.7) if masked else None
    weights = tf.constant(rng.normal(size=x.shape), tf.float32)

    def normalize(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, own = functional.batch_normalization(x, mask=mask, groups=groups)
            loss = tf.reduce_sum(weights * tf.cast(y, tf.float32))
        return y, own.mean, own.variance, tape.gradient(loss, x)

    run = normalize if jit_compile is None else tf.function(normalize, jit_compile=jit_compile)
    x = tf.constant(x, dtype)
    y, mean, variance, dx = (np.asarray(tf.cast(v, tf.float64)) for v in run(x))
    valid = np.ones((64, 12), bool) if mask is None else mask.numpy()
    rows = np.asarray(tf.cast(x, tf.float64))
    np.testing.assert_array_equal(mean[:, 0], rows[0, 0, 0])
    np.testing.assert_array_equal(variance[:, 0], 0)
    np.testing.assert_array_equal(y[..., 0], 0)
    # The gradient is by the same statistics: divided by the root of ε.
    parts = zip(np.split(weights[..., 0].numpy(), groups), np.split(valid, groups))
    wanted = np.concatenate([np.where(m, w - w[m].mean(), w) for w, m in parts]) / np.sqrt(1e-3)
    tolerance = 1e-4 if dtype == "float32" else 0.01
    np.testing.assert_allclose(dx[..., 0], wanted, tolerance, tolerance * np.abs(wanted).max())
    own = [part[m].var() for part, m in zip(*(np.split(v, groups) for v in (rows[..., 1], valid)))]
    np.testing.assert_allclose(variance[:, 1], own, 1e-3)


@pytest.mark.parametrize("fixture", ["by_kernels", "rng"])
@pytest.mark.parametrize("units", [3, 300])
def test_values_that_differ_by_their_last_digits(rng, request, fixture, units):
    """A deviation of few units of 1024, the last place of 1e10 in float32."""
    request.getfixturevalue(fixture)
    steps = rng.integers(-units, units + 1, (4096, 2))
    x = (1e10 + 1024.0 * steps).astype(np.float32)
    _, own = tf.function(functional.batch_normalization)(tf.constant(x))
    np.testing.assert_allclose(own.variance[0], x.astype(np.float64).var(0), 0.01)


def test_equal_values_of_examples_and_replicas():
    """Means of parts that are equal are merged to the same, whatever their number."""
    x = tf.constant(np.full((3, 7, 2), 1e10), tf.float32)
    one = tf.ones([2])
    _, own = functional.batch_instance_normalization(x, one, one, one)
    np.testing.assert_array_equal(own.variance, 0)
    _, own = functional.synchronized_batch_normalization(
        x, one, one, lambda packed: tf.tile(packed[None], [3, 1]), lambda sums: 3 * sums
    )
    np.testing.assert_array_equal(own.variance, 0)
    np.testing.assert_array_equal(own.mean, np.float32(1e10))
