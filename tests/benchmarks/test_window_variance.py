"""What benchmarks.window_variance measures: a layer that watches its own variance."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from benchmarks import window_variance
from benchmarks.window_variance import WatchedCrossIteration
from tfnorm import training
from tfnorm.errors import RunError


def layer(rng, **options):
    watched = WatchedCrossIteration(
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


def test_a_run_is_measured(monkeypatch, capsys, tmp_path):
    small = {"dataset": "sklearn_digits", "model": "resnet8", "width": 4, "train_examples": 320}
    monkeypatch.setitem(window_variance._TASKS, "classification", small)
    monkeypatch.setattr(window_variance, "_EPOCH", 10)
    path = tmp_path / "found.jsonl"
    flags = ["--task=classification", "--steps=40", "--learning_rates=0.05", "--windows=2"]
    assert window_variance.main(["window_variance", *flags, f"--output={path}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and "window 2, naive" in said[2]
    assert len(path.read_text().splitlines()) == 3


def test_a_run_that_fails_is_infinite(monkeypatch):
    setting = window_variance.config("classification", 40, 0.1, window=2)
    monkeypatch.setattr(training, "train", lambda *args, **kwargs: _fail())
    assert window_variance.measure(setting)["last"] == float("inf")
    assert dataclasses.asdict(setting)["virtual_replicas"] == 32


def _fail():
    raise RunError("the loss of step 3 is nan")
