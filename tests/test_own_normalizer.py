"""A normalizer of a user's own: one file, registered, and everything knows it."""

import keras
import numpy as np
import pytest

import tfnorm
from tests.training.running import on_replicas, two_layers
from tfnorm import layers, models, training
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.layers.batch_method import AveragedSteps
from tfnorm.study import plots, summary
from tfnorm.study.style import style_of

IMAGE = (8, 8, 3)


@keras.saving.register_keras_serializable(package="tests")
class HalfNormalization(layers.BatchNormalization):
    """Trains half by the batch's statistics and half by the moving ones."""

    def normalize_batch(self, inputs, mask):
        moving = self.normalize_for_inference(inputs)
        return (moving + super().normalize_batch(inputs, mask)) / 2

    def averaged_steps(self):
        return AveragedSteps(2, 4)


ENTRY = norms.Normalizer(
    "half",
    HalfNormalization,
    "half of batch normalization",
    of_steps=lambda steps: {"momentum": 1 - 1 / steps},
    advice="the whole of it",
    colour="#123456",
    marker="p",
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(norms._REGISTRY, "half", ENTRY)  # to be gone after the test
    return norms.register(ENTRY)


def test_it_is_a_name_among_the_others(registered):
    assert "half" in norms.NAMES and norms.get("half", momentum=0.5).options == {"momentum": 0.5}
    assert norms.name_of(HalfNormalization()) == "half"
    assert norms.get("half").of_steps(100) == {"momentum": 0.99}
    with pytest.raises(UserError, match="unknown norm 'half2'"):
        norms.get("half2")
    # A class that is defined again takes its place; another one does not.
    norms.register(norms.Normalizer("half", type(HalfNormalization)(
        "HalfNormalization", (HalfNormalization,), {"__module__": HalfNormalization.__module__}
    )))  # fmt: skip
    with pytest.raises(UserError) as error:
        norms.register(norms.Normalizer("bn", HalfNormalization))
    assert str(error.value) == (
        "the norm 'bn' is registered already, for BatchNormalization. Choose another name."
    )


def test_it_is_converted_to_and_from_and_folded(randomized, difference):
    model = randomized(models.build("resnet8", norms.get("bn"), IMAGE, 5, width=4))
    converted = tfnorm.convert(model, "half", momentum=0.7)
    found = [x for x in converted.layers if isinstance(x, HalfNormalization)]
    assert len(found) == 9 and {x.momentum for x in found} == {0.7}
    assert difference(model, converted) < 1e-6
    assert difference(model, tfnorm.convert(converted, "bn")) < 1e-6
    folded, report = tfnorm.fold(converted)
    assert all(row.folded and row.norm == "half" for row in report.rows)
    assert difference(model, folded) < 1e-4


def test_it_is_trained_on_replicas_and_monitored(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build", two_layers)
    config = training.Config(
        norm="half", width=4, data_dir=str(tmp_path), train_examples=64, replica_batch_size=4,
        steps=4, steps_per_loop=2,
    )  # fmt: skip
    notices = []
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32")
    monitor = training.StatisticsMonitor(
        (images, np.arange(32) % 10), 4, every=4, layers=1, notice=notices.append
    )
    result = training.train(on_replicas(config, 2), [monitor], notice=lambda text: None)
    assert np.isfinite(result.train_loss)
    (row,) = monitor.history
    assert row["norm"] == "half" and row["images"] == 2
    # It averages 2 steps forward and 4 backward.
    forward, backward = row["noise"]["forward"] / 2**0.5, row["noise"]["backward"] / 2
    assert f"off by {forward:.2f} and gradients by {backward:.2f} of" in notices[0]
    assert notices[0].endswith("else try the whole of it")


def test_it_is_plotted_in_its_colour(tmp_path):
    assert style_of("half") == ("#123456", "p")
    result = {"test_accuracy": 0.5}
    record = {"labels": {"norm": "half"}, "error": None, "result": result, "history": []}
    path = tmp_path / "plot.png"
    plots.accuracy(summary.rows([record]), lambda row: row.labels["norm"], "title", path)
    assert path.exists()


class Doubled(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


class Shifted(layers.MovingAverageBatchNormalization):
    def normalize_for_inference(self, inputs):
        return super().normalize_for_inference(inputs) + 1


class Inner(layers.BatchNormalization):
    def by_moving_statistics(self, inputs):
        return 2 * super().by_moving_statistics(inputs)


class Absolute(layers.BatchNormalization):
    def as_numbers(self, inputs):
        return abs(super().as_numbers(inputs))


class Stated(layers.BatchNormalization):
    def normalize_for_inference(self, inputs):
        return 3 * super().normalize_for_inference(inputs)

    def inference_scale_and_offset(self):
        return tuple(3 * part for part in super().inference_scale_and_offset())


class Renamed(layers.BatchRenormalization):
    pass


class Tripled(layers.WeightCentralization):
    def call(self, inputs):
        return 3 * super().call(inputs)


def test_only_what_infers_as_it_says_is_folded(randomized, difference):
    x = y = keras.Input(IMAGE)
    for kind in (Doubled, Shifted, Inner, Absolute, Stated, Renamed):
        y = kind(name=kind.__name__.lower())(keras.layers.Conv2D(4, 1)(y))
    y = layers.BatchNormalization(name="last")(Tripled(keras.layers.Conv2D(4, 3))(y))
    model = randomized(keras.Model(x, y))
    folded, report = tfnorm.fold(model)
    assert difference(model, folded) < 1e-4
    assert {row.name: row.folded for row in report.rows} == {
        "doubled": False, "shifted": False, "inner": False, "absolute": False,
        "stated": True, "renamed": True, "last": False,
    }  # fmt: skip
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["doubled"] == "Doubled may do more than its base class; left as it is"
    assert reasons["shifted"] == "Shifted may do more than its base class; left as it is"
