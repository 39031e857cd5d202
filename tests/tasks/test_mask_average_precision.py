"""Average precision of masks on scenes whose value is known without COCO's code."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tfnorm.data import run_lengths
from tfnorm.tasks import mask_average_precision
from tfnorm.tasks.mask_average_precision import MaskAveragePrecision

NAMES = ("nucleus", "cell")
SIZE = (60, 80)
ONE = pytest.approx(1, abs=1e-12)


class Scenes:
    """Records of two images: an instance map, and masks that overlap as run lengths."""

    def __init__(self, *examples):
        self._examples = examples

    def fetch(self, indices):
        example = self._examples[int(indices[0])]
        return {name: tf.constant(value)[None] for name, value in example.items()}


def rectangle(top, left, bottom, right):
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


FIRST, SECOND = rectangle(4, 6, 44, 46), rectangle(30, 40, 58, 78)


def scene(masks, classes, exact=False, crowd=None):
    """A later mask hides an earlier one in the map, and with `exact` not in the truth."""
    rows = len(masks) + 1
    instances = np.zeros(SIZE, np.int32)
    for number, mask in enumerate(masks, 1):
        instances[mask] = number
    example = {
        "instances": instances,
        "boxes": np.zeros((rows, 4), np.float32),
        "classes": np.array([*classes, -1], np.int32),
        "crowd": np.array([*(crowd or [False] * len(masks)), False]),
    }
    if exact:
        example["segmentations"] = np.array([*run_lengths.encode(np.array(masks)), ""], object)
    return example


def found(number, *detections):
    """What a network says: (box, class, score) with masks that fill their boxes."""
    rows = 4
    example = {
        "boxes": np.zeros((rows, 4), np.float32), "scores": np.zeros(rows, np.float32),
        "classes": np.zeros(rows, np.int32), "masks": np.zeros((rows, 28, 28), np.float32),
        "count": np.int32(len(detections)), "size": np.int32(SIZE), "number": np.int64(number),
    }  # fmt: skip
    example["frames"] = example["boxes"]
    for i, (box, kind, score) in enumerate(detections):
        example["boxes"][i], example["classes"][i], example["scores"][i] = box, kind, score
        example["masks"][i] = 0.9
    return example


def measure(*scenes):
    pytest.importorskip("pycocotools", reason="pip install 'tfnorm[detection]'")
    return MaskAveragePrecision(lambda outputs, batch: outputs, NAMES, None).over(Scenes(*scenes))


def results(scenes, detections):
    own = measure(*scenes)
    rows = [own.row(example) for example in detections]
    assert json.loads(json.dumps(rows)) == rows  # as workers send them to each other
    return own.results(rows), own.by_class(rows)


BOXES = [[4, 6, 44, 46], [30, 40, 58, 78]]


def test_masks_in_the_pixels_of_the_file_and_boxes_around_them():
    masks = [FIRST & ~SECOND, SECOND]  # what is seen
    metrics, by_class = results(
        [scene([FIRST, SECOND], [0, 1])], [found(0, (BOXES[0], 0, 0.9), (BOXES[1], 1, 0.8))]
    )
    assert next(iter(metrics)) == "mask_ap" and len(metrics) == 12
    assert metrics["ap"] == ONE  # The hidden corner leaves the box as it is.
    iou = masks[0].sum() / FIRST.sum()
    thresholds = np.arange(0.5, 1, 0.05)
    expected = np.mean([np.sum(thresholds <= iou) / 10, 1])
    assert 0.9 < iou < 1 and metrics["mask_ap"] == pytest.approx(expected)
    assert by_class["cell"] == {"mask_ap": ONE, "ap": ONE}
    assert by_class["nucleus"]["mask_ap"] == pytest.approx(np.sum(thresholds <= iou) / 10)


def test_a_mask_whose_box_reaches_over_the_border_is_not_squeezed():
    """The object fills the left half of the mask, which is what the image shows of it."""
    border = rectangle(10, 60, 40, 80)
    detection = found(0, ([10, 60, 40, 80], 0, 0.9))
    detection["frames"] = detection["boxes"].copy()
    detection["frames"][0] = [10, 60, 40, 100]
    detection["masks"][0, :, 14:] = 0.1
    metrics, _ = results([scene([border], [0], exact=True)], [detection])
    assert metrics["mask_ap"] == ONE and metrics["ap"] == ONE


def test_masks_that_overlap_are_compared_whole_where_the_file_has_them():
    scenes = [scene([FIRST, SECOND], [0, 1], exact=True)]
    metrics, _ = results(scenes, [found(0, (BOXES[0], 0, 0.9), (BOXES[1], 1, 0.8))])
    assert metrics["mask_ap"] == ONE and metrics["ap"] == ONE


def test_masks_and_boxes_are_evaluated_once(monkeypatch):
    kinds = []
    evaluated = mask_average_precision.evaluated
    monkeypatch.setattr(
        mask_average_precision,
        "evaluated",
        lambda *args: kinds.append(args[-1]) or evaluated(*args),
    )
    results([scene([SECOND], [1])], [found(0, (BOXES[1], 1, 0.8))])
    assert kinds == ["segm", "bbox"]


def test_sizes_are_those_of_masks():
    """A mask of less than 32² pixels in a box of more is small."""
    diagonal = np.eye(60, 80, dtype=bool) | np.eye(60, 80, 1, dtype=bool)
    whole = rectangle(0, 0, 60, 61)
    metrics, _ = results([scene([diagonal], [0])], [found(0, ([0, 0, 60, 61], 0, 0.9))])
    assert whole.sum() > 32**2 > diagonal.sum()
    assert metrics["ap_small"] == ONE and metrics["mask_ap_small"] == 0
    assert np.isnan(metrics["ap_medium"]) and np.isnan(metrics["mask_ap_large"])
    # Unless the data set says them.
    told = {**scene([diagonal], [0]), "areas": np.array([40**2, 0], np.float32)}
    metrics, _ = results([told], [found(0, ([0, 0, 60, 61], 0, 0.9))])
    assert metrics["ap_medium"] == ONE and metrics["mask_ap_medium"] == 0
    assert np.isnan(metrics["ap_small"]) and np.isnan(metrics["mask_ap_small"])


def test_a_mask_within_a_crowd_counts_neither_for_nor_against():
    crowd = scene([FIRST, SECOND], [0, 0], crowd=[True, False])
    inside = ([6, 8, 20, 20], 0, 0.95)
    metrics, _ = results([crowd], [found(0, inside, (BOXES[1], 0, 0.8))])
    assert metrics["mask_ap50"] == ONE and metrics["ap50"] == ONE
    metrics, _ = results([scene([FIRST, SECOND], [0, 0])], [found(0, inside, (BOXES[1], 0, 0.8))])
    assert metrics["mask_ap50"] < 0.5


def test_images_without_objects_or_detections():
    empty = scene([], [])
    metrics, _ = results([empty, scene([SECOND], [1])], [found(0), found(1, (BOXES[1], 1, 0.8))])
    assert metrics["mask_ap"] == ONE
    metrics, _ = results([empty], [found(0)])
    assert np.isnan(metrics["mask_ap"]) and np.isnan(metrics["ap"])
