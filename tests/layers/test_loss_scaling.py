"""A step that loss scaling skips leaves no trace in any state, and Ψ is kept in unscaled units."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import networks
from tests.layers import running
from tfnorm.layers import MovingAverageBatchNormalization
from tfnorm.layers.loss_scaling import scaled_by

TOO_MUCH, FAIR = 2.0**100, 2.0**4
OPTIONS = {
    "mabn": {"window": 2, "warmup_steps": 2, "correction_start_step": 2},
    "cbn": {"window": 3, "burn_in_steps": 1},
}


def compiled(name, scale, **arguments):
    """A network of a normalizer under mixed_float16, and its optimizer."""
    keras.config.set_dtype_policy("mixed_float16")
    model = networks.network(name, **OPTIONS.get(name, {}))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), scale)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "mse", **arguments)
    return model, optimizer


def fit(model, step):
    """One step of Keras' fit."""
    x, y = (values.astype(np.float32) for values in networks.batch(step))
    model.fit(x, y, batch_size=len(x), verbose=0)


def split(model):
    return model.non_trainable_variables, model.trainable_variables


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_a_skipped_step_of_fit_leaves_no_trace(name):
    arguments = {"run_eagerly": name == "brn", "jit_compile": name == "mabn"}
    model, optimizer = compiled(name, FAIR, **arguments)
    for step, is_skipped in enumerate((True, False, False, True, False)):
        before, weights = (list(map(running.number, v)) for v in split(model))
        optimizer.dynamic_scale.assign(TOO_MUCH if is_skipped else FAIR)
        fit(model, step)
        assert float(optimizer.dynamic_scale) == (TOO_MUCH / 2 if is_skipped else FAIR)
        after, weights_after = (list(map(running.number, v)) for v in split(model))
        is_same = [np.array_equal(*pair) for pair in zip(before, after, strict=True)]
        assert all(is_same) if is_skipped else not all(is_same)
        assert all(map(np.array_equal, weights, weights_after)) == is_skipped


def test_a_skipped_step_on_replicas(mirrored):
    strategy = mirrored(2)
    with strategy.scope():
        model, optimizer = compiled("mabn", TOO_MUCH, jit_compile=False)
    # Those of each replica.
    states = [strategy.experimental_local_results(v.value) for v in split(model)[0]]
    before = [value.numpy() for values in states for value in values]
    for scale in (TOO_MUCH, FAIR):
        with strategy.scope():
            optimizer.dynamic_scale.assign(scale)
        fit(model, 0)
        after = [value.numpy() for values in states for value in values]
        assert all(map(np.array_equal, before, after)) == (scale == TOO_MUCH)


@pytest.mark.parametrize("is_graph", [False, True])
def test_the_gradient_history_is_in_units_of_the_loss(rng, is_graph):
    """Whatever the scale, which changes from step to step: Ψ and gradients are those of none."""
    options = {"window": 2, "warmup_steps": 0, "dtype": "float64"}
    layers = [MovingAverageBatchNormalization(**options) for _ in range(2)]
    for layer in layers:
        layer.build((6, 3))
    running.randomize(layers[0], rng)
    layers[1].set_weights(layers[0].get_weights())
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), FAIR)
    optimizer.build([layers[0].gamma])

    def step(layer, x, dy, is_scaled):
        with scaled_by(optimizer if is_scaled else None), tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) * dy)
            loss = tf.cast(optimizer.scale_loss(loss), x.dtype) if is_scaled else loss
        dx = tape.gradient(loss, x)
        return dx / tf.cast(optimizer.dynamic_scale, dx.dtype) if is_scaled else dx

    step = tf.function(step) if is_graph else step
    for scale in (1.0, 2.0**20, 2.0**-5, 2.0**7):
        optimizer.dynamic_scale.assign(scale)
        x, dy, _ = running.data(rng, (6, 3))
        dxs = [step(layer, tf.constant(x), tf.constant(dy), layer is layers[0]) for layer in layers]
        running.assert_close(*dxs, 1e-12)
        running.assert_close(*(running.number(v.gradient_history) for v in layers), 1e-12)


def test_an_infinite_gradient_enters_no_history(rng):
    """Also where nobody says that the loss is scaled."""
    layer = MovingAverageBatchNormalization(window=2, warmup_steps=0, virtual_replicas=2)
    layer.build((6, 3))
    train = running.trainer(layer)
    for _ in range(3):
        x, dy, _ = running.data(rng, (6, 3))
        train(x, dy)
    before = running.number(layer.gradient_history)
    dy[0, 0] = np.inf
    train(x, dy)
    after = running.number(layer.gradient_history)
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert np.isfinite(after).all() and not np.array_equal(after[:, 1], before[:, 1])
    assert np.isfinite(train(x, np.where(np.isfinite(dy), dy, 0))[1]).all()
