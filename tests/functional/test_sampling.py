"""Positions spread over a batch: one in each part, over steps all of it, and valid ones alone."""

import numpy as np
import tensorflow as tf

from tfnorm.functional import sampling


def spread(count, samples, steps):
    """[steps, S]."""
    return sampling.spread(tf.range(steps)[:, None], count, samples).numpy()


def test_one_of_each_part_and_over_steps_all_of_it():
    found = spread(1_000, 8, 2_000)
    for part, positions in enumerate(found.T):
        assert set(positions) == set(range(125 * part, 125 * (part + 1)))
        counts = np.bincount(positions - 125 * part)
        assert counts.min() >= 13 and counts.max() <= 18  # of 2,000/125
    # The steps of a window are far apart: an eighth of the part would be 15.
    for start in (0, 500, 1_999 - 8):
        window = np.sort(found[start : start + 8], 0)
        assert np.diff(window, axis=0).min() >= 10
    shares = (found[0] % 125) / 125  # Nor are those of one step at one place of all parts.
    assert np.diff(np.sort(shares)).min() > 0.03


def test_as_many_samples_as_positions_are_all_of_them():
    assert (spread(7, 7, 5) == np.arange(7)).all()
    assert (spread(7, 14, 5) == np.repeat(np.arange(7), 2)).all()
    assert (spread(1, 3, 5) == 0).all()


def test_large_counts_and_steps():
    found = sampling.spread(tf.constant(2**31 - 1), tf.constant(2**31 - 1), 1_000).numpy()
    assert (np.diff(found.astype(np.int64)) > 0).all() and found[0] >= 0


def test_numbers_among_the_valid_are_those_of_positions(rng):
    mask = rng.random((3, 20, 1)) < 0.4
    mask[2] = False
    ranks = np.stack([np.arange(5)] * 3).astype(np.int32)
    found = sampling.where_valid(tf.constant(ranks), tf.constant(mask)).numpy()
    for group in (0, 1):
        np.testing.assert_array_equal(found[group], np.flatnonzero(mask[group])[:5])
    assert (found[2] == 19).all()  # There is none; it is in bounds.
