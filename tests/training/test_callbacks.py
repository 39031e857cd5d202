import io

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm import layers, training


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream):
    progress = training.ProgressLines(stream)
    progress.set_params({"epochs": 12, "steps": 6})
    progress.on_epoch_begin(8)
    progress.on_train_batch_end(0, {"loss": 2.5, "accuracy": 0.125})
    progress.on_train_batch_end(1, {"loss": 2.25, "accuracy": 0.25})
    progress.on_epoch_end(8, {"loss": 1.5, "accuracy": 0.5, "val_accuracy": 0.75, "seconds": 2.31})
    return stream.getvalue()


def test_one_line_an_epoch_in_a_file():
    assert show(io.StringIO()) == (
        "epoch  9/12  loss 1.5000  accuracy 0.5000  val_accuracy 0.7500  2.3 s\n"
    )


def test_the_line_is_rewritten_on_a_terminal():
    # Two steps within a tenth of a second: the second is not shown.
    assert show(Terminal()) == (
        "\r\x1b[Kepoch  9/12  step 1/6  loss 2.5000  accuracy 0.1250"
        "\r\x1b[Kepoch  9/12  loss 1.5000  accuracy 0.5000  val_accuracy 0.7500  2.3 s\n"
    )


@pytest.fixture
def drifted(mirrored, rng):
    """A compiled model on two replicas of which each has seen other images."""
    strategy = mirrored(2)
    x = rng.normal(size=(8, 3)) * np.repeat([[1], [5]], 4, axis=0)
    y = rng.integers(0, 2, 8)
    with strategy.scope():
        model = keras.Sequential([layers.BatchNormalization(momentum=0.5), keras.layers.Dense(2)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    return strategy, model, dataset


def local_means(strategy, model):
    values = strategy.experimental_local_results(model.layers[0].moving_mean.value)
    return [value.numpy() for value in values]


class Spy(keras.callbacks.Callback):
    """Notes the replicas' statistics at the moments at which they are used."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.spread = strategy, {}

    def note(self, moment):
        self.spread[moment] = np.ptp(local_means(self.strategy, self.model), axis=0).max()

    def on_test_begin(self, logs=None):
        self.note("test")

    def on_epoch_end(self, epoch, logs=None):
        self.note("epoch")

    def on_train_end(self, logs=None):
        self.note("train")

    def on_predict_begin(self, logs=None):
        self.note("predict")


def test_fit_synchronizes_statistics_before_they_are_used(drifted):
    strategy, model, dataset = drifted
    spy = Spy(strategy)
    callbacks = [training.SynchronizeStatistics(), spy]
    model.fit(dataset, validation_data=dataset, callbacks=callbacks, verbose=0)
    model.predict(dataset, callbacks=callbacks, verbose=0)
    assert spy.spread == {"test": 0.0, "epoch": 0.0, "train": 0.0, "predict": 0.0}


def test_without_the_callback_replicas_drift_apart(drifted):
    strategy, model, dataset = drifted
    spy = Spy(strategy)
    model.fit(dataset, validation_data=dataset, callbacks=[spy], verbose=0)
    assert min(spy.spread.values()) > 1e-2


@pytest.mark.parametrize("moment", ["on_predict_begin", "on_test_begin", "on_train_end"])
def test_each_moment_synchronizes_by_itself(drifted, moment):
    strategy, model, dataset = drifted
    model.fit(dataset, verbose=0)
    before = np.mean(local_means(strategy, model), axis=0)
    callback = training.SynchronizeStatistics()
    callback.set_model(model)
    getattr(callback, moment)()
    np.testing.assert_allclose(local_means(strategy, model), [before] * 2, rtol=1e-6)
