"""BKN chains against the oracle: every gradient, through the chain, diagonal and full."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import references
from tests.layers import running
from tfnorm.layers import BatchKalmanNormalization, BatchNormalization

WIDTHS = (3, 4, 4, 2)
SHAPE = (4, 3, 2)


def chain(rng, covariance, groups, dtype, axis=-1):
    """Layers of a chain with random weights, and their oracles."""
    layers, oracles, state = [], [], None
    for width in WIDTHS:
        layer = BatchKalmanNormalization(
            axis=axis, momentum=0.9, covariance=covariance, virtual_replicas=groups, dtype=dtype
        )
        shape = list(SHAPE)
        shape.insert(axis % 4, width)
        layer.build(tuple(shape), state)
        state = layer.compute_output_shape(shape)[1]
        running.randomize(layer, rng)
        oracles.append(
            references.BatchKalmanNormalization(
                *running.common(layer),
                **running.options(layer),
                covariance=covariance,
                transition=None if layer.transition is None else running.number(layer.transition),
                gain=None if layer.gain is None else float(layer.gain),
            )
        )
        layers.append(layer)
    return layers, oracles


def trainer(layers):
    @tf.function
    def step(xs, dys, masks):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(xs)
            state, ys, loss = None, [], 0.0
            for layer, x, dy, mask in zip(layers, xs, dys, masks):
                y, state = layer(x, previous=state, training=True, mask=mask)
                ys.append(y)
                loss += tf.reduce_sum(y * dy)
        weights = [{v.name: v.value for v in layer.trainable_variables} for layer in layers]
        return ys, tape.gradient(loss, xs), tape.gradient(loss, weights)

    def run(xs, dys, masks):
        dtype = layers[0].compute_dtype
        return step(
            [tf.constant(x, dtype) for x in xs], [tf.constant(d, dtype) for d in dys], masks
        )

    return run


@pytest.mark.parametrize(
    "covariance, groups, masked, axis, dtype",
    [
        ("diagonal", 1, False, -1, "float64"),
        ("diagonal", 2, True, 1, "float64"),
        ("full", 1, True, -1, "float64"),
        ("full", 2, False, 1, "float64"),
        ("diagonal", 1, False, -1, "float32"),
        ("diagonal", 2, False, -1, "float32"),
        ("full", 2, True, 1, "float32"),
    ],
)
def test_every_gradient_of_a_chain_over_steps(rng, covariance, groups, masked, axis, dtype):
    layers, oracles = chain(rng, covariance, groups, dtype, axis)
    train, tolerance = trainer(layers), running.TOLERANCE[dtype]
    noise = float(layers[0].process_noise)
    for step in range(3):
        batches = []
        for layer in layers:
            shape = list(SHAPE)
            shape.insert(axis % 4, layer.channels)
            batches.append(running.data(rng, shape, axis, masked))
        xs, dys, masks = map(list, zip(*batches))
        ys, dxs, gradients = train(xs, dys, masks)

        state = None
        for i, oracle in enumerate(oracles):
            y, state = oracle.forward(xs[i], state, noise, masks[i])
            running.assert_close(ys[i], y, tolerance, f"y {i}, step {step}")
        dstate, dnoise = None, 0.0
        for i in reversed(range(len(layers))):
            wanted, dstate = oracles[i].backward(dys[i], dstate)
            dnoise += wanted.extra["dnoise"]
            expected = {"gamma": wanted.dgamma, "beta": wanted.dbeta}
            if i == 0:
                expected["process_noise"] = dnoise
            else:
                expected["transition"] = wanted.extra["dtransition"]
                expected["gain"] = wanted.extra["dgain"]
            message = f"layer {i}, step {step}"
            running.assert_close(dxs[i], wanted.dx, tolerance, f"dx {message}")
            assert set(gradients[i]) == set(expected)
            for name, value in expected.items():
                running.assert_close(gradients[i][name], value, tolerance, f"{name} {message}")
            for name in ("moving_mean", "moving_variance"):
                running.assert_close(
                    running.number(getattr(layers[i], name)),
                    getattr(oracles[i], name),
                    tolerance,
                    f"{name} {message}",
                )


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_by_kernels(rng, covariance, by_kernels):
    test_every_gradient_of_a_chain_over_steps(rng, covariance, 1, False, -1, "float32")


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_gain_of_one_is_batch_normalization(rng, covariance):
    layers, _ = chain(rng, covariance, 2, "float64")
    for layer in layers[1:]:
        layer.gain.assign(40.0)  # sigmoid: 1 to double precision
    state = None
    for layer in layers:
        x, dy, mask = running.data(rng, (*SHAPE, layer.channels), masked=True)
        plain = BatchNormalization(momentum=0.9, virtual_replicas=2, dtype="float64")
        plain.build(x.shape)
        plain.set_weights(
            [running.number(v) for v in (layer.gamma, layer.beta, *layer.non_trainable_variables)]
        )
        wanted = running.trainer(plain)(x, dy, mask)
        with tf.GradientTape() as tape:
            tape.watch(x := tf.constant(x))
            y, state = layer(x, previous=state, training=True, mask=mask)
        weights = [layer.gamma.value, layer.beta.value]
        actual = [y, *tape.gradient(y, [x, *weights], output_gradients=tf.constant(dy))]
        for a, b in zip(actual, wanted):
            running.assert_close(a, b, 1e-11)
        for a, b in zip(layer.non_trainable_variables, plain.non_trainable_variables):
            running.assert_close(running.number(a), running.number(b), 1e-11)


def test_initial_values():
    first = BatchKalmanNormalization()
    first.build((None, 3))
    same = BatchKalmanNormalization(initial_gain=0.7)
    same.build((None, 3), ((1, 3), (1, 3), ()))
    other = BatchKalmanNormalization()
    other.build((None, 4), ((1, 3), (1, 3), ()))
    assert np.isclose(np.log1p(np.exp(float(first.process_noise))), 1e-3)
    assert first.transition is None and first.gain is None
    np.testing.assert_array_equal(same.transition, np.eye(3))
    assert np.isclose(1 / (1 + np.exp(-float(same.gain))), 0.7)
    assert np.isclose(1 / (1 + np.exp(-float(other.gain))), 0.9)
    limit = np.sqrt(6 / (3 + 4))
    values = other.transition.numpy()
    assert values.shape == (4, 3) and np.abs(values).max() <= limit and values.std() > 0.1
    assert same.process_noise is None


def test_a_state_of_another_width():
    layer = BatchKalmanNormalization(name="second")
    _, state = BatchKalmanNormalization()(tf.random.normal([4, 3]))
    layer(tf.random.normal([4, 5]), previous=state)
    _, wide = BatchKalmanNormalization()(tf.random.normal([4, 6]))
    with pytest.raises(ValueError) as error:
        layer(tf.random.normal([4, 5]), previous=wide)
    assert (
        "'second' was built to stand behind a state 3 channels wide. Received a call behind a "
        "state 6 channels wide. Give it the state that the layer before it in its own chain "
        "returned." in str(error.value)
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"covariance": "sparse"},
            'covariance must be "diagonal" or "full". Received: \'sparse\'.',
        ),
        (
            {"initial_gain": 1.0},
            "initial_gain must lie between 0 and 1, both excluded: the share of the batch's own "
            "moments in the estimate. Received: 1.0.",
        ),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError) as error:
        BatchKalmanNormalization(**options)
    assert str(error.value) == message


def test_inference_takes_the_moving_statistics_and_hands_them_on(rng):
    layers, oracles = chain(rng, "diagonal", 1, "float64")
    state = None
    for layer, oracle in zip(layers, oracles):
        x, _, _ = running.data(rng, (*SHAPE, layer.channels))
        y, state = layer(tf.constant(x), previous=state, training=False)
        running.assert_close(y, oracle.infer(x), 1e-12)
        running.assert_close(state[0], oracle.moving_mean[None], 1e-12)
        running.assert_close(state[1], oracle.moving_variance[None], 1e-12)


def test_functional_model_of_a_chain_survives_saving(rng, tmp_path):
    inputs = keras.Input((5,))
    x, state = BatchKalmanNormalization(covariance="full")(keras.layers.Dense(3)(inputs))
    x, state = BatchKalmanNormalization(covariance="full")(keras.layers.Dense(4)(x), previous=state)
    model = keras.Model(inputs, x)
    model.save(tmp_path / "chain.keras")
    restored = keras.models.load_model(tmp_path / "chain.keras")
    data = rng.normal(size=(6, 5)).astype(np.float32)
    for training in (False, True):
        np.testing.assert_array_equal(
            restored(data, training=training), model(data, training=training)
        )


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("where", [0, 2])
def test_an_empty_group_in_a_chain(rng, covariance, where):
    """No NaN in what is handed on, nor in any gradient; the group's moving values stay."""
    layers, _ = chain(rng, covariance, 1, "float64")
    train = trainer(layers)
    batches = [running.data(rng, (*SHAPE, layer.channels), masked=True) for layer in layers]
    xs, dys, masks = map(list, zip(*batches))
    masks[where] = np.zeros_like(masks[where])
    xs[where] = np.full_like(xs[where], np.nan)
    dys[where] = np.zeros_like(dys[where])
    before = layers[where].get_weights()
    ys, dxs, gradients = train(xs, dys, masks)
    for index, y in enumerate(ys):
        assert index == where or np.isfinite(y).all()
    for tensor in (*dxs, *tf.nest.flatten(gradients)):
        assert np.isfinite(tensor).all()
    for a, b in zip(layers[where].get_weights(), before):
        np.testing.assert_array_equal(a, b)


def test_a_mask_that_tensors_carry_reaches_every_layer_of_a_chain(rng):
    values = rng.normal(size=(5, 7, 3)).astype("float32")
    values[2, 3:] = values[4, 1:] = 0
    mask = (values != 0).any(-1)
    layers = [BatchKalmanNormalization() for _ in range(2)]
    x = keras.layers.Masking()(values)
    y, state = layers[0](x, training=True)
    y, state = layers[1](y, state, training=True)
    moments = [layer.moving_mean.numpy() for layer in layers]
    again = [BatchKalmanNormalization() for _ in range(2)]
    y, state = again[0](values, training=True, mask=mask)
    again[1](y, state, training=True, mask=mask)
    for found, layer in zip(moments, again):
        np.testing.assert_allclose(found, layer.moving_mean.numpy(), rtol=1e-5, atol=1e-7)
    unmasked = BatchKalmanNormalization()
    unmasked(values, training=True)
    assert np.abs(unmasked.moving_mean.numpy() - moments[0]).max() > 1e-4
