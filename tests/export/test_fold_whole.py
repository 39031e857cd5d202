"""What fold cannot look into is left whole and reported, or refused with a message."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm import layers
from tfnorm.errors import UserError
from tfnorm.export import fold

L = keras.layers
REST = "; one multiply and one add are left"


def bn(**options):
    return L.BatchNormalization(**options)


class Block(keras.Model):
    """A subclassed model inside of a functional one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = L.Dense(4), bn(name="hidden")

    def call(self, x):
        return self.norm(self.dense(x))


class Unreadable(Block):
    """Its code is not made for symbolic tensors."""

    def call(self, x):
        return tf.identity(super().call(x))


def functions(x):
    return bn(name="norm")(L.Lambda(lambda t: 2 * t, name="double")(L.Dense(4)(x)))


def operators(x):
    return bn(name="norm")(keras.ops.sin(L.Dense(4)(x)))


def constant_rows(x):
    rows = np.ones((3, 2, 4), "float32")
    return bn(name="norm")(keras.ops.concatenate([L.Dense(4)(x), rows], axis=1))


def constant_channels(x):
    rows = np.ones((3, 5, 2), "float32")
    y = bn(name="norm")(L.ReLU(name="relu")(x))
    return L.Dense(4)(keras.ops.concatenate([rows, y], axis=-1))


def recurrent(x):
    return bn(name="norm")(L.LSTM(4, stateful=True, name="lstm")(x))


def both_ways(x):
    return bn(name="norm")(L.Bidirectional(L.GRU(4), name="both")(x))


def at_each_time(x):
    return L.TimeDistributed(bn(name="norm"), name="each")(L.TimeDistributed(L.Dense(4))(x))


def attention(x):
    return bn(name="norm")(L.MultiHeadAttention(2, 2, name="attention")(x, x))


def spectral(x):
    return bn(name="norm")(L.SpectralNormalization(L.Dense(4), name="bounded")(x))


def unreadable(x):
    return L.Dense(4)(Unreadable(name="block")(x))


def inside(name):
    return f"inside {name}, which is no graph of layers; left as it is"


@pytest.mark.parametrize(
    ("build", "name", "reason"),
    [
        (functions, "norm", "double (Lambda) lies in between" + REST),
        (operators, "norm", "sin (Sin) lies in between" + REST),
        (constant_rows, "norm", "concatenate lies in between and takes a constant" + REST),
        (constant_channels, "norm", "relu (ReLU) lies in between" + REST),
        (recurrent, "norm", "lstm (LSTM) lies in between" + REST),
        (both_ways, "norm", "both (Bidirectional) lies in between" + REST),
        (attention, "norm", "attention (MultiHeadAttention) lies in between" + REST),
        (spectral, "norm", "bounded (SpectralNormalization) lies in between" + REST),
        (at_each_time, "each/norm", "each/reshape (Reshape) lies in between" + REST),
        (unreadable, "block/hidden", inside("block")),
    ],
)
def test_left_whole_and_reported(build, name, reason, randomized, difference):
    x = keras.Input(batch_shape=(3, 5, 6))
    model = randomized(keras.Model(x, build(x)))
    folded, report = fold(model)
    assert [(x.name, x.folded, x.reason) for x in report.rows] == [(name, False, reason)]
    assert difference(model, folded) < 1e-5


def subclassed(x):
    return L.Dense(4)(Block(name="block")(x))


def model_at_each_time(x):
    block = keras.Sequential([keras.Input(x.shape[2:]), L.Dense(4), bn(name="norm")])
    return L.TimeDistributed(block, name="each")(x)


@pytest.mark.parametrize("build", [subclassed, model_at_each_time])
def test_inside_of_layers_whose_code_can_be_read(build, randomized, difference):
    x = keras.Input(batch_shape=(3, 5, 6))
    model = randomized(keras.Model(x, build(x)))
    folded, report = fold(model)
    assert [x.folded for x in report.rows] == [True]
    assert difference(model, folded) < 1e-5


