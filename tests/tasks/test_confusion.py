"""Confusion matrices against loops over pixels."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tfnorm.tasks import Segmentation
from tfnorm.tasks.confusion import confusion_matrix, intersection_over_union


def test_confusion_matrix_counts_pixels_that_have_a_class():
    rng = np.random.default_rng(3)
    truth = rng.integers(-1, 4, (3, 5, 6)).astype(np.int32)  # -1 is ignored
    found = rng.integers(0, 4, (3, 5, 6)).astype(np.int32)
    weight = np.array([1, 0, 1], np.float32)
    expected = np.zeros((4, 4))
    for image, row, column in np.ndindex(truth.shape):
        if truth[image, row, column] >= 0:
            expected[truth[image, row, column], found[image, row, column]] += weight[image]
    counted = confusion_matrix(*map(tf.constant, (truth, found, weight)), 4)
    np.testing.assert_array_equal(counted.numpy(), expected)


def test_intersection_over_union_of_sets_of_pixels():
    rng = np.random.default_rng(4)
    truth, found = rng.integers(0, 3, (2, 200))
    matrix = np.zeros((4, 4))
    np.add.at(matrix, (truth, found), 1)
    for kind, ratio in enumerate(intersection_over_union(matrix)[:3]):
        of_truth, of_found = set(np.flatnonzero(truth == kind)), set(np.flatnonzero(found == kind))
        assert ratio == pytest.approx(len(of_truth & of_found) / len(of_truth | of_found))
    assert np.isnan(intersection_over_union(matrix)[3])  # neither there nor found


def test_more_pixels_than_float32_counts_one_by_one():
    size = 3, 4096, 2048  # together more than 2^24
    truth, found = tf.zeros(size, tf.int32), tf.ones(size, tf.int32)
    counted = confusion_matrix(truth, found, tf.ones([3]), 2)
    np.testing.assert_array_equal(counted.numpy(), [[0, 3 * 4096 * 2048], [0, 0]])


def test_a_class_without_a_pixel_has_no_accuracy():
    task = Segmentation.__new__(Segmentation)
    task._classes = 3
    task.dataset = types.SimpleNamespace(mask_classes=types.SimpleNamespace(names=["a", "b", "c"]))
    found = task.by_class(np.array([[6.0, 2, 0], [0, 0, 0], [1, 0, 0]]).reshape(-1))
    assert found["a"]["accuracy"] == 0.75 and found["c"]["accuracy"] == 0
    assert np.isnan(found["b"]["accuracy"]) and found["b"]["iou"] == 0
