"""Which module computes what belongs to a tensor, and that all of them have the same functions."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import layers
from tfnorm.functional import channelwise, fused, small
from tfnorm.functional.suited import suited
from tfnorm.functional.traced_once import traced_for_any_size
from tfnorm.functional.xla import is_for_cpu


@pytest.mark.parametrize(
    ("shape", "dtype", "module"),
    [
        ((1, 512, 128), tf.float32, small),
        ((1, 513, 128), tf.float32, fused),
        ((1, None, 128), tf.float32, fused),
        ((1, 2, 3), tf.bfloat16, fused),
        ((1, 2, 3), tf.float64, channelwise),
        ((2, 512, 128), tf.float32, channelwise),
    ],
)
def test_choice(shape, dtype, module):
    if module is small and not is_for_cpu():
        module = fused
    with tf.Graph().as_default():
        assert suited(tf.compat.v1.placeholder(dtype, shape)) is module


def test_a_mask_takes_the_plain_functions():
    assert suited(tf.ones([1, 2, 3]), tf.ones([1, 2, 1], tf.bool)) is channelwise


@pytest.mark.parametrize("name", small.__all__)
def test_all_take_the_same_arguments(name):
    wanted, *others = (
        list(inspect.signature(getattr(module, name)).parameters)
        for module in (channelwise, fused, small)
    )
    assert wanted[:1] and all(names == wanted for names in others)


@pytest.mark.parametrize(("by", "number"), [(small, 1), (channelwise, 1), (fused, 2)])
def test_what_is_traced_with_kernels_is_for_one_width(by, number, monkeypatch):
    """oneDNN's gradient keeps the width in the kernel: two at once wrote past their memory."""
    monkeypatch.setattr(fused, "RUNS_ALONE", False)
    shapes = []

    @traced_for_any_size
    def mean(x, *, by):
        shapes.append(x.shape)
        return by.moments(x, epsilon=1e-3).mean

    for size, width in ((5, 3), (5, 4), (6, 3)):
        found = tf.function(lambda x: mean(x, by=by))(tf.ones([1, size, width]))
        np.testing.assert_allclose(found, np.ones([1, width]))
    assert len(shapes) == number


@pytest.mark.parametrize("runs_alone", [True, False])
def test_kernels_of_a_call_of_its_own(runs_alone, monkeypatch):
    """Before TensorFlow 2.21 no two layers may share a kernel; a graph has it for itself then."""
    monkeypatch.setattr(fused, "RUNS_ALONE", runs_alone)
    layer, x = layers.BatchRenormalization(), tf.ones([8, 64, 64, 8])
    layer(x)
    graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(x).graph
    operations = {operation.type for operation in graph.get_operations()}
    assert ("FusedBatchNormV3" in operations) == runs_alone


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "kind", [layers.MovingAverageBatchNormalization, layers.BatchKalmanNormalization]
)
def test_branches_of_several_widths_at_once(rng, kind, order):
    """Each has its own kernels: what they compute is what they compute alone."""
    images = [rng.normal(size=[4, 64, 64, width]).astype(np.float32) for width in (8, 120, 32, 64)]
    branches = [kind() for _ in images]
    tensors = [tf.constant(x) for x in images]
    for layer, x in zip(branches, tensors):
        layer(x)
    state = [(v, v.numpy()) for layer in branches for v in layer.non_trainable_variables]

    def first(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = [
                tf.nest.flatten(layer(x, training=True))[0] for layer, x in zip(branches, images)
            ]
            loss = tf.add_n([tf.reduce_sum(tf.sin(y)) for y in outputs])
        return tape.gradient(loss, images)

    def second(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = tf.add_n([tf.reduce_sum(tf.sin(gradient)) for gradient in first(images)])
        return tape.gradient(loss, images)

    gradients = first if order == 1 else second
    wanted = gradients(tensors)  # eagerly one after the other
    together = tf.function(gradients)
    for _ in range(20):
        for variable, value in state:
            variable.assign(value)
        for got, want in zip(together(tensors), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
