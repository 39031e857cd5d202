"""Probes measure what is asked, once, and are kept in the record."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from tests.training.running import two_layers
from tfnorm import layers, models, tasks, training
from tfnorm.data import sampling
from tfnorm.errors import UserError
from tfnorm.study import probes, running
from tfnorm.study.grid import Cell
from tfnorm.training import batches

CONFIG = training.Config(
    width=4,
    stem_stride=2,
    train_examples=96,
    replica_batch_size=8,
    virtual_replicas=4,
    steps=6,
    learning_rate=0.05,
)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(models, "build", two_layers)


def run(tmp_path, config, *names):
    """A run's record with these probes."""
    cell = Cell({"norm": config.norm}, config, names)
    return running.run_cell(cell, str(tmp_path / "model"), lambda text: None)


def test_unknown_probes_are_user_errors_that_list_the_known():
    with pytest.raises(UserError) as error:
        probes.build(["batch_statistic"], CONFIG, None)
    known = ", ".join(probes.PROBES)
    assert str(error.value) == f"unknown probe 'batch_statistic'; known: {known}"


def test_probes_enter_the_hash_of_a_cell_only_if_there_are_any():
    plain = Cell({"norm": "bn"}, training.Config())
    assert plain.hash == "c244f7a32d73"
    assert Cell({"norm": "bn"}, training.Config(), ("batch_statistics",)).hash != plain.hash


@pytest.mark.parametrize("norm", ["bn", "mabn", "bkn"])
def test_accuracy_with_batch_statistics(tmp_path, norm):

    config = dataclasses.replace(CONFIG, norm=norm)
    record = run(tmp_path, config, "batch_statistics")
    assert json.loads(json.dumps(record)) == record
    (found,) = record["probes"]["batch_statistics"].items()
    model, _ = training.load_model(str(tmp_path / "model"), notice=lambda text: None)
    dataset = tasks.load(config).dataset
    images, labels = (dataset.test.column(name) for name in ("image", "label"))
    whole = len(labels) // 8 * 8
    state = [v.numpy() for v in model.variables]
    hits = []
    for start in range(0, whole, 8):
        for variable, value in zip(model.variables, state):
            variable.assign(value)
        logits = model(dataset.standardize(images[start : start + 8]), training=True)
        hits.append(np.argmax(logits, -1) == labels[start : start + 8])
    assert found == ("test_accuracy_batch_statistics", pytest.approx(np.mean(hits)))


