"""What XLA compiles for a CPU within a graph of TensorFlow's: where, and that it is the same."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import layers
from tfnorm.functional import xla
from tfnorm.functional.traced_once import compiled_once, forget


@compiled_once
def scaled(x, *, factor):
    return x * factor


def has_compiled(graph):
    """Whether it calls anything that XLA compiles, or calls what does."""
    functions = graph.as_graph_def().library.function
    return any(function.attr["_XlaMustCompile"].b for function in functions)


@pytest.mark.parametrize(
    ("shape", "compiles"),
    [
        ([4, 256, 256], True),
        ([2, 256, 256], False),
        ([None, 256, 256], False),
        ([4, None, 256], False),
    ],
)
def test_only_what_is_known_to_be_large_is_compiled(shape, compiles):
    graph = tf.function(lambda x: scaled(x, factor=2.0))
    concrete = graph.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    assert has_compiled(concrete.graph) == compiles


def test_not_eagerly_nor_in_forward_mode(rng, monkeypatch):
    monkeypatch.setattr(xla, "_SMALL", 0)
    x = tf.constant(rng.normal(size=[3, 4, 5]))

    def tangent(x):
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            y = scaled(x, factor=2.0)
        assert not has_compiled(tf.compat.v1.get_default_graph())
        return accumulator.jvp(y)

    np.testing.assert_allclose(scaled(x, factor=2.0), 2 * x)
    np.testing.assert_allclose(tf.function(tangent)(x), 2 * np.ones(x.shape))


def test_a_normalizer_at_inference_needs_no_compiler(monkeypatch):
    monkeypatch.setattr(xla, "_SMALL", 0)
    for kind in (layers.OnlineNormalization, layers.SwitchableNormalization):
        for shape in ([4, 6, 6, 3], [8, 3]):
            layer = kind()
            layer.build(shape)
            graph = tf.function(lambda x: layer(x, training=False))  # noqa: B023
            assert not has_compiled(graph.get_concrete_function(tf.zeros(shape)).graph)


CASES = {
    "on": (layers.OnlineNormalization, [6, 5, 7, 3], {"clamp": 1.5}),
    "on_of_layers": (layers.OnlineNormalization, [6, 5, 7, 3], {"compensation": "layer_scaling"}),
    "on_of_groups": (layers.OnlineNormalization, [6, 5, 7, 3], {"virtual_replicas": 2}),
    "sn_of_vectors": (layers.SwitchableNormalization, [12, 6], {}),
    "sn_of_groups": (layers.SwitchableNormalization, [12, 6], {"virtual_replicas": 3}),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_same_as_operation_by_operation(case, is_masked, order, rng, monkeypatch):
    """Outputs, state and derivatives of both orders in float64, over two steps."""
    kind, shape, options = CASES[case]
    if is_masked and len(shape) == 2:
        pytest.skip("vectors with a mask take the way of images, which compiles nothing")
    images = tf.constant(rng.normal(1, 2, size=shape))
    weights = tf.constant(rng.normal(size=shape))
    mask = tf.constant(rng.random(shape[:-1]) < 0.7) if is_masked else None
    found = []
    for smallest in (1 << 60, 0):
        forget()
        monkeypatch.setattr(xla, "_SMALL", smallest)
        layer = kind(dtype="float64", **options)
        layer.build(shape)
        draw = np.random.default_rng(1)
        for variable in layer.trainable_variables:
            variable.assign(draw.uniform(0.5, 1.5, variable.shape))

        def gradients(x, layer=layer):
            parameters = [v.value for v in layer.trainable_variables]
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, mask=mask, training=True)
                loss = tf.reduce_sum(weights * tf.sin(y))
            return y, tape.gradient(loss, [x, *parameters])

        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y, first = gradients(x)
                loss = tf.add_n([tf.reduce_sum(tf.sin(v)) for v in first])
            return y, *first, *([tape.gradient(loss, x)] if order == 2 else [])

        graph = tf.function(step)
        concrete = graph.get_concrete_function(images)
        assert has_compiled(concrete.graph) == (smallest == 0)
        results = [v for _ in range(2) for v in concrete(images)]
        found.append([*results, *layer.non_trainable_variables])
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


def test_on_every_replica(rng, mirrored, monkeypatch):
    images = tf.constant(rng.normal(size=[4, 5, 7, 3]), tf.float32)
    strategy = mirrored(2)
    found = []
    for smallest in (1 << 60, 0):
        forget()
        monkeypatch.setattr(xla, "_SMALL", smallest)
        with strategy.scope():
            layer = layers.OnlineNormalization()
            layer.build(images.shape)

        def step(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(tf.sin(layer(x, training=True)))
            return tape.gradient(loss, x)

        run = tf.function(lambda x: strategy.run(step, (x,)))
        found.append([*strategy.experimental_local_results(run(images)), *layer.weights])
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
