"""What the tests of runs share."""

import dataclasses

import keras


def two_layers(name, normalizer, input_shape, num_classes, *, width, stem_stride=1):
    """In place of tfnorm.models.build: the smallest network in which a chain is one."""
    images = keras.Input(input_shape, name="image")
    x, state = normalizer(keras.layers.Conv2D(width, 3, 2, use_bias=False), images)
    x = keras.layers.Activation("relu")(x)
    x, _ = normalizer(keras.layers.Conv2D(2 * width, 3, use_bias=False), x, state)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("relu")(x))
    return keras.Model(images, keras.layers.Dense(num_classes, dtype="float32")(x), name=name)


class AfterStep(keras.callbacks.Callback):
    """Does something after a step of an epoch."""

    def __init__(self, epoch, step, do):
        super().__init__()
        self.epoch, self.step, self.do = epoch, step, do

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch + 1) == (self.epoch, self.step):
            self.do()


class StepLosses(keras.callbacks.Callback):
    """The loss of every step of a run from its start: differences of the sums that it shows."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_epoch_begin(self, epoch, logs=None):
        self.sum = 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss"] * (batch + 1)
        self.values.append(total - self.sum)
        self.sum = total


def on_replicas(config, count):
    """The same global batch, on so many replicas."""
    return dataclasses.replace(
        config,
        distribution_strategy="mirrored",
        num_replicas=count,
        replica_batch_size=config.replica_batch_size // count,
    )


def weights(result):
    return [variable.numpy() for variable in result.model.variables]


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]