def test_accuracy_with_test_images_that_come_as_the_training_images_did(tmp_path):
    config = dataclasses.replace(CONFIG, sampling="sorted")
    found = run(tmp_path, config, "batch_statistics")["probes"]["batch_statistics"]
    model, _ = training.load_model(str(tmp_path / "model"), notice=lambda text: None)
    dataset = tasks.load(config).dataset
    images, labels = (dataset.test.column(name) for name in ("image", "label"))
    order = sampling.order("sorted", np.random.default_rng(config.seed), dataset.test, 2)
    whole = order[: len(order) // 8 * 8].reshape(-1, 8)
    assert (labels[whole[:, ::2]] == labels[whole[:, 1::2]]).mean() > 0.9
    state = [v.numpy() for v in model.variables]
    hits = []
    for part in whole:
        for variable, value in zip(model.variables, state):
            variable.assign(value)
        logits = model(dataset.standardize(images[part]), training=True)
        hits.append(np.argmax(logits, -1) == labels[part])
    assert set(found) == {
        "test_accuracy_batch_statistics",
        "test_accuracy_batch_statistics_sampled",
    }
    assert found["test_accuracy_batch_statistics_sampled"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("norm", ["bn", "mabn"])
def test_statistics_over_training_are_those_of_the_monitor(tmp_path, monkeypatch, norm):
    monitors = []

    def made(*args):
        monitors.append(probes.StatisticsSeries(*args))
        return monitors[-1]

    monkeypatch.setattr(probes, "PROBES", {"statistics": made})
    config = dataclasses.replace(CONFIG, norm=norm, steps_per_loop=2)
    record = run(tmp_path, config, "statistics")
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    found, history = record["probes"]["statistics"], monitors[0].history
    assert found["step"] == [row["step"] for row in history] == [2, 4, 6]
    assert (found["norm"], found["images"], found["large_images"]) == (norm, 2, 96)
    for name, keys in [
        ("mean", {"batch", "step", "large", "moving"}),
        # mabn averages it from the first step of so short a run.
        (
            "gradient_product",
            {"batch", "step", "large"} | ({"window"} if norm == "mabn" else set()),
        ),
        ("noise", {"mean", "variance", "gradient", "gradient_product", "forward", "backward"}),
    ]:
        assert set(found[name]) == keys
        for key in keys:
            expected = [pytest.approx(row[name][key], rel=1e-4) for row in history]
            assert found[name][key] == expected
    assert json.loads((tmp_path / "model" / "statistics.json").read_text()) == history


def test_a_resumed_run_has_the_statistics_of_all_its_parts(tmp_path):
    config = dataclasses.replace(CONFIG, steps_per_loop=2)
    whole = run(tmp_path / "whole", config, "statistics")["probes"]["statistics"]
    # As many points over the steps to be, of which the first part makes half.
    first = dataclasses.replace(config, model_dir=str(tmp_path / "parts" / "model"))
    probe = probes.StatisticsSeries(first, tasks.load(config))

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    first = dataclasses.replace(first, train_examples=32, steps=4)
    training.train(first, [probe, Stop()], lambda text: None)
    parts = run(tmp_path / "parts", config, "statistics")["probes"]["statistics"]
    assert parts["step"] == whole["step"]


def test_norms_of_single_images_have_no_statistics(tmp_path):
    config = dataclasses.replace(CONFIG, norm="gn")
    found = run(tmp_path, config, "statistics", "variance_gap")["probes"]
    assert found == {"statistics": {}, "variance_gap": {"mean_relative_gap": None, "layers": []}}


def test_variance_gap_of_bn_is_that_of_its_batches(tmp_path):
    config = dataclasses.replace(CONFIG, augment="pad_crop")
    found = run(tmp_path, config, "variance_gap")["probes"]["variance_gap"]
    model, _ = training.load_model(str(tmp_path / "model"), notice=lambda text: None)
    first, last = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    assert [layer["layer"] for layer in found["layers"]] == [first.name, last.name]
    # The first normalizer sees the convolution of the images, whatever state there is.
    stem = keras.Model(model.inputs, first.input)
    variances = np.concatenate(
        [
            stem(batch["image"]).numpy().reshape(4, -1, 4).var(1)
            for batch in batches.of_epoch(config, tasks.load(config), 0, 8)
        ]
    )
    moving = first.moving_variance.numpy()
    gap, shown = np.abs(variances - moving), found["layers"][0]
    assert shown["mean_relative_gap"] == pytest.approx(np.mean(gap / (moving + 1e-3)), rel=1e-3)
    np.testing.assert_allclose(shown["gap"], gap[:40].T, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(shown["moving_variance"], moving, rtol=1e-3)
    gaps = [layer["mean_relative_gap"] for layer in found["layers"]]
    assert found["mean_relative_gap"] == pytest.approx(np.mean(gaps))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_variance_gap_of_bkn_is_that_of_its_estimate(tmp_path, covariance):
    config = dataclasses.replace(CONFIG, norm="bkn", norm_options={"covariance": covariance})
    found = run(tmp_path, config, "variance_gap")["probes"]["variance_gap"]
    model, _ = training.load_model(str(tmp_path / "model"), notice=lambda text: None)
    chain = [x for x in model.layers if isinstance(x, layers.BatchKalmanNormalization)]
    middle = next(x for x in chain if x.name == found["layers"][1]["layer"])
    moving = middle.moving_variance.numpy()
    estimate = keras.Model(model.inputs, keras.tree.flatten(middle.output)[2])
    images = next(iter(batches.of_epoch(config, tasks.load(config), 0, 8)))["image"]
    variance = estimate(images, training=True).numpy()
    if covariance == "full":
        variance = np.diagonal(variance, axis1=1, axis2=2)
    expected = np.abs(variance - moving).T
    np.testing.assert_allclose(
        np.array(found["layers"][1]["gap"])[:, :4], expected, rtol=2e-3, atol=1e-5
    )


def test_variance_gap_of_mabn_is_that_of_the_mean_square(tmp_path):
    config = dataclasses.replace(CONFIG, norm="mabn")
    found = run(tmp_path, config, "variance_gap")["probes"]["variance_gap"]
    model, _ = training.load_model(str(tmp_path / "model"), notice=lambda text: None)
    first = next(x for x in model.layers if isinstance(x, layers.MovingAverageBatchNormalization))
    images = next(iter(batches.of_epoch(config, tasks.load(config), 0, 8)))["image"]
    x = keras.Model(model.inputs, first.input)(images).numpy().reshape(4, -1, 4)
    expected = np.abs((x**2).mean(1) - first.moving_variance.numpy()).T
    np.testing.assert_allclose(
        np.array(found["layers"][0]["gap"])[:, :4], expected, rtol=2e-3, atol=1e-5
    )


def test_a_failed_run_has_no_probes(tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e30, warmup_epochs=0)
    record = run(tmp_path, config, *probes.PROBES)
    assert record["error"] is not None and "probes" not in record
