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


@pytest.mark.parametrize(("by", "instances"), [(small, 1), (channelwise, 1), (fused, 2)])
def test_kernels_are_not_shared_by_widths(by, instances):
    """oneDNN's gradient keeps the width in the kernel: two at once wrote past their memory.

    TensorFlow makes an instance of a function, with kernels of its own, for each set of attributes.
    """
    widths, called = [], set()

    @traced_for_any_size
    def mean(x, *, by):
        widths.append(x.shape[-1])
        return by.moments(x, epsilon=1e-3).mean

    for width in (3, 4, 3):
        run = tf.function(lambda x: mean(x, by=by)).get_concrete_function(tf.ones([1, 5, width]))
        np.testing.assert_allclose(run(tf.ones([1, 5, width])), np.ones([1, width]))
        (call,) = [x for x in run.graph.get_operations() if x.type == "PartitionedCall"]
        function = call.get_attr("f")
        called.add((function.name, function.attr["_widths"].s))
    assert widths == [None] and len(called) == instances


def test_branches_of_several_widths_at_once(rng):
    """Each has its own kernels: what they compute is what they compute alone."""
    images = [rng.normal(size=[4, 64, 64, width]).astype(np.float32) for width in (8, 200, 32, 120)]
    branches = [layers.MovingAverageBatchNormalization() for _ in images]

    def gradients(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = [layer(x, training=True) for layer, x in zip(branches, images)]
            loss = tf.add_n([tf.reduce_sum(tf.sin(y)) for y in outputs])
        return tape.gradient(loss, images)

    for layer, x in zip(branches, images):
        layer.build(x.shape)
    tensors = [tf.constant(x) for x in images]
    wanted = gradients(tensors)  # eagerly one after the other
    together = tf.function(gradients)
    for _ in range(20):
        for layer in branches:
            layer.step.assign(0)
        for got, want in zip(together(tensors), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
