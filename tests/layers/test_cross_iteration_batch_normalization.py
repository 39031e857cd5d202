"""CBN against its oracle around every kind of layer, and against the official record."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import references
from tests.functional.test_references import GOLDENS
from tests.layers import running
from tfnorm import functional
from tfnorm.layers import BatchNormalization, CrossIterationBatchNormalization

STEPS = 6
OPTIONS = {"use_bias": False, "dtype": "float64"}


def conv(rank, filters, size, **kwargs):
    """(layer, its oracle, kernel shape of one channel group)."""
    kind = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}[rank]
    names = {"strides": "strides", "padding": "padding", "groups": "groups"}
    names["dilation_rate"] = "dilation"
    oracle = references.Convolution(size, **{names[k]: v for k, v in kwargs.items()})
    return lambda dtype: kind(filters, size, use_bias=False, dtype=dtype, **kwargs), oracle


def depthwise(rank, size, channels, **kwargs):
    kind = {1: keras.layers.DepthwiseConv1D, 2: keras.layers.DepthwiseConv2D}[rank]
    multiplier = kwargs.get("depth_multiplier", 1)
    del multiplier
    oracle = references.Convolution(
        size, kwargs.get("strides", 1), kwargs.get("padding", "valid"), 1, channels
    )
    return lambda dtype: kind(size, use_bias=False, dtype=dtype, **kwargs), oracle


LAYERS = {
    "conv1d": (*conv(1, 4, (3,), strides=2, padding="same"), (4, 7, 3)),
    "conv1d_dilated": (*conv(1, 4, (2,), dilation_rate=2), (4, 6, 3)),
    "conv2d": (*conv(2, 4, (3, 2), padding="same"), (4, 4, 3, 2)),
    "conv2d_strided": (*conv(2, 3, (3, 3), strides=(2, 2), padding="same"), (4, 6, 5, 2)),
    "conv2d_pointwise": (*conv(2, 5, (1, 1), strides=(2, 2)), (4, 4, 4, 3)),
    "conv2d_of_positions": (*conv(2, 5, (1, 1)), (3, 2, 4, 3)),
    "conv2d_dilated": (*conv(2, 3, (2, 2), padding="same", dilation_rate=(2, 2)), (4, 5, 4, 2)),
    "conv2d_grouped": (*conv(2, 6, (2, 2), groups=2), (4, 4, 4, 4)),
    "conv3d": (*conv(3, 3, (2, 2, 2), padding="same"), (4, 3, 2, 3, 2)),
    "depthwise1d": (*depthwise(1, (3,), 4, padding="same"), (4, 5, 4)),
    "depthwise2d": (*depthwise(2, (2, 3), 3, depth_multiplier=2, padding="same"), (4, 4, 3, 3)),
    "dense": (
        lambda dtype: keras.layers.Dense(4, use_bias=False, dtype=dtype),
        references.Convolution(),
        (6, 5),
    ),
    "dense_on_images": (
        lambda dtype: keras.layers.Dense(3, use_bias=False, dtype=dtype),
        references.Convolution(),
        (4, 3, 2, 4),
    ),
}


def run(rng, layer_name, dtype, virtual_replicas=1, masked=False, change=0.3, **options):
    """Trains the layer and its oracle under a kernel that changes.

    Returns the layer, and whether the past ever had ν < μ² under the present kernel.
    """
    make, convolution, shape = LAYERS[layer_name]
    layer = CrossIterationBatchNormalization(
        make(dtype), momentum=0.9, virtual_replicas=virtual_replicas, dtype=dtype, **options
    )
    layer.build(shape)
    running.randomize(layer, rng)
    for variable in layer.non_trainable_variables:
        if variable.name.startswith("past"):
            variable.assign(tf.zeros_like(variable))  # an empty history
    reference = references.CrossIterationBatchNormalization(
        convolution,
        *running.common(layer),
        **running.options(layer),
        window=options.get("window", 8),
        burn_in_steps=options.get("burn_in_steps", 0),
        compensate=options.get("compensate", True),
        gradient=options.get("gradient", "current"),
        sampled_positions=options.get("sampled_positions"),
    )
    train, tolerance = running.trainer(layer), running.TOLERANCE[dtype]
    kernel_shape = layer.layer.kernel.shape
    is_depthwise = layer_name.startswith("depthwise")
    flat = (*kernel_shape[:-2], 1, -1) if is_depthwise else kernel_shape
    output_shape = layer.compute_output_shape(shape)
    is_max_met = False
    for step in range(STEPS):
        kernel = running.number(layer.layer.kernel)
        x = rng.normal(0.5, 1, shape)
        _, dy, mask = running.data(rng, output_shape, masked=masked)
        past = reference._past(0, kernel.reshape(flat))
        is_max_met |= any(np.any(square < mean**2) for mean, square in past)
        wanted = reference.step(x, kernel.reshape(flat), dy, mask)
        y, dx, dgamma, dbeta, dkernel = train(x, dy, mask)
        for name, actual, value in (
            ("y", y, wanted.y),
            ("dx", dx, wanted.dx),
            ("dgamma", dgamma, wanted.dgamma),
            ("dbeta", dbeta, wanted.dbeta),
            ("dkernel", dkernel, wanted.extra["dkernel"].reshape(kernel_shape)),
            ("moving_mean", running.number(layer.moving_mean), reference.moving_mean),
            ("moving_variance", running.number(layer.moving_variance), reference.moving_variance),
        ):
            running.assert_close(actual, value, tolerance, f"{name} of step {step}")
        assert int(layer.step) == step + 1
        layer.layer.kernel.assign(kernel + rng.normal(0, change, kernel_shape))
    return layer, is_max_met


@pytest.mark.parametrize("layer_name", LAYERS)
def test_every_kind_of_layer(rng, layer_name):
    run(rng, layer_name, "float64", window=3)


@pytest.mark.parametrize(
    "dtype, options",
    [
        ("float64", {"window": 8}),
        ("float64", {"window": 4, "virtual_replicas": 2}),
        ("float64", {"window": 3, "gradient": "window"}),
        ("float64", {"window": 3, "gradient": "window", "masked": True, "virtual_replicas": 2}),
        ("float32", {"window": 3, "gradient": "window", "burn_in_steps": 2}),
        ("float64", {"window": 3, "masked": True}),
        ("float64", {"window": 3, "masked": True, "virtual_replicas": 2, "burn_in_steps": 2}),
        ("float64", {"window": 3, "compensate": False, "virtual_replicas": 2}),
        ("float64", {"window": 2, "compensate": False, "burn_in_steps": 3, "masked": True}),
        ("float32", {"window": 4}),
        ("float32", {"window": 3, "virtual_replicas": 2, "burn_in_steps": 1}),
        ("float32", {"window": 3, "masked": True, "compensate": False}),
        ("float64", {"window": 4, "virtual_replicas": 2, "sampled_positions": 5}),
        ("float64", {"window": 3, "masked": True, "virtual_replicas": 2, "sampled_positions": 3}),
        ("float32", {"window": 4, "burn_in_steps": 2, "sampled_positions": 7}),
    ],
)
def test_window_burn_in_masks_and_groups(rng, dtype, options):
    run(rng, "conv2d", dtype, **options)


@pytest.mark.parametrize("layer_name", ["conv1d", "conv2d_grouped", "depthwise2d", "dense"])
def test_every_kind_of_layer_by_samples(rng, layer_name):
    run(rng, layer_name, "float64", window=3, sampled_positions=3)


@pytest.mark.parametrize("virtual_replicas, samples", [(1, 48), (2, 48)])
def test_samples_of_all_positions_are_the_derivative(rng, virtual_replicas, samples):
    """Each once, and each twice."""
    both = {}
    for sampled in (None, samples):
        layer = CrossIterationBatchNormalization(
            keras.layers.Conv2D(4, 3, padding="same", **OPTIONS),
            window=3, sampled_positions=sampled, virtual_replicas=virtual_replicas, dtype="float64",
        )  # fmt: skip
        layer.build((4, 4, 3, 2))
        running.randomize(layer, np.random.default_rng(5))
        for variable in layer.non_trainable_variables[3:]:
            variable.assign(tf.zeros_like(variable))
        train, data = running.trainer(layer), np.random.default_rng(6)
        layer.layer.kernel.assign(data.normal(size=layer.layer.kernel.shape))
        both[sampled] = []
        for _ in range(4):
            both[sampled] += train(data.normal(1, 2, (4, 4, 3, 2)), data.normal(size=(4, 4, 3, 4)))
            layer.layer.kernel.assign_add(data.normal(0, 0.3, layer.layer.kernel.shape))
    for actual, wanted in zip(both[samples], both[None], strict=True):
        running.assert_close(actual, wanted, 1e-9)


@pytest.mark.parametrize("channel_groups", [1, 2])
@pytest.mark.parametrize("few", [True, False])
def test_large_derivatives_and_small_ones_are_used_alike(rng, few, channel_groups):
    """Equations 7 and 8 about the mean, by whichever operations suit the size."""
    mean, variance = rng.normal(size=(2, 3, 2, 4 * channel_groups))
    patch, kernel = (
        rng.normal(size=(3, 2, 6, channel_groups)),
        rng.normal(size=(6, channel_groups, 4)),
    )
    covariance = rng.normal(size=(*patch.shape, 4))
    past = functional.PastMoments(*map(tf.constant, (mean, variance, np.ones((3, 2, 1)))))
    found = functional.compensate(past, *map(tf.constant, (patch, covariance, kernel)), few=few)
    wanted = np.einsum("kbqg,qgc->kbgc", patch, kernel).reshape(mean.shape)
    running.assert_close(found.mean, wanted, 1e-9)
    grown = np.einsum("kbqgc,qgc->kbgc", covariance, kernel).reshape(mean.shape)
    running.assert_close(found.variance, grown - variance - (wanted - mean) ** 2, 1e-9)


def test_nothing_is_estimated_while_the_kernel_stays(rng):
    """Past moments are those of all positions, of channels too that no sample stands for."""
    layer = CrossIterationBatchNormalization(
        keras.layers.Dense(4, **OPTIONS), window=2, sampled_positions=1, momentum=0.0,
        dtype="float64",
    )  # fmt: skip
    batches = rng.normal(1, 2, (2, 40, 5))
    for x in batches:
        layer(x, training=True)
    z = batches @ layer.layer.kernel.numpy()
    running.assert_close(layer.moving_variance, z.reshape(-1, 4).var(0), 1e-9)


def test_the_maximum_of_equation_10_is_met(rng):
    # So far that the second order of ν is larger than the variance.
    _, is_max_met = run(rng, "conv2d_grouped", "float64", window=6, change=2.0)
    assert is_max_met


def test_burn_in_is_batch_normalization(rng):
    layer, _ = run(rng, "conv2d", "float64", window=4, burn_in_steps=STEPS)
    histories = [v for v in layer.non_trainable_variables if v.name.startswith("past_")]
    assert len(histories) == 5
    for history in histories:
        assert not running.number(history).any(), history.name


@pytest.mark.parametrize("virtual_replicas", [1, 2])
def test_window_1_is_batch_normalization(rng, virtual_replicas):
    options = {"virtual_replicas": virtual_replicas, "momentum": 0.9, "dtype": "float64"}
    cross = CrossIterationBatchNormalization(
        keras.layers.Conv2D(4, 2, **OPTIONS), window=1, **options
    )
    convolution, plain = keras.layers.Conv2D(4, 2, **OPTIONS), BatchNormalization(**options)
    x, dy, _ = running.data(rng, (4, 4, 3, 3))
    dy = rng.normal(size=(4, 3, 2, 4))
    cross.build(x.shape)
    running.randomize(cross, rng)
    convolution.build(x.shape)
    plain.build((4, 3, 2, 4))
    plain.set_weights(running.common(cross))
    convolution.kernel.assign(cross.layer.kernel)
    actual = running.trainer(cross)(x, dy)
    z = convolution(x)
    y, dz, dgamma, dbeta = running.trainer(plain)(z, dy)
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(x))
        z = convolution(x)
    kernel = convolution.kernel.value
    dx, dkernel = tape.gradient(z, [x, kernel], output_gradients=tf.constant(dz))
    for a, b in zip(actual, (y, dx, dgamma, dbeta, dkernel)):
        running.assert_close(a, b, 1e-12)
    for name in ("moving_mean", "moving_variance"):
        running.assert_close(
            running.number(getattr(cross, name)), running.number(getattr(plain, name)), 1e-12
        )


def test_causal_convolution_sees_the_padded_input(rng):
    x, dy, _ = running.data(rng, (4, 6, 3))
    dy = dy[..., :2]
    both = []
    for padding in ("causal", "valid"):
        layer = CrossIterationBatchNormalization(
            keras.layers.Conv1D(2, 3, dilation_rate=2, padding=padding, **OPTIONS),
            window=3,
            dtype="float64",
        )
        given = x if padding == "causal" else np.pad(x, [(0, 0), (4, 0), (0, 0)])
        layer.build(given.shape)
        running.randomize(layer, np.random.default_rng(5))
        train = running.trainer(layer)
        both.append([train(given * scale, dy) for scale in (1, 2, 3)])
    for causal, valid in zip(*both):
        for index, (a, b) in enumerate(zip(causal, valid)):
            running.assert_close(a, b[:, 4:] if index == 1 else b, 1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_official_record(dtype):
    record = np.load(GOLDENS / "cbn_official.npz")
    config = json.loads(str(record["config"]))
    layer = CrossIterationBatchNormalization(
        keras.layers.Conv2D(
            config["channels"], config["kernel_size"], padding="same", use_bias=False, dtype=dtype
        ),
        window=config["window"],
        burn_in_steps=config["burn_in_steps"],
        epsilon=config["epsilon"],
        dtype=dtype,
    )
    layer.build(record["x"][0].shape)
    layer.gamma.assign(record["gamma"])
    layer.beta.assign(record["beta"])
    layer.layer.kernel.assign(record["kernel_0"])
    train, tolerance = running.trainer(layer), running.TOLERANCE[dtype]
    for t, (x, dy) in enumerate(zip(record["x"], record["dy"]), 1):
        results = train(x, dy)
        for name, actual in zip(("y", "dx", "dgamma", "dbeta", "dkernel"), results):
            running.assert_close(actual, record[f"{name}_{t}"], tolerance, f"{name} {t}")
        layer.layer.kernel.assign_sub(config["learning_rate"] * results[-1])


@pytest.mark.parametrize(
    "layer, message",
    [
        (
            keras.layers.Conv2D(4, 3, name="convolve"),
            "CrossIterationBatchNormalization wraps a layer without bias: its statistics follow "
            "the kernel only because the output is linear in it, and β does the work of a bias. "
            "Received: use_bias=True in 'convolve'. Give use_bias=False.",
        ),
        (
            keras.layers.Conv2D(4, 3, activation="relu", use_bias=False, name="convolve"),
            "CrossIterationBatchNormalization normalizes between the layer and its activation. "
            "Received: activation='relu' in 'convolve'. Give no activation, and apply it to the "
            "output.",
        ),
        (
            keras.layers.Flatten(name="flat"),
            "CrossIterationBatchNormalization wraps Conv1D, Conv2D, Conv3D, DepthwiseConv1D, "
            "DepthwiseConv2D, Dense. Received: <Flatten name=flat, built=False>. Give one of "
            "these, or use another normalizer after this layer.",
        ),
    ],
)
def test_layers_that_it_cannot_wrap(layer, message):
    with pytest.raises(ValueError) as error:
        CrossIterationBatchNormalization(layer)
    assert str(error.value) == message


@pytest.mark.parametrize("window, bound", [(0, "at least 1"), (100000, "at most 65536")])
def test_windows_out_of_bounds(window, bound):
    with pytest.raises(ValueError) as error:
        CrossIterationBatchNormalization(keras.layers.Dense(3, use_bias=False), window=window)
    assert str(error.value) == (
        f"window must be {bound}, the number of steps averaged. Received: {window}."
    )


def test_the_gradient_of_the_window_is_that_of_batch_normalization_by_its_moments(rng):
    """Where all steps are equal, the window's moments are the batch's: the same as BN; not so the
    paper's, whose share of the gradient is a third."""
    x, dy = rng.normal(size=(4, 5)), rng.normal(size=(4, 3))
    results = {}
    for gradient, window in (("window", 3), ("current", 3), ("current", 1)):
        layer = CrossIterationBatchNormalization(
            keras.layers.Dense(3, **OPTIONS), window=window, gradient=gradient, dtype="float64"
        )
        layer.build(x.shape)
        layer.layer.kernel.assign(np.arange(15).reshape(5, 3) % 4 - 1.0)
        train = running.trainer(layer)
        results[gradient, window] = [train(x, dy) for _ in range(3)][-1]
    for name, a, b in zip(("y", "dx"), results["window", 3], results["current", 1]):
        running.assert_close(a, b, 1e-9, name)
    assert np.abs(results["current", 3][1] - results["current", 1][1]).max() > 0.01


