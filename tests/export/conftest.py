"""What the tests of folding and exporting share: random models, op counts of a SavedModel."""

import collections
import pathlib

import keras
import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2

FLOATS = {types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE, types_pb2.DT_HALF, types_pb2.DT_BFLOAT16}


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


def float_ops(path) -> collections.Counter:
    """How often each op on floats stands in a SavedModel: main graph and function library."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((pathlib.Path(path) / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return collections.Counter(node.op for node in nodes if node.attr["T"].type in FLOATS)


@pytest.fixture
def count_ops():
    return float_ops
