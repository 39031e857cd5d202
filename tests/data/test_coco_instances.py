"""Annotations in COCO's format: polygons, run lengths, crowds, against masks drawn by hand."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.data import prepared
from tfnorm.data import coco_instances, loading, run_lengths
from tfnorm.data.example import ABSENT
from tfnorm.errors import UserError

HEIGHT, WIDTH = 20, 30


def rectangle(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def corners(top, left, bottom, right):
    return [left, top, right, top, right, bottom, left, bottom]


def counts(mask):
    """Lengths of runs of 0, 1, 0, ... down the columns, written from COCO's description."""
    values = mask.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(values)) + 1
    lengths = np.diff([0, *changes, values.size]).tolist()
    return [0, *lengths] if values[0] else lengths


# What is where, and how it is written: large polygon of two parts, small one that overlaps it,
# a crowd beneath both as numbers, and one as a text.
LARGE = rectangle(2, 3, 12, 15) | rectangle(14, 3, 18, 9)
SMALL = rectangle(8, 10, 14, 20)
CROWD = rectangle(0, 0, 20, 12)
TEXT = rectangle(15, 20, 19, 29)
WRITTEN = (
    (7, LARGE, [corners(2, 3, 12, 15), corners(14, 3, 18, 9)], 0),
    (90, CROWD, {"size": [HEIGHT, WIDTH], "counts": counts(CROWD)}, 1),
    (7, SMALL, [corners(8, 10, 14, 20)], 0),
    (33, TEXT, {"size": [HEIGHT, WIDTH], "counts": run_lengths.encode(TEXT[None])[0]}, 0),
)
MASKS = [mask for _, mask, _, _ in WRITTEN]


def box_of(mask):
    y, x = np.nonzero(mask)
    return [y.min(), x.min(), y.max() + 1, x.max() + 1]


def annotation(number, kind, mask, segmentation, crowd):
    top, left, bottom, right = map(float, box_of(mask))
    return {
        "id": 1000 + number, "image_id": 42, "category_id": kind, "iscrowd": crowd,
        "bbox": [left, top, right - left, bottom - top], "segmentation": segmentation,
        "area": float(mask.sum()),
    }  # fmt: skip


def content():
    objects = [annotation(i, *row) for i, row in enumerate(WRITTEN)]
    empty = {**objects[0], "id": 1, "segmentation": []}
    return {
        "images": [
            {"id": 42, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 43, "file_name": "b.png", "height": 8, "width": 8},
        ],
        "annotations": [*objects[:2], empty, *objects[2:]],
        "categories": [{"id": i, "name": f"kind{i}"} for i in (90, 7, 33)],
    }


@pytest.fixture
def folder(tmp_path, rng):
    for name, size in (("a.png", (HEIGHT, WIDTH)), ("b.png", (8, 8))):
        image = rng.integers(256, size=(*size, 3), dtype=np.uint8)
        (tmp_path / name).write_bytes(tf.io.encode_png(image).numpy())
    (tmp_path / "instances.json").write_text(json.dumps(content()))
    return tmp_path


def generated(folder):
    return [own for _, own in coco_instances.examples(folder / "instances.json", folder)]


def test_masks_are_those_of_polygons_and_run_lengths(folder):
    first, second = generated(folder)
    texts = [one["segmentation"] for one in first["objects"]]
    np.testing.assert_array_equal(run_lengths.decode(texts, (HEIGHT, WIDTH)), MASKS)
    assert run_lengths.areas(texts, (HEIGHT, WIDTH)) == [mask.sum() for mask in MASKS]
    assert run_lengths.boxes(texts, (HEIGHT, WIDTH)) == [box_of(mask) for mask in MASKS]
    assert run_lengths.encode(np.array(MASKS)) == texts
    assert [one["is_crowd"] for one in first["objects"]] == [False, True, False, False]
    # The names are in the order of the numbers, whatever that of the file.
    names = coco_instances.categories(folder / "instances.json")
    assert names == ["kind7", "kind33", "kind90"]
    assert [one["label"] for one in first["objects"]] == [0, 2, 0, 1]
    assert second["objects"] == [] and not second["instance_map"].any()


def test_small_objects_are_in_front_and_crowds_behind(folder):
    expected = np.zeros((HEIGHT, WIDTH), int)
    for number in (1, 0, 2, 3):  # The crowd is smaller than nothing and lies beneath all.
        expected[MASKS[number]] = number + 1
    first, _ = generated(folder)
    np.testing.assert_array_equal(first["instance_map"][..., 0], expected)
    assert LARGE.sum() > SMALL.sum()


