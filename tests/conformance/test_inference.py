"""Inference is one formula and touches nothing, for every normalizer of the registry."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import networks
from tests.layers import running

MODES = {
    "eager": lambda f: f,
    "function": tf.function,
    "xla": lambda f: tf.function(f, jit_compile=True),
}


def trained(name):
    """The network after some steps, and the input of each of its normalizers' outputs."""
    model = networks.network(name)
    train = networks.Trainer(model, "function")
    for step in range(2):
        train(*networks.batch(step))
    return model


@pytest.mark.parametrize("name", networks.AFFINE)
def test_inference_is_the_formula_that_the_layer_says_it_is(name):
    model = trained(name)
    layer = networks.normalizing_layers(model)[0]
    rng = np.random.default_rng(1)
    for variable in (layer.gamma, layer.beta, layer.moving_mean):
        variable.assign(rng.normal(size=variable.shape))
    layer.moving_variance.assign(rng.uniform(0.2, 3, layer.moving_variance.shape))
    gamma, beta, mean, variance = running.common(layer)
    expected = gamma / np.sqrt(variance + layer.epsilon)
    scale, offset = layer.inference_scale_and_offset()
    assert scale.dtype == offset.dtype == np.float64
    np.testing.assert_allclose(scale, expected, 1e-12)
    np.testing.assert_allclose(offset, beta - mean * expected, 1e-12)

    x = (
        tf.constant(rng.normal(1, 4, layer.input.shape[1:])[None], tf.float32)
        if not (isinstance(layer.input, list))
        else tf.constant(rng.normal(1, 2, (1, 4, 4, layer.channels)), tf.float32)
    )
    z = layer.layer(x) if hasattr(layer, "layer") else x
    wanted = z.numpy() * scale + offset
    if hasattr(layer, "inference_bound"):
        bound = layer.inference_bound()
        assert np.max(np.abs(wanted)) > bound
        wanted = np.clip(wanted, -bound, bound)
    for mode in MODES.values():
        y = mode(lambda x: layer(x, training=False))(x)
        running.assert_close((y[0] if isinstance(y, tuple) else y).numpy(), wanted, 1e-5)


@pytest.mark.parametrize("name", networks.norms.NAMES)
def test_inference_touches_no_state(name):
    model = trained(name)
    before = networks.values(model)
    x, _ = networks.batch(5)
    for call in (
        lambda: model(x, training=False),
        lambda: model(x),
        lambda: model.predict(x, verbose=0),
    ):
        call()
    networks.assert_identical(networks.values(model), before)


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_frozen_is_inference(name):
    model = trained(name)
    x, dy = networks.batch(5)
    inferred = model(x, training=False)
    model.trainable = False
    before = networks.values(model)
    np.testing.assert_array_equal(model(x, training=True), inferred)
    networks.assert_identical(networks.values(model), before)
    model.trainable = True
    networks.Trainer(model)(x, dy)
    after = networks.values(model)
    assert all(
        not np.array_equal(after[name], before[name])
        for name in after
        if name.endswith("moving_variance")
    )


@pytest.mark.parametrize("name", sorted(set(networks.NORMALIZERS) - set(networks.OF_EXAMPLES)))
def test_gradients_of_inference(name):
    """A frozen normalizer in training is an affine map with its gradients."""
    model = trained(name)
    layer = networks.normalizing_layers(model)[0]
    shape = (2, 4, 4, networks.CHANNELS if hasattr(layer, "layer") else layer.channels)
    rng = np.random.default_rng(2)
    x, dy = tf.constant(rng.normal(size=shape), tf.float32), rng.normal(size=(2, 4, 4, 5))
    scale, _ = layer.inference_scale_and_offset()
    with tf.GradientTape() as tape:
        z = layer.layer(x) if hasattr(layer, "layer") else tf.identity(x)
        tape.watch(z)
        y = layer.normalize_for_inference(z)
    dz = tape.gradient(y, z, output_gradients=tf.constant(dy, tf.float32))
    running.assert_close(dz.numpy(), dy * scale, 1e-5)


@pytest.mark.parametrize("name", sorted(set(networks.NORMALIZERS) - set(networks.AFFINE)))
def test_what_is_no_affine_map_says_so(name):
    layer = networks.normalizing_layers(networks.network(name))[0]
    assert layer.inference_scale_and_offset() is None
