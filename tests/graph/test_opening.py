"""Layers of layers whose code for shapes, sizes or configurations is not what Keras expects."""

import keras
import numpy as np
import pytest

import tfnorm
from tfnorm.errors import UserError
from tfnorm.graph import build, inline, read

L = keras.layers


class OwnShapes(L.Layer):
    """Its shapes come from code of its own, which does not take `training`."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.dense = L.Dense(width, name="dense")
        self.norm = L.BatchNormalization(name="norm")
        # Keras keeps no arguments of a layer that is given a policy: nothing to copy it by.
        self.passed_on = L.Identity(dtype=keras.DTypePolicy("float32"), name="passed_on")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], self.width))

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], self.width), x.dtype)

    def call(self, x, training=None):
        return self.passed_on(self.norm(self.dense(x), training=training))

    def get_config(self):
        return super().get_config() | {"width": self.width}


class Sizes(L.Layer):
    """Asks for the size of the batch, which is not known yet."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = OwnShapes(6, name="inner")

    def build(self, shape):
        self.inner.build((shape[0], shape[1] * shape[2], shape[3]))

    def call(self, x, training=None):
        batch, height, width, channels = keras.ops.shape(x)
        rows = keras.ops.reshape(x, (batch, height * width, channels))
        return self.inner(rows, training=training)


class Tiled(L.Layer):
    """Needs the size of the batch as a number."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization(name="norm")

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, training=None):
        row = keras.ops.mean(self.norm(x, training=training), 0, keepdims=True)
        return keras.ops.broadcast_to(row, keras.ops.shape(x))


def model_of(*layers, shape=(4, 3, 5)):
    x = y = keras.Input(shape)
    for layer in layers:
        y = layer(y)
    rng = np.random.default_rng(3)
    model = keras.Model(x, y)
    for variable in model.weights:
        variable.assign(rng.uniform(0.3, 1.7, variable.shape))
    return model, rng.normal(size=(2, *shape)).astype("float32")


def test_a_layer_with_shapes_of_its_own_is_opened_through_a_size_that_is_left_open():
    model, x = model_of(Sizes())
    folded, report = tfnorm.fold(model)
    assert [row.folded for row in report.rows] == [True]
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-5, atol=1e-5)
    converted = tfnorm.convert(model, "cbn")
    assert [row.placed for row in converted.conversion_report.rows] == [True]
    np.testing.assert_allclose(converted(x[:1]), model(x[:1]), rtol=1e-5, atol=1e-5)
    # What was changed to read the code is as it was.
    assert "compute_output_spec" not in vars(model.layers[1].inner)


def test_a_layer_that_needs_an_open_size_as_a_number_stays_whole():
    model, _ = model_of(Tiled())
    assert len(inline(read(model)).calls) == 1


class NoConfig(L.Layer):
    def __init__(self, function):
        super().__init__(name="same")
        self.function = function

    def call(self, x):
        return self.function(x)


class Block(L.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization(name="norm")
        self.activation = NoConfig(function)

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.activation(self.norm(x, training=training))


def test_layers_of_one_name_that_cannot_be_copied_are_named():
    model, _ = model_of(Block(keras.ops.relu, name="a"), Block(keras.ops.tanh, name="b"))
    with pytest.raises(UserError, match=r"a/same.*b/same.*get_config"):
        build(inline(read(model)))
