"""The helpers of `comparing` with the test's rng."""

import functools

import pytest

from tests import comparing


@pytest.fixture
def randomized(rng):
    return functools.partial(comparing.randomize, rng=rng)


@pytest.fixture
def difference(rng):
    return functools.partial(comparing.difference, rng=rng)
