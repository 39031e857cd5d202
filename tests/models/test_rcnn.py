"""Faster and Mask R-CNN: every kind of normalizer, the truth in training, XLA, any size."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tests.models.test_dense import randomize, tiny
from tests.training.running import on_replicas
from tfnorm import boxes, models, tasks, training
from tfnorm.boxes import sampling
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.models import registry, truth
from tfnorm.models.faster_rcnn import anchor_grid
from tfnorm.models.regions import Found
from tfnorm.training import strategies
from tfnorm.training.trainer import Trainer

SHAPE = (16, 24, 3)
CLASSES = 5
SMALL = {
    "head_width": 8, "head_convolutions": 2, "fc_width": 8, "min_level": 2, "max_level": 3,
    "anchor_size": 2.0, "candidates": 12, "proposals": 10, "regions": 8,
}  # fmt: skip
FOUND = boxes.Detections._fields


@pytest.fixture(autouse=True)
def _tiny_backbone(monkeypatch):
    keras.utils.set_random_seed(1)
    monkeypatch.setitem(registry.BACKBONES, "tiny", models.Backbone(tiny))


def build(name="mask_rcnn", norm="bn", shape=SHAPE, **options):
    asked = {**SMALL, **options}
    return models.build(name, norms.get(norm), shape, CLASSES, backbone="tiny", **asked)


@pytest.fixture
def batch(rng):
    """Two objects on one image, one on the other."""
    objects = np.array([[[2, 2, 10, 12], [6, 8, 16, 22]], [[3, 5, 12, 16], [0, 0, 0, 0]]])
    instances = np.zeros((2, *SHAPE[:2]), "int32")
    instances[0, 2:10, 2:12], instances[0, 6:16, 8:22], instances[1, 3:12, 5:16] = 1, 2, 1
    return {
        "image": tf.constant(rng.normal(size=(2, *SHAPE)), tf.float32),
        "boxes": tf.constant(objects, tf.float32),
        "classes": tf.constant([[1, 3], [0, -1]]),
        "instances": tf.constant(instances),
        "seed": tf.constant([[1, 2], [1, 3]]),
    }


def losses(outputs, batch):
    """[5, b]: of both stages' classes and boxes, and of the masks."""
    anchors = anchor_grid(2, 3, 2.0).boxes(*SHAPE[:2])
    objects = (batch["boxes"], batch["classes"], None)
    first = boxes.proposal_losses(
        outputs["objectness"], outputs["anchor_deltas"], anchors, *objects, batch["seed"]
    )
    targets = boxes.match_regions(outputs["regions"], *objects)
    second = boxes.region_losses(outputs["class_logits"], outputs["region_deltas"], targets)
    masks = boxes.mask_losses(
        outputs["mask_logits"], outputs["boxes"], batch["instances"], *objects
    )
    return tf.stack([*first, *second, masks])


def step(model, batch):
    """(losses, gradients) of a training step."""
    with tf.GradientTape() as tape, truth.known(batch):
        parts = losses(model(batch["image"], training=True), batch)
        loss = tf.reduce_sum(parts)
    return parts, tape.gradient(loss, [v.value for v in model.trainable_variables])


@pytest.mark.parametrize("norm", norms.NAMES)
def test_a_step_reaches_every_variable_and_all_folds(norm, batch, rng):
    model = build(norm=norm, head_convolutions=1)
    hosted = 1 + 1 + 2 if norm != "none" else 0
    heads = [x for x in model.layers if x.name.startswith(("box_conv", "mask_conv", "pyramid"))]
    named = "gn" if norm == "gn_ws" else norm  # its layer alone; what it adds is in the kernels
    assert sum(norms.name_of(x) == named for x in heads) == hosted
    kernels = norms.KERNELS.get(norms.get(norm).kernel, ())
    wrapped = sum(isinstance(x, kernels) for x in model._flatten_layers())
    assert wrapped == (3 + 2 + hosted if kernels else 0)  # backbone, laterals, the above
    parts, gradients = step(model, batch)
    assert np.isfinite(parts).all() and (parts.numpy().sum(1) > 0).all()
    for variable, gradient in zip(model.trainable_variables, gradients):
        if gradient is None:  # the noise of a chain of Kalman normalizers' last link
            assert norm == "bkn" and "noise" in variable.path
            continue
        assert np.isfinite(gradient).all() and np.any(gradient), variable.path
    randomize(model, rng)
    folded, report = tfnorm.fold(model)
    assert all(row.folded == norms.get(norm).foldable for row in report.rows)
    assert len(report.rows) == (3 + 2 + hosted if hosted else 0)
    ours, theirs = folded(batch["image"]), model(batch["image"])
    for name, expected in theirs.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours[name], expected, atol=1e-3 * scale, err_msg=name)


