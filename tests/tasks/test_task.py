"""A task is one file and one line: here one that the package does not know."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import on_replicas
from tfnorm import tasks, train, training
from tfnorm.data.records import compose
from tfnorm.errors import UserError
from tfnorm.study import running
from tfnorm.study.grid import Cell, Grid
from tfnorm.study.inference import Inference
from tfnorm.study.summary import Row
from tfnorm.study.tables import Comparison
from tfnorm.training import strategies
from tfnorm.training.trainer import Trainer


class MedianError:
    """What no sum can say; it depends on every example, and `order` on their order."""

    def outputs(self, outputs, batch):
        return {"error": tf.abs(outputs[:, 0] - truth(batch)), "label": batch["label"]}

    def row(self, example):
        return float(example["error"]), int(example["label"])

    def by_class(self, rows):
        return {}

    def results(self, rows):
        errors, labels = map(np.array, zip(*rows))
        weights = np.arange(1, len(rows) + 1)
        return {
            "median": float(np.median(errors)),
            "examples": float(len(rows)),
            "order": float(np.sum(weights * labels)),
        }


def truth(batch):
    return tf.cast(batch["label"], tf.float32) / 10


class Brightness:
    """Tells a number of an image: the digit, as a real number."""

    needed = ("image", "label")
    headline = "closeness"
    num_sums = 2
    largest_evaluation_batch = None
    defaults = tasks.task.Defaults("sklearn_digits", "resnet8")

    def __init__(self, settings, dataset):
        self.dataset = dataset

    def transform(self, *, training):
        def scale(batch, seeds):
            return {**batch, "image": tf.cast(batch["image"], tf.float32) / 255}

        return compose(scale)

    def build_model(self, normalizer, backbone_normalizer=None, weights=None):
        images = keras.Input(self.dataset.image_shape)
        x, _ = normalizer(keras.layers.Conv2D(4, 3, use_bias=False), images)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("relu")(x))
        return keras.Model(images, keras.layers.Dense(1)(x))

    def losses(self, outputs, batch):
        return tf.square(outputs[:, 0] - truth(batch))

    def sums(self, outputs, batch, losses):
        error = tf.abs(outputs[:, 0] - truth(batch))
        return tf.reduce_sum(tf.stack([error, tf.ones_like(error)]) * batch["weight"], 1)

    def results(self, sums):
        return {"closeness": float(1 - sums[0] / sums[1])}

    def by_class(self, sums):
        return {}

    def evaluator(self):
        return MedianError()

    def serving(self):
        return tasks.Serving((0.0,), (1.0,), ())


@pytest.fixture(autouse=True)
def brightness(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "brightness", Brightness)


@pytest.fixture
def config(tmp_path):
    return training.Config(
        task="brightness", data_dir=str(tmp_path / "data"), train_examples=50, epochs=2,
        replica_batch_size=12, evaluation_batch_size=50, learning_rate=0.01,
    )  # fmt: skip


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_an_evaluator_sees_every_example_once_and_in_order(config, replicas):
    trainer = Trainer(*pair(on_replicas(config, replicas)))
    trainer.train_steps(trainer.epoch_iterator(0, 0), 2)
    loss, metrics, _ = trainer.evaluate()
    test = trainer.task.dataset.test
    labels = test.column("label")
    outputs = trainer.model(test.column("image") / np.float32(255), training=False)[:, 0].numpy()
    errors = np.abs(outputs - labels / 10)
    assert metrics == {
        "closeness": pytest.approx(1 - errors.mean(), rel=1e-5),
        "median": pytest.approx(np.median(errors), rel=1e-5),
        "examples": 360.0,
        "order": np.sum(np.arange(1, 361) * labels),
    }
    assert loss == pytest.approx(np.mean(errors**2), rel=1e-5)


def pair(config):
    return config, tasks.load(config), strategies.create(config)


def test_a_run_of_the_task_from_the_command_line(config, tmp_path, capsys):
    """Its metrics stand in the result, the history, TensorBoard and what is said."""
    arguments = [
        f"--{name}={getattr(config, name)}"
        for name in ("task", "data_dir", "train_examples", "epochs", "replica_batch_size")
    ]
    directory = tmp_path / "run"
    assert train.main(["train", *arguments, f"--model_dir={directory}"]) == 0
    said = capsys.readouterr().out
    assert "  closeness 0." in said and "  val_closeness 0." in said and "median" in said
    result = json.loads((directory / "result.json").read_text())
    assert set(result["metrics"]) == {"closeness", "median", "examples", "order"}
    last = result["history"][-1]
    assert list(last)[:5] == ["epoch", "step", "loss", "closeness", "val_loss"]
    assert last["val_median"] == result["metrics"]["median"]
    assert result["test_accuracy"] is None
    assert "val_median" in (directory / "history.csv").read_text()
    assert train.main(["train", *arguments, f"--model_dir={directory}", "--mode=eval"]) == 0
    assert f"test median {result['metrics']['median']:.4f}" in capsys.readouterr().out


def test_studies_know_its_metrics_by_name(config, tmp_path):
    labels = {"norm": "bn", "replicas": 1, "replica_batch": 12, "statistics_batch": 12}
    cell = Cell(labels, config, ("batch_statistics",))
    lines = []
    record = running.run_cell(cell, str(tmp_path / "run"), lines.append)
    row = Row.of(labels, [record])
    assert (row.headline, row.best()) == ("closeness", record)
    assert row.mean(row.metric) == record["history"][-1]["val_closeness"]
    assert {"test_median", "test_loss"} < set(record["result"])
    assert "test_closeness_batch_statistics" in record["probes"]["batch_statistics"]
    table = Comparison(Grid("a", "b", (cell,), labels, {}), [row], [Inference(0.5, 2, 2)])
    assert "test closeness" in table.text() and table.winner() is row
    assert ",test_closeness,test_closeness_spread," in table.csv()


def test_the_statistics_monitor_takes_its_loss(config):
    trainer = Trainer(*pair(config))
    records = trainer.task.dataset.train
    images, labels = (records.column(name)[:24] for name in ("image", "label"))
    images = images.astype("float32") / 255
    monitor = training.StatisticsMonitor((images, labels), 12, every=5, layers=1, large_batch=24)
    training.train(dataclasses.replace(config, steps=5), [monitor], lambda text: None, False)
    (row,) = monitor.history
    model, (layer,) = monitor.model, monitor._layers
    assert row["images"] == 12 and row["norm"] == "bn"
    with tf.GradientTape() as tape:
        z = layer(model.layers[1](images[:12]), training=True)
        tape.watch(z)
        pooled = tf.reduce_mean(tf.nn.relu(z), [1, 2])
        error = model.layers[-1](pooled)[:, 0] - labels[:12] / 10
        loss = tf.reduce_mean(tf.square(error))
    gradient = layer.gamma * tf.reduce_mean(tape.gradient(loss, z), [0, 1, 2])
    assert row["gradient"]["batch"] == pytest.approx(float(tf.norm(gradient)), rel=1e-3)


def test_a_data_set_that_fits_another_task(config, monkeypatch, tmp_path):
    class Scenes(Brightness):
        needed = ("image", "mask")

    monkeypatch.setitem(tasks.TASKS, "scenes", Scenes)
    with pytest.raises(UserError) as error:
        tasks.load(dataclasses.replace(config, task="scenes"))
    assert str(error.value) == (
        "data set 'sklearn_digits' does not fit --task=scenes: needed are the features image and "
        "mask, it has image, label; it fits --task=classification or brightness"
    )


def test_unknown_tasks_are_user_errors():
    with pytest.raises(UserError) as error:
        training.Config(task="clasification")
    assert str(error.value) == f"unknown task 'clasification'; known: {', '.join(tasks.TASKS)}"
