"""Ranks, axes, masks and batches that do not fit, for every normalizer of the registry."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import networks
from tests.layers import running
from tfnorm.layers import norms
from tfnorm.layers.base import ChannelNormalization

DIRECT = tuple(
    name
    for name in networks.NORMALIZERS
    if "layer" not in norms.get(name).layer_class.__init__.__annotations__
)


def call(layer, x, **kwargs):
    """y of a layer that may also return a state."""
    y = layer(x, **kwargs)
    return y[0] if isinstance(y, tuple) else y


def dense_network(name, shape, **options):
    """A dense layer, so that every rank is possible, and its normalizer."""
    inputs = keras.Input(batch_shape=shape)
    dense = keras.layers.Dense(3, use_bias=False, kernel_initializer="orthogonal")
    y, _ = norms.get(name, **options)(dense, inputs, None)
    return keras.Model(inputs, y)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("name", norms.NAMES)
def test_every_rank_is_the_same_mathematics(name, rank):
    """Positions are positions: one batch in all ranks gives one result where it must."""
    rng = np.random.default_rng(3)
    x = rng.normal(1, 2, (8, 4)).astype(np.float32)
    shape = {2: (8, 4), 3: (4, 2, 4), 4: (2, 2, 2, 4), 5: (2, 2, 1, 2, 4)}[rank]
    keras.utils.set_random_seed(1)
    flat = dense_network(name, x.shape)
    shaped = dense_network(name, shape)
    shaped.set_weights(flat.get_weights())
    y = shaped(x.reshape(shape), training=True)
    assert y.shape == (*shape[:-1], 3)
    if name in networks.NORMALIZERS and name not in networks.OF_EXAMPLES:
        running.assert_close(y.numpy().reshape(8, 3), flat(x, training=True), 1e-5)
        for a, b in zip(shaped.get_weights(), flat.get_weights()):
            running.assert_close(a, b, 1e-5)


@pytest.mark.parametrize("axis", [1, 2, -1, -2, -3])
@pytest.mark.parametrize("name", DIRECT)
def test_every_axis_is_a_transposition(name, axis):
    rng = np.random.default_rng(4)
    x = rng.normal(1, 2, (4, 3, 2, 5))
    layer_class, options = norms.get(name).layer_class, norms.get(name).defaults
    results = []
    for which in (axis, -1):
        layer = layer_class(axis=which, virtual_replicas=2, dtype="float64", **options)
        moved = np.moveaxis(x, axis, -1) if which == -1 else x
        layer.build(moved.shape)
        running.randomize(layer, np.random.default_rng(5))
        y = call(layer, tf.constant(moved), training=True)
        results.append(np.moveaxis(y, axis, -1) if which != -1 else y)
    running.assert_close(*map(np.asarray, results), 1e-12)


@pytest.mark.parametrize("shape", [(4, 5, 3), (4,), (4, 1), (5, 4)])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_a_mask_of_another_shape(name, shape):
    layer = networks.normalizing_layers(dense_network(name, (4, 5, 2)))[0]
    x = tf.random.normal(layer.input.shape if not isinstance(layer.input, list) else (4, 5, 3))
    with pytest.raises(ValueError) as error:
        layer(x, training=True, mask=tf.ones(shape, tf.bool))
    assert (
        "the mask must have one dimension less than the inputs: their shape without the channel "
        f"axis. Received: mask.shape={shape}, inputs.shape=(4, 5, 3)." in str(error.value)
    )


@pytest.mark.parametrize("name", sorted(set(networks.NORMALIZERS) - {"syncbn"}))
def test_a_batch_that_virtual_replicas_do_not_divide(name):
    model = dense_network(name, (None, 2), virtual_replicas=3)
    message = (
        "the batch must be divisible by the number of virtual replicas. Received a batch of 4 and "
        "virtual_replicas=3. Choose a batch that is a multiple of it."
    )
    with pytest.raises(ValueError) as error:
        model(tf.random.normal([4, 2]), training=True)
    assert message in str(error.value)

    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def run(x):
        return model(x, training=True)

    run(tf.random.normal([6, 2]))
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        run(tf.random.normal([4, 2]))
    words = [word.strip("[]") for word in str(error.value).replace("\n", " ").split()]
    assert message in " ".join(words)
    # Inference takes every batch.
    model(tf.random.normal([4, 2]), training=False)


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_no_virtual_replicas(name):
    with pytest.raises(ValueError) as error:
        dense_network(name, (4, 2), virtual_replicas=0)
    assert str(error.value) == (
        "virtual_replicas must be at least 1. Received: 0. Give the number of parts that a "
        "training batch is split into."
    )


@pytest.mark.parametrize("name", DIRECT)
def test_an_axis_that_is_not_there(name):
    with pytest.raises(ValueError) as error:
        norms.get(name).layer_class(axis=3).build((4, 5))
    assert str(error.value) == (
        "axis=3 is not an axis of an input of shape (4, 5). Choose the axis of the channels, from "
        "-2 to 1."
    )


@pytest.mark.parametrize("name", DIRECT)
def test_channels_of_unknown_number(name):
    with pytest.raises(ValueError) as error:
        norms.get(name).layer_class(axis=1).build((4, None, 5))
    assert str(error.value) == (
        "the channel axis 1 of the input must have a known size. Received an input of shape "
        "(4, None, 5). Give its size in keras.Input."
    )


def test_all_layers_but_those_that_wrap_are_direct():
    assert set(networks.NORMALIZERS) - set(DIRECT) == {"cbn"}
    assert all(issubclass(norms.get(name).layer_class, ChannelNormalization) for name in DIRECT)