def test_gradient_of_another_name():
    with pytest.raises(ValueError) as error:
        CrossIterationBatchNormalization(keras.layers.Dense(3, use_bias=False), gradient="all")
    assert str(error.value).startswith(
        """gradient must be "current" or "window". Received: 'all'."""
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"sampled_positions": 0},
            "sampled_positions must be at least 1, of each step; None takes all of them. "
            "Received: 0.",
        ),
        (
            {"sampled_positions": 2.5},
            "sampled_positions must be a whole number from 1, of each step; None takes all of "
            "them. Received: 2.5.",
        ),
        (
            {"sampled_positions": 8, "compensate": False},
            "sampled_positions are those that the compensation is estimated from, and "
            "compensate=False leaves it out. Received: sampled_positions=8. Give one of the two.",
        ),
    ],
)
def test_sampled_positions_that_cannot_be(options, message):
    with pytest.raises(ValueError) as error:
        CrossIterationBatchNormalization(keras.layers.Dense(3, use_bias=False), **options)
    assert str(error.value) == message


def test_axis_of_something_else():
    layer = CrossIterationBatchNormalization(
        keras.layers.Dense(3, use_bias=False, name="dense"), axis=1
    )
    with pytest.raises(ValueError) as error:
        layer.build((2, 4, 5))
    assert str(error.value) == (
        "axis must be the channel axis of the wrapped layer's output, -1 for 'dense'. "
        "Received: axis=1."
    )


