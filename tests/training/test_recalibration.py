"""Precise statistics: exact, whatever the batches, and nothing else is touched."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tests.comparing import drawn, randomize
from tfnorm import layers, models
from tfnorm.errors import RunError, UserError
from tfnorm.layers import norms

L = keras.layers
NORMS = ["bn", "syncbn", "brn", "mabn", "cbn", "bkn"]
EXAMPLES = 18


def network(norm, rng):
    """Three layers of the norm with random weights and spoiled statistics."""
    normalizer = norms.get(norm)
    x = inputs = keras.Input((6, 6, 3))
    state = None
    for filters in (4, 5, 4):
        x, state = normalizer(L.Conv2D(filters, 2, use_bias=False), x, state)
        x = L.Activation("tanh")(x)
    model = keras.Model(inputs, L.Flatten()(x))
    for variable in [*model.trainable_variables, *moving(model)]:
        variable.assign(drawn(variable, rng))
    return model


def of_keras(rng):
    x = inputs = keras.Input((6, 6, 3))
    for filters in (4, 5, 4):
        x = L.Activation("tanh")(L.BatchNormalization()(L.Conv2D(filters, 2)(x)))
    return randomize(keras.Model(inputs, L.Flatten()(x)), rng)


BUILDERS = {norm: lambda rng, norm=norm: network(norm, rng) for norm in NORMS} | {"keras": of_keras}


def images(rng):
    """Sorted by brightness, so that the batches differ."""
    x = rng.normal(1, 2, (EXAMPLES, 6, 6, 3)) + np.linspace(-3, 3, EXAMPLES)[:, None, None, None]
    return x.astype("float32")


def batches(*arrays, size):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(size)


def normalizers(model):
    return [x for x in model._flatten_layers() if hasattr(x, "moving_variance")]


def moving(model):
    return [v for x in normalizers(model) for v in (x.moving_mean, x.moving_variance)]


def statistics(model):
    return [keras.ops.convert_to_numpy(v) for v in moving(model)]


def assert_close(ours, theirs, tolerance=1e-5):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_are_those_of_the_inputs_at_inference(norm, rng):
    """Checked layer by layer with NumPy on what the recalibrated network itself computes."""
    model, x = network(norm, rng), images(rng)
    tfnorm.recalibrate(model, batches(x, size=5), steps=100)
    hidden, previous, state = x, None, None
    for layer in model.layers[1:]:
        if hasattr(layer, "moving_variance"):
            seen = layer.layer(hidden) if norm == "cbn" else hidden
            seen = keras.ops.convert_to_numpy(seen).reshape(-1, layer.channels).astype("float64")
            mean, variance = seen.mean(0), seen.var(0)
            if norm == "mabn":
                mean, variance = np.zeros_like(mean), np.square(seen).mean(0)
            if norm == "bkn" and previous is not None:
                mean, variance = kalman(layer, mean, variance, *previous)
            assert_close(
                [layer.moving_mean.numpy(), layer.moving_variance.numpy()], [mean, variance]
            )
        if norm == "bkn" and hasattr(layer, "moving_variance"):
            hidden, state = layer(hidden, previous=state)
            previous = (mean, variance, float(state[2]))
        else:
            hidden = layer(hidden)


def kalman(layer, mean, variance, previous_mean, previous_variance, noise):
    """DESIGN's formulas with the diagonal of the covariance."""
    matrix = layer.transition.numpy().astype("float64")
    q = 1 / (1 + np.exp(-float(layer.gain)))
    predicted = matrix @ previous_mean
    spread = np.square(matrix) @ previous_variance + noise
    return (
        (1 - q) * predicted + q * mean,
        (1 - q) * spread + q * variance + q * (1 - q) * np.square(mean - predicted),
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_the_same_however_it_is_cut(name, rng):
    """One batch; batches of 1 and of 7 with a smaller last one; labels and weights beside them."""
    model, x = BUILDERS[name](rng), images(rng)
    tfnorm.recalibrate(model, batches(x, size=EXAMPLES), steps=1)
    expected = statistics(model)
    for dataset in (batches(x, size=1), batches(x, np.arange(EXAMPLES), x[:, 0, 0, 0], size=7)):
        randomize_statistics(model, rng)
        tfnorm.recalibrate(model, dataset, steps=EXAMPLES)
        assert_close(statistics(model), expected)


def randomize_statistics(model, rng):
    for layer in normalizers(model):
        layer.moving_mean.assign(rng.normal(0, 3, layer.moving_mean.shape))
        layer.moving_variance.assign(rng.uniform(0.01, 9, layer.moving_variance.shape))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_same_on_replicas(name, rng, mirrored):
    x = images(rng)
    alone = BUILDERS[name](rng)
    strategy = mirrored(3)
    with strategy.scope():
        model = BUILDERS[name](rng)
    model.set_weights(alone.get_weights())
    tfnorm.recalibrate(alone, batches(x, size=EXAMPLES), steps=1)
    tfnorm.recalibrate(model, batches(x, size=8), steps=10)  # 3 + 3 + 2, at last 1 + 1 + 0
    assert_close(statistics(model), statistics(alone))
    for layer in normalizers(model):
        own = strategy.experimental_local_results(layer.moving_variance.value)
        assert len(own) == 3
        for value in own[1:]:
            np.testing.assert_array_equal(value, own[0])


@pytest.mark.parametrize("name", BUILDERS)
def test_nothing_else_changes(name, rng):
    model = BUILDERS[name](rng)
    model(images(rng)[:4], training=True)  # so that counters and histories are under way
    before = {v.path: v.numpy() for v in model.variables}
    assert all(np.isfinite(value).all() for value in before.values())
    configs = [x.get_config() for x in model.layers]
    tfnorm.recalibrate(model, batches(images(rng), size=5), steps=3)
    changed = {v.path for v in model.variables if not np.array_equal(v.numpy(), before[v.path])}
    assert changed == {v.path for v in moving(model)}
    assert [x.get_config() for x in model.layers] == configs
    assert not any("call" in vars(x) for x in model._flatten_layers())


def test_only_so_many_steps(rng):
    model, x = of_keras(rng), images(rng)
    tfnorm.recalibrate(model, batches(x, size=5), steps=2)
    expected = statistics(model)
    tfnorm.recalibrate(model, batches(x[:10], size=10), steps=9)
    assert_close(statistics(model), expected)


def test_batches_of_a_generator_are_kept(rng):
    model, x = of_keras(rng), images(rng)
    tfnorm.recalibrate(model, batches(x, size=5), steps=2)
    expected = statistics(model)
    handed_out = []

    def generator():
        for i in range(0, len(x), 5):
            handed_out.append(i)
            yield x[i : i + 5]

    for one_pass in (generator(), iter(batches(x, size=5))):
        randomize_statistics(model, rng)
        tfnorm.recalibrate(model, one_pass, steps=2)
        assert_close(statistics(model), expected)
    assert handed_out == [0, 5]


def test_spoiled_statistics_are_repaired(rng):
    """A trained classifier whose statistics were lost answers as well as before."""
    labels = rng.integers(0, 3, 120)
    x = (rng.normal(size=(120, 8, 8, 1)) + 0.7 * labels[:, None, None, None]).astype("float32")
    model = models.build("resnet8", norms.get("bn", momentum=0.8), (8, 8, 1), 3, width=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    model.fit(x, labels, batch_size=20, epochs=8, verbose=0)
    good, _ = model.evaluate(x, labels, verbose=0)
    randomize_statistics(model, rng)
    spoiled, _ = model.evaluate(x, labels, verbose=0)
    tfnorm.recalibrate(model, batches(x, size=2), steps=60)
    repaired, accuracy = model.evaluate(x, labels, verbose=0)
    assert spoiled > 2 * good
    assert repaired < 1.2 * good + 0.02 and accuracy > 0.9


def test_masked_positions_count_nothing(rng):
    words = rng.integers(1, 5, (8, 7))
    words[:, 4:] = 0
    x = keras.Input((7,), dtype="int32")
    y = L.Dense(4)(L.Embedding(5, 3, mask_zero=True)(x))
    for norm in (layers.BatchNormalization(), L.BatchNormalization()):
        model = keras.Model(x, norm(y))
        tfnorm.recalibrate(model, batches(words, size=3), steps=9)
        seen = keras.ops.convert_to_numpy(model.layers[2](model.layers[1](words)))[:, :4]
        assert_close(statistics(model), [seen.mean((0, 1)), seen.var((0, 1))])


def test_shared_layer_agrees_with_itself(rng):
    """Its statistics are those of both its inputs, of which one depends on them."""
    inputs = keras.Input((5, 3))
    norm, dense = L.BatchNormalization(), L.Dense(3, activation="tanh")
    model = randomize(keras.Model(inputs, norm(dense(norm(inputs)))), rng)
    x = rng.normal(2, 3, (20, 5, 3)).astype("float32")
    tfnorm.recalibrate(model, batches(x, size=6), steps=9)
    both = np.concatenate([x, keras.ops.convert_to_numpy(dense(norm(x)))])
    assert_close(statistics(model), [both.mean((0, 1)), both.var((0, 1))], tolerance=1e-2)


def test_frozen_layers_stay(rng):
    model, x = of_keras(rng), images(rng)
    frozen = normalizers(model)[1]
    frozen.trainable = False
    before = statistics(model)
    tfnorm.recalibrate(model, batches(x, size=5), steps=9)
    same = [np.array_equal(a, b) for a, b in zip(before, statistics(model))]
    assert same == [False, False, True, True, False, False]


def test_nested_and_subclassed_models(rng):
    class Net(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.norm = inner, L.BatchNormalization()

        def call(self, x):
            return self.norm(self.inner(x))

    inner = of_keras(rng)
    model, x = Net(inner), images(rng)
    model(x)
    tfnorm.recalibrate(model, batches(x, size=5), steps=9)
    seen = keras.ops.convert_to_numpy(inner(x))
    assert_close([model.norm.moving_mean.numpy()], [seen.mean(0)])


def test_several_inputs_and_mixed_precision(rng):
    a, b = keras.Input((6, 3), name="a"), keras.Input((6, 3), name="b")
    y = L.BatchNormalization(dtype="mixed_bfloat16")(L.Add()([a, b]))
    model = keras.Model({"a": a, "b": b}, y)
    x = {name: rng.normal(1, 2, (9, 6, 3)).astype("float32") for name in "ab"}
    tfnorm.recalibrate(model, tf.data.Dataset.from_tensor_slices(x).batch(4), steps=9)
    seen = x["a"] + x["b"]
    assert_close(statistics(model), [seen.mean((0, 1)), seen.var((0, 1))], tolerance=2e-2)


def test_progress_is_told(rng):
    progress = []
    tfnorm.recalibrate(
        of_keras(rng),
        batches(images(rng), size=9),
        steps=2,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert progress == [(1, 3), (2, 3), (3, 3)]


def test_a_failure_leaves_the_model_as_it_was(rng):
    model = of_keras(rng)
    before = statistics(model)

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tfnorm.recalibrate(model, batches(images(rng), size=9), 2, on_progress=interrupt)
    for ours, theirs in zip(statistics(model), before):
        np.testing.assert_array_equal(ours, theirs)
    assert not any("call" in vars(x) for x in model.layers)


def dense():
    x = keras.Input((4,), name="x")
    return keras.Model(x, L.Dense(2)(x), name="net")


def frozen_model():
    x = keras.Input((4,))
    model = keras.Model(x, L.BatchNormalization()(x), name="net")
    model.trainable = False
    return model


ERRORS = {
    "steps": (
        lambda: tfnorm.recalibrate(frozen_model(), batches(np.ones((4, 4)), size=2), 0),
        "steps must be a whole number from 1, of batches, received 0",
    ),
    "a share of steps": (
        lambda: tfnorm.recalibrate(frozen_model(), batches(np.ones((4, 4)), size=2), 1.5),
        "steps must be a whole number from 1, of batches, received 1.5",
    ),
    "an array": (
        lambda: tfnorm.recalibrate(frozen_model(), np.ones((4, 4)), 1),
        "recalibrate takes batches, one after the other, and received one ndarray; give [inputs] "
        "for a single batch",
    ),
    "no normalizer": (
        lambda: tfnorm.recalibrate(dense(), batches(np.ones((4, 4)), size=2), 1),
        "The model 'net' has no normalizer with moving statistics to recalibrate: it has none. "
        "Set trainable=True, or leave the recalibration out.",
    ),
    "frozen": (
        lambda: tfnorm.recalibrate(frozen_model(), batches(np.ones((4, 4)), size=2), 1),
        "The model 'net' has no normalizer with moving statistics to recalibrate: all 1 are "
        "frozen or not built. Set trainable=True, or leave the recalibration out.",
    ),
    "empty": (
        lambda: tfnorm.recalibrate(
            network("bn", np.random.default_rng(1)), batches(np.ones((4, 4)), size=2).take(0), 1
        ),
        "The data set is empty. Give one with at least one batch.",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(tfnorm.UserError) as error:
        call()
    assert str(error.value) == message


def test_examples_that_are_not_finite_leave_all_as_it_was(rng):
    model = network("mabn", rng)
    before = statistics(model)
    bad = images(rng)
    bad[-1, 2, 3, 1] = np.nan
    with pytest.raises(RunError, match="are not finite in the batches to recalibrate on"):
        tfnorm.recalibrate(model, batches(bad, size=4), 5)
    for old, new in zip(before, statistics(model), strict=True):
        np.testing.assert_array_equal(new, old)


def test_no_batches(rng):
    with pytest.raises(UserError, match="received one NoneType"):
        tfnorm.recalibrate(network("bn", rng), None, 3)
