"""Whether a graph is for XLA, and that both kinds of graph compute the same."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import xla


def test_the_answer_in_every_kind_of_graph():
    answers = {}

    def ask(kind, x):
        answers[kind] = xla.is_compiling()
        return x

    @tf.function
    def inner(x):
        return ask("inner", x)

    def outer(x):
        ask("outer", x)
        tf.cond(x > 0, lambda: ask("branch", x), lambda: x)
        return inner(x)

    assert not xla.is_compiling()
    for jit_compile in (True, False):
        tf.function(outer, jit_compile=jit_compile)(tf.constant(1.0))
        kinds = ("outer", "branch", "inner")
        # The inner function has its graph from the first time: TensorFlow does not trace it again.
        wanted = {kind: jit_compile or kind == "inner" for kind in kinds}
        assert answers == wanted


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_statistics_are_those_of_a_graph(rng, groups, masked):
    """By one pass over x, which loses nothing of a small variance beside a large mean."""
    x = rng.normal(3, 2, size=(8, 16, 5)).astype(np.float32)
    x[..., 0] += 1e4
    # All values that are looked at lie far from the mean of the rest.
    x[:, ::2, 1] = 500
    mask = rng.random((8, 16)) < 0.7 if masked else None

    def normalize(x):
        y, moments = functional.batch_normalization(x, None, None, mask=mask, groups=groups)
        return y, moments.mean, moments.variance

    got = tf.function(normalize, jit_compile=True)(tf.constant(x))
    valid = np.ones((8, 16), bool) if mask is None else mask
    for group in range(groups):
        own = slice(group * 8 // groups, (group + 1) * 8 // groups)
        seen = x[own][valid[own]].astype(np.float64)
        mean, variance = seen.mean(0), seen.var(0)
        y = (x[own] - mean) / np.sqrt(variance + 1e-3)
        for result, want in ((got[0][own], y), (got[1][group], mean), (got[2][group], variance)):
            np.testing.assert_allclose(result, want, rtol=2e-5, atol=2e-3 if want is y else 2e-5)


def test_a_graph_from_outside_does_not_compile(rng):
    """The README's caution: XLA gets the Python function, not one that has its graph already."""
    x = tf.constant(rng.normal(size=(4, 8, 3)), tf.float32)

    def normalize(x):
        return functional.batch_normalization(x, groups=2)[0]

    graph = tf.function(normalize)
    wanted = graph(x)
    with pytest.raises(tf.errors.InvalidArgumentError, match="EuclideanNorm"):
        tf.function(lambda x: graph(x), jit_compile=True)(x)
    got = tf.function(lambda x: normalize(x), jit_compile=True)(x)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
