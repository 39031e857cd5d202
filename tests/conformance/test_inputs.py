"""Ranks, axes, masks and batches that do not fit, for every normalizer of the registry."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import networks
from tests.conformance.test_robustness import Single
from tests.layers import running
from tfnorm.layers import norms
from tfnorm.layers.base import ChannelNormalization

DIRECT = tuple(
    name
    for name in networks.NORMALIZERS
    if "layer" not in norms.get(name).layer_class.__init__.__annotations__
)


def call(layer, x, **kwargs):
    """y of a layer that may also return a state."""
    y = layer(x, **kwargs)
    return y[0] if isinstance(y, tuple) else y


def dense_network(name, shape, **options):
    """A dense layer, so that every rank is possible, and its normalizer."""
    inputs = keras.Input(batch_shape=shape)
    dense = keras.layers.Dense(3, use_bias=False, kernel_initializer="orthogonal")
    y, _ = norms.get(name, **options)(dense, inputs, None)
    return keras.Model(inputs, y)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("name", norms.NAMES)
def test_every_rank_is_the_same_mathematics(name, rank):
    """Positions are positions: one batch in all ranks gives one result where it must."""
    rng = np.random.default_rng(3)
    x = rng.normal(1, 2, (8, 4)).astype(np.float32)
    shape = {2: (8, 4), 3: (4, 2, 4), 4: (2, 2, 2, 4), 5: (2, 2, 1, 2, 4)}[rank]
    keras.utils.set_random_seed(1)
    flat = dense_network(name, x.shape)
    shaped = dense_network(name, shape)
    shaped.set_weights(flat.get_weights())
    y = shaped(x.reshape(shape), training=True)
    assert y.shape == (*shape[:-1], 3)
    if name in networks.NORMALIZERS and name not in networks.OF_EXAMPLES:
        running.assert_close(y.numpy().reshape(8, 3), flat(x, training=True), 1e-5)
        for a, b in zip(shaped.get_weights(), flat.get_weights()):
            running.assert_close(a, b, 1e-5)


@pytest.mark.parametrize("axis", [1, 2, -1, -2, -3])
@pytest.mark.parametrize("name", DIRECT)
def test_every_axis_is_a_transposition(name, axis):
    rng = np.random.default_rng(4)
    x = rng.normal(1, 2, (4, 3, 2, 5))
    layer_class, options = norms.get(name).layer_class, norms.get(name).defaults
    results = []
    for which in (axis, -1):
        layer = layer_class(axis=which, virtual_replicas=2, dtype="float64", **options)
        moved = np.moveaxis(x, axis, -1) if which == -1 else x
        layer.build(moved.shape)
        running.randomize(layer, np.random.default_rng(5))
        y = call(layer, tf.constant(moved), training=True)
        results.append(np.moveaxis(y, axis, -1) if which != -1 else y)
    running.assert_close(*map(np.asarray, results), 1e-12)


@pytest.mark.parametrize("shape", [(4, 5, 3), (4,), (4, 2), (5, 4)])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_a_mask_of_another_shape(name, shape):
    layer = networks.normalizing_layers(dense_network(name, (4, 5, 2)))[0]
    x = tf.random.normal(layer.input.shape if not isinstance(layer.input, list) else (4, 5, 3))
    with pytest.raises(ValueError) as error:
        layer(x, training=True, mask=tf.ones(shape, tf.bool))
    assert (
        "the mask must have one dimension less than the inputs: their shape without the channel "
        f"axis. Received: mask.shape={shape}, inputs.shape=(4, 5, 3)." in str(error.value)
    )


@pytest.mark.parametrize("name", sorted(set(networks.NORMALIZERS) - {"syncbn"}))
def test_a_batch_that_virtual_replicas_do_not_divide(name):
    model = dense_network(name, (None, 2), virtual_replicas=3)
    message = (
        "the batch must be divisible by the number of virtual replicas. Received a batch of 4 and "
        "virtual_replicas=3. Choose a batch that is a multiple of it."
    )
    with pytest.raises(ValueError) as error:
        model(tf.random.normal([4, 2]), training=True)
    assert message in str(error.value)

    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def run(x):
        return model(x, training=True)

    run(tf.random.normal([6, 2]))
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        run(tf.random.normal([4, 2]))
    words = [word.strip("[]") for word in str(error.value).replace("\n", " ").split()]
    assert message in " ".join(words)
    # Inference takes every batch.
    model(tf.random.normal([4, 2]), training=False)


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_no_virtual_replicas(name):
    with pytest.raises(ValueError) as error:
        dense_network(name, (4, 2), virtual_replicas=0)
    assert str(error.value) == (
        "virtual_replicas must be at least 1. Received: 0. Give the number of parts that a "
        "training batch is split into."
    )


@pytest.mark.parametrize("name", DIRECT)
def test_an_axis_that_is_not_there(name):
    with pytest.raises(ValueError) as error:
        norms.get(name).layer_class(axis=3).build((4, 5))
    assert str(error.value) == (
        "axis=3 is not an axis of an input of shape (4, 5). Choose the axis of the channels, from "
        "-2 to 1."
    )


@pytest.mark.parametrize("name", DIRECT)
def test_channels_of_unknown_number(name):
    with pytest.raises(ValueError) as error:
        norms.get(name).layer_class(axis=1).build((4, None, 5))
    assert str(error.value) == (
        "the channel axis 1 of the input must have a known size. Received an input of shape "
        "(4, None, 5). Give its size in keras.Input."
    )


def test_all_layers_but_those_that_wrap_are_direct():
    assert set(networks.NORMALIZERS) - set(DIRECT) == {"cbn"}
    assert all(issubclass(norms.get(name).layer_class, ChannelNormalization) for name in DIRECT)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_integers_are_numbers(name, dtype):
    """They are computed with in floats, as in Keras' layer."""
    integers = tf.cast(np.arange(24).reshape(4, 6), dtype)
    layers = [Single(name, (4, 6)).layer for _ in range(2)]
    for training in (True, False):
        y = call(layers[0], integers, training=training)
        wanted = call(layers[1], tf.cast(integers, tf.float32), training=training)
        assert y.dtype == tf.float32
        np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_inputs_that_half_precision_cannot_hold(name, groups, rng):
    """In float32 beyond 65,504, and in float16 with sums that are."""
    options = {"virtual_replicas": groups} if name != "syncbn" else {}
    x = (66_000 + 100 * rng.normal(size=(4, 4, 4, 3))).astype(np.float32)
    if name == "cbn":  # Its convolution has a dtype of its own.
        x -= 30_000
    for given, tolerance in ((x, 1e-2), ((x - 30_000).astype(np.float16), 2e-2)):
        half, single = (
            Single(name, x.shape, dtype=dtype, **options).layer
            for dtype in ("mixed_float16", "float32")
        )
        for training in (True, False):
            y = call(half, tf.constant(given), training=training)
            assert y.dtype == tf.float16
            wanted = call(single, tf.constant(given.astype(np.float32)), training=training)
            fits = np.abs(wanted) < 60_000  # Of inference by statistics of nothing.
            running.assert_close(np.where(fits, y, 0), np.where(fits, wanted, 0), tolerance)
        assert np.isfinite(running.number(half.moving_mean)).all()
        assert np.isfinite(running.number(half.moving_variance)).all()


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 4, 1), (2, 1, 1, 5)])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_a_mask_of_a_broadcastable_shape(name, shape, rng):
    groups = 1 if name == "syncbn" else 2
    x = rng.normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
    mask = rng.random(shape) < 0.6
    mask.flat[0] = True
    results = []
    for given in (mask, np.broadcast_to(mask, x.shape[:-1])):
        layer = Single(name, x.shape, virtual_replicas=groups).layer
        step = tf.function(
            lambda x, mask, layer=layer: call(layer, x, training=True, mask=mask),
            input_signature=[
                tf.TensorSpec([None, 3, 4, 5, 2]),
                tf.TensorSpec([None, *given.shape[1:]], tf.bool),
            ],
        )
        results.append([step(x, given), *map(running.number, layer.non_trainable_variables)])
    for broadcast, whole in zip(*results, strict=True):
        np.testing.assert_array_equal(broadcast, whole)


