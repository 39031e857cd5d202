"""Classification through the seams of tasks and data computes what it did without them."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest

from tests.training import before_tasks
from tests.training.running import on_replicas, weights
from tfnorm import training
from tfnorm.data import load
from tfnorm.training import strategies

REAL_DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tfds"


# All that would follow from the length of the run, which it did not before.
BRN = {"r_max": 3.0, "d_max": 5.0, "momentum": 0.99}


def compare(config, notices):
    """Nine steps, which are two epochs and a part of a third."""
    dataset = load(config.dataset, config.data_dir, config.train_examples)
    images, labels = (dataset.train.column(name) for name in dataset.train.spec)
    keras.config.set_dtype_policy(config.mixed_precision)
    expected = before_tasks.weights_after(
        config, images, labels, dataset.num_classes, strategies.create(config), 9
    )
    keras.config.set_dtype_policy("float32")
    found = training.train(config, notice=notices.append, validate=False)
    assert len(expected) >= 5
    for value, variable in zip(expected, weights(found), strict=True):
        np.testing.assert_array_equal(variable, value)
    return found


@pytest.mark.parametrize(
    ("replicas", "changes"),
    [
        (1, {"norm": "bn", "augment": "pad_crop_flip"}),
        (1, {"norm": "gn", "augment": "none", "mixed_precision": "mixed_float16"}),
        (2, {"norm": "brn", "norm_options": BRN, "sampling": "pairs"}),
    ],
)
def test_weights_are_those_of_before_bit_for_bit(small, notices, replicas, changes):
    config = on_replicas(small(steps=9, train_examples=35, **changes), replicas)
    found = compare(config, notices)
    if changes["norm"] == "bn":  # What is compared depends on the seed at all.
        other = dataclasses.replace(config, seed=config.seed + 1)
        other = training.train(other, notice=notices.append, validate=False)
        assert any(np.any(a != b) for a, b in zip(weights(found), weights(other)))


def test_on_real_images(small, notices):
    if not (REAL_DATA / "fashion_mnist").exists():
        pytest.skip(f"needs fashion_mnist in {REAL_DATA}")
    config = small(
        dataset="fashion_mnist", data_dir=str(REAL_DATA), augment="pad_crop_flip", steps=9,
        train_examples=35, stem_stride=2,
    )  # fmt: skip
    compare(on_replicas(config, 2), notices)
