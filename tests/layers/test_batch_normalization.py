"""BatchNormalization as a drop-in for Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.layers import running
from tfnorm.layers import BatchNormalization

TOLERANCE = {"float32": 2e-5, "mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}


def step(layer, x, dy):
    @tf.function
    def run(x, dy):
        weights = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return [y, *tape.gradient(y, [x, *weights], output_gradients=tf.cast(dy, y.dtype))]

    return run(x, dy)


@pytest.mark.parametrize(
    "shape, axis, policy, center, scale",
    [
        ((8, 5), -1, "float32", True, True),
        ((4, 6, 5), 1, "float32", True, False),
        ((4, 6, 5), -1, "mixed_float16", True, True),
        ((2, 3, 4, 5), -1, "mixed_bfloat16", True, True),
        ((2, 3, 4, 5), 1, "float32", False, True),
        ((2, 3, 4, 5), -1, "float32", True, True),
        ((2, 3, 4, 5), 1, "mixed_float16", False, False),
        ((2, 3, 2, 4, 5), -1, "float32", False, False),
        ((2, 3, 2, 4, 5), 1, "mixed_bfloat16", True, True),
    ],
)
def test_it_is_kerass_layer(rng, shape, axis, policy, center, scale):
    options = {"axis": axis, "momentum": 0.8, "epsilon": 1e-3, "center": center, "scale": scale}
    theirs = keras.layers.BatchNormalization(**options, dtype=policy)
    theirs.build(shape)
    running.randomize(theirs, rng)
    ours = BatchNormalization.from_config(theirs.get_config())
    ours.build(shape)
    assert [(v.name, v.shape, v.trainable) for v in ours.weights] == [
        (v.name, v.shape, v.trainable) for v in theirs.weights
    ]
    ours.set_weights(theirs.get_weights())
    tolerance = TOLERANCE[policy]
    for _ in range(2):
        x = tf.constant(rng.normal(1, 2, shape), ours.compute_dtype)
        dy = tf.constant(rng.normal(size=shape), "float32")
        for a, b in zip(step(ours, x, dy), step(theirs, x, dy)):
            assert a.dtype == b.dtype
            running.assert_close(tf.cast(a, "float64"), tf.cast(b, "float64"), tolerance)
        for a, b in zip(ours.weights, theirs.weights):
            assert a.dtype == b.dtype == "float32"
            running.assert_close(a.numpy(), b.numpy(), tolerance, a.name)
    inferred = [tf.cast(layer(x, training=False), "float64") for layer in (ours, theirs)]
    running.assert_close(*inferred, tolerance)


def test_arguments_of_kerass_layer_in_their_order():
    arguments = [
        1,
        0.9,
        1e-4,
        True,
        True,
        keras.initializers.Constant(2.0),
        keras.initializers.Constant(3.0),
        keras.initializers.Constant(4.0),
        keras.initializers.Constant(5.0),
        keras.regularizers.L2(0.1),
        keras.regularizers.L1(0.2),
        keras.constraints.NonNeg(),
        keras.constraints.UnitNorm(),
    ]
    ours, theirs = BatchNormalization(*arguments), keras.layers.BatchNormalization(*arguments)
    config = theirs.get_config()
    shared = {k: v for k, v in ours.get_config().items() if k in config and k != "name"}
    # Keras names its axis as a list or number; all else is compared as it is written to a file.
    assert shared == {k: config[k] for k in shared}
    assert set(config) - set(shared) - {"name"} <= {"renorm", "renorm_clipping", "renorm_momentum"}
    for layer in (ours, theirs):
        layer.build((2, 3, 4))
    for a, b in zip(ours.weights, theirs.weights):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(sum(ours.losses), sum(theirs.losses))
    assert len(ours.losses) == 2


def test_a_list_of_one_axis():
    assert BatchNormalization(axis=[1]).axis == 1


def test_weights_of_a_saved_keras_model(rng, tmp_path):
    def build(kind):
        return keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(5, 3), kind()])

    theirs, ours = build(keras.layers.BatchNormalization), build(BatchNormalization)
    running.randomize(theirs.layers[1], rng)
    theirs.save_weights(tmp_path / "model.weights.h5")
    ours.load_weights(tmp_path / "model.weights.h5")
    x = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(ours(x), theirs(x), 1e-5, 1e-5)


def test_renorm_is_another_layer():
    with pytest.raises(ValueError) as error:
        BatchNormalization(renorm=True)
    assert str(error.value) == (
        "BatchNormalization does not take renorm=True. Use "
        "tfnorm.layers.BatchRenormalization(r_max=..., d_max=...), which also takes schedules for "
        "both."
    )


def test_fits_like_kerass_layer(rng):
    x, labels = rng.normal(size=(32, 6)), rng.integers(0, 3, 32)
    histories = []
    for kind in (keras.layers.BatchNormalization, BatchNormalization):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), kind()])
        model.add(keras.layers.Dense(3))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5), loss)
        history = model.fit(x, labels, batch_size=8, epochs=3, verbose=0, shuffle=False)
        histories.append(history.history["loss"])
    np.testing.assert_allclose(*histories, 1e-4)
    assert histories[0][-1] < histories[0][0]


def test_alone_the_synchronized_layer_is_the_plain_one(rng):
    """Its graph as well: there is nobody to ask, and the virtual replicas are one batch."""
    x, dy = (tf.constant(rng.normal(1, 2, (4, 6, 5)), "float32") for _ in range(2))
    results, sizes = [], []
    for options in ({}, {"synchronized": True, "virtual_replicas": 2}):
        layer = BatchNormalization(**options)
        layer.build(x.shape)
        running.randomize(layer, np.random.default_rng(3))
        results.append([*step(layer, x, dy), *layer.non_trainable_variables])
        graph = tf.function(lambda x, of=layer: of(x, training=True)).get_concrete_function(x).graph
        sizes.append(len(graph.get_operations()))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sizes[0] == sizes[1]


def test_second_derivative_of_one_valid_position():
    """The mean is that position, in float32 as well: γ's gradient does not depend on x."""
    x, mask = tf.constant([[1.0, 2.0], [3.0, 0.0]]), tf.constant([True, False])
    layer = BatchNormalization()
    layer(x)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            y = layer(x, training=True, mask=mask)
            loss = tf.reduce_sum(y[0] * [1.0, 2.0])
        total = tf.reduce_sum(inner.gradient(loss, layer.gamma.value))
    np.testing.assert_array_equal(outer.gradient(total, x)[0], [0, 0])
