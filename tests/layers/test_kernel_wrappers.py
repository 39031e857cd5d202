"""Weight standardization, and what all wrappers of kernels leave as their layer has it."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import references
from tests.layers import running
from tfnorm.functional import standardize
from tfnorm.layers import WeightCentralization, WeightStandardization, weight_centralization

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
WRAPPERS = {
    WeightCentralization: references.centralize,
    WeightStandardization: references.standardize,
}


def test_weight_standardization_gives_the_official_record():
    record = np.load(GOLDENS / "ws_official.npz")
    convolution = keras.layers.Conv2D(5, 3, use_bias=False, dtype="float64")
    layer = WeightStandardization(convolution, dtype="float64")
    x = tf.constant(record["x"])
    layer.build(x.shape)
    convolution.kernel.assign(record["kernel"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    dkernel, dx = tape.gradient(y, [convolution.kernel.value, x], record["dy"])
    for key, actual in (("y", y), ("dkernel", dkernel), ("dx", dx)):
        np.testing.assert_allclose(actual, record[key], 1e-9, 1e-9, err_msg=key)
    np.testing.assert_allclose(layer.effective_kernel(), record["standardized"], 1e-9)


@pytest.mark.parametrize(
    "make, shape, by_channel",
    [
        (lambda: keras.layers.Conv1D(4, 3), (2, 6, 3), (-1,)),
        (lambda: keras.layers.Conv2DTranspose(4, 2), (2, 3, 3, 5), (-2,)),
        (lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (2, 5, 5, 3), (-2, -1)),
        (lambda: keras.layers.Dense(4), (3, 6), (-1,)),
    ],
)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_kind_of_layer(rng, wrapper, make, shape, by_channel):
    layer, plain = wrapper(make()), make()
    for each in (layer, plain):
        each.build(shape)
    kernel, bias = (rng.normal(size=v.shape) for v in plain.variables)
    layer.layer.set_weights([kernel, bias])
    wanted = WRAPPERS[wrapper](kernel, by_channel)
    plain.set_weights([wanted, bias])
    x = tf.constant(rng.normal(1, 1, shape), tf.float32)
    running.assert_close(layer(x).numpy(), plain(x).numpy(), 1e-5)
    running.assert_close(layer.effective_kernel(), wanted, 1e-6)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: keras.layers.Conv2D(16, 3, strides=2, padding="same"), (1, 4, 4, 16)),
        (lambda: keras.layers.Conv1D(16, 3, dilation_rate=2, padding="same"), (1, 4, 16)),
        (lambda: keras.layers.Conv3D(9, 2), (1, 3, 2, 2, 8)),
    ],
)
def test_kernels_that_are_larger_than_images(rng, make, shape, monkeypatch):
    """Centralized without writing a kernel: as with one, in derivatives of both orders."""
    layer = WeightCentralization(make())
    layer.build(shape)
    kernel, bias = (rng.normal(1, 1, v.shape) for v in layer.layer.variables)
    layer.layer.set_weights([kernel, bias])
    x = tf.constant(rng.normal(1, 1, shape), tf.float32)

    def derivatives():
        sources = [x, *layer.trainable_variables]
        with tf.GradientTape() as outer, tf.GradientTape() as tape:
            outer.watch(x)
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(weights[: y.shape[-1]] * y**2)
            first = tape.gradient(loss, sources)
            penalty = tf.add_n([tf.reduce_sum(value**2) for value in first])
        return [y, *first, *outer.gradient(penalty, sources)]

    weights = tf.constant(rng.normal(size=16), tf.float32)
    calls = []
    split = weight_centralization.with_mean
    monkeypatch.setattr(
        weight_centralization, "with_mean", lambda *args: calls.append(args) or split(*args)
    )
    found = derivatives()
    assert len(calls) == 1
    monkeypatch.setattr(weight_centralization, "_MUCH_LARGER", np.inf)
    for ours, plain in zip(found, derivatives(), strict=True):
        running.assert_close(ours.numpy(), plain.numpy(), 1e-5)
    assert len(calls) == 1


def test_gradients_of_standardization(rng):
    """Of the first and the second order, by complex steps and by differences."""
    kernel, weights = rng.normal(1, 2, (3, 2, 4)), rng.normal(size=(3, 2, 4))

    def loss(kernel):
        return np.sum(references.standardize(kernel) ** 3 * weights)

    def gradient(kernel):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            total = tf.reduce_sum(standardize(kernel, (0, 1)) ** 3 * weights)
        return tape.gradient(total, kernel)

    wanted = references.complex_gradient(loss, kernel)
    np.testing.assert_allclose(gradient(tf.constant(kernel)), wanted, 1e-10, 1e-12)
    direction = rng.normal(size=kernel.shape)
    with tf.GradientTape() as tape:
        given = tf.constant(kernel)
        tape.watch(given)
        along = tf.reduce_sum(gradient(given) * direction)
    ahead, behind = (
        references.complex_gradient(loss, kernel + sign * 1e-6 * direction) for sign in (1, -1)
    )
    np.testing.assert_allclose(tape.gradient(along, given), (ahead - behind) / 2e-6, 1e-5, 1e-6)


def test_a_kernel_of_equal_elements_is_zero_and_has_a_gradient():
    kernel = tf.fill([3, 3, 2, 4], 0.5)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        total = tf.reduce_sum(standardize(kernel, (0, 1, 2)))
    np.testing.assert_allclose(standardize(kernel, (0, 1, 2)), tf.zeros_like(kernel))
    assert np.isfinite(tape.gradient(total, kernel)).all()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_low_rank_adapters_count_once(rng, wrapper):
    layer = wrapper(keras.layers.Dense(4))
    layer.build((2, 6))
    layer.layer.enable_lora(2)
    for variable in layer.layer.variables:
        variable.assign(rng.normal(size=variable.shape))
    x = tf.constant(rng.normal(size=(2, 6)), tf.float32)
    kernel = WRAPPERS[wrapper](keras.ops.convert_to_numpy(layer.layer.kernel))
    with tf.GradientTape() as tape:
        y = layer(x)
    running.assert_close(y.numpy(), x.numpy() @ kernel + layer.layer.bias.numpy(), 1e-5)
    trained = [v.value for v in layer.trainable_variables]
    assert len(trained) == 3  # both factors and the bias
    assert all(np.abs(gradient).max() > 0.01 for gradient in tape.gradient(y, trained))


@pytest.mark.parametrize("mode", [lambda f: f, tf.function], ids=["eager", "function"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_activity_regularizers_count(rng, wrapper, mode):
    layer = wrapper(keras.layers.Conv2D(4, 3, activity_regularizer=keras.regularizers.L2(0.1)))
    inputs = keras.Input((5, 5, 3))
    model = keras.Model(inputs, layer(inputs))
    x = tf.constant(rng.normal(size=(2, 5, 5, 3)), tf.float32)

    def run(x):
        y = model(x, training=True)
        return y, tf.add_n(model.losses)

    y, loss = mode(run)(x)
    # Keras divides by the batch.
    np.testing.assert_allclose(loss, 0.1 * np.sum(y.numpy() ** 2) / 2, 1e-5)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_stateless_calls_take_the_values_that_they_are_given(rng, wrapper):
    layer = wrapper(keras.layers.Dense(4))
    layer.build((2, 6))
    kernel, bias = rng.normal(size=(6, 4)), rng.normal(size=4)
    x = rng.normal(size=(2, 6)).astype("float32")
    before = layer.get_weights()
    given = [tf.constant(v, tf.float32) for v in (kernel, bias)]
    y, _ = layer.stateless_call(given, [], x)
    running.assert_close(y.numpy(), x @ WRAPPERS[wrapper](kernel) + bias, 1e-5)
    for value, old in zip(layer.get_weights(), before):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_quantized_layer_is_refused(rng, wrapper):
    """Its kernel would be that of the transform of whole numbers, whose scale nobody knows."""
    inputs = keras.Input((8,))
    model = keras.Model(inputs, wrapper(keras.layers.Dense(4))(inputs))
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"was quantized, .* Quantize the model without"):
        model(rng.normal(size=(2, 8)))


def test_what_is_no_linear_layer_is_refused():
    with pytest.raises(ValueError) as error:
        WeightStandardization(keras.layers.Flatten(name="flat"))
    assert str(error.value).startswith("WeightStandardization wraps Conv1D, Conv2D, Conv3D, Dense")
