"""Data sets laid out as TFDS' voc, coco, cityscapes and oxford_iiit_pet are, as runs read them."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data import prepared
from tfnorm import tasks, training
from tfnorm.data.example import ABSENT, IGNORED
from tfnorm.training import batches

JPEG = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
PNG = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
MASK = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
LAYOUTS = {
    "voc": {
        "image": JPEG,
        "image/filename": tfds.features.Text(),
        "objects": tfds.features.Sequence(
            {
                "label": tfds.features.ClassLabel(names=["aeroplane", "bicycle", "bird"]),
                "bbox": tfds.features.BBoxFeature(),
                "pose": tfds.features.ClassLabel(names=["frontal", "rear"]),
                "is_truncated": np.bool_,
                "is_difficult": np.bool_,
            }
        ),
        "labels": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=3)),
        "labels_no_difficult": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=3)),
    },
    "coco": {
        "image": JPEG,
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "objects": tfds.features.Sequence(
            {
                "id": np.int64,
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=["person", "bicycle", "car"]),
                "is_crowd": np.bool_,
            }
        ),
    },
    "cityscapes": {"image_id": tfds.features.Text(), "image_left": PNG, "segmentation_label": MASK},
    "oxford_iiit_pet": {
        "image": JPEG,
        "label": tfds.features.ClassLabel(num_classes=37),
        "species": tfds.features.ClassLabel(names=["cat", "dog"]),
        "file_name": tfds.features.Text(),
        "segmentation_mask": MASK,
    },
}
BOXES = [(0.0, 0.0, 0.5, 1.0), (0.25, 0.5, 1.0, 1.0)]


def example(name, rng, size):
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    objects = [
        {"label": label, "bbox": tfds.features.BBox(*box)} for label, box in zip((2, 0), BOXES)
    ]
    if name == "voc":
        more = {"pose": 0, "is_truncated": False}
        return {
            "image": image, "image/filename": "a", "labels": [0, 2], "labels_no_difficult": [2],
            "objects": [{**o, **more, "is_difficult": bool(i)} for i, o in enumerate(objects)],
        }  # fmt: skip
    if name == "coco":
        more = {"id": 1, "area": 90}
        return {
            "image": image, "image/filename": "a", "image/id": 1,
            "objects": [{**o, **more, "is_crowd": bool(i)} for i, o in enumerate(objects)],
        }  # fmt: skip
    if name == "cityscapes":
        mask = rng.choice([7, 33, 0, 255], (*size, 1)).astype(np.uint8)
        return {"image_id": "a", "image_left": image, "segmentation_label": mask}
    mask = rng.integers(1, 4, (*size, 1), np.uint8)
    return {"image": image, "label": 0, "species": 1, "file_name": "a", "segmentation_mask": mask}


def load(name, task, directory, rng):
    sizes = [(32, 48), (40, 32)]
    examples = [example(name, rng, size) for size in sizes]
    prepared.write(directory, name, LAYOUTS[name], {"train": examples, "test": examples})
    found = tasks.load(
        training.Config(task=task, dataset=name, data_dir=str(directory), image_size="32,48")
    )
    # TFDS shuffles what it writes.
    each = batches.of_evaluation(found, found.dataset.test, 1).as_numpy_iterator()
    key = "mask" if "mask" in found.needed else "size"
    heights = {"mask": lambda b: b["mask"].shape[1], "size": lambda b: b["size"][0, 0]}
    wide, tall = sorted(each, key=heights[key])
    return found, examples, wide, tall


@pytest.mark.parametrize("name, left_out", [("voc", "difficult"), ("coco", "crowd")])
def test_objects(name, left_out, tmp_path, rng):
    found, _, wide, tall = load(name, "detection", tmp_path, rng)
    assert [*found.dataset.label_names] == LAYOUTS[name]["objects"].feature["label"].names
    here = wide["classes"][0] != ABSENT
    np.testing.assert_array_equal(wide["classes"][0][here], [2, 0])
    np.testing.assert_array_equal(wide[left_out][0][here], [False, True])
    if name == "coco":  # as in the file, whatever becomes of the image
        for batch in (wide, tall):
            np.testing.assert_array_equal(batch["areas"][0][here], [90, 90])
    for batch, size in ((wide, (32, 48)), (tall, (40, 32))):
        expected = np.array(BOXES) * [*size, *size]
        np.testing.assert_allclose(batch["true_boxes"][0][here], expected, rtol=1e-6)
        assert batch["image"].shape == (1, 32, 48, 3)
    # The tall one is shrunk onto the canvas, to 32 by 26 whole pixels.
    expected *= [32 / 40, 26 / 32] * 2
    np.testing.assert_allclose(tall["boxes"][0][here], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name, feature, classes",
    [
        ("cityscapes", "segmentation_label", {7: 0, 33: 18, 0: IGNORED, 255: IGNORED}),
        ("oxford_iiit_pet", "segmentation_mask", {1: 0, 2: 1, 3: 2}),
    ],
)
def test_masks(name, feature, classes, tmp_path, rng):
    found, examples, *seen = load(name, "segmentation", tmp_path, rng)
    assert len(found.dataset.mask_classes.names) == {"cityscapes": 19}.get(name, 3)
    for batch, own in zip(seen, examples):
        expected = np.vectorize(classes.get)(own[feature][..., 0])
        np.testing.assert_array_equal(batch["mask"][0], expected)