@pytest.mark.parametrize("name", DIRECT)
def test_rank_1_is_one_position(name, rng):
    vector = rng.normal(size=3).astype(np.float32)
    layers = [Single(name, shape).layer for shape in ((3,), (1, 3))]
    for training in (True, False):
        y = call(layers[0], tf.constant(vector), training=training)
        wanted = call(layers[1], tf.constant(vector[None]), training=training)
        np.testing.assert_allclose(y, wanted[0], 1e-6)


@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_images_of_unknown_size(name, jit_compile, rng):
    """By XLA too, as in Keras' `fit`, whose last batch is smaller."""
    layers = [Single(name, (None, None, None, 3)).layer for _ in range(2)]

    def step(layer, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(layer, x, training=True)
            loss = tf.reduce_sum(tf.sin(y))
        return y, tape.gradient(loss, x)

    spec = tf.TensorSpec([None, None, None, 3])
    of_any = tf.function(
        lambda x: step(layers[0], x), input_signature=[spec], jit_compile=jit_compile
    )
    for shape in ((4, 5, 7, 3), (3, 4, 4, 3), (70, 2, 2, 3)):
        x = tf.constant(rng.normal(size=shape), tf.float32)
        for actual, wanted in zip(of_any(x), step(layers[1], x), strict=True):
            running.assert_close(actual, wanted, 1e-4)


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_ragged_tensors(name, rng):
    """Those of one number of channels, as what they hold; the others by name."""
    values = rng.normal(size=(5, 3)).astype(np.float32)
    ragged = tf.RaggedTensor.from_row_lengths(values, [2, 0, 3])
    layers = [Single(name, shape).layer for shape in ((None, None, 3), (None, 3))]
    if name in ("bkn", "cbn", *networks.OF_EXAMPLES):
        with pytest.raises(ValueError, match=r"takes dense tensors. Received: a ragged tensor"):
            layers[0](ragged, training=True)
        return
    for training in (True, False):
        y = layers[0](ragged, training=training)
        np.testing.assert_array_equal(y.row_lengths(), [2, 0, 3])
        wanted = layers[1](tf.constant(values), training=training)
        np.testing.assert_array_equal(y.flat_values, wanted)
    of_channels = tf.ragged.constant([[[1.0, 2.0], [3.0]]])
    with pytest.raises(ValueError, match="takes a ragged tensor if axis=-1"):
        layers[0].call(of_channels)


# Online normalization's backward pass is not the derivative of its forward pass.
@pytest.mark.parametrize(
    "case", ["plain", "masked", "of a tf.function", "without variance", "of one example"]
)
@pytest.mark.parametrize("name", sorted(set(networks.NORMALIZERS) - {"on"}))
def test_forward_mode(name, case, rng):
    """tf.autodiff.ForwardAccumulator gives the derivative of which the gradient is the adjoint."""
    x, v = (rng.normal(size=(1 if case == "of one example" else 6, 3)) for _ in range(2))
    if case == "without variance":
        x[:, 1] = 0  # as behind a ReLU that lets nothing through
    x, v = (tf.constant(values, tf.float32) for values in (x, v))
    mask = tf.constant([True, True, False, True, True, True]) if case == "masked" else None
    layers = [Single(name, (6, 3)).layer for _ in range(2)]

    def normalize(x):
        return call(layers[0], x, training=True, mask=mask)

    normalize = tf.function(normalize) if case == "of a tf.function" else normalize
    history = getattr(layers[0], "gradient_history", tf.Variable(0.0))
    history.assign(rng.normal(size=history.shape))
    held = running.number(history)
    with tf.autodiff.ForwardAccumulator(x, v) as forward:
        y = normalize(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = call(layers[1], x, training=True, mask=mask)
    wanted = tf.einsum("abcd,cd->ab", tape.jacobian(z, x), v)
    valid = np.ones(len(x), bool) if mask is None else mask.numpy()
    assert np.isfinite(wanted).all()
    running.assert_close(forward.jvp(y).numpy()[valid], wanted.numpy()[valid], 1e-5)
    # Ψ is of a loss, and here is none.
    np.testing.assert_array_equal(running.number(history), held)


@pytest.mark.parametrize("is_graph", [False, True])
def test_forward_mode_of_online_normalization(is_graph, rng):
    """The derivative of its forward pass, by differences."""
    keras.config.set_dtype_policy("float64")
    x, v = (tf.constant(rng.normal(1, 1, size=(4, 3, 2, 3))) for _ in range(2))

    def after(step):
        return Single("on", x.shape).layer(x + step * v, training=True)

    layer = Single("on", x.shape).layer

    def derivative():
        with tf.autodiff.ForwardAccumulator(x, v) as forward:
            y = layer(x, training=True)
        return forward.jvp(y)

    found = tf.function(derivative)() if is_graph else derivative()
    running.assert_close(found, (after(1e-6) - after(-1e-6)) / 2e-6, 1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"momentum": -1}, "momentum must be at least 0: "),
        ({"momentum": 2}, "momentum must be at most 1: "),
        ({"momentum": float("nan")}, "momentum must be a finite number: "),
        ({"momentum": "a"}, "momentum must be a finite number: "),
        ({"epsilon": -1}, "epsilon must be at least 0, "),
        ({"epsilon": None}, "epsilon must be a finite number, "),
        ({"center": 5}, "center must be True or False. "),
        ({"virtual_replicas": 1.5}, "virtual_replicas must be a whole number from 1. "),
        ({"axis": "last"}, "axis must be a whole number"),
    ],
)
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_arguments_out_of_range(name, options, message):
    with pytest.raises(ValueError) as error:
        Single(name, (4, 3), **options)
    assert str(error.value).startswith(message)
    assert f"Received: {next(iter(options.values()))!r}." in str(error.value)


@pytest.mark.parametrize("window", [1.5, 0, None, "a", True, 100_000_000, float("inf")])
@pytest.mark.parametrize("name", ["mabn", "cbn"])
def test_windows_out_of_range(name, window):
    with pytest.raises(ValueError, match=r"^window must be .* Received: "):
        Single(name, (4, 3), window=window)


def test_a_history_larger_than_the_memory():
    with pytest.raises(ValueError, match=r"would take .* GiB of memory, more than the machine's"):
        Single("cbn", (4, 1_000), window=60_000)
