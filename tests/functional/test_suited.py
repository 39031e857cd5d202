"""Which module computes what belongs to a tensor, and that all of them have the same functions."""

import inspect

import pytest
import tensorflow as tf

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
def test_what_is_traced_with_kernels_is_for_one_width(by, number):
    """oneDNN's gradient keeps the width in the kernel: two at once wrote past their memory."""
    widths = []

    @traced_for_any_size
    def mean(x, *, by):
        widths.append(x.shape[-1])
        return by.moments(x, epsilon=1e-3).mean

    for width in (3, 4, 3):
        tf.function(lambda x: mean(x, by=by))(tf.ones([1, 5, width]))
    assert len(widths) == number
