"""What benchmarks.window_variance measures: a layer that watches its own variance."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import window_variance
from benchmarks.window_variance import RecomputedCrossIteration, WatchedCrossIteration
from tests.training.running import two_layers
from tfnorm import models, training
from tfnorm.errors import Diverged


def layer(rng, layer_class=WatchedCrossIteration, **options):
    watched = layer_class(
        keras.layers.Dense(4, use_bias=False), momentum=0.0, virtual_replicas=2, **options
    )
    x = tf.constant(rng.normal(1, 2, (12, 5)), tf.float32)
    watched(x, training=True)
    return watched, x


def test_a_window_of_one_step_normalizes_by_what_is_there(rng):
    """But for the distance of the means of the groups, which is part of what all images have."""
    watched, x = layer(rng, window=1)
    z = watched.layer(x).numpy().reshape(2, 6, 4)
    seen = watched.own_square.numpy() - watched.own_mean.numpy() ** 2
    np.testing.assert_allclose(seen, z.reshape(-1, 4).var(0), rtol=1e-4)
    expected = np.log(z.var(1).mean(0) + 1e-3) - np.log(z.reshape(-1, 4).var(0) + 1e-3)
    np.testing.assert_allclose(watched.log_ratio(), expected, atol=1e-4)


def test_a_kernel_that_turns_leaves_too_small_a_variance(rng):
    """By ⟨S (θ − θ_τ), θ − θ_τ⟩, the mean square of the outputs of the change of the kernel."""
    watched, x = layer(rng, window=2)
    old = watched.layer.kernel.numpy()
    watched.layer.kernel.assign(old + rng.normal(0, 0.3, old.shape))
    watched(x, training=True)
    new = watched.layer.kernel.numpy()
    groups = x.numpy().reshape(2, 6, 5)
    full = np.var(groups @ new, axis=1)
    left_out = np.mean(np.square(groups @ (new - old)), axis=1)
    expected = ((full + np.maximum(full - left_out, 0)) / 2).mean(0)
    np.testing.assert_allclose(watched.moving_variance, expected, rtol=1e-3)


@pytest.mark.parametrize("burn_in", [0, 1])
def test_recomputed_moments_are_those_of_the_past_inputs_under_the_present_kernel(rng, burn_in):
    """Over three steps of a window of three; a step of the burn-in is in no window."""
    watched, x = layer(
        rng, RecomputedCrossIteration, window=3, burn_in_steps=burn_in, compensate=False
    )
    inputs = [x.numpy()]
    for _ in range(3):
        old = watched.layer.kernel.numpy()
        watched.layer.kernel.assign(old + rng.normal(0, 0.3, old.shape))
        inputs.append(rng.normal(-1, 3, (12, 5)))
        watched(tf.constant(inputs[-1], tf.float32), training=True)
        seen = np.stack(inputs[burn_in:][-3:]).reshape(-1, 2, 6, 5) @ watched.layer.kernel.numpy()
        mean = seen.mean((0, 2))
        square = np.square(seen).mean((0, 2))
        np.testing.assert_allclose(watched.moving_mean, mean.mean(0), rtol=1e-4)
        np.testing.assert_allclose(watched.moving_variance, (square - mean**2).mean(0), rtol=1e-3)


def test_a_run_is_measured(monkeypatch, capsys, tmp_path):
    small = {"dataset": "sklearn_digits", "model": "resnet8", "width": 4, "train_examples": 128}
    monkeypatch.setitem(window_variance._TASKS, "classification", small)
    monkeypatch.setattr(window_variance, "_EPOCH", 4)
    monkeypatch.setattr(models, "build", two_layers)
    path = tmp_path / "found.jsonl"
    flags = ["--task=classification", "--steps=16", "--learning_rates=0.05", "--windows=2"]
    assert window_variance.main(["window_variance", *flags, f"--output={path}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 9 and "window 2, naive" in said[2]
    assert "window 2, exact, gradient of the window" in said[5]
    assert "window 2, of one step, gradient of the window" in said[7]
    losses = [tuple(json.loads(line)["losses"]) for line in path.read_text().splitlines()]
    assert "window 2, mabn" in said[8]
    assert len(set(losses)) == 8 and set(map(len, losses)) == {4}


def test_a_run_that_fails_is_infinite(monkeypatch):
    setting = window_variance.config("classification", 40, 0.1, window=2)
    monkeypatch.setattr(training, "train", lambda *args, **kwargs: _fail())
    assert window_variance.measure(setting)["last"] == float("inf")
    assert dataclasses.asdict(setting)["virtual_replicas"] == 32


def _fail():
    raise Diverged("the loss of step 3 is nan")
