"""The functions without layers: tensors in, tensors out, with collectives of one's own."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests import references
from tests.functional.test_references import parameters
from tests.layers import running
from tfnorm import functional


def gradients(function, x, gamma, beta, dy):
    """[y, dx, dγ, dβ] and what else the function returns."""
    x, gamma, beta = (tf.constant(a) for a in (x, gamma, beta))
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        y, *others = function(x, gamma, beta)
    return [y, *tape.gradient(y, [x, gamma, beta], output_gradients=tf.constant(dy))], *others


def test_batch_normalization(rng):
    gamma, beta, mean, variance = parameters(rng, 3)
    x, dy, mask = running.data(rng, (4, 3, 5), axis=1, masked=True)
    oracle = references.BatchNormalization(
        gamma, beta, mean, variance, momentum=0.0, axis=1, groups=2, epsilon=0.01
    )
    wanted = oracle.step(x, dy, mask)
    actual, own = gradients(
        lambda *args: functional.batch_normalization(
            *args, axis=1, groups=2, mask=mask, epsilon=0.01
        ),
        x,
        gamma,
        beta,
        dy,
    )
    for a, b in zip(actual, (wanted.y, wanted.dx, wanted.dgamma, wanted.dbeta)):
        running.assert_close(a, b, 1e-12)
    np.testing.assert_array_equal(own.count, mask.reshape(2, -1).sum(1, keepdims=True))
    # With a decay of 0 the oracle's moving values are the groups' mean.
    running.assert_close(np.mean(own.mean, 0), oracle.moving_mean, 1e-12)
    running.assert_close(np.mean(own.variance, 0), oracle.moving_variance, 1e-12)


def test_no_gradient_flows_through_the_moments(rng):
    x = tf.constant(rng.normal(size=(6, 3)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        _, own = functional.batch_normalization(x)
        loss = tf.reduce_sum(own.mean**2 + own.variance)
    gradient = tape.gradient(loss, x, unconnected_gradients="zero")
    assert not np.any(gradient)


def test_synchronized_with_collectives_of_a_simulation(rng):
    """Two replicas in turn: each gathers what the other has packed, unequal counts, a mask."""
    gamma, beta, mean, variance = parameters(rng, 3)
    xs, dys, masks = zip(*[running.data(rng, (n, 4, 3), masked=True) for n in (3, 1)])
    oracle = references.SynchronizedBatchNormalization(gamma, beta, mean, variance)
    wanted = oracle.step(xs, dys, list(masks))
    packed, sums = [None, None], [None, None]
    # Three rounds: packed moments are known after the first, gradient sums after the second.
    for _ in range(3):
        results = []
        for replica in (0, 1):

            def gather(vector, replica=replica):
                packed[replica] = vector
                return tf.stack([vector if p is None else p for p in packed])

            def reduce_sum(vector, replica=replica):
                sums[replica] = vector
                return tf.add_n([s for s in sums if s is not None])

            def call(*args, gather=gather, reduce_sum=reduce_sum, replica=replica):
                return functional.synchronized_batch_normalization(
                    *args, gather, reduce_sum, mask=masks[replica]
                )

            result, _ = gradients(call, xs[replica], gamma, beta, dys[replica])
            results.append(result)
    for actual, value in zip(results, wanted):
        for a, b in zip(actual, (value.y, value.dx, value.dgamma, value.dbeta)):
            running.assert_close(a, b, 1e-12)


def test_batch_renormalization_takes_tensors_for_its_bounds(rng):
    gamma, beta, mean, variance = parameters(rng, 3)
    x, dy, _ = running.data(rng, (6, 3))
    oracle = references.BatchRenormalization(
        gamma, beta, mean, variance, r_max=lambda _: 1.2, d_max=lambda _: 0.4
    )
    wanted = oracle.step(x, dy)
    actual, _ = gradients(
        lambda x, g, b: functional.batch_renormalization(
            x, g, b, tf.constant(mean), tf.constant(variance), tf.constant(1.2, tf.float64), 0.4
        ),
        x,
        gamma,
        beta,
        dy,
    )
    for a, b in zip(actual, (wanted.y, wanted.dx, wanted.dgamma, wanted.dbeta)):
        running.assert_close(a, b, 1e-12)


@pytest.mark.parametrize("axis", [1, -1])
def test_moving_statistics_without_scale_and_offset(rng, axis):
    x = rng.normal(size=(4, 3, 3))
    mean, variance = rng.normal(size=3), rng.uniform(0.5, 2, 3)
    y = functional.normalize_by_moving_statistics(
        tf.constant(x), None, None, mean, variance, axis=axis, epsilon=0.1
    )
    oracle = references.Reference(np.ones(3), np.zeros(3), mean, variance, axis=axis, epsilon=0.1)
    running.assert_close(y, oracle.infer(x), 1e-12)


def test_a_batch_of_unknown_size(rng):
    gamma, beta, mean, variance = parameters(rng, 3)
    x, dy, _ = running.data(rng, (6, 4, 3))
    wanted = references.BatchNormalization(gamma, beta, mean, variance, groups=3).step(x, dy)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float64)])
    def run(x):
        return functional.batch_normalization(x, gamma, beta, groups=3)[0]

    running.assert_close(run(x), wanted.y, 1e-12)


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize(("positions", "channels"), [(24, 130), (48, 5), (50, 5), (70_000, 128)])
@pytest.mark.parametrize("function", ["batch_normalization", "batch_renormalization", "inference"])
def test_every_layout_of_the_fused_kernels(
    rng, function, positions, channels, is_known, by_kernels
):
    """Float32 takes these, as images of one position, of 16 or of all: as float64 does."""
    gamma, beta, mean, variance = parameters(rng, channels)
    x, dy = rng.normal(1, 2, (positions, channels)), rng.normal(size=(positions, channels))

    def compute(x, dy, gamma, beta, mean, variance):
        functions = {
            "batch_normalization": lambda: functional.batch_normalization(x, gamma, beta),
            "batch_renormalization": lambda: functional.batch_renormalization(
                x, gamma, beta, mean, variance, 2.0, 0.5
            ),
            "inference": lambda: (
                functional.normalize_by_moving_statistics(x, gamma, beta, mean, variance),
            ),
        }
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            y, *moments = functions[function]()
        return [y, *tape.gradient(y, [x, gamma, beta], dy), *tf.nest.flatten(moments)]

    def run(dtype):
        specs = [tf.TensorSpec((positions if is_known else None, channels), dtype)] * 2
        specs += [tf.TensorSpec((channels,), dtype)] * 4
        arrays = (x, dy, gamma, beta, mean, variance)
        return tf.function(compute, specs)(*(tf.constant(a, dtype) for a in arrays))

    for a, b in zip(run("float32"), run("float64"), strict=True):
        running.assert_close(a, b, 1e-4)


@pytest.mark.parametrize(
    ("fixture", "synchronized", "shape"),
    [
        ("by_kernels", False, (3, 16, 4)),
        ("by_kernels", True, (3, 16, 4)),
        ("rng", False, (3, 16, 4)),
        # As many positions as channels, one of them, and one position.
        ("by_kernels", False, (1, 16, 16)),
        ("rng", True, (1, 16, 16)),
        ("rng", False, (3, 16, 1)),
        ("rng", True, (1, 1, 4)),
    ],
)
def test_derivatives_of_both_orders(rng, request, fixture, synchronized, shape):
    """Of a tf.function, by kernels and without, they are those that float64 has."""
    request.getfixturevalue(fixture)
    x, weights = rng.normal(1, 2, (2, *shape))
    gamma, beta, *_ = parameters(rng, shape[-1])
    normalize = functional.batch_normalization
    if synchronized:
        normalize = functools.partial(
            functional.synchronized_batch_normalization,
            gather=lambda values: values[None],
            reduce_sum=tf.identity,
        )

    def first_order(x, weights, gamma, beta):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma])
            y = normalize(x, gamma, beta)[0]
            loss = tf.reduce_sum(weights * y**2)
        return tape.gradient(loss, [x, gamma])

    def both_orders(first_order, dtype):
        given = [tf.constant(v, dtype) for v in (x, weights, gamma, beta)]
        sources = given[0], given[2]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            first = first_order(*given)
            penalty = tf.reduce_sum(first[0] ** 3) + tf.reduce_sum(first[1])
        return [*first, *tape.gradient(penalty, sources)]

    in_graph = both_orders(tf.function(first_order), tf.float32)
    for a, b in zip(in_graph, both_orders(first_order, tf.float64), strict=True):
        running.assert_close(a, b, 1e-5)
