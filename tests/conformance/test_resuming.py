"""A checkpoint at any step goes on bit for bit: within warm-up, burn-in, with half-full buffers."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import networks
from tfnorm import schedules

STEPS = 6
# Thresholds at different steps, so that every step but the first has some behind and some before.
OPTIONS = {
    "brn": {
        "r_max": schedules.LinearRamp(1.0, 3.0, 1, 5),
        "d_max": schedules.LinearRamp(0.0, 2.0, 2, 4),
    },
    "mabn": {"window": 3, "warmup_steps": 5, "correction_start_step": 4},
    "cbn": {"window": 4, "burn_in_steps": 2},
}


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_every_step_can_be_resumed(name, tmp_path):
    def build():
        return networks.network(name, virtual_replicas=2, **OPTIONS.get(name, {}))

    model = build()
    train, paths = networks.Trainer(model), []
    uninterrupted = []
    for step in range(STEPS):
        paths.append(tf.train.Checkpoint(model=model).write(tmp_path / str(step)))
        uninterrupted.append((*train(*networks.batch(step)), networks.values(model)))
    restored = build()
    train = networks.Trainer(restored)
    for step, path in enumerate(paths):
        tf.train.Checkpoint(model=restored).read(path).assert_consumed()
        for step_after in range(step, min(step + 2, STEPS)):
            y, dx, state = uninterrupted[step_after]
            actual = train(*networks.batch(step_after))
            np.testing.assert_array_equal(actual[0], y)
            np.testing.assert_array_equal(actual[1], dx)
            networks.assert_identical(networks.values(restored), state)


def test_the_steps_cross_every_threshold():
    """Were training the same on both sides of a threshold, the test above would say little."""
    results = {}
    for name, options in OPTIONS.items():
        for given in (options, {}):
            train = networks.Trainer(networks.network(name, virtual_replicas=2, **given))
            for step in range(STEPS):
                y, _ = train(*networks.batch(step))
            results[name, bool(given)] = y
        assert np.max(np.abs(results[name, True] - results[name, False])) > 1e-3, name
