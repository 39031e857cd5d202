"""Train on the statistics of four images, fold, export, predict: python examples/quickstart.py."""

import sys

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import tfnorm
from tfnorm.layers import BatchRenormalization
from tfnorm.schedules import LinearRamp


def build_model(steps: int) -> keras.Model:
    """A small convolutional network that normalizes eight virtual replicas of four images."""

    def convolve(x: keras.KerasTensor, filters: int, stride: int) -> keras.KerasTensor:
        x = keras.layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
        x = BatchRenormalization(
            momentum=0.95,
            r_max=LinearRamp(1, 3, steps // 25, steps * 31 // 100),
            d_max=LinearRamp(0, 5, steps // 25, steps * 19 // 100),
            virtual_replicas=8,
        )(x)
        return keras.layers.ReLU()(x)

    images = keras.Input((8, 8, 1), name="image")
    x = convolve(convolve(images, 16, 1), 32, 2)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(10, name="logits")(x))


def main(directory: str = "runs/quickstart", epochs: int = 10) -> float:
    """Trains, exports to `directory`, and returns the test accuracy."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    train, test = slice(0, 1408), slice(1408, None)

    model = build_model(steps=44 * epochs)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"])
    model.fit(images[train], labels[train], batch_size=32, epochs=epochs, verbose=2)
    _, accuracy = model.evaluate(images[test], labels[test], verbose=0)

    _, report = tfnorm.fold(model)
    print(report)
    result = tfnorm.export_saved_model(model, directory)

    served = tf.saved_model.load(result.path).signatures["serving_default"]
    logits = served(image=tf.constant(images[test][:5]))["logits"]
    print(f"test accuracy {accuracy:.3f}; {result.path} says", np.argmax(logits, 1), end=" ")
    print("of", labels[test][:5])
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:2])
