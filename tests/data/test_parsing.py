"""Examples of every kind of feature against what TFDS itself makes of the same records."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfnorm.data import decoding, parsing
from tfnorm.data.example import ABSENT
from tfnorm.data.features import offered

OBJECTS = {
    "bbox": tfds.features.BBoxFeature(),
    "label": tfds.features.ClassLabel(num_classes=7),
    "is_crowd": np.bool_,
    "is_difficult": np.bool_,
    "area": np.int64,
}


def features(objects=OBJECTS):
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(objects),
            "segmentation_mask": tfds.features.LabeledImage(labels=5, shape=(None, None, 1)),
            "instance_map": tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
            ),
        }
    )


def parse(record, rows=6, kinds=None):
    kinds = kinds or features()
    parser = tf.function(parsing.Parser(kinds, offered(kinds), rows), autograph=False)
    return {name: value.numpy() for name, value in parser(tf.constant(record)).items()}


def serialized(rng, boxes, labels=None, size=(20, 50)):
    """A record; boxes are not checked, as TFDS' own writer does."""
    number = len(boxes)
    labels = rng.integers(0, 7, number) if labels is None else labels
    png = {"mask": rng.integers(0, 5, (*size, 1)), "map": rng.integers(0, 999, (*size, 1))}
    values = {
        "image": [tf.io.encode_jpeg(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).numpy()],
        "image/filename": [b"a.jpg"],
        "segmentation_mask": [tf.io.encode_png(png["mask"].astype(np.uint8)).numpy()],
        "instance_map": [tf.io.encode_png(png["map"].astype(np.uint16)).numpy()],
        "objects/bbox": np.ravel(boxes).astype(float),
        "objects/label": labels,
        "objects/is_crowd": rng.integers(0, 2, number),
        "objects/is_difficult": rng.integers(0, 2, number),
        "objects/area": rng.integers(0, 9, number),
    }

    def feature(value):
        if len(value) and isinstance(value[0], bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        if np.asarray(value).dtype == float:
            return tf.train.Feature(float_list=tf.train.FloatList(value=value))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=value))

    table = {name: feature(value) for name, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=table)).SerializeToString()


def test_objects_masks_and_instances_are_those_of_tfds(rng):
    corners = rng.uniform(0, 0.5, (4, 2))
    record = serialized(rng, np.concatenate([corners, corners + rng.uniform(0.1, 0.5, (4, 2))], 1))
    known = features().deserialize_example(record)
    found = parse(record)
    objects = {name: value.numpy() for name, value in known["objects"].items()}
    np.testing.assert_allclose(found["boxes"][:4], objects["bbox"] * [20, 50, 20, 50], rtol=1e-6)
    np.testing.assert_array_equal(found["classes"], [*objects["label"], ABSENT, ABSENT])
    np.testing.assert_array_equal(found["crowd"], [*objects["is_crowd"], False, False])
    np.testing.assert_array_equal(found["difficult"], [*objects["is_difficult"], False, False])
    np.testing.assert_array_equal(found["areas"], [*objects["area"], 0, 0])
    assert not found["boxes"][4:].any()
    for entry, name in {"mask": "segmentation_mask", "instances": "instance_map"}.items():
        np.testing.assert_array_equal(
            decoding.labels(tf.constant(found[entry]), None), known[name][..., 0]
        )
    np.testing.assert_array_equal(
        decoding.pixels(tf.constant(found["image"]), None, 3), known["image"]
    )


def test_boxes_outside_or_without_area_are_clipped_or_no_objects(rng):
    boxes = [
        [-0.5, 0.5, 0.5, 1.5],  # clipped
        [0.2, 0.3, 0.2, 0.9],  # no height
        [0.8, 0.1, 0.4, 0.5],  # upside down
        [1.5, 0.1, 1.9, 0.5],  # outside
        [np.nan, 0.1, 0.9, 0.5],
        [0.0, 0.0, 1.0, 1.0],
    ]
    found = parse(serialized(rng, boxes, labels=range(6)))
    np.testing.assert_array_equal(found["classes"], [0, ABSENT, ABSENT, ABSENT, ABSENT, 5])
    np.testing.assert_array_equal(found["boxes"][[0, 5]], [[0, 25, 10, 50], [0, 0, 20, 50]])
    assert not found["boxes"][1:5].any()


def test_images_may_have_no_objects(rng):
    found = parse(serialized(rng, np.zeros((0, 4))))
    assert set(found["classes"]) == {ABSENT} and not found["boxes"].any()


def test_more_objects_than_rows_and_labels_out_of_range_are_named(rng):
    boxes = [[0.1, 0.1, 0.5, 0.5]] * 4
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"max_objects=3 has rows for:\] \[4\]"
    ):
        parse(serialized(rng, boxes), rows=3)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"classes 0 to 6:\] \[9\]"):
        parse(serialized(rng, boxes, labels=[0, 6, 9, 12]))


@pytest.mark.parametrize(
    "name, values",
    [
        ("REL_YXYX", [0.1, 0.2, 0.5, 0.8]),
        ("REL_XYXY", [0.2, 0.1, 0.8, 0.5]),
        ("YXYX", [2, 10, 10, 40]),
        ("XYXY", [10, 2, 40, 10]),
        ("XYWH", [10, 2, 30, 8]),
    ],
)
def test_boxes_of_all_formats_come_to_the_same(rng, name, values):
    objects = {**OBJECTS, "bbox": tfds.features.BBoxFeature(bbox_format=name)}
    found = parse(serialized(rng, [values]), kinds=features(objects))
    np.testing.assert_allclose(found["boxes"][0], [2, 10, 10, 40], rtol=1e-6)


def test_features_are_found_by_kind():
    image, mask = tfds.features.Image(), tfds.features.Image(shape=(None, None, 1))
    box, label = tfds.features.BBoxFeature(), tfds.features.ClassLabel(num_classes=2)

    def find(**own):
        return offered(tfds.features.FeaturesDict(own))

    faces = tfds.features.Sequence({"bbox": box, "blur": np.uint8, "occluded": np.bool_})
    kitti = tfds.features.Sequence({"bbox": box, "type": label})
    cityscapes = {"image_left": image, "segmentation_label": mask, "image_id": np.str_}
    assert find(**cityscapes) == {"image": "image_left", "mask": "segmentation_label"}
    assert find(image=image, faces=faces) == {"image": "image", "boxes": "faces/bbox"}
    assert find(image=image, objects=kitti) == {
        "image": "image",
        "boxes": "objects/bbox",
        "classes": "objects/type",
    }
    assert find(image=image, label=np.int64) == {"image": "image"}
    assert find(text=tfds.features.Text()) == {}


@pytest.mark.parametrize("encode", [tf.io.encode_jpeg, tf.io.encode_png])
def test_sizes_are_read_from_the_header(rng, encode):
    image = encode(rng.integers(0, 256, (300, 517, 3)).astype(np.uint8))
    np.testing.assert_array_equal(decoding.size(image), [300, 517])
    np.testing.assert_array_equal(decoding.size(tf.zeros([6, 7, 3])), [6, 7])


def test_the_size_of_a_bitmap_is_that_of_its_pixels():
    header = b"BM" + (54 + 3 * 4 * 2).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    numbers = (40, 3, 2, 1 | 24 << 16, 0, 0, 0, 0, 0, 0)
    bitmap = header + b"".join(n.to_bytes(4, "little") for n in numbers) + bytes(2 * 12)
    np.testing.assert_array_equal(decoding.size(tf.constant(bitmap)), [2, 3])
