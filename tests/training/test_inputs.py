"""Distributed iterators: the batches, and no autotuner for which their destructors would wait."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm.training.inputs import iterate


@pytest.mark.parametrize("replicas", [1, 4])
def test_every_replica_has_its_batches_and_none_an_autotuner(mirrored, replicas):
    strategy = mirrored(replicas)
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = tf.data.Dataset.range(8 * replicas).batch(2).with_options(options)
    iterator = iterate(strategy.distribute_datasets_from_function(lambda context: batches))
    for own in iterator._iterators[0]._iterator._device_iterators:
        assert own._dataset.options().autotune.enabled is False
    seen = [strategy.experimental_local_results(batch) for batch in iterator]
    np.testing.assert_array_equal(np.concatenate(seen, None), np.arange(8 * replicas))


def test_other_iterators_stay_as_they_are(mirrored):
    distributed = mirrored(2).distribute_datasets_from_function(
        lambda context: tf.data.Dataset.range(4)
    )
    iterate(distributed)
    for own in iter(distributed)._iterators[0]._iterator._device_iterators:
        assert own._dataset.options().autotune.enabled is None


def test_what_is_not_distributed():
    assert list(iterate([3, 1])) == [3, 1]