@pytest.mark.parametrize("norm", ["mabn", "cbn", "bkn"])
def test_it_is_converted_there_and_back(norm, batch, rng):
    source = build("mask_rcnn")
    randomize(source, rng)
    converted = tfnorm.convert(source, norm, strict=True)
    kinds = [x for x in converted._flatten_layers() if norms.name_of(x) is not None]
    assert {norms.name_of(x) for x in kinds} == {norm}
    parts, _ = step(converted, batch)
    assert np.isfinite(parts).all()
    back = tfnorm.convert(converted, "bn", strict=True)
    assert len(back.weights) == len(source.weights)
    ours, theirs = back(batch["image"]), converted(batch["image"])
    np.testing.assert_allclose(ours["class_logits"], theirs["class_logits"], rtol=1e-3, atol=1e-3)


def test_the_training_step_compiles_and_learns(batch, rng, monkeypatch):
    """One trace for any truth; the first step is that of eager mode, up to what is drawn."""
    draws = rng.uniform(size=(2, 200)).astype("float32")
    monkeypatch.setattr(sampling, "_uniform", lambda seeds, number: tf.constant(draws[:, :number]))
    model = build(norm="mabn", head_convolutions=1)
    randomize(model, rng)  # so that no two proposals are equally good
    optimizer = keras.optimizers.SGD(0.02, 0.9)
    optimizer.build(model.trainable_variables)
    before = model.get_weights()
    expected, gradients = step(model, batch)
    model.set_weights(before)
    traces = []

    @tf.function(jit_compile=True)
    def compiled(batch):
        traces.append(1)
        parts, gradients = step(model, batch)
        optimizer.apply(gradients, model.trainable_variables)
        return parts, gradients

    first, ours = compiled(batch)
    np.testing.assert_allclose(first, expected, rtol=1e-3, atol=1e-4)
    for gradient, theirs in zip(ours, gradients):
        np.testing.assert_allclose(gradient, theirs, rtol=1e-2, atol=1e-3)
    assert compiled({**batch, "classes": batch["classes"] - 1})[0].shape == (5, 2)
    for _ in range(30):
        last, _ = compiled(batch)
    assert len(traces) == 1
    assert tf.reduce_sum(last) < 0.7 * tf.reduce_sum(first)


def test_two_replicas_train_as_one_device(tmp_path):
    """Losses and weights, of one that takes its statistics of as many groups."""
    pytest.importorskip("pycocotools", reason="pip install 'tfnorm[detection]'")
    config = training.Config(
        task="instance_segmentation", backbone="tiny", norm="bn",
        model_options={**SMALL, "head_convolutions": 1, "max_level": 2, "anchor_size": 4.0},
        data_dir=str(tmp_path), train_examples=8, test_split="test[:1]", replica_batch_size=4,
        steps=2, learning_rate=0.02, reference_batch_size=0, warmup_epochs=0.0, image_size="64,64",
    )  # fmt: skip
    found = []
    for one in (dataclasses.replace(config, virtual_replicas=2), on_replicas(config, 2)):
        trainer = Trainer(one, tasks.load(one), strategies.create(one))
        before = [v.numpy() for v in trainer.model.trainable_variables]
        records = trainer.train_steps(trainer.epoch_iterator(0, 0), 2)
        after = [v.numpy() for v in trainer.model.trainable_variables]
        found.append((records[:, 0], after))
    (losses_of_one, ours), (losses_of_two, theirs) = found
    np.testing.assert_allclose(losses_of_two, losses_of_one, rtol=1e-5)
    assert losses_of_one[0] != losses_of_one[1]
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(after, before))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_regions_are_drawn_by_the_truth_in_training_alone(batch):
    model = build("faster_rcnn")
    proposed = model(batch["image"])
    assert proposed["regions"].shape == (2, 10, 4) and proposed["boxes"].shape == (2, 100, 4)
    with truth.known(batch):
        np.testing.assert_array_equal(model(batch["image"])["regions"], proposed["regions"])
        drawn = model(batch["image"], training=True)
    assert drawn["regions"].shape == (2, 8, 4)
    for image, count in ((0, 2), (1, 1)):
        overlaps = boxes.iou(drawn["regions"][image], batch["boxes"][image]).numpy().max(1)
        assert (overlaps[:count] >= 0.5).all() and (overlaps[2:] < 0.5).all()
        # What the mask head sees: these, in turn.
        seen = drawn["boxes"][image].numpy()
        assert len(seen) == 2 and drawn["count"][image] == count
        np.testing.assert_array_equal(seen, drawn["regions"].numpy()[image][[0, 1 % count]])
    assert truth.current() is None
    without = model(batch["image"], training=True)
    assert without["regions"].shape == (2, 10, 4)


