"""How many rows for objects examples have: as many as the data set needs, counted once."""

import os
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.data import prepared
from tfnorm import data
from tfnorm.data import stream

COUNTS = {"train": [3, 0, 5], "test": [7, 1], "extra": [9]}


@pytest.fixture
def boxes(tmp_path, rng):
    """Images with so many objects, whose builder is returned."""
    features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
    }
    box = tfds.features.BBox(0.1, 0.2, 0.5, 0.9)
    splits = {
        name: [
            {"image": rng.integers(0, 256, (8, 8, 3), np.uint8), "objects": [{"bbox": box}] * n}
            for n in counts
        ]
        for name, counts in COUNTS.items()
    }
    return prepared.write(tmp_path, "boxed", features, splits)


def load(tmp_path, name="boxed", needed=("image", "boxes"), **options):
    data.load.cache_clear()
    return data.load(name, str(tmp_path), needed=needed, **options)


def test_rows_are_as_many_as_an_image_of_the_splits_needs(boxes, tmp_path, monkeypatch):
    dataset = load(tmp_path)
    assert dataset.train.spec["boxes"].shape == dataset.test.spec["boxes"].shape == (7, 4)
    assert dataset.notices == ("images of data set 'boxed' have up to 7 objects: --max_objects=7",)
    found = dataset.train.fetch(tf.constant([2, 1], tf.int64))["classes"].numpy()
    np.testing.assert_array_equal((found == 0).sum(1), [5, 0])
    # Counted whole, whatever part is used; splits that are not used do not count.
    parts = load(tmp_path, train_split="train[:1]", test_split="train[2:]")
    assert parts.train.spec["boxes"].shape == (5, 4)
    more = load(tmp_path, train_split="train+extra")
    assert more.train.spec["boxes"].shape == (9, 4)
    # Once; unless the files have changed.
    counted = []
    monkeypatch.setattr(
        stream.StreamRecords, "most_objects", lambda self: counted.append(self._name) or 2
    )
    assert load(tmp_path).train.spec["boxes"].shape == (7, 4) and not counted
    (file,) = boxes.data_path.glob("*-train.tfrecord*")
    later = time.time_ns() + 10**10
    os.utime(file, ns=(later, later))
    assert load(tmp_path).train.spec["boxes"].shape == (7, 4)
    assert counted == ["split 'train' of data set 'boxed'"]


def test_a_number_that_is_given_wins(boxes, tmp_path, monkeypatch):
    monkeypatch.setattr(stream.StreamRecords, "most_objects", None)
    dataset = load(tmp_path, max_objects=4)
    assert dataset.train.spec["boxes"].shape == (4, 4) and not dataset.notices
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_objects=4 has rows for"):
        dataset.train.fetch(tf.constant([2], tf.int64))
    told = str(dataset.train.explain())
    assert "more objects than --max_objects=4 has rows for: 5" in told
    assert told.endswith("; give a larger --max_objects, or 0 for as many as an image has at most")


def test_instances_are_numbered_and_some_maps_cannot_be_read(tmp_path, rng):
    features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "instance_map": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16),
    }
    examples = [
        {
            "image": rng.integers(0, 256, (8, 8, 3), np.uint8),
            "instance_map": np.full((8, 8, 1), n, np.uint16),
        }
        for n in (2, 300, 0)
    ]
    built = prepared.write(tmp_path, "maps", features, {"train": examples, "test": examples[:1]})
    needed = ("image", "instances")
    assert load(tmp_path, "maps", needed).train.spec["boxes"].shape == (300, 4)
    (file,) = built.data_path.glob("*-train.tfrecord*")
    prepared.spoil(file, 1)
    assert load(tmp_path, "maps", needed).train.spec["boxes"].shape == (2, 4)
