"""Layers that cannot be copied: the export shares them with the model, which stays as it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfnorm
from tfnorm.errors import UserError


class Block(L.Layer):
    """Its configuration does not make it."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function
        self.dense = L.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.function(self.dense(x))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


@pytest.fixture
def model(randomized):
    inputs = keras.Input((6,))
    x = L.BatchNormalization()(L.Dense(4, name="first")(inputs))
    return randomized(keras.Model(inputs, L.Dense(2)(Block(keras.ops.tanh, name="block")(x))))


def test_rounded_weights_are_the_export_s_alone(model, rng, tmp_path):
    x = rng.normal(size=(3, 6)).astype("float32")
    expected, weights = model.predict(x, verbose=0), model.get_weights()
    result = tfnorm.export_saved_model(model, tmp_path, weights_dtype="bfloat16")
    for ours, theirs in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    served = tf.saved_model.load(str(result.path)).signatures["serving_default"]
    (name,) = served.structured_input_signature[1]
    (answer,) = served(**{name: tf.constant(x)}).values()
    assert 1e-4 < np.abs(answer.numpy() - expected).max() < 0.1


def test_quantized_layers_cannot_be(model, tmp_path):
    with pytest.raises(UserError, match=r"quantize='int8' changes layers.*: block/dense\w*\. Give"):
        tfnorm.export_saved_model(model, tmp_path / "export", quantize="int8")
    assert not hasattr(model.get_layer("block").dense, "kernel_scale")
    assert not (tmp_path / "export").exists()
