"""bn, syncbn, brn and mabn against their oracles, over steps, from random weights and state."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests import references
from tests.layers import running
from tfnorm import layers, schedules

STEPS = 5
# dtype, axis, virtual replicas, masked
CASES = [
    ("float64", -1, 1, False),
    ("float64", 1, 3, True),
    ("float64", 2, 1, True),
    ("float64", -1, 3, False),
    ("float32", -1, 1, False),
    ("float32", 1, 1, True),
    ("float32", 1, 3, False),
    ("float32", -1, 3, True),
]


def batch_normalization(**kwargs):
    layer = layers.BatchNormalization(momentum=0.9, **kwargs)
    return layer, references.BatchNormalization, lambda: {}


def synchronized(**kwargs):
    """On one replica all virtual ones are merged into one group."""
    layer = layers.BatchNormalization(momentum=0.9, synchronized=True, **kwargs)
    return layer, references.BatchNormalization, lambda: {"groups": 1}


def renormalization(**kwargs):
    ramp = schedules.LinearRamp
    # Both bounds move within the steps, and are met by some channels and not by others.
    layer = layers.BatchRenormalization(
        momentum=0.9, r_max=ramp(1.0, 3.0, 1, 4), d_max=ramp(0.0, 2.0, 0, 3), **kwargs
    )
    return (
        layer,
        references.BatchRenormalization,
        lambda: {
            "r_max": lambda step: np.interp(step, [1, 4], [1, 3]),
            "d_max": lambda step: np.interp(step, [0, 3], [0, 2]),
        },
    )


def moving_average(**kwargs):
    thresholds = {
        "window": 2,
        "warmup_steps": 3,
        "correction_start_step": 3,
        "correction_limit": 1.2,
    }
    layer = layers.MovingAverageBatchNormalization(momentum=0.9, **thresholds, **kwargs)
    return (
        layer,
        references.MovingAverageBatchNormalization,
        lambda: {**thresholds, **running.histories(layer)},
    )


METHODS = (batch_normalization, synchronized, renormalization, moving_average)


def assert_step(results, step, mask, layer, reference, tolerance, message):
    wanted = (step.y, step.dx, step.dgamma, step.dbeta)
    for name, actual, value in zip(("y", "dx", "dgamma", "dbeta"), results, wanted):
        if name in ("y", "dx") and mask is not None:
            defined = running.normalized_positions(mask, layer.axis, reference.groups)
            assert np.isfinite(actual).all()
            actual, value = np.where(defined, actual, 0), np.where(defined, value, 0)
        running.assert_close(actual, value, tolerance, f"{name} of {message}")


def assert_state(layer, reference, steps, tolerance, message):
    names = {"moving_mean": "moving_mean", "moving_variance": "moving_variance"}
    if hasattr(reference, "squares"):
        names.update(square_history="squares", gradient_history="gradients")
        names.update(square_weight="square_weight", gradient_weight="gradient_weight")
    for name, attribute in names.items():
        actual = running.number(getattr(layer, name))
        running.assert_close(actual, getattr(reference, attribute), tolerance, f"{name} {message}")
    if hasattr(layer, "step"):
        assert int(layer.step) == steps


@pytest.mark.parametrize("dtype, axis, groups, masked", CASES)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_every_output_gradient_and_state_over_steps(rng, method, dtype, axis, groups, masked):
    shape = (6, 4, 3, 2)
    layer, oracle, extra = method(axis=axis, virtual_replicas=groups, dtype=dtype)
    layer.build(shape)
    running.randomize(layer, rng)
    reference = oracle(*running.common(layer), **{**running.options(layer), **extra()})
    train, tolerance = running.trainer(layer), running.TOLERANCE[dtype]
    for step in range(STEPS):
        # Images 2 and 3 are group 1 of 3: it is empty in one step.
        x, dy, mask = running.data(
            rng, shape, axis, masked, empty=slice(2, 4) if step == 3 else None
        )
        wanted = reference.step(x, dy, mask)
        results = train(x, dy, mask)
        assert_step(results, wanted, mask, layer, reference, tolerance, f"step {step}")
        assert_state(layer, reference, step + 1, tolerance, f"after step {step}")
    inferred = layer(tf.constant(x, dtype), training=False).numpy()
    running.assert_close(inferred, reference.infer(x), tolerance, "inference")


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_by_kernels(rng, method, by_kernels):
    test_every_output_gradient_and_state_over_steps(rng, method, "float32", -1, 1, False)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("center, scale", [(False, True), (True, False), (False, False)])
def test_without_center_or_scale(rng, method, center, scale):
    layer, oracle, extra = method(center=center, scale=scale, dtype="float64")
    shape = (4, 3, 5)
    layer.build(shape)
    running.randomize(layer, rng)
    assert (layer.beta is not None, layer.gamma is not None) == (center, scale)
    gamma = running.number(layer.gamma) if scale else np.ones(5)
    beta = running.number(layer.beta) if center else np.zeros(5)
    reference = oracle(
        gamma,
        beta,
        running.number(layer.moving_mean),
        running.number(layer.moving_variance),
        **{**running.options(layer), **extra()},
    )
    train = running.trainer(layer)
    for _ in range(3):
        x, dy, _ = running.data(rng, shape)
        wanted = reference.step(x, dy)
        results = train(x, dy)
        expected = [wanted.y, wanted.dx]
        expected += [wanted.dgamma] * scale + [wanted.dbeta] * center
        assert len(results) == len(expected)
        for actual, value in zip(results, expected):
            running.assert_close(actual, value, 1e-9)
    assert_state(layer, reference, 3, 1e-9, "at the end")


SYNCHRONIZED_SIZES = {
    "equal": (2, 2),
    "unequal": (1, 3),
    "empty": (3, 0),
    "four": (2, 1, 1, 2),
}


@pytest.mark.parametrize(
    "sizes, masked, dtype",
    [
        ("equal", False, "float64"),
        ("unequal", True, "float64"),
        ("empty", False, "float64"),
        ("empty", True, "float32"),
        ("four", False, "float32"),
        ("four", True, "float64"),
    ],
)
def test_synchronized_over_replicas(rng, mirrored, sizes, masked, dtype):
    sizes = SYNCHRONIZED_SIZES[sizes]
    strategy = mirrored(len(sizes))
    with strategy.scope():
        layer = layers.BatchNormalization(momentum=0.9, synchronized=True, dtype=dtype)
        layer.build((None, 3, 4))
    running.randomize(layer, rng)
    common = {"momentum": 0.9, "epsilon": layer.epsilon}
    reference = references.SynchronizedBatchNormalization(*running.common(layer), **common)
    whole = references.BatchNormalization(*running.common(layer), **common)
    train, tolerance = running.replicated_trainer(layer, strategy), running.TOLERANCE[dtype]
    for step in range(3):
        batches = [running.data(rng, (n, 3, 4), masked=masked) for n in sizes]
        xs, dys, masks = map(list, zip(*batches))
        masks = masks if masked else None
        wanted = reference.step(xs, dys, masks)
        results = train(xs, dys, masks)
        for index, (actual, value) in enumerate(zip(results, wanted)):
            expected = (value.y, value.dx, value.dgamma, value.dbeta)
            for a, b in zip(actual, expected):
                running.assert_close(a, b, tolerance, f"step {step}, replica {index}")
        # The same over the whole batch on one device.
        everything = [np.concatenate(part) for part in (xs, dys)]
        mask = np.concatenate(masks) if masked else None
        single = whole.step(*everything, mask)
        running.assert_close(np.concatenate([r[0] for r in results]), single.y, tolerance)
        running.assert_close(np.concatenate([r[1] for r in results]), single.dx, tolerance)
        running.assert_close(sum(r[2] for r in results), single.dgamma, tolerance)
        for name in ("moving_mean", "moving_variance"):
            # Every replica's own copy, not their mean.
            for copy in getattr(layer, name).value.values:
                running.assert_close(copy.numpy(), getattr(whole, name), tolerance, name)


def test_unsynchronized_over_replicas_is_not_bn_on_the_whole_batch(rng, mirrored):
    """The negative control: were it equal, the tests of syncbn above would say nothing."""
    strategy = mirrored(2)
    with strategy.scope():
        layer = layers.BatchNormalization(dtype="float64")
        layer.build((None, 3, 4))
    running.randomize(layer, rng)
    whole = references.BatchNormalization(*running.common(layer), epsilon=layer.epsilon)
    xs, dys, _ = zip(*[running.data(rng, (2, 3, 4)) for _ in range(2)])
    results = running.replicated_trainer(layer, strategy)(xs, dys)
    single = whole.step(np.concatenate(xs), np.concatenate(dys))
    for index, value in ((0, single.y), (1, single.dx)):
        actual = np.concatenate([r[index] for r in results])
        assert np.max(np.abs(actual - value)) > 0.1


def test_synchronized_moments_are_stable(mirrored, rng):
    """Mean 1000 and variance 0.01 in float32, where E[x²] − E[x]² has no digit left."""
    strategy = mirrored(2)
    with strategy.scope():
        layer = layers.BatchNormalization(momentum=0.0, epsilon=1e-6, synchronized=True)
        layer.build((None, 64, 3))
    xs = list(rng.normal(1000, 0.1, (2, 8, 64, 3)).astype(np.float32))
    running.replicated_trainer(layer, strategy)(xs, xs)
    exact = np.concatenate(xs).astype(np.float64)
    variance = running.state(layer)["moving_variance"]
    np.testing.assert_allclose(variance, exact.var((0, 1)), 0.01)
    np.testing.assert_allclose(running.state(layer)["moving_mean"], exact.mean((0, 1)), 1e-6)


@pytest.fixture
def collectives(monkeypatch):
    """Notes every collective: all that replicas do together goes through one of these two."""
    found = []
    for name in ("reduce_to", "batch_reduce_to"):
        original = getattr(tf.distribute.StrategyExtended, name)

        def noted(self, op, values, *args, _original=original, **kwargs):
            found.append(values)
            return _original(self, op, values, *args, **kwargs)

        monkeypatch.setattr(tf.distribute.StrategyExtended, name, noted)
    return found


def test_one_collective_forward_and_one_backward_for_each_synchronized_layer(mirrored, collectives):
    strategy = mirrored(2)
    with strategy.scope():
        chain = [layers.BatchNormalization(synchronized=True) for _ in range(3)]
        for layer in chain:
            layer.build((None, 3))

    def forward(x):
        for layer in chain:
            x = layer(x, training=True)
        return x

    def step():
        x = tf.random.stateless_normal([4, 3], [1, 2])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(forward(x) ** 3)
        return tape.gradient(y, x)

    strategy.run(step)
    assert len(collectives) == 2 * len(chain)
    collectives.clear()
    strategy.run(lambda: forward(tf.random.stateless_normal([4, 3], [3, 4])))
    assert len(collectives) == len(chain)


@pytest.mark.parametrize(
    "method", [batch_normalization, renormalization, moving_average], ids=lambda m: m.__name__
)
def test_unsynchronized_steps_communicate_nothing(mirrored, monkeypatch, method):
    def refuse(*args, **kwargs):
        raise AssertionError("a collective")

    for name in ("all_reduce", "all_gather", "merge_call"):
        monkeypatch.setattr(tf.distribute.ReplicaContext, name, refuse)
    strategy = mirrored(2)
    with strategy.scope():
        layer, _, _ = method()
        layer.build((None, 3))
    counter = itertools.count(1)

    def step():
        x = tf.random.stateless_normal([4, 3], [1, next(counter)])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x, training=True) ** 3)
        return tape.gradient(y, x)

    strategy.run(step)
    first, second = (copy.numpy() for copy in layer.moving_variance.value.values)
    assert not np.array_equal(first, second)
