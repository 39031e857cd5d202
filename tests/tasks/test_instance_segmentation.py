"""Instance segmentation around its network: truth, canvases, evaluation, user's mistakes."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import on_replicas
from tfnorm import boxes, tasks, training
from tfnorm.errors import UserError
from tfnorm.serving.canvas import boxes_of_images, frames_of_images
from tfnorm.tasks.instance_segmentation import InstanceSegmentation
from tfnorm.training import strategies
from tfnorm.training.trainer import Trainer

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tfds"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    pytest.importorskip("pycocotools", reason="pip install 'tfnorm[detection]'")
    return training.Config(
        task="instance_segmentation", data_dir=str(tmp_path_factory.mktemp("tfds")),
        train_examples=4, test_split="test[:7]", replica_batch_size=2, steps=1, warmup_epochs=0.0,
        image_size="96,160",
    )  # fmt: skip


@pytest.fixture
def perfect(monkeypatch):
    """In place of a network, what a perfect one would say of the canvases."""

    def build_model(self, *args):
        x = keras.Input((None, None, self.dataset.image_shape[-1]), name="image")
        return keras.Model(x, keras.layers.Conv2D(1, 1)(x))

    def detected(self, outputs, batch):
        there = batch["boxes"], batch["classes"]
        objects = tf.tile(tf.range(there[0].shape[1])[None], [tf.shape(there[0])[0], 1])
        order = tf.argsort(-tf.cast(there[1] >= 0, tf.int32), stable=True)
        own = [tf.gather(x, order, batch_dims=1) for x in (*there, objects)]
        of_images = batch["size"], tuple(batch["image"].shape[1:3])
        return {
            "boxes": boxes_of_images(own[0], *of_images),
            "frames": frames_of_images(own[0], *of_images),
            "classes": own[1],
            "scores": tf.ones_like(own[1], tf.float32),
            "count": tf.reduce_sum(tf.cast(there[1] >= 0, tf.int32), -1),
            "masks": boxes.align_instances(batch["instances"], own[2], own[0], 28),
            "size": batch["size"],
        }

    def losses(self, outputs, batch):
        return tf.reduce_mean(outputs, [1, 2, 3])

    for name, method in (("build_model", build_model), ("_detected", detected), ("losses", losses)):
        monkeypatch.setattr(InstanceSegmentation, name, method)


@pytest.mark.parametrize("replicas, batch", [(1, 4), (2, 2)])
def test_a_perfect_network_has_an_average_precision_of_one(config, perfect, replicas, batch):
    """Onto a canvas of another aspect, into boxes of 28×28, and back into the files' pixels."""
    config = dataclasses.replace(config, evaluation_batch_size=batch)
    config = on_replicas(config, replicas) if replicas > 1 else config
    trainer = Trainer(config, tasks.load(config), strategies.create(config))
    measured = trainer.evaluate()
    assert next(iter(measured.metrics)) == tasks.get(config.task).headline == "mask_ap"
    # Strokes are two pixels wide and masks have 28×28: of one pixel less or more IoUs are 0.8.
    metrics = measured.metrics
    assert metrics["mask_ap50"] > 0.98 and metrics["mask_ap"] > 0.6, metrics
    assert metrics["ap50"] > 0.98 and metrics["ap"] > 0.9, metrics
    assert np.isnan(metrics["mask_ap_large"])
    assert {*measured.by_class} == {*map(str, range(10))}
    # The training examples: the truth is that of what is evaluated.
    assert trainer.evaluate(trainer.task.dataset.train).metrics["mask_ap50"] > 0.98


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/tfds")
def test_numbers_of_a_map_are_objects_of_one_class(config, perfect):
    """Nuclei: images of any size, without boxes and classes in the files."""
    config = dataclasses.replace(
        config, dataset="dsb2018", data_dir=str(SHARED), test_split="test[:3]", image_size="320,384"
    )
    task = tasks.load(config)
    assert task.dataset.label_names == ("object",)
    trainer = Trainer(config, task, strategies.create(config))
    metrics = trainer.evaluate().metrics
    assert metrics["mask_ap50"] > 0.9 and metrics["ap50"] > 0.9, metrics


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"dataset": "sklearn_digits"},
            "needed are the features image and instances, it has image",
        ),
        ({"model": "retinanet"}, "model 'retinanet' is for --task=detection"),
        ({"augment": "pad_crop"}, "--augment=pad_crop moves images and not their masks or boxes"),
    ],
)
def test_what_does_not_fit_is_named(config, changes, message):
    with pytest.raises(UserError) as error:
        tasks.load(dataclasses.replace(config, **changes)).transform(training=True)
    assert message in str(error.value)