def test_what_no_output_sees_enters_no_state(rng):
    strided = keras.layers.Conv2D(6, 1, 2, **OPTIONS)
    layer = CrossIterationBatchNormalization(strided, window=3, dtype="float64")
    images = rng.normal(size=(3, 4, 6, 6, 4))
    images[0, 0, 1, 1, 0] = np.inf  # The kernel of 1×1 and stride 2 sees even places alone.
    for batch in images:
        assert np.isfinite(layer(batch, training=True)).all()
    for variable in layer.variables:
        assert np.isfinite(running.number(variable)).all(), variable.name


@pytest.mark.parametrize("length, is_graph", [(12, False), (None, False), (12, True), (None, True)])
@pytest.mark.parametrize(
    "options, keeps",
    [
        ({"padding": "same"}, True),
        ({"padding": "causal"}, True),
        ({"padding": "valid"}, False),
        ({"padding": "same", "strides": 2}, False),
    ],
)
def test_a_mask_that_inputs_carry(rng, options, keeps, length, is_graph):
    """It is that of the outputs where these stand at the same positions."""
    convolve = keras.layers.Conv1D(4, 3, use_bias=False, name="convolve", **options)
    layer = CrossIterationBatchNormalization(convolve, window=3, momentum=0.0, name="cbn")
    tokens = keras.Input((length,), dtype="int32")
    embedded = keras.layers.Embedding(20, 6, mask_zero=True)(tokens)
    model = keras.Model(tokens, layer(embedded))
    x = rng.integers(1, 20, (5, 12)).astype(np.int32)
    x[:, 9:] = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if is_graph:
            signature = [tf.TensorSpec((None, length), tf.int32)]
            tf.function(lambda x: model(x, training=True), input_signature=signature)(x)
        else:
            model(x, training=True)
    messages = [str(warning.message) for warning in caught if "'cbn'" in str(warning.message)]
    is_late = length is None and is_graph  # Only the run tells whose mask it is.
    assert (
        messages == []
        if keeps or is_late
        else messages
        == [
            "'cbn' takes no notice of the mask that its inputs carry, because its layer 'convolve' "
            f"has other positions in its output (padding={options['padding']!r}, "
            f"strides={convolve.strides}). Give mask=, of the positions of the output."
        ]
    )
    seen = convolve(model.layers[1](x)).numpy()
    seen = seen[:, :9] if keeps else seen
    running.assert_close(layer.moving_mean, seen.mean((0, 1)), 1e-5)
    mask = layer.compute_mask(embedded, x > 0)
    assert (mask is not None) == keeps


