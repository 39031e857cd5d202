"""From TFDS' records to examples: parsed by TFDS, images left encoded, objects padded.

Rules for what a file may hold, each followed without a word, because data sets as they are
published need it:

- A box is clipped to its image; one without area (upside down, outside, not a number) is no
  object.
- An image may have no object at all.

And what ends in an error that names the value: a label outside of the data set's classes, more
objects than rows for them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfnorm.data import decoding
from tfnorm.data.checking import checked
from tfnorm.data.example import ABSENT, OBJECT_ENTRIES, Example
from tfnorm.data.transforms.boxes import clip

# The entries that stay encoded.
_ENCODED = ("image", "mask", "instances")


class Parser:
    """Turns records of a data set into examples.

    Args:
        features: tfds.features.FeaturesDict of the data set.
        paths: From the entries of an example to the features that they are, as of
            `tfnorm.data.features`.
        max_objects: Rows for objects.
    """

    def __init__(self, features: Any, paths: Mapping[str, str], max_objects: int) -> None:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import example_parser

        self._paths = dict(paths)
        self._max_objects = max_objects
        names = dict.fromkeys(path.partition("/")[0] for path in paths.values())
        self._features = tfds.features.FeaturesDict({name: features[name] for name in names})
        encoded = [paths[entry] for entry in _ENCODED if entry in paths]
        self._decoders = {name: tfds.decode.SkipDecoding() for name in encoded}
        self._parser = example_parser.ExampleParser(self._features.get_serialized_info())

    def __call__(self, record: tf.Tensor) -> Example:
        """One example, of one record [] string."""
        found, paths = self._found(record), self._paths
        example = {e: tf.ensure_shape(found[paths[e]], []) for e in _ENCODED if e in paths}
        if "label" in paths:
            classes = self._features[paths["label"]].num_classes
            example["label"] = _labels(found[paths["label"]], classes, "label")
        if "boxes" in paths:
            example |= self._objects(found, decoding.size(example["image"]))
        elif "instances" in paths:  # Each number of the map is an object of the one class.
            example["boxes"] = tf.zeros([self._max_objects, 4])
            example["classes"] = tf.zeros([self._max_objects], tf.int32)
        return example

    def count(self, record: tf.Tensor) -> tf.Tensor:
        """[] int32, the number of objects of one record; of an instance map its greatest number."""
        found = self._found(record)
        if "boxes" not in self._paths:
            return tf.reduce_max(decoding.labels(found[self._paths["instances"]], None))
        sequence, _, boxes = self._paths["boxes"].partition("/")
        return tf.shape(found[sequence][boxes])[0]

    def _found(self, record: tf.Tensor) -> Mapping[str, Any]:
        """The features of a record that are asked for, images encoded."""
        found = self._parser.parse_example(record)
        return self._features.decode_example(found, decoders=self._decoders)

    def _objects(self, found: Mapping[str, Any], size: tf.Tensor) -> Example:
        sequence = self._paths["boxes"].partition("/")[0]
        of_rows = [entry for entry in (*OBJECT_ENTRIES, "segmentations") if entry in self._paths]
        keys = {entry: self._paths[entry].partition("/")[2] for entry in of_rows}
        kinds, values = self._features[sequence].feature, found[sequence]
        boxes = _to_pixels(values[keys["boxes"]], kinds[keys["boxes"]].bbox_format, size)
        number = tf.shape(boxes)[0]
        text = f"more objects than --max_objects={self._max_objects} has rows for:"
        number = checked(number, number <= self._max_objects, text, number)
        rows = {"boxes": boxes, "classes": tf.zeros([number], tf.int32)}
        if "classes" in keys:
            classes = kinds[keys["classes"]].num_classes
            rows["classes"] = _labels(values[keys["classes"]], classes, "label of an object")
        rows |= {
            entry: tf.cast(values[keys[entry]], kind)
            for entry, kind in (("crowd", tf.bool), ("difficult", tf.bool), ("areas", tf.float32))
            if entry in keys
        }
        if "segmentations" in keys:
            rows["segmentations"] = values[keys["segmentations"]]
        missing = self._max_objects - number
        padded = {entry: _pad(entry, value, missing) for entry, value in rows.items()}
        for value in padded.values():
            value.set_shape([self._max_objects, *value.shape[1:]])
        return clip(padded, size)


def _pad(entry: str, rows: tf.Tensor, missing: tf.Tensor) -> tf.Tensor:
    """Appends rows without an object."""
    fill = tf.zeros([], rows.dtype) if entry != "classes" else tf.constant(ABSENT, rows.dtype)
    paddings = [[0, missing]] + [[0, 0]] * (rows.shape.rank - 1)
    return tf.pad(rows, paddings, constant_values=fill)


def _labels(labels: tf.Tensor, classes: int | None, what: str) -> tf.Tensor:
    """Labels as int32, none of them outside of the classes."""
    labels = tf.cast(labels, tf.int32)
    if classes is None:
        return labels
    wrong = (labels < 0) | (labels >= classes)
    text = f"{what} out of range, which has classes 0 to {classes - 1}:"
    return checked(labels, ~tf.reduce_any(wrong), text, _first(labels, wrong))


def _first(values: tf.Tensor, where: tf.Tensor) -> tf.Tensor:
    """The first value where a condition holds; any value where it holds nowhere."""
    values, where = tf.reshape(values, [-1]), tf.reshape(where, [-1])
    return tf.concat([values[where], [0]], axis=0)[0]


def _to_pixels(boxes: tf.Tensor, box_format: Any, size: tf.Tensor) -> tf.Tensor:
    """Boxes [n, 4] of any of TFDS' formats as top, left, bottom, right in pixels."""
    kind = box_format.value if box_format is not None else "REL_YXYX"
    a, b, c, d = tf.unstack(boxes, axis=-1)
    edges: Sequence[tf.Tensor] = {
        "YXYX": (a, b, c, d),
        "XYXY": (b, a, d, c),
        "XYWH": (b, a, b + d, a + c),
    }[kind.removeprefix("REL_")]
    boxes = tf.stack(edges, axis=-1)
    return boxes * tf.cast(tf.tile(size, [2]), boxes.dtype) if kind.startswith("REL_") else boxes
