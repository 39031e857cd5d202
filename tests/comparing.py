"""Random weights for a model, and how far the answers of two models are apart."""

import keras
import numpy as np

from tfnorm.graph import function_of


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


def randomize(model, rng):
    """Gives a model random weights and statistics, and returns it."""
    for variable in model.weights:
        if "float" in variable.dtype:
            variable.assign(drawn(variable, rng))
    return model


def difference(model, other, rng, batch=3):
    """The largest difference of two models on random inputs, relative to the output's scale."""
    inputs = [
        rng.normal(size=(batch, *x.shape[1:])).astype("float32")
        if "float" in x.dtype
        else rng.integers(0, 5, size=(batch, *x.shape[1:]))
        for x in model.inputs
    ]
    ours, theirs = (answers(m, inputs) for m in (model, other))
    assert [y.shape for y in ours] == [y.shape for y in theirs]
    # What is zero everywhere has no scale.
    return max(np.max(np.abs(a - b)) / (np.max(np.abs(a)) or 1.0) for a, b in zip(ours, theirs))


def answers(model, inputs):
    """The outputs of a model at inference, flattened, in float64."""
    outputs = model(keras.tree.pack_sequence_as(function_of(model).input, inputs), training=False)
    flat = keras.tree.flatten(outputs)
    return [keras.ops.convert_to_numpy(y).astype("float64") for y in flat]
