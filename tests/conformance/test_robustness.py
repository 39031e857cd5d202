"""Garbage behind masks, empty groups and extreme values, for every normalizer of the registry."""

import functools
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import networks
from tfnorm.layers import norms

OPTIONS = {
    "mabn": {"window": 2, "warmup_steps": 2},
    "cbn": {"window": 3},
    # So short that few examples are enough to see a difference.
    "on": {"momentum": 0.9, "gradient_momentum": 0.9},
}
# mabn subtracts no mean: its inputs are centralized before it. on and sn have other variances.
WITH_A_MEAN = [name for name in networks.NORMALIZERS if name not in ("mabn", "on", "sn")]


class Single:
    """One normalizer alone (with the dense layer that it wraps, of the identity kernel)."""

    def __init__(self, name, shape, **options):
        arguments = {**norms.get(name).defaults, **OPTIONS.get(name, {}), **options}
        layer_class = norms.get(name).layer_class
        if "layer" in inspect.signature(layer_class).parameters:
            dense = keras.layers.Dense(shape[-1], use_bias=False, kernel_initializer="identity")
            self.layer = layer_class(dense, **arguments)
        else:
            self.layer = layer_class(**arguments)
        self.layer.build(shape)

    def __call__(self, x, dy, mask=None):
        """y, dx and the gradients of the weights, of a training step."""
        x = tf.constant(x, tf.float32)
        weights = [v.value for v in self.layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self.layer(x, training=True, mask=mask)
            y = y[0] if isinstance(y, tuple) else y
            loss = tf.reduce_sum(y * dy)
        gradients = tape.gradient(loss, [x, *weights], unconnected_gradients="zero")
        return [t.numpy() for t in (y, *gradients)]

    def state(self):
        return {
            v.name: keras.ops.convert_to_numpy(v)
            for v in self.layer.non_trainable_variables
            if v.name != "step"
        }


def assert_finite(arrays, message=""):
    for index, array in enumerate(arrays):
        assert np.isfinite(array).all(), f"{message}: {index}"


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_what_is_masked_does_not_matter(name, groups):
    """NaN, infinities and huge numbers at masked positions: the same as zeros there."""
    shape = (4, 3, 5)
    layers = [Single(name, shape, virtual_replicas=groups) for _ in range(2)]
    rng = np.random.default_rng(1)
    for step in range(4):
        x, dy = rng.normal(size=shape), rng.normal(size=shape)
        mask = rng.random(shape[:-1]) < 0.6
        mask[:, 0], mask[0, 1] = True, False
        garbage = np.where(mask[..., None], x, rng.choice([np.nan, np.inf, -np.inf, 1e30], shape))
        dy = np.where(mask[..., None], dy, 0)
        clean = layers[0](np.where(mask[..., None], x, 0), dy, mask)
        dirty = layers[1](garbage, dy, mask)
        np.testing.assert_array_equal(dirty[0][mask], clean[0][mask], f"y {step}")
        np.testing.assert_array_equal(dirty[1][mask], clean[1][mask], f"dx {step}")
        assert_finite(dirty[1:4], f"gradients of step {step}")
        for a, b in zip(dirty[2:4], clean[2:4]):
            np.testing.assert_array_equal(a, b)
        networks.assert_identical(layers[1].state(), layers[0].state())


@pytest.mark.parametrize("groups, empty", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_an_empty_group_leaves_its_state_alone(name, groups, empty):
    shape = (4, 3, 5)
    layer = Single(name, shape, virtual_replicas=groups)
    rng = np.random.default_rng(2)
    for _ in range(4):
        layer(rng.normal(1, 2, shape), rng.normal(size=shape))
    before = layer.state()
    mask = np.ones(shape[:-1], bool)
    mask[-empty * 4 // groups :] = False
    x = np.where(mask[..., None], rng.normal(size=shape), np.nan)
    dy = np.where(mask[..., None], rng.normal(size=shape), 0)
    results = layer(x, dy, mask)
    assert np.isfinite(results[0][mask]).all()
    assert_finite(results[1:4])
    after = layer.state()
    assert_finite(after.values())
    if empty == groups:
        networks.assert_identical(after, before)
    else:
        # Histories [window, groups, ...]: those of the empty group.
        for variable, value in after.items():
            if variable.startswith("moving"):
                continue
            np.testing.assert_array_equal(value[:, 1], before[variable][:, 1], variable)
            assert not np.array_equal(value[:, 0], before[variable][:, 0]) or (
                variable.endswith("_weight")
            )
    if hasattr(layer.layer, "step"):
        assert int(layer.layer.step) == 5
    # And it goes on from there.
    assert_finite(layer(rng.normal(size=shape), rng.normal(size=shape)))
    assert_finite(layer.state().values())


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_an_empty_first_batch(name):
    """Before any sample was seen: nothing is known, nothing may become NaN."""
    shape = (2, 3, 5)
    layer = Single(name, shape)
    before = layer.state()
    rng = np.random.default_rng(3)
    x = np.full(shape, np.nan)
    results = layer(x, np.zeros(shape), np.zeros(shape[:-1], bool))
    assert_finite(results[1:4])
    networks.assert_identical(layer.state(), before)
    for _ in range(4):
        assert_finite(layer(rng.normal(size=shape), rng.normal(size=shape)))


EXTREMES = {
    "offset": lambda rng: rng.normal(size=(4, 3, 3, 5)) + 1e4,
    "negative_offset": lambda rng: rng.normal(size=(4, 3, 3, 5)) - 1e4,
    "offsets_that_alternate": lambda rng: rng.normal(size=(4, 3, 3, 5)) + rng.choice([-1e4, 1e4]),
    "constant": lambda rng: np.full((4, 3, 3, 5), 3.0),
    "zero": lambda rng: np.zeros((4, 3, 3, 5)),
    "one_constant_channel": lambda rng: rng.normal(size=(4, 3, 3, 5)) * [1, 1, 0, 1, 1],
    "single_pixel": lambda rng: rng.normal(size=(1, 1, 1, 5)),
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_extreme_values_stay_finite(name, extreme):
    rng = np.random.default_rng(4)
    layer = None
    for step in range(4):
        x = EXTREMES[extreme](rng)
        layer = layer or Single(name, x.shape)
        assert_finite(layer(x, rng.normal(size=x.shape)), f"step {step}")
        assert_finite(layer.state().values(), f"state of step {step}")
        assert (layer.state()["moving_variance"] >= 0).all()
    inferred = layer.layer(tf.constant(x, tf.float32), training=False)
    assert_finite([inferred[0] if isinstance(inferred, tuple) else inferred])


@pytest.mark.parametrize(
    "groups, masked, jit_compile", [(1, False, True), (1, True, False), (2, False, False)]
)
@pytest.mark.parametrize("name", WITH_A_MEAN)
def test_a_small_variance_beside_a_large_mean(name, groups, masked, jit_compile):
    """Mean 1000 and variance 0.01 in float32, where E[x²] − E[x]² has no digit left."""
    layer = Single(name, (4, 64, 5), virtual_replicas=groups, momentum=0.0, epsilon=1e-6)
    rng = np.random.default_rng(6)
    x = rng.normal(1000, 0.1, (4, 64, 5)).astype(np.float32)
    mask = rng.random((4, 64)) < 0.8 if masked else None
    step = tf.function(lambda: layer.layer(x, training=True, mask=mask), jit_compile=jit_compile)
    step()
    exact = [
        part[valid].astype(np.float64).var(0)
        for part, valid in zip(
            np.split(x, groups), np.split(np.ones((4, 64), bool) if mask is None else mask, groups)
        )
    ]
    if getattr(layer.layer, "synchronized", False):
        exact = [x.astype(np.float64)[... if mask is None else mask].reshape(-1, 5).var(0)]
    np.testing.assert_allclose(layer.state()["moving_variance"], np.mean(exact, 0), 0.01)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_half_precision_keeps_statistics_in_float32(name, policy):
    keras.config.set_dtype_policy(policy)
    layer = Single(name, (64, 9, 3))
    rng = np.random.default_rng(5)
    # Squares of 300 are beyond float16, and a mean of 300 ± 1 is not a number of bfloat16.
    x = np.asarray(tf.cast(rng.normal(300, 4, (64, 9, 3)), layer.layer.compute_dtype))
    x = x.astype(np.float32)
    results = layer(x, rng.normal(size=x.shape))
    assert_finite(results)
    for variable, value in layer.state().items():
        assert value.dtype == np.float32, variable
    if name in WITH_A_MEAN:
        moving = layer.state()["moving_variance"]
        batch = (moving - layer.layer.momentum) / (1 - layer.layer.momentum)
        if type(layer.layer).__name__ != "BatchRenormalization":
            np.testing.assert_allclose(batch, x.astype(np.float64).var((0, 1)), 1e-2)


POLICIES = {"mixed_float16": 1e-3, "mixed_bfloat16": 8e-3}


# By name: the norm and options under which nothing is a constant.
DERIVED = {name: (name, {}) for name in networks.NORMALIZERS} | {
    "brn, corrected": ("brn", {"r_max": 1.5, "d_max": 0.5}),
    "bkn, full": ("bkn", {"covariance": "full"}),
}


def first(y):
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", DERIVED)
def test_half_precision_rounds_gradients_once(name, policy, parallel):
    """Where dy has a mean, as behind global pooling, or goes with x, most of it cancels."""
    rng = np.random.default_rng(7)
    name, options = DERIVED[name]
    x = tf.cast(rng.normal(1, 1, (32, 16, 4)), policy[6:]).numpy().astype(np.float64)
    dy = tf.cast(rng.normal(0, 1, x.shape) + 100 * (x if parallel else 1), policy[6:])
    results = []
    for precision in (policy, "float64"):
        keras.config.set_dtype_policy(precision)
        layer = Single(name, x.shape, **options).layer
        given, weights = (tf.cast(v, layer.compute_dtype) for v in (x, dy))
        with tf.GradientTape() as tape:
            tape.watch(given)
            y = first(layer(given, training=True))
        results.append(tape.gradient(y, given, weights).numpy().astype(np.float64))
    half, exact = results
    assert np.abs(half - exact).max() / np.abs(exact).max() < POLICIES[policy]


@pytest.mark.parametrize(
    "groups, is_dead, is_graph", [(1, False, False), (1, True, True), (2, True, False)]
)
@pytest.mark.parametrize("name", DERIVED)
def test_a_gradient_penalty(rng, name, groups, is_dead, is_graph):
    """A gradient of a gradient, also where one channel is nothing but zeros.

    In float64 nothing is a kernel of TensorFlow's, whose gradients take statistics for constants;
    it is eager, because graphs of derivatives take long to make. The tapes stand outside the graph.
    """
    name, options = DERIVED[name]
    x, weights = rng.normal(2, 1, size=(8, 5, 3)), rng.normal(size=(8, 5, 3))
    if is_dead:
        x[..., 1] = 0
    gradients = []
    for policy in ("float32", "float64"):
        keras.config.set_dtype_policy(policy)
        layer = Single(name, x.shape, virtual_replicas=groups, **options).layer
        run = functools.partial(layer, training=True)
        run = tf.function(run) if is_graph and policy == "float32" else run
        given, factors = (tf.constant(v, policy) for v in (x, weights))
        with tf.GradientTape() as outer:
            outer.watch(given)
            with tf.GradientTape() as inner:
                inner.watch(given)
                loss = tf.reduce_sum(factors * first(run(given)) ** 3)
            penalty = tf.reduce_sum(inner.gradient(loss, given) ** 2)
        gradients.append(outer.gradient(penalty, given).numpy())
    single, double = gradients
    assert np.abs(double).max() > 0.1
    np.testing.assert_allclose(single, double, atol=1e-4 * np.abs(double).max())


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_gradients_of_an_empty_batch(name, is_static):
    layer = Single(name, (4, 3, 3, 5))
    x = tf.zeros((0, 3, 3, 5))

    def step(x):
        weights = [v.value for v in layer.layer.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(first(layer.layer(x, training=True)))
        return tape.gradient(loss, weights, unconnected_gradients="zero")

    spec = tf.TensorSpec((0 if is_static else None, 3, 3, 5))
    for gradient in tf.function(step, input_signature=[spec])(x):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))
    assert_finite(layer.state().values())
