"""The layers that benchmarks.window_gradient compares: equal statistics, other gradients."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import window_gradient
from tests.training.running import two_layers
from tfnorm import functional, models, training


@pytest.fixture
def run(rng):
    x = tf.constant(rng.normal(1, 2, (16, 3, 3, 5)), tf.float32)
    dy = tf.constant(rng.normal(size=x.shape), tf.float32)

    def run(**options):
        layer = window_gradient.WindowOfImages(virtual_replicas=16, momentum=0.0, **options)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y.numpy(), tape.gradient(y, x, dy).numpy(), layer

    return x, dy, run


def test_windows_have_the_same_statistics_and_only_one_has_the_whole_gradient(run):
    x, dy, layer = run
    share, share_dx, _ = layer(burn_in_steps=0, whole_gradient=False)
    whole, whole_dx, _ = layer(burn_in_steps=0, whole_gradient=True)
    # Each image has the statistics of itself and seven others; the mean over all windows is one.
    assert np.abs(share - whole).max() > 0.01
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, _ = functional.batch_normalization(x, None, None, groups=2)
    np.testing.assert_allclose(whole, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole_dx, tape.gradient(y, x, dy), rtol=1e-4, atol=1e-5)
    assert np.abs(share_dx - whole_dx).max() > 0.01
    values = x.numpy().astype(np.float64)
    around = np.concatenate([values, values])  # image 0's window: images 0 and 9 to 15
    mean, variance = around[9:17].mean((0, 1, 2)), around[9:17].var((0, 1, 2))
    expected = (values[0] - mean) / np.sqrt(variance + 1e-3)
    np.testing.assert_allclose(share[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole_gradient", [False, True])
def test_the_burn_in_is_bn_of_single_images(run, whole_gradient):
    x, _, layer = run
    y, _, made = layer(burn_in_steps=1, whole_gradient=whole_gradient)
    expected, _ = functional.batch_normalization(x, None, None, groups=16)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    mean = x.numpy().mean((0, 1, 2))
    np.testing.assert_allclose(made.moving_mean, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bn", "cbn", "share", "whole"])
def test_a_few_steps_of_each_setting(name, monkeypatch):
    monkeypatch.setattr(models, "build", two_layers)
    config = window_gradient.config(
        name, 3, 4, images=8, dataset="sklearn_digits", model="resnet8", width=4, stem_stride=1,
        train_examples=0,
    )  # fmt: skip
    assert 0 <= training.train(config).test_accuracy <= 1
