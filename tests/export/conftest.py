"""What the tests of folding and exporting share: random models, how far two models are apart."""

import keras
import numpy as np
import pytest


def drawn(variable, rng):
    """Values that no initializer gives: variances spread, scales of both signs, kernels scaled."""
    shape = tuple(variable.shape)
    if "variance" in variable.path:
        return rng.uniform(0.3, 3.0, shape)
    if "gamma" in variable.path:
        return rng.uniform(0.5, 1.5, shape) * np.resize([1.0, -1.0], shape)
    if len(shape) < 2:
        return rng.normal(size=shape)
    return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))


@pytest.fixture
def randomized(rng):
    """Gives a model random weights and statistics, and returns it."""

    def randomize(model):
        for variable in model.weights:
            if "float" in variable.dtype:
                variable.assign(drawn(variable, rng))
        return model

    return randomize


@pytest.fixture
def difference(rng):
    """The largest difference of two models on random inputs, relative to the output's scale."""

    def measure(model, other, batch=3):
        inputs = [
            rng.normal(size=(batch, *x.shape[1:])).astype("float32")
            if "float" in x.dtype
            else rng.integers(0, 5, size=(batch, *x.shape[1:]))
            for x in model.inputs
        ]
        ours, theirs = (
            [
                keras.ops.convert_to_numpy(y).astype("float64")
                for y in keras.tree.flatten(
                    m(keras.tree.pack_sequence_as(m.input, inputs), training=False)
                )
            ]
            for m in (model, other)
        )
        assert [y.shape for y in ours] == [y.shape for y in theirs]
        return max(np.max(np.abs(a - b)) / np.max(np.abs(a)) for a, b in zip(ours, theirs))

    return measure
