"""G virtual replicas are G real ones, for every normalizer; what a replica's state is."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import networks
from tests.layers import running
from tfnorm.layers import BatchNormalization, BatchRenormalization, replicas

STEPS = 5
# Short thresholds, so that the steps cross every one of them.
OPTIONS = {
    "mabn": {"window": 2, "warmup_steps": 3},
    "cbn": {"window": 3, "burn_in_steps": 1},
    "bkn": {"covariance": "full"},
}


ESTIMATED = ("mean_share", "variance_share")  # of evalnorm


def trainers(name, groups, strategy):
    """A model with virtual and one with real replicas, of the same weights, float64."""
    keras.config.set_dtype_policy("float64")
    options = OPTIONS.get(name, {})
    virtual = networks.network(name, masked=True, virtual_replicas=groups, **options)
    with strategy.scope():
        real = networks.network(name, masked=True, **options)
    return networks.Trainer(virtual, "function"), networks.Trainer(real, "function", strategy)


def batch(step):
    """x and ∂L/∂y of 8 examples, some positions of them masked."""
    halves = [networks.batch(2 * step + half, True) for half in (0, 1)]
    return [np.concatenate(parts) for parts in zip(*halves)]


@pytest.mark.parametrize(
    ("name", "count"),
    [*((name, 2) for name in networks.NORMALIZERS), *((name, 8) for name in ("cbn", "bkn"))],
)
def test_virtual_replicas_are_real_ones(name, count, mirrored):
    """Outputs and gradients of every step, all weights and state at the end.

    brn and mabn while r = 1 and d = 0. The moving variance of brn is excepted: it is no average
    of the replicas' own over more than one step, because the paper averages σ and not σ². So is
    what evalnorm estimates, which has no part in training: it consults the moving statistics, and
    these virtual replicas share.
    """
    virtual, real = trainers(name, count, mirrored(count))
    for step in range(STEPS):
        # The optimizer's updates are part of it: gradients are summed over replicas.
        for a, b in zip(*(train(*batch(step)) for train in (virtual, real))):
            running.assert_close(a, b, 1e-9, f"step {step}")
    named = {variable.path: variable for variable in real.model.variables}
    # Histories [..., groups, C]: that of a real replica is its own; before they are averaged.
    for a, b in zip(virtual.model.variables, real.model.variables):
        grouped = np.ndim(a) > 1 and a.shape != b.shape
        if grouped:
            # One replica's own running statistics are its moving ones.
            kept = named[b.path.replace("/running_", "/moving_")]
            own = [np.reshape(copy, b.shape) for copy in kept.value.values]
            axis = next(i for i in range(len(a.shape)) if a.shape[i] != b.shape[i])
            tolerance = 1e-2 if a.path.endswith(ESTIMATED) else 1e-9
            running.assert_close(a.numpy(), np.concatenate(own, axis), tolerance, a.path)
    states = [networks.values(train.model) for train in (virtual, real)]
    for variable, value in states[0].items():
        if value.shape != states[1][variable].shape:
            continue
        tolerance = 1e-3 if name == "brn" and variable.endswith("moving_variance") else 1e-9
        running.assert_close(states[1][variable], value, tolerance, variable)


def test_renormalization_is_averaged_over_groups_as_over_replicas(rng, mirrored):
    """Exact when replicas are synchronized after each step, r and d at work included."""
    options = {"momentum": 0.5, "r_max": 2.0, "d_max": 1.0, "dtype": "float64"}
    strategy = mirrored(2)
    with strategy.scope():
        real = BatchRenormalization(**options)
        real.build((None, 4))
    virtual = BatchRenormalization(**options, virtual_replicas=2)
    virtual.build((None, 4))
    for layer in (real, virtual):
        running.randomize(layer, np.random.default_rng(2))
    train_virtual, train_real = running.trainer(virtual), running.replicated_trainer(real, strategy)
    for step in range(3):
        x, dy, _ = running.data(rng, (6, 4))
        y, dx, dgamma, dbeta = train_virtual(x, dy)
        results = train_real(np.split(x, 2), np.split(dy, 2))
        actual = [np.concatenate([r[i] for r in results]) for i in (0, 1)]
        actual += [sum(r[i] for r in results) for i in (2, 3)]
        for a, b in zip(actual, (y, dx, dgamma, dbeta)):
            running.assert_close(a, b, 1e-9, f"step {step}")
        wanted = running.state(virtual)
        for variable, value in running.state(real).items():
            running.assert_close(value, wanted[variable], 1e-9, variable)


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_synchronized_statistics_are_the_mean_on_every_replica(name, mirrored):
    keras.config.set_dtype_policy("float64")
    strategy = mirrored(2)
    with strategy.scope():
        model = networks.network(name, **OPTIONS.get(name, {}))
    train = networks.Trainer(model, "eager", strategy)
    for step in range(3):
        train(*networks.batch(step))
    own = {v.path: [copy.numpy() for copy in v.value.values] for v in model.non_trainable_variables}
    replicas.synchronize_statistics(model)
    for variable in model.non_trainable_variables:
        wanted = np.mean(own[variable.path], 0)
        for copy in variable.value.values:
            np.testing.assert_allclose(copy.numpy(), wanted, 1e-12, err_msg=variable.path)
    differing = [path for path, (a, b) in own.items() if not np.array_equal(a, b)]
    counters = [path for path in own if path.endswith("/step")]
    assert not set(differing) & set(counters)
    assert bool(differing) == (name != "syncbn")


def test_a_replica_without_a_sample_keeps_its_state(rng, mirrored):
    strategy = mirrored(2)
    with strategy.scope():
        layer = BatchNormalization()
        layer.build((None, 3))
    running.randomize(layer, rng)
    before = running.number(layer.moving_mean)
    x = [rng.normal(size=(4, 3)), np.zeros((0, 3))]
    results = running.replicated_trainer(layer, strategy)(x, x)
    for result in results:
        for tensor in result:
            assert np.isfinite(tensor).all()
    first, second = (copy.numpy() for copy in layer.moving_mean.value.values)
    np.testing.assert_array_equal(second, before.astype(np.float32))
    assert not np.array_equal(first, second)


def test_without_a_strategy_there_is_nothing_to_synchronize(rng):
    layer = BatchNormalization()
    layer.build((None, 3))
    running.randomize(layer, rng)
    before = layer.get_weights()
    replicas.synchronize_statistics(layer)
    for a, b in zip(before, layer.get_weights()):
        np.testing.assert_array_equal(a, b)
    assert tf.distribute.get_strategy().num_replicas_in_sync == 1


@pytest.mark.parametrize("alone", [False, True])
def test_sums_over_replicas(mirrored, monkeypatch, alone):
    """Alone: as where XLA compiles each replica by itself, which may not wait for the others."""
    strategy = mirrored(4)
    if alone:
        monkeypatch.setattr(type(strategy.extended), "_use_merge_call", lambda self: False)
        monkeypatch.setattr(tf.distribute.ReplicaContext, "merge_call", None)

    @tf.function
    def run():
        def step():
            own = tf.distribute.get_replica_context().replica_id_in_sync_group
            x = tf.cast(own + 1, tf.float32) * tf.constant([1.0, 10.0])
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = replicas.reduce_sum(x**2)
            return y, tape.gradient(y, x), replicas.gather(x)

        return strategy.run(step)

    total, gradient, gathered = map(strategy.experimental_local_results, run())
    rows = np.outer([1, 2, 3, 4], [1, 10])
    for i in range(4):
        np.testing.assert_allclose(total[i], [30, 3000])
        # Of the sum over replicas of what each returns, as for any loss.
        np.testing.assert_allclose(gradient[i], 4 * 2 * rows[i])
        np.testing.assert_allclose(gathered[i], rows)
