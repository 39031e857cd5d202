"""Which images come together."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import data
from tfnorm.data import sampling
from tfnorm.data.memory import MemoryRecords
from tfnorm.errors import UserError


@pytest.fixture
def labels(rng):
    """Classes of 103 images, no two classes of one size, none of a multiple of four."""
    return rng.permutation(np.repeat(np.arange(5), [9, 14, 21, 26, 33]))


def order(name, rng, labels, sharing):
    spec = {"label": tf.TensorSpec([], tf.int32)}
    return sampling.order(name, rng, MemoryRecords(lambda: {"label": labels}, spec, 103), sharing)


@pytest.mark.parametrize("name", data.SAMPLINGS)
def test_every_image_comes_once(rng, labels, name):
    assert sorted(order(name, rng, labels, 4)) == list(range(103))


def test_shuffled_is_the_permutation_that_it_always_was(labels):
    found = order("shuffled", np.random.default_rng(5), labels, 4)
    np.testing.assert_array_equal(found, np.random.default_rng(5).permutation(103))


@pytest.mark.parametrize(
    "name, images, size, left", [("pairs", 8, 2, 3), ("sorted", 4, 4, 7), ("sorted", 6, 6, 13)]
)
def test_runs_are_of_one_class(rng, labels, name, images, size, left):
    """What is left of the five classes, 3 = 1 + 0 + 1 + 0 + 1 of pairs, comes last."""
    found = labels[order(name, rng, labels, images)]
    runs = found[: 103 - left].reshape(-1, size)
    assert np.all(runs == runs[:, :1])
    assert len({*runs[:5, 0]}) > 1  # not class after class
    rest = found[103 - left :]
    assert all(np.sum(rest == label) < size for label in range(5))


def test_runs_are_other_images_in_every_epoch(labels):
    one, other = (
        order("pairs", np.random.default_rng(seed), labels, 8)[:100].reshape(-1, 2)
        for seed in (1, 2)
    )
    assert len({frozenset(p) for p in one} & {frozenset(p) for p in other}) < 10


def test_unknown_samplings_are_user_errors(rng, labels):
    with pytest.raises(UserError) as error:
        order("random", rng, labels, 4)
    assert str(error.value) == "unknown sampling 'random'; known: shuffled, pairs, sorted"


def test_examples_without_classes_are_only_shuffled(rng):
    spec = {"image": tf.TensorSpec([2, 2, 1], tf.uint8), "mask": tf.TensorSpec([2, 2, 1], tf.int32)}
    records = MemoryRecords(dict, spec, 7)
    assert sorted(sampling.order("shuffled", rng, records, 2)) == list(range(7))
    with pytest.raises(UserError) as error:
        sampling.order("pairs", rng, records, 2)
    assert str(error.value) == (
        "sampling=pairs puts images of one class together, and these have no label but image, "
        "mask; choose --sampling=shuffled"
    )
