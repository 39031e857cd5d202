"""Random graphs: branches, shared layers, nested models, norms anywhere. None comes out wrong."""

import random

import keras
import pytest

from tfnorm import layers
from tfnorm.export import fold

L = keras.layers
SIZE = 6


def normalizer(choose):
    return choose(
        [
            lambda: L.BatchNormalization(axis=choose([-1, -1, -1, 1])),
            layers.BatchNormalization,
            layers.BatchRenormalization,
            layers.MovingAverageBatchNormalization,
            lambda: L.GroupNormalization(2),
        ]
    )()


def linear(choose):
    filters = choose([4, 6])
    options = {
        "kernel_size": choose([1, 3]),
        "padding": "same",
        "use_bias": choose([False, True]),
    }
    without_bias = {**options, "use_bias": False}
    return choose(
        [
            lambda: L.Conv2D(filters, **options),
            lambda: L.Conv2D(filters, groups=2, **options),
            lambda: L.Conv2D(filters, 1, activation=choose([None, "relu"])),
            lambda: L.DepthwiseConv2D(**options),
            lambda: L.SeparableConv2D(filters, **options),
            lambda: L.Conv2DTranspose(filters, **options),
            lambda: L.Dense(filters),
            lambda: layers.WeightCentralization(L.Conv2D(filters, **options)),
            lambda: layers.CrossIterationBatchNormalization(L.Conv2D(filters, **without_bias)),
        ]
    )()


def other(choose):
    return choose(
        [
            L.ReLU,
            L.Identity,
            lambda: L.Dropout(0.3),
            lambda: L.Activation("linear"),
            lambda: L.AveragePooling2D(3, 1, padding="same"),
            lambda: L.MaxPooling2D(3, 1, padding="same"),
        ]
    )()


def nested(choose, x):
    inner = keras.Input(x.shape[1:])
    return keras.Model(inner, grow(choose, [inner], steps=3)[-1])


def grow(choose, tensors, steps):
    """Adds tensors that are computed from earlier ones, each by a random step."""
    layers_used = []
    for _ in range(steps):
        x = choose(tensors[-3:])
        same = [t for t in tensors if t.shape == x.shape]
        kind = choose(["linear"] * 3 + ["norm"] * 2 + ["other", "merge", "share", "nest"])
        if kind == "linear":
            layer = linear(choose)
            layers_used.append((layer, x.shape))
            tensors.append(layer(x))
        elif kind == "norm":
            tensors.append(normalizer(choose)(x))
        elif kind == "other":
            tensors.append(other(choose)(x))
        elif kind == "merge":
            tensors.append(choose([L.Add, L.Concatenate])()([x, choose(same)]))
        elif kind == "share" and layers_used:
            layer, shape = choose(layers_used)
            tensors.append(layer(choose([t for t in tensors if t.shape == shape])))
        elif steps > 3:
            model = nested(choose, x)
            tensors += [model(x), model(choose(same))]
    return tensors


@pytest.mark.parametrize("seed", range(30))
def test_answers_stay(seed, randomized, difference):
    choose = random.Random(seed).choice
    inputs = keras.Input((SIZE, SIZE, 4))
    tensors = grow(choose, [inputs], steps=choose(range(4, 14)))
    model = randomized(keras.Model(inputs, [L.Identity()(tensors[-1]), L.ReLU()(tensors[1])]))
    assert difference(model, fold(model)[0]) < 1e-5
