"""Keras' fit on replicas of one machine: python examples/mirrored_fit.py [norm] [replicas]."""

import sys

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

from tfnorm.layers import norms
from tfnorm.training import SynchronizeStatistics
from tfnorm.training.strategies import prepare_cpu_devices


def build_model(norm: str) -> keras.Model:
    """A small convolutional network; of all norms, `bkn` alone hands a state on."""
    normalizer = norms.get(norm)
    images = keras.Input((8, 8, 1), name="image")
    x, state = normalizer(keras.layers.Conv2D(16, 3, use_bias=False), images)
    x = keras.layers.ReLU()(x)
    x, _ = normalizer(keras.layers.Conv2D(32, 3, use_bias=False), x, state)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(images, keras.layers.Dense(10, name="logits")(x))


def main(norm: str = "brn", replicas: int = 2, epochs: int = 5) -> float:
    """Trains with 4 images a replica and step; returns the test accuracy."""
    gpus = [f"GPU:{i}" for i, _ in enumerate(tf.config.list_physical_devices("GPU")[:replicas])]
    if not gpus:
        prepare_cpu_devices(replicas)  # Before anything else that TensorFlow does.
    strategy = tf.distribute.MirroredStrategy(gpus or [f"CPU:{i}" for i in range(replicas)])
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    train, test = slice(0, 1408), slice(1408, None)

    with strategy.scope():
        model = build_model(norm)
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,  # XLA cannot reach the variables of several devices.
        )
    model.fit(
        images[train],
        labels[train],
        batch_size=4 * strategy.num_replicas_in_sync,
        epochs=epochs,
        validation_data=(images[test], labels[test]),
        # Every replica keeps its own statistics; whoever evaluates or saves wants their mean.
        callbacks=[SynchronizeStatistics()],
        verbose=2,
    )
    _, accuracy = model.evaluate(images[test], labels[test], verbose=0)
    print(f"{norm} on {strategy.num_replicas_in_sync} replicas: test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