@pytest.mark.parametrize("length", [12, None])
def test_a_mask_of_outputs_beside_one_that_inputs_carry(rng, length):
    convolve = keras.layers.Conv1D(4, 3, use_bias=False)
    layer = CrossIterationBatchNormalization(convolve, window=3, momentum=0.0)
    behind = BatchNormalization(momentum=0.0)
    tokens = keras.Input((length,), dtype="int32")
    embedded = keras.layers.Embedding(20, 6, mask_zero=True)(tokens)
    given = keras.Input((None if length is None else length - 2,), dtype="bool")
    model = keras.Model([tokens, given], behind(layer(embedded, mask=given)))
    x = rng.integers(0, 20, (5, 12)).astype(np.int32)
    mask = rng.random((5, 10)) < 0.6
    specs = [tf.TensorSpec((None, length), tf.int32), tf.TensorSpec(given.shape, tf.bool)]
    run = tf.function(lambda x, mask: model([x, mask], training=True), input_signature=specs)
    run(x, mask)
    seen = convolve(model.layers[1](x)).numpy()
    running.assert_close(layer.moving_mean, seen[mask].mean(0), 1e-5)
    # The mask goes on to the layers behind, if it is known to be one of the outputs.
    goes_on = mask if length else np.ones_like(mask)
    deviation = np.sqrt(running.number(layer.moving_variance) + layer.epsilon)
    normalized = (seen - running.number(layer.moving_mean)) / deviation
    running.assert_close(behind.moving_variance, normalized[goes_on].var(0), 1e-4)


