"""The residual networks for large images: sizes, strides, dilation, and the chain through them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm import models
from tfnorm.layers import norms
from tfnorm.models.resnet import LARGE_DEPTHS, resnet, small_resnet


def pyramid(build, normalizer="none", shape=(64, 96, 3), **options):
    images = keras.Input(shape)
    return images, build(images, norms.get(normalizer), **options)


# torchvision's: convolutions, one scale and one offset a channel, and the dense layer.
TORCHVISION = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160}


@pytest.mark.parametrize("depth", LARGE_DEPTHS)
def test_it_has_the_parameters_of_torchvisions(depth):
    model = models.build(f"resnet{depth}", norms.get("none"), (64, 64, 3), 1000)
    # A bias has one parameter a channel where a normalizer has two.
    biases = sum(v.shape[0] for v in model.weights if v.name == "bias") - 1000
    assert model.count_params() + biases == TORCHVISION[depth]


@pytest.mark.parametrize(
    ("output_stride", "sizes", "dilations"),
    [
        (0, (16, 8, 4, 2), [1] * 8),
        (16, (16, 8, 4, 4), [1, 1, 1, 1, 1, 1, 1, 2]),
        (8, (16, 8, 8, 8), [1, 1, 1, 1, 1, 2, 2, 4]),
    ],
)
def test_levels_and_dilation_are_torchvisions(output_stride, sizes, dilations):
    images, found = pyramid(resnet, depth=18, width=8, output_stride=output_stride)
    shapes = {level: x.shape[1:] for level, x in found.levels.items()}
    assert shapes == {
        level: (size, size * 3 // 2, 8 * 2 ** (level - 2))
        for level, size in zip((2, 3, 4, 5), sizes)
    }
    model = keras.Model(images, list(found.levels.values()))
    blocks = [f"stage{s}_block{b}" for s in (1, 2, 3, 4) for b in (1, 2)]
    # The first 3x3 of a dilated stage still has the dilation of the stage before.
    firsts = [model.get_layer(f"{name}_conv1").dilation_rate[0] for name in blocks]
    assert firsts == dilations
    seconds = [model.get_layer(f"{name}_conv2").dilation_rate[0] for name in blocks]
    assert seconds == [dilations[2 * i + 1] for i in range(4) for _ in range(2)]


def test_a_bottleneck_has_its_stride_in_the_3x3():
    images, found = pyramid(resnet, depth=50, width=4)
    model = keras.Model(images, found.levels[5])
    names = ("conv1", "conv2", "conv3", "shortcut")
    strides = [model.get_layer(f"stage2_block1_{name}").strides[0] for name in names]
    assert strides == [1, 2, 1, 2]


def test_small_ones_have_levels_by_stride():
    _, found = pyramid(small_resnet, depth=8, width=4, stem_stride=2)
    assert {level: x.shape[1] for level, x in found.levels.items()} == {1: 32, 2: 16, 3: 8}
    _, found = pyramid(small_resnet, depth=8, width=4, output_stride=2)
    assert {level: x.shape[1] for level, x in found.levels.items()} == {0: 64, 1: 32, 2: 32}


# All other norms stand as bn does. Of blocks there are the basic one and the bottleneck.
@pytest.mark.parametrize(
    ("name", "depth"), [("mabn", 18), ("cbn", 18), ("bkn", 18), ("mabn", 50), ("bkn", 50)]
)
def test_a_step_reaches_every_variable(name, depth, rng):
    model = models.build(f"resnet{depth}", norms.get(name), (32, 32, 3), 3, width=16)
    x = tf.constant(rng.normal(size=(2, 32, 32, 3)), tf.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(x, training=True)))
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [v.value for v in variables])
    for variable, gradient in zip(variables, gradients):
        assert gradient is not None and np.isfinite(gradient).all(), variable.path


def test_levels_hand_the_chain_on():
    _, found = pyramid(resnet, "bkn", depth=18, width=8)
    widths = {level: state[0].shape[-1] for level, state in found.states.items()}
    assert widths == {2: 8, 3: 16, 4: 32, 5: 64}


def test_frozen_normalizers_keep_everything_and_train_nothing(rng):
    normalizer = models.frozen(norms.get("bn"))
    model = models.build("resnet8", normalizer, (16, 16, 3), 3, width=16)
    kernels = [v.name for v in model.trainable_variables]
    assert set(kernels) == {"kernel", "bias"} and len(kernels) == 11
    x = tf.constant(rng.normal(size=(2, 16, 16, 3)), tf.float32)
    before = model.get_weights()
    np.testing.assert_array_equal(model(x, training=True), model(x, training=False))
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)