def test_training_at_inference(randomized, difference):
    x = keras.Input((5, 6))
    y = L.ReLU()(bn(name="norm")(L.Dense(4)(x), training=True))
    y = L.Dropout(0.0, name="dropout")(L.Dense(4)(y), training=True)
    y = bn(name="after")(y)
    model = randomized(keras.Model(x, y))
    folded, report = fold(model)
    assert [row.reason for row in report.rows] == [
        "called with training=True; left as it is",
        "dropout (Dropout) lies in between" + REST,
    ]
    assert difference(model, folded) < 1e-5


def test_state_of_a_recurrent_layer_goes_on(randomized, rng):
    x = keras.Input(batch_shape=(2, 3, 4))
    model = randomized(keras.Model(x, bn()(L.Dense(4)(L.LSTM(3, stateful=True)(x)))))
    folded, _ = fold(model)
    batch = rng.normal(size=(2, 3, 4)).astype("float32")
    for _ in range(2):
        ours, theirs = model(batch, training=False), folded(batch, training=False)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "data"),
    [
        (L.StringLookup, [["a"], ["b"], ["c"]]),
        (L.IntegerLookup, [[5], [7], [9]]),
        (lambda: L.TextVectorization(output_sequence_length=2), [["a b"], ["b c"], ["c"]]),
    ],
)
def test_adapted_vocabulary_is_kept(layer, data, randomized):
    layer = layer()
    layer.adapt(np.array(data))
    x = keras.Input((1,), dtype=tf.constant(data).dtype.name)
    model = randomized(keras.Model(x, bn()(L.Dense(4)(L.Embedding(9, 4)(layer(x))))))
    folded, report = fold(model)
    assert [row.folded for row in report.rows] == [True]
    np.testing.assert_allclose(model(tf.constant(data)), folded(tf.constant(data)), atol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: bn()(x),
        lambda x: bn()(L.Dense(4)(x)),
        lambda x: L.Dense(4)(bn()(x)),
        lambda x: layers.CrossIterationBatchNormalization(L.Dense(4, use_bias=False))(x),
        lambda x: layers.BatchKalmanNormalization()(L.Dense(4)(x))[0],
        lambda x: bn()(L.Concatenate()([L.Dense(4)(x), L.Dense(3)(x)])),
    ],
)
def test_masked_steps_stay_masked(norm, randomized, rng):
    x = keras.Input((None, 4))
    model = randomized(keras.Model(x, L.LSTM(3)(norm(L.Masking()(x)))))
    folded, _ = fold(model)
    batch = rng.normal(size=(3, 7, 4)).astype("float32")
    batch[:, 4:] = 0
    answers = model(batch, training=False)
    np.testing.assert_allclose(answers, folded(batch, training=False), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answers, model(batch[:, :4], training=False), rtol=1e-5, atol=1e-6)


class Keeper(L.Layer):
    """A layer that does not tell its argument."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def test_layer_that_cannot_be_copied_is_used_as_it_is(randomized, difference):
    x = keras.Input((6,))
    model = randomized(keras.Model(x, bn()(L.Dense(3)(Keeper(L.Dense(4))(x)))))
    folded, report = fold(model)
    assert [row.folded for row in report.rows] == [True]
    assert folded.layers[1] is model.layers[1]
    assert difference(model, folded) < 1e-6


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: keras.Sequential([L.Dense(4), bn()], name="open"),
            "The Sequential model 'open' has no graph yet, because its input shape is not known. "
            "Put a keras.Input first, or call the model once on data.",
        ),
        (
            lambda: Block(name="block"),
            "The model 'block' of class Block has no graph of layers that can be read, because it "
            "is subclassed. Build it as a functional model, keras.Model(inputs, outputs), or as a "
            "keras.Sequential; or call it once on data, and its code is read.",
        ),
        (lambda: "model.keras", "Expected a keras.Model, received 'model.keras' of type str."),
    ],
)
def test_models_without_graph(model, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        fold(model())