def test_many_layers_called_eagerly_raise_no_warning_of_traces(rng, caplog):
    x = tf.constant(rng.normal(size=(2, 5)), tf.float32)
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        for width in range(1, 8):
            layer = CrossIterationBatchNormalization(keras.layers.Dense(width, use_bias=False))
            for _ in range(2):
                layer(x, training=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert not [text for text in caplog.messages if "retracing" in text]


@pytest.mark.parametrize("mode", [lambda f: f, tf.function], ids=["eager", "function"])
@pytest.mark.parametrize("options", [{}, {"virtual_replicas": 2}, {"masked": True}])
@pytest.mark.parametrize("layer_name", ["conv2d_square", "dense", "conv2d_grouped"])
def test_samples_of_no_example_change_nothing(rng, layer_name, options, mode):
    """As a replica has it for which no example of the last batch is left."""
    # Of no image, oneDNN's convolution has the shape of its input.
    square = (*conv(2, 2, (3, 2), padding="same"), (4, 4, 3, 2))
    make, _, shape = square if layer_name == "conv2d_square" else LAYERS[layer_name]
    is_masked = options.get("masked", False)
    groups = options.get("virtual_replicas", 1)
    layer = CrossIterationBatchNormalization(
        make("float32"), window=3, sampled_positions=4, virtual_replicas=groups
    )
    x = tf.constant(rng.normal(size=shape), tf.float32)
    layer(x, training=True)
    # No static size, as of the last batch of a data set.
    spec = tf.TensorSpec([None, *shape[1:]], tf.float32)

    def step(x):
        mask = tf.ones(tf.shape(layer.layer(x))[:-1], tf.bool) if is_masked else None
        return layer(x, training=True, mask=mask)

    run = step if mode is not tf.function else tf.function(step, input_signature=[spec])
    run(x)
    before = [v.numpy() for v in layer.non_trainable_variables if v.name != "step"]
    assert run(x[:0]).shape[0] == 0
    after = [v.numpy() for v in layer.non_trainable_variables if v.name != "step"]
    for new, old in zip(after, before, strict=True):
        np.testing.assert_array_equal(new, old)
    run(x)
    assert any(
        not np.array_equal(v.numpy(), old)
        for v, old in zip([v for v in layer.non_trainable_variables if v.name != "step"], before)
    )


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_a_quantized_layer_trains_where_its_kernel_is_not_needed_and_infers(rng, mode):
    x = rng.normal(1, 1, size=(64, 4)).astype("float32")
    for options, is_refused in (({}, True), ({"compensate": False}, False), ({"window": 1}, False)):
        layer = CrossIterationBatchNormalization(
            keras.layers.Dense(6, use_bias=False), momentum=0.5, **{"window": 4, **options}
        )
        model = keras.Sequential([keras.Input((4,)), layer])
        for _ in range(6):
            model(x, training=True)
        model.quantize(mode)
        if is_refused and mode != "float8":
            with pytest.raises(ValueError, match="was quantized: past statistics cannot be brou"):
                model(x, training=True)
        else:
            for _ in range(8):
                model(x, training=True)
        z = layer.layer(x).numpy()
        np.testing.assert_allclose(layer.moving_mean, z.mean(0), atol=0.3)
        y = (z - layer.moving_mean) / np.sqrt(layer.moving_variance + layer.epsilon)
        np.testing.assert_allclose(model(x), y * layer.gamma + layer.beta, atol=1e-5)
