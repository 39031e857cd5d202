"""Linear maps: mean input patches and kernel gradients of every kind of convolution."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm.layers import linear

_LAYERS = {
    "same": (lambda: keras.layers.Conv2D(6, 3, padding="same"), (7, 10, 4)),
    "same, even kernel": (lambda: keras.layers.Conv2D(6, (2, 4), padding="same"), (7, 10, 4)),
    "same, strided": (lambda: keras.layers.Conv2D(6, 3, 2, padding="same"), (7, 10, 4)),
    "valid": (lambda: keras.layers.Conv2D(6, (2, 3)), (7, 10, 4)),
    "valid, strided": (lambda: keras.layers.Conv2D(6, 3, (3, 2)), (9, 10, 4)),
    "dilated": (lambda: keras.layers.Conv2D(6, 3, dilation_rate=(2, 3)), (7, 10, 4)),
    "dilated, same": (
        lambda: keras.layers.Conv2D(6, 3, dilation_rate=2, padding="same"),
        (7, 10, 4),
    ),
    "groups": (lambda: keras.layers.Conv2D(6, 3, groups=2, padding="same"), (7, 10, 4)),
    "dilated, same, even kernel": (
        lambda: keras.layers.Conv2D(6, 2, dilation_rate=3, padding="same"),
        (7, 10, 4),
    ),
    "1x1": (lambda: keras.layers.Conv2D(6, 1), (7, 10, 4)),
    "1x1, strided": (lambda: keras.layers.Conv2D(6, 1, 2), (7, 10, 4)),
    "1x1, strided, same": (lambda: keras.layers.Conv2D(6, 1, 2, padding="same"), (7, 10, 4)),
    "1x1, groups": (lambda: keras.layers.Conv2D(6, 1, groups=2), (7, 10, 4)),
    "1x1, depthwise": (lambda: keras.layers.DepthwiseConv2D(1, depth_multiplier=2), (7, 10, 4)),
    "1D": (lambda: keras.layers.Conv1D(6, 3, 2, padding="same"), (9, 4)),
    "causal": (lambda: keras.layers.Conv1D(6, 3, padding="causal", dilation_rate=2), (9, 4)),
    "causal, strided": (lambda: keras.layers.Conv1D(6, 3, 2, padding="causal"), (10, 4)),
    "3D": (lambda: keras.layers.Conv3D(6, 3, (1, 2, 1), padding="same"), (5, 6, 7, 4)),
    "depthwise": (
        lambda: keras.layers.DepthwiseConv2D(3, 2, depth_multiplier=2, padding="same"),
        (7, 10, 4),
    ),
    "depthwise 1D": (lambda: keras.layers.DepthwiseConv1D(3, padding="valid"), (9, 4)),
    "dense": (lambda: keras.layers.Dense(6), (4,)),
    "dense, positions": (lambda: keras.layers.Dense(6), (5, 3, 4)),
}


@pytest.fixture(params=_LAYERS)
def layer_and_images(request, rng):
    make, image_shape = _LAYERS[request.param]
    layer = make()
    layer.build((None, *image_shape))
    return layer, rng.normal(size=(3, *image_shape)).astype("float32")


@pytest.mark.parametrize("is_known", [True, False])
def test_mean_patches_are_gradients_of_the_mean_output(layer_and_images, is_known):
    layer, images = layer_and_images
    shape = images.shape if is_known else (3, *[None] * (images.ndim - 2), images.shape[-1])

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
    def of(images):
        return linear.mean_patches(linear.Map.of(layer), images)

    patches = of(images).numpy()
    elements, groups, channels = linear.factors(linear.Map.of(layer))
    assert patches.shape == (3, elements, groups)
    for image, patch in zip(images, patches, strict=True):
        with tf.GradientTape() as tape:
            means = tf.reduce_mean(layer(image[None]), list(range(images.ndim - 1)))
        wanted = tape.gradient(means, layer.kernel.value)  # the same for each output channel
        wanted = np.reshape(wanted, [elements, groups, channels])
        for channel in range(channels):
            np.testing.assert_allclose(patch, wanted[..., channel], rtol=1e-5, atol=1e-6)


def test_kernel_gradients_are_those_of_the_layer(layer_and_images, rng):
    layer, images = layer_and_images
    with tf.GradientTape() as tape:
        outputs = layer(images)
        cotangent = tf.constant(rng.normal(size=outputs.shape), tf.float32)
        loss = tf.reduce_sum(outputs * cotangent)
    wanted = tape.gradient(loss, layer.kernel.value)
    kernel = tf.convert_to_tensor(layer.kernel)
    gradient = tf.function(linear.kernel_gradient)
    got = gradient(linear.Map.of(layer), tf.constant(images), kernel, cotangent)
    assert got.shape == kernel.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_kernel_gradients_of_channels_first(rng):
    layer = keras.layers.Conv2D(6, 1, data_format="channels_first")
    layer.build((None, 4, 7, 10))
    images = tf.constant(rng.normal(size=(3, 4, 7, 10)), tf.float32)
    cotangent = tf.constant(rng.normal(size=(3, 6, 7, 10)), tf.float32)

    @tf.function(jit_compile=True)  # Without XLA a CPU has no gradient of it.
    def gradient(kernel):
        return linear.kernel_gradient(linear.Map.of(layer), images, kernel, cotangent)

    wanted = np.einsum("nihw,nohw->io", images, cotangent)
    got = gradient(tf.convert_to_tensor(layer.kernel))[0, 0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_mean_patches_of_channels_first(rng):
    images = rng.normal(size=(3, 7, 10, 4)).astype("float32")
    kernel = rng.normal(size=(3, 3, 4, 6)).astype("float32")
    patches = []
    for data_format, shape in (("channels_last", (0, 1, 2, 3)), ("channels_first", (0, 3, 1, 2))):
        layer = keras.layers.Conv2D(6, 3, 2, data_format=data_format, use_bias=False)
        turned = tf.transpose(images, shape)
        layer.build(turned.shape)
        layer.set_weights([kernel])
        patches.append(linear.mean_patches(linear.Map.of(layer), turned))
    np.testing.assert_allclose(*patches, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_known", [True, False])
def test_patches_are_what_single_outputs_see(layer_and_images, is_known, rng):
    """Each output is its patch times the kernel: of all positions, in any order."""
    layer, images = layer_and_images
    shape = images.shape if is_known else (None, *[None] * (images.ndim - 2), images.shape[-1])

    @tf.function(input_signature=[tf.TensorSpec(shape), tf.TensorSpec([None], tf.int32)])
    def of(images, positions):
        own = linear.Map.of(layer)
        return linear.patches(own, images, positions, linear.places_of(own, images))

    outputs = layer(images).numpy()
    if layer.use_bias:
        outputs -= layer.bias.numpy()
    outputs = outputs.reshape(-1, outputs.shape[-1])
    positions = rng.permutation(len(outputs)).astype(np.int32)
    patches = of(images, positions).numpy()
    elements, groups, channels = linear.factors(linear.Map.of(layer))
    kernel = layer.kernel.numpy().reshape(elements, groups, channels)
    found = np.einsum("nqg,qgc->ngc", patches, kernel).reshape(-1, groups * channels)
    np.testing.assert_allclose(found, outputs[positions], rtol=1e-4, atol=1e-5)


def test_patches_of_channels_first(rng):
    images = rng.normal(size=(2, 5, 6, 4)).astype("float32")
    positions = tf.constant([0, 7, 35, 59, 3])
    found = []
    for data_format, shape in (("channels_last", (0, 1, 2, 3)), ("channels_first", (0, 3, 1, 2))):
        layer = keras.layers.Conv2D(6, 3, padding="same", data_format=data_format)
        turned = tf.transpose(images, shape)
        layer.build(turned.shape)
        own = linear.Map.of(layer)
        found.append(linear.patches(own, turned, positions, linear.places_of(own, turned)))
    np.testing.assert_array_equal(*found)
