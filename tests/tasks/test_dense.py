"""Segmentation and detection as runs: their metrics, whole images, replicas, user's mistakes."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import on_replicas
from tfnorm import boxes, tasks, train, training
from tfnorm.errors import UserError
from tfnorm.training import batches, strategies
from tfnorm.training.trainer import Trainer

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tfds"
SMALL = {
    "segmentation": {"head_width": 8},
    "detection": {"min_level": 2, "max_level": 3, "head_width": 8, "head_convolutions": 1},
}
METRICS = {
    "segmentation": {"miou", "pixel_accuracy"},
    "detection": {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"},
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def config(data_dir):
    def make(task, **changes):
        if task == "detection":
            pytest.importorskip("pycocotools", reason="pip install 'tfnorm[detection]'")
        model = {"segmentation": "unet", "detection": "retinanet"}[task]
        base = training.Config(
            task=task, model=model, backbone="resnet8", width=16, model_options=SMALL[task],
            data_dir=data_dir, train_examples=16, test_split="test[:6]", replica_batch_size=2,
            steps=2, learning_rate=0.01, reference_batch_size=0, warmup_epochs=0.0,
        )  # fmt: skip
        return dataclasses.replace(base, **changes)

    return make


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_run_from_the_command_line(task, config, tmp_path, capsys):
    made = config(task)
    names = (
        "task", "model", "backbone", "width", "data_dir", "train_examples", "test_split",
        "replica_batch_size", "steps", "learning_rate", "reference_batch_size", "warmup_epochs",
    )  # fmt: skip
    arguments = [f"--{name}={getattr(made, name)}" for name in names]
    options = ",".join(f"{key}={value}" for key, value in made.model_options.items())
    arguments += [f"--model_options={options}", "--norm=mabn", f"--model_dir={tmp_path}"]
    assert train.main(["train", *arguments]) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["metrics"]) == METRICS[task]
    assert all(value is None or 0 <= value <= 1 for value in result["metrics"].values())
    assert len(result["metrics_by_class"]) == {"segmentation": 11, "detection": 10}[task]
    for name in result["metrics_by_class"]:
        assert f"\n{name} " in said  # a line of the table a class
    assert train.main(["train", *arguments, "--mode=eval"]) == 0
    assert f"test {tasks.get(task).headline} " in capsys.readouterr().out


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_an_evaluation_is_the_same_on_replicas(task, config):
    """The same weights; six images on one device, and on two with a batch that is filled up."""
    measured = []
    for replicas, batch in ((1, 6), (2, 2)):
        made = dataclasses.replace(config(task, norm="bn"), evaluation_batch_size=batch)
        made = on_replicas(made, replicas) if replicas > 1 else made
        trainer = Trainer(made, tasks.load(made), strategies.create(made))
        measured.append(trainer.evaluate())
    one, two = measured
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert one.metrics == pytest.approx(two.metrics, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("task, norm", [("segmentation", "cbn"), ("detection", "mabn")])
def test_the_whole_step_compiles_and_is_not_traced_again(task, norm, config):
    """Under strategy.run, as the trainer makes it: the loss, its gradient, the optimizer."""
    model = "pspnet" if task == "segmentation" else "retinanet"
    made = config(task, norm=norm, model=model, train_examples=6)
    losses = []
    for jit_compile in (True, None):
        trainer = Trainer(made, tasks.load(made), strategies.create(made))
        step = tf.function(
            lambda batch, own=trainer: own.strategy.run(own.step, (batch,)), jit_compile=jit_compile
        )
        each = [step(batch) for batch in batches.of_epoch(made, trainer.task, 0, 2)]
        losses.append([float(sums[0]) for sums in each])
        assert step.experimental_get_tracing_count() == 1
    assert len(losses[0]) == 3
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_segmentation_counts_every_pixel_that_has_a_class_once(config):
    made = config("segmentation", norm="bn")
    task = tasks.load(made)
    trainer = Trainer(made, task, strategies.create(made))
    metrics = trainer.evaluate().metrics
    images, masks = (task.dataset.test.column(name) for name in ("image", "mask"))
    fed = task.dataset.standardize(images)
    found = np.argmax(trainer.model(fed, training=False), -1)
    assert metrics["pixel_accuracy"] == pytest.approx(np.mean(found == masks), abs=1e-6)
    ratios = [
        np.sum((found == kind) & (masks == kind)) / np.sum((found == kind) | (masks == kind))
        for kind in range(11)
        if np.any((found == kind) | (masks == kind))
    ]
    assert metrics["miou"] == pytest.approx(np.mean(ratios), abs=1e-6)


def test_a_perfect_detector_has_an_average_precision_of_one(config, monkeypatch):
    """Boxes go onto the canvas, through anchors and back into the pixels of the files."""
    made = config("detection", image_size="48,96")  # another aspect than the images'
    task = tasks.load(made)
    trainer = Trainer(made, task, strategies.create(made))
    original = task._detected

    def perfect(outputs, batch):
        anchors = boxes.AnchorGrid(2, 3).boxes(*batch["image"].shape[1:3])
        targets = boxes.match(anchors, batch["boxes"], batch["classes"])
        logits = 20 * tf.one_hot(targets.classes, task.dataset.num_classes) - 10
        return original({"class_logits": logits, "box_deltas": targets.deltas}, batch)

    monkeypatch.setattr(task, "_detected", perfect)
    assert trainer.evaluate().metrics["ap"] > 0.99


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"augment": "pad_crop"}, "--augment=pad_crop moves images and not their masks or boxes"),
        ({"model": "resnet8", "backbone": None}, "model 'resnet8' is for --task=classification"),
        ({"model_options": {"depth": 3}}, "model 'unet' does not take depth; it takes"),
        ({"dataset": "sklearn_digits"}, "it fits --task=classification"),
    ],
)
def test_what_does_not_fit_is_named(changes, message, config):
    with pytest.raises(UserError) as error:
        made = config("segmentation", **changes)
        tasks.load(made).transform(training=True)
    assert message in str(error.value)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/tfds")
def test_street_scenes_are_cropped_to_train_and_seen_whole(data_dir):
    made = training.Config(
        task="segmentation", model="unet", backbone="resnet8", width=16, dataset="camvid",
        data_dir=str(SHARED), image_size="64,80", augment="random_crop_flip", train_examples=4,
        test_split="test[:2]", replica_batch_size=2, steps=1, warmup_epochs=0.0,
    )  # fmt: skip
    result = training.train(made)
    assert [*result.metrics_by_class][:3] == ["sky", "building", "pole"]
    assert "void" not in result.metrics_by_class  # It is ignored.
    assert 0 < result.metrics["pixel_accuracy"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_options": {"anchors_per_cell": 3}}, "predicts 960 boxes .* has 2880 anchors"),
        ({"stem_stride": 3}, "a --stem_stride that is a power of two"),
        ({"model_options": {"output_stride": 2}}, "and no output_stride"),
        (
            {"backbone": "VGG16", "norm": "none", "image_size": "72,72"},
            "an --image_size of multiples of 32",
        ),
        (
            {"model": "faster_rcnn", "backbone": "MobileNetV3Small", "image_size": "72,72"},
            "an --image_size of multiples of 32",
        ),
    ],
)
def test_a_network_whose_maps_do_not_fit_the_anchors(changes, message, config):
    options = {**SMALL["detection"], **changes.get("model_options", {})}
    if "backbone" in changes:
        changes = {**changes, "width": None, "stem_stride": None}
        options |= {"min_level": 3, "max_level": 5}
    made = config("detection")
    made = dataclasses.replace(made, **{**changes, "model_options": options})
    task = tasks.load(made)
    with pytest.raises(UserError, match=message):
        task.build_model(made.normalizer())