def test_a_prepared_set_has_whole_masks_beside_the_map(folder):
    """Through TFDS' files, as records of a run."""
    names = coco_instances.categories(folder / "instances.json")
    features = dict(coco_instances.features(names))
    rows = generated(folder)
    prepared.write(folder, "streets", features, {"train": rows, "test": rows[:1]})
    dataset = loading.load(
        "streets", str(folder), needed=("image", "instances"), image_size=(32, 32), max_objects=6
    )
    assert dataset.label_names == ("kind7", "kind33", "kind90")
    found = {name: value[0].numpy() for name, value in dataset.test.fetch(tf.constant([0])).items()}
    np.testing.assert_array_equal(found["classes"], [0, 2, 0, 1, ABSENT, ABSENT])
    np.testing.assert_array_equal(found["crowd"], [0, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(found["boxes"][:4], [box_of(mask) for mask in MASKS], rtol=1e-5)
    texts = [text.decode() for text in found["segmentations"]]
    np.testing.assert_array_equal(run_lengths.decode(texts[:4], (HEIGHT, WIDTH)), MASKS)
    assert texts[4:] == ["", ""]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("categories"), "has no categories: it is no file of COCO's annotations"),
        (lambda c: c["annotations"][0].pop("segmentation"), "annotation 1000 of .* has no segment"),
        (
            lambda c: c["annotations"][1].update(image_id=4),
            "is of image 4, which the file does not",
        ),
        (lambda c: c["annotations"][1].update(category_id=8), "is of category 8, which the file"),
        (lambda c: c["images"][1].pop("height"), "image 1 of .* has no height$"),
        (lambda c: c["categories"][0].pop("id"), "category 0 of .* has no id$"),
        *(
            (lambda c, name=name: c["annotations"][0].pop(name), f"annotation 1000 of .*no {name}$")
            for name in ("image_id", "category_id", "bbox")
        ),
        *(
            (
                lambda c, box=box: c["annotations"][0].update(bbox=box),
                "annotation 1000 of .* has the bbox .*; it must be four finite numbers, ",
            )
            for box in ([1, 2, 3], [1, 2, 3, float("nan")], "1234", [1, 2, 3, None])
        ),
        *(
            (
                lambda c, parts=parts: c["annotations"][0].update(segmentation=parts),
                "the segmentation of annotation 1000 of .* must be polygons, ",
            )
            for parts in ([[1, 2, 3, 4, 5, 6, 7]], [1, 2, 3, 4, 5, 6], "polygon", 7)
        ),
        *(
            (
                lambda c, counts=counts: c["annotations"][0].update(
                    segmentation={"size": [HEIGHT, WIDTH], "counts": counts}
                ),
                "the run lengths of annotation 1000 of .* sum is that of the pixels, 600$",
            )
            for counts in ([10, 50], [5, 7000], [600, "1"], 600)
        ),
        (lambda c: c.update(annotations=None), "has no annotations: it is no file of COCO's"),
        (lambda c: c.update(images={"id": 1}), "has no images: it is no file of COCO's"),
        (lambda c: c["annotations"].append([1]), "annotation [0-9]* of .* is a list and no record"),
        (lambda c: c["images"][0].update(height="20"), "height and width must be whole numbers f"),
        (lambda c: c["images"][0].update(height=0), "image 0 of .* is 0 by 30; height and width"),
        (lambda c: c["annotations"][1].update(category_id=[8]), "is of category .8., which the "),
        (lambda c: c["categories"][0].update(id="7"), "categories of .* need whole numbers for "),
        (
            lambda c: [one.update(segmentation=[]) for one in c["annotations"]],
            "has boxes alone: no annotation has a mask",
        ),
        (
            lambda c: c["annotations"][0].update(
                segmentation={"size": [WIDTH, HEIGHT], "counts": [600]}
            ),
            r"has the size \[30, 20\], and its image \[height, width\] = \[20, 30\]",
        ),
    ],
)
def test_files_of_other_contents_are_named(folder, change, message):
    spoiled = content()
    change(spoiled)
    (folder / "instances.json").write_text(json.dumps(spoiled))
    with pytest.raises(UserError, match=message):
        generated(folder)


@pytest.mark.parametrize("text", ["{", "[1, 2]"])
def test_a_file_that_is_not_of_the_format_is_named(folder, text):
    (folder / "instances.json").write_text(text)
    with pytest.raises(UserError, match=r"instances\.json (cannot be read as JSON: |has a list: )"):
        generated(folder)
    with pytest.raises(UserError, match=r"instances\.json (cannot be read as JSON: |has a list: )"):
        coco_instances.categories(folder / "instances.json")


def test_parts_that_cover_nothing_and_marks_of_an_encoding_are_no_fault(folder):
    whole, spoiled = generated(folder), content()
    spoiled["annotations"][0]["segmentation"].append([3, 3, 4, 4])
    spoiled["images"][0]["height"] = float(HEIGHT)
    (folder / "instances.json").write_text(json.dumps(spoiled), "utf-8-sig")
    for one, other in zip(generated(folder), whole, strict=True):
        np.testing.assert_array_equal(one["instance_map"], other["instance_map"])


def test_an_area_that_is_not_there_is_that_of_the_mask(folder):
    spoiled = content()
    spoiled["annotations"][0]["area"] = None
    (folder / "instances.json").write_text(json.dumps(spoiled))
    first, _ = generated(folder)
    assert first["objects"][0]["area"] == MASKS[0].sum()


def test_coco_itself_is_known_by_name(folder, monkeypatch):
    """Its builder reads the archives that TFDS' own `coco` downloads."""
    builder = prepared.tfds.builder("coco_instances/2017", data_dir=folder)
    assert builder.info.features["objects"]["label"].num_classes == 80
    places = {name: folder / name for name in ("train", "validation", "annotations")}
    for split, part in (("train", "train2017"), ("validation", "val2017")):
        (places[split] / part).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            (places[split] / part / name).write_bytes((folder / name).read_bytes())
        (places["annotations"] / "annotations").mkdir(parents=True, exist_ok=True)
        json_file = places["annotations"] / "annotations" / f"instances_{part}.json"
        json_file.write_text((folder / "instances.json").read_text())
    asked = {}

    class Downloads:
        def download_and_extract(self, urls):
            asked.update(urls)
            return {name: str(path) for name, path in places.items()}

    splits = builder._split_generators(Downloads())
    assert asked["validation"] == "http://images.cocodataset.org/zips/val2017.zip"
    assert asked["annotations"].endswith("/annotations/annotations_trainval2017.zip")
    for examples in splits.values():
        assert [number for number, _ in examples] == [42, 43]
