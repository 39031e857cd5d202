"""The monitor measures what NumPy does, changes nothing, and warns where it should, once."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.summary import summary_iterator

from tests.training import running
from tfnorm import convert, layers, models, training
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.training import statistics_monitor
from tfnorm.training.statistics_monitor import NOISE_LIMIT, StatisticsMonitor
from tfnorm.training.training_pass import TrainingPass

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
OF_BATCHES = ("bn", "syncbn", "brn", "mabn", "cbn", "bkn")


def dense(*normalizers, inputs=5, width=4, classes=3):
    """A normalizer after each of the first dense layers."""
    x = images = keras.Input((inputs,))
    for normalizer in normalizers:
        x = normalizer(keras.layers.Dense(width, use_bias=False)(x))
    return keras.Model(images, keras.layers.Dense(classes)(x))


@pytest.fixture
def examples(rng):
    """So many random inputs and labels."""
    return lambda n, inputs=5: (
        rng.normal(size=(n, inputs)).astype("float32"),
        rng.integers(0, 3, n).astype("int32"),
    )


def oracle(model, x, labels, groups, *, centred=True):
    """Statistics of the one normalizer of a dense model, in each group, by hand in float64."""
    kernel, gamma, beta, *_ = (v.numpy().astype("float64") for v in model.weights)
    last, bias = (v.numpy().astype("float64") for v in model.layers[-1].weights)
    h = x.astype("float64") @ kernel
    found = []
    for rows in np.split(np.arange(len(x)), groups):
        part = h[rows]
        mean, variance = part.mean(0), part.var(0)
        shift, scale = (mean, variance) if centred else (0, (part**2).mean(0))
        y = (part - shift) / np.sqrt(scale + 1e-3)
        logits = (gamma * y + beta) @ last + bias
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        g = gamma * ((p - np.eye(3)[labels[rows]]) @ last.T)
        found.append((mean, variance, g.mean(0), (g * y).mean(0), (g**2).mean(0), [len(rows)]))
    return [np.stack(values) for values in zip(*found)]


@pytest.mark.parametrize(
    "layer, groups, centred",
    [
        (layers.BatchNormalization(virtual_replicas=3), 3, True),
        (layers.BatchNormalization(virtual_replicas=3, synchronized=True), 1, True),
        (layers.BatchRenormalization(r_max=1, d_max=0, virtual_replicas=2), 2, True),
        (layers.MovingAverageBatchNormalization(virtual_replicas=3), 3, False),
        (keras.layers.BatchNormalization(), 1, True),
    ],
    ids=["bn", "syncbn", "brn", "mabn", "keras"],
)
def test_statistics_are_those_of_numpy(examples, randomized, layer, groups, centred):
    model = randomized(dense(layer))
    x, labels = examples(12)
    (found,) = TrainingPass(model, [layer], LOSS).statistics(x, labels)
    expected = oracle(model, x, labels, groups, centred=centred)
    for name, value, truth in zip(found._fields, found, expected, strict=True):
        np.testing.assert_allclose(value, truth, rtol=2e-4, atol=1e-5, err_msg=name)


def test_gradients_are_those_of_the_network_as_it_trains(examples, randomized):
    # The layer before has its own batch statistics: what reaches the first went through the second.
    first, second = (layers.BatchNormalization(virtual_replicas=2) for _ in range(2))
    model = randomized(dense(first, second))
    x, labels = examples(8)
    found = TrainingPass(model, [second, first], LOSS).statistics(x, labels)
    with tf.GradientTape() as tape:
        z = first(model.layers[1](x), training=True)
        tape.watch(z)
        logits = model.layers[-1](second(model.layers[3](z), training=True))
        total = LOSS(labels, logits) * 8
    gamma, beta = first.gamma.numpy(), first.beta.numpy()
    dz, z = tape.gradient(total, z).numpy().reshape(2, 4, 4), z.numpy().reshape(2, 4, 4)
    np.testing.assert_allclose(found[1].gradient, gamma * dz.mean(1), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        found[1].gradient_product, (dz * (z - beta)).mean(1), rtol=1e-3, atol=1e-6
    )


def test_masked_positions_count_nowhere(rng, examples):
    images = keras.Input((4, 5))
    layer = layers.BatchNormalization()
    x = layer(keras.layers.Masking()(images))
    model = keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    x = rng.normal(size=(6, 4, 5)).astype("float32")
    x[:, 2:] = 0
    (found,) = TrainingPass(model, [layer], LOSS).statistics(x, examples(6)[1])
    np.testing.assert_allclose(found.mean[0], x[:, :2].mean((0, 1)), rtol=1e-4, atol=1e-6)
    assert found.count == 12


@pytest.mark.parametrize("norm", OF_BATCHES)
def test_training_is_the_same_bit_for_bit_with_it(small, monkeypatch, norm, examples):
    monkeypatch.setattr(models, "build", running.two_layers)
    config = small(norm=norm, epochs=1, virtual_replicas=2)
    data = keras.utils.normalize(np.arange(16 * 64.0).reshape(16, 8, 8, 1)), np.arange(16) % 10
    monitor = StatisticsMonitor(data, 8, every=1, large_batch=16, notice=lambda text: None)
    watched, alone = (training.train(config, c, lambda text: None) for c in ([monitor], []))
    for one, other in zip(running.weights(watched), running.weights(alone), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["step"] for row in monitor.history] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert {row["norm"] for row in monitor.history} == {norm}
    assert {row["images"] for row in monitor.history} == {8 if norm == "syncbn" else 4}
    assert json.loads(json.dumps(monitor.history, allow_nan=False)) == monitor.history


def compiled(*normalizers):
    model = dense(*normalizers)
    model.compile("sgd", LOSS)
    return model


def test_fit_calls_it_when_it_is_due_and_changes_no_variable(examples, monkeypatch):
    model = compiled(keras.layers.BatchNormalization())
    monitor = StatisticsMonitor(examples(16), 4, every=3, large_batch=16, notice=lambda text: None)
    calls = []
    measure = TrainingPass.statistics

    def counted(self, *batch):
        before = [v.numpy() for v in model.variables]
        found = measure(self, *batch)
        for value, variable in zip(before, model.variables, strict=True):
            np.testing.assert_array_equal(value, variable.numpy())
        calls.append(monitor._step)
        return found

    monkeypatch.setattr(TrainingPass, "statistics", counted)
    x, labels = examples(20)
    model.fit(x, labels, batch_size=4, epochs=2, verbose=0, callbacks=[monitor])
    assert calls == [step for step in (3, 6, 9) for _ in range(4)]
    assert [row["step"] for row in monitor.history] == [3, 6, 9]


def test_it_measures_after_the_execution_in_which_it_is_due(examples):
    model = dense(keras.layers.BatchNormalization())
    model.compile("sgd", LOSS, steps_per_execution=3)
    monitor = StatisticsMonitor(examples(16), 4, every=4, large_batch=16, notice=lambda text: None)
    x, labels = examples(32)
    model.fit(x, labels, batch_size=4, epochs=2, verbose=0, callbacks=[monitor])
    # 8 steps an epoch end with 3, 6, 8, 11, 14 and 16.
    assert [row["step"] for row in monitor.history] == [6, 8, 14, 16]


def test_steps_go_on_in_the_next_fit_and_follow_the_model(tmp_path, examples, notices):
    x, labels = examples(32)
    monitor = StatisticsMonitor(
        examples(16), 4, every=4, large_batch=16, directory=tmp_path, notice=notices.append
    )
    first, other = (compiled(layers.BatchNormalization(name=name)) for name in ("one", "two"))
    for model, epochs in ((first, 2), (first, 1), (other, 1)):
        model.fit(x, labels, batch_size=4, epochs=epochs, verbose=0, callbacks=[monitor])
    found = [(row["layer"], row["step"]) for row in monitor.history]
    assert found == [*(("one", step) for step in range(4, 25, 4)), ("two", 28), ("two", 32)]
    assert [notice.split("'")[1] for notice in notices] == ["one", "two"]
    written = [scalars_of(file) for file in (tmp_path / "statistics").iterdir()]
    steps = {step for each in written for _, step in each}
    assert steps == {step for _, step in found}


def test_a_frozen_layer_is_watched_where_it_is_named_and_never_warned_of(examples, notices):
    names = ("a", "b", "c", "d")
    normalizers = [layers.BatchNormalization(name=name) for name in names]
    model = dense(*normalizers)
    for layer in normalizers[:2]:
        layer.trainable = False
    for watched, found in ((4, ["c", "d"]), (["a"], ["a"])):
        notices.clear()
        monitor = begin(model, examples(64), 2, every=1, layers=watched, notice=notices.append)
        assert [row["layer"] for row in monitor.history] == found
        assert [notice.split("'")[1] for notice in notices] == [x for x in found if x in "cd"]
    model.trainable = False
    monitor = begin(model, examples(64), 2, every=1, layers=2, notice=notices.append)
    assert [row["layer"] for row in monitor.history] == ["a", "d"]


def test_a_network_that_is_unfrozen_is_measured_as_it_trains(examples):
    x, labels = examples(32)
    model = compiled(layers.BatchNormalization(), layers.BatchNormalization(name="norm"))
    monitors = [
        StatisticsMonitor((x, labels), 4, every=8, layers=["norm"], notice=lambda text: None)
        for _ in range(2)
    ]
    for is_trained, used in ((False, monitors[:1]), (True, monitors)):
        for layer in model.layers:
            layer.trainable = is_trained or not isinstance(layer, layers.BatchNormalization)
        model.compile("sgd", LOSS)
        model.fit(x, labels, batch_size=4, verbose=0, callbacks=used)
    (_, row), (fresh,) = (monitor.history for monitor in monitors)
    assert (row["step"], fresh["step"]) == (16, 8)
    for name in ("mean", "variance", "gradient", "gradient_product"):
        assert row[name]["large"] == fresh[name]["large"]


def test_a_dropout_draws_in_training_what_it_drew_without_it(examples):
    x, labels = examples(12)

    def fitted(callbacks):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([
            keras.layers.Dense(4), keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5), keras.layers.Dense(3),
        ])  # fmt: skip
        model.compile("sgd", LOSS)
        model.fit(x, labels, batch_size=4, shuffle=False, verbose=0, callbacks=callbacks)
        return model.get_weights()

    monitor = StatisticsMonitor((x, labels), 4, every=1, notice=lambda text: None)
    for one, other in zip(fitted([monitor]), fitted([]), strict=True):
        np.testing.assert_array_equal(one, other)


def begin(model, *args, **kwargs):
    """A monitor at the start of a training, before the first epoch."""
    monitor = StatisticsMonitor(*args, **kwargs)
    monitor.set_model(model)
    monitor.set_params({"steps": 10})
    monitor.on_epoch_begin(0)
    monitor.on_train_batch_end(0)
    return monitor


def at_step(monitor, step):
    monitor.on_epoch_begin((step - 1) // 10)
    monitor.on_train_batch_end((step - 1) % 10)
    return [row for row in monitor.history if row["step"] == step]


def test_a_row_has_the_norms_of_a_micro_batch_in_turn_of_its_step_and_of_all(examples, randomized):
    layer = layers.BatchNormalization(virtual_replicas=2)
    model = randomized(dense(layer))
    x, labels = examples(24)
    monitor = begin(model, (x, labels), 8, every=2, large_batch=20, notice=lambda text: None)
    (row,), (turn,) = (at_step(monitor, step) for step in (2, 4))
    parts, steps, large = (oracle(model, x, labels, groups) for groups in (6, 3, 1))
    # G of the large batch is that of the micro-batches, each normalized by itself.
    norm = np.linalg.norm
    for name, index, scale in [("mean", 0, 1), ("variance", 1, 1), ("gradient", 2, 8),
                               ("gradient_product", 3, 8)]:  # fmt: skip
        assert row[name]["batch"] == pytest.approx(norm(parts[index][0]) / scale, rel=1e-3)
        assert turn[name]["batch"] == pytest.approx(norm(parts[index][1]) / scale, rel=1e-3)
        step = steps[index][0] if index < 2 else parts[index][:2].mean(0)
        assert row[name]["step"] == pytest.approx(norm(step) / scale, rel=1e-3)
        assert turn[name]["step"] == row[name]["step"]
        whole = large[index] if index < 2 else parts[index].mean(0)
        assert row[name]["large"] == pytest.approx(norm(whole) / scale, rel=1e-3)
    assert row["mean"]["moving"] == pytest.approx(norm(layer.moving_mean.numpy()))
    assert row["variance"]["moving"] == pytest.approx(norm(layer.moving_variance.numpy()))
    assert set(row["gradient"]) == set(row["gradient_product"]) == {"batch", "step", "large"}
    found = statistics_monitor.Statistics(*map(np.asarray, parts))
    noise = statistics_monitor.statistics.noise(
        found, statistics_monitor.statistics.merge(found), 1e-3
    )
    assert row["noise"]["forward"] == pytest.approx(noise.forward, rel=1e-3)
    assert row["noise"]["backward"] == pytest.approx(noise.backward, rel=1e-3)
    assert row["noise"] == turn["noise"]


def test_mabn_has_its_windows_once_they_are_full(examples, randomized):
    layer = layers.MovingAverageBatchNormalization(window=3, gradient_window=5, virtual_replicas=2)
    model = randomized(dense(layer))
    x, labels = examples(16)
    monitor = begin(model, (x, labels), 8, every=1, large_batch=16, notice=lambda text: None)
    for weight in (layer.square_weight, layer.gradient_weight):
        weight.assign(np.linspace(0.4, 1, 2 * weight.shape[0]).reshape(weight.shape))
    layer.step.assign(2)
    (row,) = at_step(monitor, 2)
    assert set(row["variance"]) == {"batch", "step", "large", "moving"}
    layer.step.assign(4)
    (row,) = at_step(monitor, 2)
    values, weights = (v.numpy()[:, 0].sum(0) for v in (layer.square_history, layer.square_weight))
    window = np.linalg.norm(values / weights)
    assert row["variance"]["window"] == pytest.approx(window)
    assert set(row["gradient_product"]) == {"batch", "step", "large"}
    layer.step.assign(5)
    (row,) = at_step(monitor, 3)
    values, weights = (
        v.numpy()[:, 1].sum(0) for v in (layer.gradient_history, layer.gradient_weight)
    )
    window = np.linalg.norm(values / weights)
    assert row["gradient_product"]["window"] == pytest.approx(window)
    square = (x.astype("float64") @ model.layers[1].kernel.numpy()) ** 2
    assert row["variance"]["large"] == pytest.approx(np.linalg.norm(square.mean(0)), rel=1e-4)
    assert row["noise"]["mean"] == row["noise"]["gradient"] == 0


def test_it_warns_of_small_batches_once_a_layer(examples, randomized, notices):
    data = examples(256)
    model = randomized(dense(layers.BatchNormalization(name="thin", virtual_replicas=16)))
    monitor = begin(model, data, 32, every=5, notice=notices.append)
    (row,) = at_step(monitor, 5)
    at_step(monitor, 10)
    forward, backward = (row["noise"][name] for name in ("forward", "backward"))
    images = math.ceil(2 * (max(forward, backward) / NOISE_LIMIT) ** 2)
    assert notices == [
        "the batch statistics of layer 'thin' are too noisy for bn: at step 5, with 2 images in a "
        f"batch, they put normalized values off by {forward:.2f} and gradients by {backward:.2f} "
        f"of their standard deviation (limit 0.33). About {images} images would do; else try brn, "
        "mabn, cbn, bkn or gn, or a larger batch (syncbn if there are more replicas)"
    ]
    assert 8 < images < 40


def test_it_ends_no_run_that_diverges(examples, randomized, notices):
    """It says so once a layer, and goes on measuring."""
    model = randomized(dense(layers.BatchNormalization(name="first")))
    monitor = begin(model, examples(64), 8, every=5, notice=notices.append)
    for step, value in ((5, np.inf), (10, np.nan), (15, 1.0)):
        model.layers[1].kernel.assign(np.full((5, 4), value, "float32"))
        (row,) = at_step(monitor, step)
        assert np.isfinite(row["noise"]["forward"]) == (value == 1.0)
    assert notices == [
        "the statistics of layer 'first' are not finite at step 5: the run has diverged; a lower "
        "learning rate may help"
    ]


def test_it_says_which_layer_inference_would_make_constant(examples, randomized, notices):
    model = randomized(dense(layers.BatchNormalization(name="a"), layers.BatchNormalization()))
    monitor = begin(model, examples(256), 32, every=5, notice=notices.append)
    model.get_layer("a").moving_variance.assign([1.0, 1e30, 2.0, np.inf])
    for step in (5, 10):
        at_step(monitor, step)
    assert notices[0] == (
        "the moving variance of layer 'a' is not finite, or more than 1e+08 times that of the "
        "data, in 2 of 4 channels at step 5: inference makes them constant; train on, or "
        "tfnorm.recalibrate the model"
    )
    assert not any("inference" in notice for notice in notices[1:])


def test_its_history_does_not_grow_without_bound(examples, randomized):
    model = randomized(dense(layers.BatchNormalization(), layers.BatchNormalization()))
    monitor = begin(model, examples(64), 16, every=1, keep_rows=5)
    for step in range(1, 8):
        at_step(monitor, step)
    assert [row["step"] for row in monitor.history] == [5, 6, 6, 7, 7]


def test_it_does_not_warn_of_32_images(examples, randomized, notices):
    model = randomized(dense(layers.BatchNormalization(), keras.layers.BatchNormalization()))
    monitor = begin(model, examples(256), 32, every=5, notice=notices.append)
    assert len(at_step(monitor, 5)) == 2
    assert not notices


@pytest.mark.parametrize(
    "layer, forward, backward",
    [
        (layers.BatchNormalization(), 1, 1),
        (keras.layers.BatchNormalization(), 1, 1),
        (layers.MovingAverageBatchNormalization(window=9, gradient_window=4), 9, 4),
        (layers.CrossIterationBatchNormalization(keras.layers.Dense(4, use_bias=False), window=4),
         4, 16),
        (layers.BatchRenormalization(momentum=0.9), 19, 1),
        (layers.BatchRenormalization(momentum=1), np.inf, 1),
        (layers.OnlineNormalization(momentum=1, gradient_momentum=0.5), np.inf, 3),
    ],
    ids=["bn", "keras", "mabn", "cbn", "brn", "brn that never moves", "on that never moves"],
)  # fmt: skip
def test_norms_that_average_are_less_noisy(examples, notices, layer, forward, backward):
    model = dense(layer) if not isinstance(layer, layers.CrossIterationBatchNormalization) else (
        keras.Sequential([keras.Input((5,)), layer, keras.layers.Dense(3)])
    )  # fmt: skip
    monitor = begin(model, examples(256), 2, every=1, notice=notices.append)
    (row,) = at_step(monitor, 1)
    errors = [row["noise"]["forward"] / forward**0.5, row["noise"]["backward"] / backward**0.5]
    reported = [f"off by {errors[0]:.2f} and gradients by {errors[1]:.2f} of" in n for n in notices]
    assert reported == ([True] if max(errors) > NOISE_LIMIT else [])


def test_bkn_counts_the_batch_by_its_gain(examples, notices):
    images = keras.Input((5,))
    x, state = layers.BatchKalmanNormalization()(keras.layers.Dense(4)(images))
    chained = layers.BatchKalmanNormalization(initial_gain=0.5)
    x, _ = chained(keras.layers.Dense(4)(x), previous=state)
    model = keras.Model(images, keras.layers.Dense(3)(x))
    monitor = begin(model, examples(64), 1, every=1, layers=[chained.name], notice=notices.append)
    (row,) = at_step(monitor, 1)
    forward, backward = (row["noise"][name] / 2 for name in ("forward", "backward"))
    assert f"off by {forward:.2f} and gradients by {backward:.2f} of" in notices[0]


def test_subclasses_are_watched_as_what_they_derive_from(examples, notices):
    class Own(layers.MovingAverageBatchNormalization):
        pass

    monitor = begin(dense(Own(window=3)), examples(64), 1, every=1, notice=notices.append)
    (row,) = at_step(monitor, 1)
    assert row["norm"] == "mabn" and row["noise"]["mean"] == 0
    assert notices[0].endswith(f"else try {norms.get('mabn').advice}")


def test_normalizers_without_an_entry_are_watched_by_the_name_of_their_class(examples, notices):
    class Unknown(layers.ChannelNormalization):
        def normalize_batch(self, inputs, mask):
            return self.normalize_for_inference(inputs)

    monitor = begin(dense(Unknown()), examples(64), 1, every=1, notice=notices.append)
    (row,) = at_step(monitor, 1)
    assert row["norm"] == "Unknown" and " noisy for Unknown: " in notices[0]


def scalars(directory):
    (file,) = (directory / "statistics").iterdir()
    return scalars_of(file)


def scalars_of(file):
    return {
        (v.tag, event.step): tf.make_ndarray(v.tensor).item()
        for event in summary_iterator.summary_iterator(str(file))
        for v in event.summary.value
    }


def test_tensorboard_has_every_number_of_every_row(tmp_path, examples):
    model = compiled(layers.BatchNormalization(), layers.BatchNormalization())
    monitor = StatisticsMonitor(
        examples(8), 4, every=2, directory=tmp_path, notice=lambda text: None
    )
    model.fit(*examples(16), batch_size=4, verbose=0, callbacks=[monitor])
    expected = {
        (f"{row['layer']}/{name}/{key}", row["step"]): pytest.approx(value)
        for row in monitor.history
        for name, values in row.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
    assert len(expected) == 2 * 2 * 16
    assert scalars(tmp_path) == expected


def test_a_resumed_run_counts_on_and_measures_a_step_once(examples):
    monitor = begin(
        dense(layers.BatchNormalization()), examples(8), 4, every=5, notice=lambda text: None
    )
    monitor.history.extend([{"step": 5}, {"step": 25, "old": True}, {"step": 30}])
    monitor.on_epoch_begin(2)
    monitor.on_train_batch_end(4)
    assert [row["step"] for row in monitor.history] == [5, 25]
    assert "old" not in monitor.history[-1]


def test_an_epoch_of_unknown_length_is_counted(examples):
    monitor = begin(
        dense(layers.BatchNormalization()), examples(8), 4, every=4, notice=lambda text: None
    )
    monitor.set_params({"steps": None})
    for epoch in range(2):
        monitor.on_epoch_begin(epoch)
        for batch in range(6):
            monitor.on_train_batch_end(batch)
    assert [row["step"] for row in monitor.history] == [4, 8, 12]


@pytest.mark.parametrize("norm, images", [("bn", 4), ("syncbn", 8)])
def test_micro_batches_of_replicas(mirrored, examples, norm, images):
    strategy = mirrored(2)
    with strategy.scope():
        model = dense(norms.get(norm).layer_class(**norms.get(norm).defaults))
    data = tf.data.Dataset.from_tensor_slices(examples(40)).batch(7)
    monitor = begin(model, data, 8, every=1, large_batch=16, notice=lambda text: None)
    layer = model.layers[2]

    def drift():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        layer.moving_mean.value.assign(tf.fill([4], tf.cast(replica, tf.float32)))

    strategy.run(tf.function(drift))
    (row,) = at_step(monitor, 1)
    assert row["images"] == images
    local = strategy.experimental_local_results(layer.moving_mean.value)
    np.testing.assert_array_equal([v.numpy() for v in local], [[0] * 4, [1] * 4])


@pytest.mark.parametrize("count, places", [(1, [3]), (3, [0, 3, 6]), (9, range(7))])
def test_layers_are_spread_over_the_depth(count, places):
    assert statistics_monitor.spread(range(7), count) == list(places)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": ["second", "there"]},
         "the model 'net' has no normalizer of batches 'there'; known: first, second"),
        ({"layers": []},
         "the model 'net' has no normalizer of batches in an empty list; known: first, second"),
        ({"layers": 0}, "StatisticsMonitor has no layer to watch: layers=0, and the model 'net' "
                        "has 2 normalizers of batches"),
        ({"layers": True}, "layers must be a number of layers or their names, received True"),
        ({"layers": "third"},
         "the model 'net' has no normalizer of batches 'third'; known: first, second"),
        ({"every": 0}, "every must be a whole number from 1, received 0"),
        ({"every": 1.5}, "every must be a whole number from 1, received 1.5"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1, received 0"),
        ({"large_batch": 0}, "large_batch must be a whole number from 1, received 0"),
        ({"layers": 2.0}, "layers must be a number of layers or their names, received 2.0"),
        ({"batch_size": 9}, "StatisticsMonitor needs data of at least two micro-batches (9 images "
                            "on a replica, of batch_size=9), received 1 whole batches; give it "
                            "more"),
    ],
)  # fmt: skip
def test_user_errors(examples, options, message):
    model = dense(layers.BatchNormalization(name="first"), layers.BatchNormalization(name="second"))
    model.name = "net"
    with pytest.raises(UserError) as error:
        begin(model, examples(16), **{"batch_size": 4, **options})
    assert str(error.value) == message


def test_a_model_without_normalizers_and_one_with_several_losses_are_user_errors(examples):
    model = dense()
    model.name = "net"
    with pytest.raises(UserError) as error:
        begin(model, examples(16), 4)
    assert str(error.value) == (
        "StatisticsMonitor has no layer to watch: layers=3, and the model 'net' has 0 normalizers "
        "of batches"
    )
    model = dense(layers.BatchNormalization())
    model.name = "net"
    model.compile("sgd", [LOSS])
    assert begin(model, examples(16), 4, every=1, notice=lambda text: None).history
    model.compile("sgd", [LOSS, LOSS])
    with pytest.raises(UserError) as error:
        begin(model, examples(16), 4)
    assert str(error.value) == (
        "the model 'net' has several losses; give StatisticsMonitor one function as loss, from "
        "(labels, outputs)"
    )


IMAGES = np.zeros((16, 5), "float32")


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (IMAGES, "ndarray"),
        (tf.data.Dataset.from_tensor_slices(IMAGES).batch(4), "a dataset of TensorSpec"),
        (
            tf.data.Dataset.from_tensor_slices((IMAGES, IMAGES[:, 0])),
            "a dataset that is not batched, or without labels",
        ),
        (
            tf.data.Dataset.from_tensor_slices((IMAGES, None)).batch(4),
            "a dataset that is not batched, or without labels",
        ),
    ],
)
def test_data_are_pairs_of_batches(data, received):
    with pytest.raises(UserError) as error:
        StatisticsMonitor(data, 4)
    assert str(error.value) == (
        "StatisticsMonitor needs data of images and labels, a pair of arrays or a tf.data.Dataset "
        f"of batches of such pairs, received {received}"
    )


def test_labels_are_as_many_as_images():
    with pytest.raises(UserError, match=r"as many labels as images, received others: .*16 and 10"):
        begin(dense(layers.BatchNormalization()), (IMAGES, IMAGES[:10, 0]), 4)


def test_a_layer_that_is_not_called_is_a_user_error(examples):
    layer, idle = layers.BatchNormalization(), layers.BatchNormalization(name="idle")
    model = dense(layer)
    idle.build((None, 4))
    with pytest.raises(UserError) as error:
        TrainingPass(model, [layer, idle], LOSS).statistics(*examples(4))
    assert str(error.value) == (
        f"the model {model.name!r} does not call idle; choose layers that it calls in training"
    )


@pytest.mark.parametrize("changes", [
    {"mixed_precision": "mixed_float16"},
    {"distribution_strategy": "mirrored", "num_replicas": 2, "norm": "mabn"},
    {"distribution_strategy": "mirrored", "num_replicas": 2, "norm": "syncbn"},
], ids=["float16", "mabn of 2 replicas", "syncbn of 2 replicas"])  # fmt: skip
def test_runs_of_other_kinds_are_the_same_with_it(small, monkeypatch, rng, changes):
    monkeypatch.setattr(models, "build", running.two_layers)
    config = small(steps=3, **changes)
    images = 8 * max(config.num_replicas, 1)
    data = rng.normal(size=(32, 8, 8, 1)).astype("float32"), np.arange(32) % 10
    monitor = StatisticsMonitor(data, images, every=1, large_batch=32, notice=lambda text: None)
    watched, alone = (training.train(config, c, lambda text: None) for c in ([monitor], []))
    for one, other in zip(running.weights(watched), running.weights(alone), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {row["images"] for row in monitor.history} == {images if config.norm == "syncbn" else 8}
    assert all(math.isfinite(row["noise"]["backward"]) for row in monitor.history)


class Block(keras.layers.Layer):
    """A dense layer and its normalizer, which have the same names in each block."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4, use_bias=False, name="dense")
        self.norm = keras.layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((None, 4))

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


def test_normalizers_in_blocks_are_watched_by_their_paths(examples):
    x, labels = examples(32)
    inputs = keras.Input((5,))
    outputs = keras.layers.Dense(3)(Block(name="second")(Block(name="first")(inputs)))
    model = convert(keras.Model(inputs, outputs), "brn", in_place=True)
    model.compile("sgd", LOSS)
    monitor = StatisticsMonitor((x, labels), batch_size=8, every=1, layers=2)
    model.fit(x[:8], labels[:8], batch_size=8, verbose=0, callbacks=[monitor])
    assert [row["layer"] for row in monitor.history] == ["first/norm", "second/norm"]
    dense_of = model.get_layer("first").dense
    mean = float(np.linalg.norm((x @ dense_of.kernel.numpy()).mean(0)))
    assert monitor.history[0]["mean"]["large"] == pytest.approx(mean, rel=1e-3)
