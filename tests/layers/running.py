"""Training steps of a single layer, from random weights, for comparison with the oracles."""

import keras
import numpy as np
import tensorflow as tf

from tfnorm.layers import replicas

POSITIVE = {"square_history", "square_weight", "gradient_weight"}
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


def randomize(layer, rng):
    """Random weights and state; what must be positive is."""
    for variable in layer.weights:
        if "int" in variable.dtype:
            continue
        value = rng.normal(0.5, 1, variable.shape)
        if "variance" in variable.name or variable.name in POSITIVE:
            value = rng.uniform(0.3, 3, variable.shape)
        variable.assign(value)


def number(variable):
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


def common(layer):
    """What the oracles take first: γ, β, moving mean and variance."""
    return [number(v) for v in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)]


def histories(layer):
    """What the oracle of mabn takes of its state."""
    return {
        "squares": number(layer.square_history),
        "gradients": number(layer.gradient_history),
        "square_weight": number(layer.square_weight),
        "gradient_weight": number(layer.gradient_weight),
    }


def options(layer):
    return {
        "momentum": layer.momentum,
        "epsilon": layer.epsilon,
        "axis": layer.axis,
        "groups": layer.virtual_replicas,
    }


def trainer(layer):
    """A compiled function (x, dy, mask) -> [y, dx, gradients of the layer's trainable weights]."""

    @tf.function
    def step(x, dy, mask):
        weights = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        return [y, *tape.gradient(y, [x, *weights], output_gradients=dy)]

    def run(x, dy, mask=None):
        x, dy = (tf.constant(a, layer.compute_dtype) for a in (x, dy))
        return [t.numpy().astype(np.float64) for t in step(x, dy, mask)]

    return run


def replicated_trainer(layer, strategy):
    """The same over replicas, each with entries of its own in the lists xs, dys, masks.

    Returns a list of results, one a replica. Gradients are each replica's own share.
    """

    def step(x, dy, mask):
        weights = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        return [y, *tape.gradient(y, [x, *weights], output_gradients=dy)]

    run_step = tf.function(lambda *args: strategy.run(step, args))

    def distribute(arrays, dtype):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(arrays[context.replica_id_in_sync_group], dtype)
        )

    def run(xs, dys, masks=None):
        x, dy = (distribute(a, layer.compute_dtype) for a in (xs, dys))
        mask = None if masks is None else distribute(masks, "bool")
        results = [strategy.experimental_local_results(r) for r in run_step(x, dy, mask)]
        return [[t.numpy().astype(np.float64) for t in result] for result in zip(*results)]

    return run


def state(layer):
    """Name -> value of all variables, replicas synchronized first."""
    replicas.synchronize_statistics(layer)
    return {v.name: number(v) for v in layer.weights}


def assert_close(actual, wanted, tolerance, message=""):
    assert np.shape(actual) == np.shape(wanted), message
    scale = max(np.max(np.abs(wanted), initial=0), 1)
    np.testing.assert_allclose(actual, wanted, tolerance, tolerance * scale, err_msg=message)


def data(rng, shape, axis=-1, masked=False, empty=None):
    """x, ∂L/∂y and a mask of which the images in `empty` are invalid throughout."""
    x, dy = rng.normal(1, 2, shape), rng.normal(size=shape)
    if not masked:
        return x, dy, None
    mask = rng.random(np.delete(shape, axis)) < 0.7
    if empty is not None:
        mask[empty] = False
    return x, dy, mask


def normalized_positions(mask, axis, groups):
    """True where a group has a valid position, so that y and dx are defined."""
    parts = [np.full_like(part, part.any()) for part in np.split(mask, groups)]
    return np.expand_dims(np.concatenate(parts), axis)