def test_objects_in_training_are_repeated_in_turn(rng):
    regions = rng.normal(size=(2, 6, 4)).astype("float32")
    classes = np.array([[4, 2, 0, -1, -1, -1], [-1] * 6])
    given = [np.zeros((2, 8, 8, 3), "float32"), regions, classes, None, None]
    chosen, _, kinds, count = Found(4).call(given, training=True)
    np.testing.assert_array_equal(chosen[0], regions[0][[0, 1, 2, 0]])
    np.testing.assert_array_equal(chosen[1], regions[1][:4])
    assert kinds.numpy().tolist() == [[4, 2, 0, 4], [0] * 4] and count.numpy().tolist() == [3, 0]


def test_all_regions_are_looked_at_however_many():
    """One of the lowest score, after more than a thousand that suppress each other."""
    regions = np.float32([[[2, 2, 9, 9]] * 1100 + [[20, 30, 26, 34]]])
    logits = np.zeros((1, 1101, 3), "float32")
    logits[0, :, 0], logits[0, -1] = 5, [0, 3, 2]
    given = [np.zeros((1, 32, 48, 3), "float32"), regions, None, logits]
    chosen, _, kinds, count = Found(4).call([*given, np.zeros((1, 1101, 2, 4), "float32")])
    assert count.numpy().tolist() == [2] and kinds[0, :2].numpy().tolist() == [0, 1]
    np.testing.assert_allclose(chosen[0, :2], regions[0, [0, -1]], atol=1e-5)


def test_images_of_any_size_a_saved_model_and_half_precision(batch, tmp_path, rng):
    """Pixels stay exact where features are in half precision."""
    free = build(shape=(None, None, 3), box_head="2fc")
    assert not [x for x in free.layers if x.name.startswith("box_conv")]
    randomize(free, rng)
    path = str(tmp_path / "model.keras")
    free.save(path)
    fixed = build(box_head="2fc")
    fixed.set_weights(keras.saving.load_model(path).get_weights())
    ours, theirs = tf.function(free)(batch["image"]), fixed(batch["image"])
    assert ours["masks"].shape == (2, 100, 28, 28)
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-4, atol=1e-3, err_msg=name)
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = build()
    kinds = {name: x.dtype for name, x in half.output.items()}
    assert {kinds.pop(name) for name in ("classes", "count")} == {"int32"}
    assert {*kinds.values()} == {"float32"}
    outputs = half(batch["image"])
    again = tf.cast(tf.cast(outputs["regions"], tf.bfloat16), tf.float32)
    assert np.any(again != outputs["regions"])
    assert {x.compute_dtype for x in half.layers if "conv1" in x.name} == {"bfloat16"}


def test_what_there_is_not_is_named():
    with pytest.raises(UserError, match="unknown box_head '3fc'; the known ones are 4conv1fc, 2fc"):
        build(box_head="3fc")
    with pytest.raises(UserError, match="does not take extra_heads"):
        build(extra_heads=())


def test_feature_maps_that_do_not_fit_the_anchors_are_named():
    """VGG drops the last row of an odd map."""
    options = {**SMALL, "min_level": 3, "max_level": 4}
    model = models.build(
        "faster_rcnn", norms.get("none"), (None, None, 3), CLASSES, backbone="VGG16", **options
    )
    with pytest.raises(ValueError, match=r"Level 4 has 75 anchors in images of 72×72, .* for 48\."):
        model(tf.zeros([1, 72, 72, 3]))
