"""The embedded scenes: what they promise, without a network."""

import numpy as np
import pytest

from tests.data import prepared
from tfnorm.data import digit_scenes
from tfnorm.data.features import offered
from tfnorm.data.sklearn_digits import split_digits


@pytest.fixture(scope="module")
def scenes():
    """All training scenes as the builder generates them."""
    pixels, labels, splits = split_digits()
    own = splits["train"]
    generate = digit_scenes.DigitScenes._generate_examples
    return [scene for _, scene in generate(None, pixels[own] / 255, labels[own], "train")]


def test_mask_boxes_and_instances_agree(scenes):
    for scene in scenes[:60]:
        instances = scene["instance_map"][..., 0]
        objects = scene["objects"]
        assert {*np.unique(instances)} == set(range(len(objects) + 1))
        for number, item in enumerate(objects, 1):
            seen = instances == number
            assert {*scene["segmentation_mask"][..., 0][seen]} == {item["label"] + 1}
            y, x = np.nonzero(seen)
            box = np.array([y.min(), x.min(), y.max() + 1, x.max() + 1]) / 64
            np.testing.assert_array_equal(item["bbox"], box)
        assert not scene["segmentation_mask"][..., 0][instances == 0].any()


def test_digits_are_seen_and_of_many_numbers_and_sizes(scenes):
    numbers = [len(scene["objects"]) for scene in scenes]
    assert {*numbers} == {1, 2, 3, 4, 5}
    boxes = np.array([item["bbox"] for scene in scenes for item in scene["objects"]])
    heights = 64 * (boxes[:, 2] - boxes[:, 0])
    assert heights.min() >= 5 and heights.max() <= 30 and heights.std() > 3
    labels = [item["label"] for scene in scenes for item in scene["objects"]]
    assert np.bincount(labels).min() > 0.5 * len(labels) / 10
    for scene in scenes[:60]:  # The ink is brighter than what it is drawn on.
        ink = scene["instance_map"][..., 0] > 0
        assert scene["image"][ink].mean() > scene["image"][~ink].mean() + 40


def test_scenes_are_always_the_same_and_all_different(scenes):
    pixels, labels, splits = split_digits()
    own = splits["train"]
    again = digit_scenes.DigitScenes._generate_examples(
        None, pixels[own] / 255, labels[own], "train"
    )
    for (_, one), other in zip(again, scenes[:10]):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert len({scene["image"].tobytes() for scene in scenes}) == len(scenes) == 400


def test_prepared_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr(digit_scenes, "_SCENES", {"train": 6, "test": 3})
    prepared.tfds.disable_progress_bar()
    builder = digit_scenes.DigitScenes(data_dir=tmp_path)
    builder.download_and_prepare()
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 6,
        "test": 3,
    }
    assert offered(builder.info.features) == {
        "image": "image",
        "mask": "segmentation_mask",
        "instances": "instance_map",
        "boxes": "objects/bbox",
        "classes": "objects/label",
    }
