"""MABN against the official record; the centralization of kernels before it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import references
from tests.functional.test_references import GOLDENS
from tests.layers import running
from tfnorm.layers import MovingAverageBatchNormalization, WeightCentralization


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_official_record(dtype):
    """1,060 steps, across the warm-up and the start of the correction."""
    record = np.load(GOLDENS / "mabn_official.npz")
    config = json.loads(str(record["config"]))
    names = ("window", "warmup_steps", "correction_start_step", "correction_limit")
    layer = MovingAverageBatchNormalization(
        momentum=config["momentum"],
        epsilon=config["epsilon"],
        dtype=dtype,
        **{name: config[name] for name in names},
    )
    layer.build(record["x"][0].shape)
    layer.gamma.assign(record["gamma"])
    layer.beta.assign(record["beta"])
    train, tolerance = running.trainer(layer), running.TOLERANCE[dtype]
    for t, (x, dy) in enumerate(zip(record["x"], record["dy"]), 1):
        results = train(x, dy)
        if f"y_{t}" not in record:
            continue
        for name, actual in zip(("y", "dx", "dgamma", "dbeta"), results):
            running.assert_close(actual, record[f"{name}_{t}"], tolerance, f"{name} {t}")
        moving = record[f"moving_second_moment_{t}"]
        running.assert_close(running.number(layer.moving_variance), moving, tolerance, f"{t}")
    assert t == config["steps"]
    assert not running.number(layer.moving_mean).any()
    inferred = layer(tf.constant(record["x"][-1], dtype), training=False)
    running.assert_close(inferred, record["y_inference"], tolerance)


@pytest.mark.parametrize(
    "warmup_steps, window, gradient_window",
    [(0, 3, None), (4, 3, 3), (5, 2, None), (0, 1, None), (0, 3, 1), (2, 1, 4), (3, 2, 4)],
)
def test_the_averages_start_when_all_thresholds_are_behind(
    rng, warmup_steps, window, gradient_window
):
    """From a buffer of random values: one use of it too early or too late is seen."""
    thresholds = {
        "window": window,
        "warmup_steps": warmup_steps,
        "correction_start_step": 2,
        "correction_limit": 1.5,
        "gradient_window": gradient_window,
    }
    layer = MovingAverageBatchNormalization(dtype="float64", **thresholds)
    layer.build((4, 3, 2))
    running.randomize(layer, rng)
    reference = references.MovingAverageBatchNormalization(
        *running.common(layer),
        **running.options(layer),
        **thresholds,
        **running.histories(layer),
    )
    train = running.trainer(layer)
    for step in range(6):
        x, dy, _ = running.data(rng, (4, 3, 2))
        wanted = reference.step(x, dy)
        expected = (wanted.y, wanted.dx, wanted.dgamma, wanted.dbeta)
        for a, b in zip(train(x, dy), expected):
            running.assert_close(a, b, 1e-9, f"step {step + 1}")


@pytest.mark.parametrize("gradient_window", [None, 2])
def test_steps_in_which_a_group_was_empty_count_in_no_average(rng, gradient_window):
    """From the start, and after the warm-up: also a group that has not been there at all."""
    thresholds = {"window": 3, "warmup_steps": 0, "correction_start_step": 100}
    thresholds |= {"correction_limit": 5.0, "gradient_window": gradient_window}
    layer = MovingAverageBatchNormalization(virtual_replicas=3, dtype="float64", **thresholds)
    shape = (6, 4, 2)
    layer.build(shape)
    reference = references.MovingAverageBatchNormalization(
        *running.common(layer), **running.options(layer), **thresholds
    )
    train = running.trainer(layer)
    empty = {0: [1, 2], 1: [1, 2], 2: [2], 3: [2], 4: [0, 2], 5: [1], 6: [], 7: [0]}
    for step, groups in empty.items():
        x, dy, mask = running.data(rng, shape, masked=True)
        for group in groups:
            mask[2 * group : 2 * group + 2] = False
        wanted = reference.step(x, dy, mask)
        defined = running.normalized_positions(mask, -1, 3)
        results = train(x, dy, mask)
        for actual, value in zip(results[:2], (wanted.y, wanted.dx)):
            running.assert_close(
                np.where(defined, actual, 0), np.where(defined, value, 0), 1e-9, f"step {step}"
            )
        running.assert_close(results[2], wanted.dgamma, 1e-9, f"step {step}")
        moving = running.number(layer.moving_variance)
        running.assert_close(moving, reference.moving_variance, 1e-9, f"step {step}")
        weight = running.number(layer.square_weight)[..., 0].tolist()
        if step == 3:  # The average is in use, over all three steps, two, and none.
            assert weight == [[1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert weight == [[1, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_the_gradient_is_not_that_of_the_forward_pass(rng):
    """Negative control: the backward pass is MABN's own, not autodiff's of the outputs."""
    layer = MovingAverageBatchNormalization(window=1, warmup_steps=0, dtype="float64")
    x, dy, _ = running.data(rng, (6, 3))
    layer.build(x.shape)
    running.randomize(layer, rng)
    _, dx, *_ = running.trainer(layer)(x, dy)
    h = 1e-6

    def loss(x):
        layer.step.assign(0)
        return np.sum(layer(tf.constant(x), training=True).numpy() * dy)

    direction = rng.normal(size=x.shape)
    plain = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    # In the warm-up χ̄ is χ_B, and then, and only then, the two agree.
    np.testing.assert_allclose(np.sum(dx * direction), plain, 1e-5)
    layer = MovingAverageBatchNormalization(window=2, warmup_steps=0, dtype="float64")
    layer.build(x.shape)
    running.randomize(layer, rng)
    weights = layer.get_weights()
    weights[-1] = np.array(7)
    layer.set_weights(weights)
    _, dx, *_ = running.trainer(layer)(x, dy)

    def loss_later(x):
        layer.set_weights(weights)
        return np.sum(layer(tf.constant(x), training=True).numpy() * dy)

    plain = (loss_later(x + h * direction) - loss_later(x - h * direction)) / (2 * h)
    assert abs(np.sum(dx * direction) - plain) > 0.01


@pytest.mark.parametrize("option", ["window", "correction_limit"])
def test_arguments_out_of_range(option):
    with pytest.raises(ValueError) as error:
        MovingAverageBatchNormalization(**{option: 0})
    assert (
        str(error.value)
        == {
            "window": "window must be at least 1, the number of steps averaged. Received: 0.",
            "correction_limit": "correction_limit must be at least 1: the correction lies between "
            "its inverse and it. Received: 0.",
        }[option]
    )


# (layer, input shape, axes of the output channels in the kernel)
CENTRALIZED = {
    "conv1d": (lambda: keras.layers.Conv1D(4, 3), (2, 5, 3), (-1,)),
    "conv2d": (lambda: keras.layers.Conv2D(4, 3, padding="same"), (2, 5, 4, 3), (-1,)),
    "grouped": (lambda: keras.layers.Conv2D(4, 2, groups=2), (2, 4, 4, 4), (-1,)),
    "conv3d": (lambda: keras.layers.Conv3D(2, 2), (2, 3, 3, 3, 2), (-1,)),
    "conv1d_transpose": (lambda: keras.layers.Conv1DTranspose(4, 2), (2, 5, 3), (-2,)),
    "conv2d_transpose": (lambda: keras.layers.Conv2DTranspose(4, 2), (2, 4, 4, 3), (-2,)),
    "conv3d_transpose": (lambda: keras.layers.Conv3DTranspose(2, 2), (2, 2, 2, 2, 3), (-2,)),
    "depthwise1d": (lambda: keras.layers.DepthwiseConv1D(3), (2, 5, 4), (-1, -2)),
    "depthwise2d": (
        lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        (2, 5, 5, 3),
        (-1, -2),
    ),
    "dense": (lambda: keras.layers.Dense(4, activation="tanh"), (6, 3), (-1,)),
    # Kernels larger than the input.
    "large_conv1d": (lambda: keras.layers.Conv1D(40, 1, padding="causal"), (2, 5, 3), (-1,)),
    "large_conv2d": (lambda: keras.layers.Conv2D(64, 1, strides=2), (2, 3, 3, 6), (-1,)),
    "large_grouped": (lambda: keras.layers.Conv2D(64, 1, groups=2), (2, 3, 3, 6), (-1,)),
    "large_3x3": (lambda: keras.layers.Conv2D(64, 3, padding="same"), (2, 3, 3, 6), (-1,)),
    "large_dense": (lambda: keras.layers.Dense(40, activation="tanh"), (2, 5, 3), (-1,)),
}


@pytest.mark.parametrize("kind", CENTRALIZED)
def test_centralized_outputs_and_gradients(rng, kind):
    make, shape, output_axes = CENTRALIZED[kind]
    keras.config.set_dtype_policy("float64")
    wrapped, plain = WeightCentralization(make()), make()
    x = tf.constant(rng.normal(size=shape))
    wrapped.build(shape)
    plain.build(shape)
    kernel = rng.normal(0.4, 1, wrapped.layer.kernel.shape)
    bias = rng.normal(size=plain.bias.shape)
    centralized = references.centralize(kernel, output_axes)
    for layer, value in ((wrapped.layer, kernel), (plain, centralized)):
        layer.set_weights([value, bias])
    results = []
    for layer, weight in ((wrapped, wrapped.layer.kernel), (plain, plain.kernel)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(tf.sin(y))
        results.append((y, *tape.gradient(loss, [x, weight.value])))
    y, dx, dkernel = results[1]
    # The mean is linear and symmetric: the kernel's gradient is centralized in the same way.
    expected = y, dx, references.centralize(dkernel.numpy(), output_axes)
    for actual, value in zip(results[0], expected):
        running.assert_close(actual, value, 1e-12)
    running.assert_close(wrapped.effective_kernel(), centralized, 1e-12)
    np.testing.assert_array_equal(wrapped.layer.kernel, kernel)
    assert tuple(wrapped.compute_output_shape(shape)) == tuple(y.shape)


@pytest.mark.parametrize("images", [None, 2, 20])
def test_the_smaller_of_kernel_and_input_is_centralized(images):
    layer = WeightCentralization(keras.layers.Conv2D(64, 1))
    layer.build((images, 3, 3, 6))
    spec = tf.TensorSpec((images, 3, 3, 6))
    graph = tf.function(lambda x: layer(x)).get_concrete_function(spec).graph
    differences = [op.outputs[0].shape for op in graph.get_operations() if op.type == "Sub"]
    assert differences == [spec.shape if images == 2 else layer.layer.kernel.shape]


class Squashing(keras.layers.Dense):
    """Is not linear in its inputs."""

    def call(self, inputs, training=None):
        return super().call(keras.ops.tanh(inputs))


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "sparse", "squashing"])
def test_inputs_of_which_no_mean_is_taken(rng, dtype):
    layer_class = Squashing if dtype == "squashing" else keras.layers.Dense
    layer = WeightCentralization(layer_class(64))
    x = rng.integers(0, 9, (2, 7))
    given = {
        "sparse": lambda: tf.sparse.from_dense(tf.constant(x, tf.float32)),
        "squashing": lambda: tf.constant(x, tf.float32),
    }.get(dtype, lambda: tf.cast(x, dtype))()
    layer.build(x.shape)
    seen = {"squashing": np.tanh(x), "bool": x != 0}.get(dtype, x)
    wanted = np.matmul(seen, layer.effective_kernel())
    np.testing.assert_allclose(layer(given), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("images", [2, 8])
def test_the_mean_of_a_large_kernel(rng, policy, images):
    """It is summed in more than half precision: bfloat16 would lose most of it."""
    layer = WeightCentralization(keras.layers.Dense(4, use_bias=False, dtype=policy), dtype=policy)
    x = tf.constant(rng.normal(1, 1, (images, 20_000)), tf.float32)
    layer.build(x.shape)
    layer.layer.kernel.assign(rng.normal(0.02, 0.02, (20_000, 4)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(tf.cast(layer(x), tf.float32)))
    gradient = tape.gradient(loss, layer.layer.kernel.value)
    # An input of ones sees the sum of the kernel.
    sums = layer(tf.ones([1, 20_000])).numpy().astype(np.float32)
    tolerance = 1e-4 if policy == "float32" else 0.02
    assert np.max(np.abs(sums)) / 20_000 < tolerance * 0.02
    assert np.max(np.abs(np.mean(gradient, 0)) / np.std(gradient, 0)) < tolerance


@pytest.mark.parametrize("jit_compile", [False, True])
def test_centralization_in_a_graph_and_after_saving(rng, tmp_path, jit_compile):
    model = keras.Sequential(
        [keras.Input((5, 5, 2)), WeightCentralization(keras.layers.Conv2D(3, 2))]
    )
    model.layers[0].layer.kernel.assign(rng.normal(1, 1, (2, 2, 2, 3)))
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    x = rng.normal(size=(2, 5, 5, 2)).astype(np.float32)
    compiled = tf.function(lambda x: restored(x), jit_compile=jit_compile)(x)
    np.testing.assert_allclose(compiled, model(x), 1e-5, 1e-5)


def test_centralization_of_something_else():
    with pytest.raises(ValueError) as error:
        WeightCentralization(keras.layers.Flatten(name="flat"))
    assert str(error.value) == (
        "WeightCentralization wraps Conv1D, Conv2D, Conv3D, Dense, Conv1DTranspose, "
        "Conv2DTranspose, Conv3DTranspose, DepthwiseConv1D, DepthwiseConv2D. Received: "
        "<Flatten name=flat, built=False>. Give one of these, or leave the layer as it is."
    )
