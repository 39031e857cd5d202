"""The numbers of batch statistics, against NumPy's own on whole batches and against theory."""

import numpy as np
import pytest

from tfnorm.training import statistics
from tfnorm.training.statistics import Noise, Statistics


def of(x, gradient, y):
    """The statistics of x [K, M, C], of which each of the K is a micro-batch."""
    count = np.full((len(x), 1), x.shape[1])
    return Statistics(
        x.mean(1), x.var(1), gradient.mean(1), (gradient * y).mean(1), (gradient**2).mean(1), count
    )


@pytest.fixture
def draw(rng):
    return lambda *shape: (
        rng.normal(2, 3, shape),
        rng.normal(0.5, 2, shape),
        rng.normal(size=shape),
    )


def test_merged_statistics_are_those_of_all_positions(draw):
    arrays = draw(5, 7, 3)
    merged = statistics.merge(of(*arrays))
    together = of(*(x.reshape(1, 35, 3) for x in arrays))
    for ours, theirs in zip(merged, together, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_merged_statistics_count_positions_and_not_batches(draw):
    first, second = draw(1, 2, 3), draw(1, 9, 3)
    parts = Statistics(*map(np.concatenate, zip(of(*first), of(*second))))
    together = of(*(np.concatenate(both, 1) for both in zip(first, second)))
    for ours, theirs in zip(statistics.merge(parts), together, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_about_zero_is_the_mean_square(draw):
    x, gradient, y = draw(4, 6, 2)
    np.testing.assert_allclose(
        statistics.about_zero(of(x, gradient, y)).variance, (x**2).mean(1), rtol=1e-12
    )


@pytest.mark.parametrize("positions", [8, 32])
def test_noise_of_independent_samples_follows_their_number(rng, positions):
    x = rng.normal([5.0, -1.0], [0.1, 3.0], (4000, positions, 2))
    y = (x - [5.0, -1.0]) / [0.1, 3.0]
    gradient = rng.normal(0, [0.01, 1.0], x.shape)
    parts = of(x, gradient, y)
    noise = statistics.noise(parts, statistics.merge(parts), 0.0)
    one = positions**-0.5
    assert noise == pytest.approx((one, 2**0.5 * one, one, one), rel=0.05)
    assert noise.forward == pytest.approx((1.5 / positions) ** 0.5, rel=0.05)
    assert noise.backward == pytest.approx((2 / positions) ** 0.5, rel=0.05)


def test_noise_of_few_batches_is_not_too_small(rng):
    found = []
    for _ in range(800):
        parts = of(*rng.normal(size=(3, 2, 16, 4)))
        found.append(statistics.noise(parts, statistics.merge(parts), 0.0).mean ** 2)
    assert np.mean(found) == pytest.approx(1 / 16, rel=0.05)


def test_noise_in_full(draw):
    parts = of(*draw(3, 4, 2))
    large = statistics.merge(parts)
    noise = statistics.noise(parts, large, 0.25)

    def error(name):
        return ((getattr(parts, name) - getattr(large, name)) ** 2).sum(0) / 2

    scale = large.variance[0] + 0.25
    power = large.gradient_square.sum()
    assert noise == pytest.approx(
        (
            np.sqrt(np.mean(error("mean") / scale)),
            np.sqrt(np.mean(error("variance") / scale**2)),
            np.sqrt(error("gradient").sum() / power),
            np.sqrt(error("gradient_product").sum() / power),
        )
    )


def test_a_channel_that_is_always_0_and_a_gradient_of_0_are_not_noisy(draw):
    x, gradient, y = draw(4, 6, 2)
    x[..., 0] = 0
    parts = of(x, 0 * gradient, y)
    noise = statistics.noise(parts, statistics.merge(parts), 1e-3)
    whole = statistics.noise(
        *(lambda p: (p, statistics.merge(p)))(of(x[..., 1:], gradient[..., 1:], y[..., 1:])), 1e-3
    )
    assert noise.mean == pytest.approx(whole.mean / 2**0.5)
    assert (noise.gradient, noise.gradient_product, noise.backward) == (0, 0, 0)


def test_both_directions_add_up_their_parts():
    noise = Noise(0.3, 0.8, 0.5, 1.2)
    assert noise.forward == pytest.approx(0.5)
    assert noise.backward == pytest.approx(1.3)
