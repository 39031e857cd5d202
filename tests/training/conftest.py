"""Small runs: 48 digits to train, a network of one convolution, all files under tmp_path."""

import dataclasses

import keras
import pytest

from tfnorm import models, training


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def small_network(name, normalizer, input_shape, num_classes, *, width, stem_stride=1):
    images = keras.Input(input_shape, name="image")
    convolution = keras.layers.Conv2D(width, 3, stem_stride, use_bias=False)
    x, _ = normalizer(convolution, images)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("relu")(x))
    return keras.Model(images, keras.layers.Dense(num_classes, dtype="float32")(x), name=name)


@pytest.fixture
def small(data_dir, monkeypatch):
    """Makes the configuration of a small run: 6 steps of 8 images an epoch."""
    monkeypatch.setattr(models, "build", small_network)
    base = training.Config(
        width=4,
        data_dir=data_dir,
        train_examples=50,
        replica_batch_size=8,
        epochs=2,
        learning_rate=0.5,
        augment="pad_crop",
        steps_per_loop=4,
    )
    return lambda **changes: dataclasses.replace(base, **changes)


@pytest.fixture
def notices():
    """Collects what a run says."""
    return []
