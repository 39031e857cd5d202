"""What the values of a segmentation mask mean: classes, or pixels to ignore.

1. The table below, for TFDS' data sets whose features do not say it.
2. A feature that names its labels (a LabeledImage): the labels in their order, but those named
   void or the like are ignored.
3. Otherwise all values from the least to the greatest that the training masks hold.

255 is ignored in all of them, as in VOC, Cityscapes and ADE20K.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfnorm.data import decoding
from tfnorm.data.checking import checked
from tfnorm.data.example import IGNORED, Example
from tfnorm.data.records import Records

# In a table: a value that a mask must not hold.
INVALID = -2
_IGNORED_VALUE = 255
_VOID = ("void", "ignore", "ignored", "unlabeled", "unlabelled")

_CITYSCAPES = {  # The 19 classes that are evaluated, by their ids in the files.
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
_KNOWN: dict[str, tuple[dict[str, int], Sequence[int]]] = {
    "cityscapes": (_CITYSCAPES, [v for v in range(34) if v not in _CITYSCAPES.values()]),
    "oxford_iiit_pet": ({"pet": 1, "background": 2, "border": 3}, ()),
}


@dataclasses.dataclass(frozen=True, eq=False)
class MaskClasses:
    """The classes of a mask.

    Attributes:
        names: One name a class.
        table: [number of values] int32: for each value in a file its class, `IGNORED`
            or `INVALID`.
    """

    names: tuple[str, ...]
    table: np.ndarray

    @classmethod
    def of(cls, values: dict[str, int], ignored: Sequence[int] = ()) -> "MaskClasses":
        """Classes 0, 1, ... in the order of `values`, a mapping from name to value."""
        table = np.full(1 + max(_IGNORED_VALUE, *values.values(), *ignored), INVALID, np.int32)
        table[[_IGNORED_VALUE, *ignored]] = IGNORED
        table[list(values.values())] = np.arange(len(values))
        return cls(tuple(values), table)

    def classify(self, mask: tf.Tensor) -> tf.Tensor:
        """The classes [...] int32 of values [...], integers; `IGNORED` stays what it is.

        A value that is no class ends in tf.errors.InvalidArgumentError, which names it.
        """
        mask = tf.cast(mask, tf.int32)
        table = tf.constant([*self.table, INVALID, IGNORED])
        # Values beyond the table are invalid, and what is ignored already is the last entry.
        place = tf.minimum(mask, len(self.table))
        found = tf.gather(table, tf.where(mask == IGNORED, len(self.table) + 1, place))
        invalid = found == INVALID
        greatest = tf.reduce_max(tf.where(invalid, mask, 0))
        text = "value in a mask that is no class:"
        return checked(found, ~tf.reduce_any(invalid), text, greatest)

    def check(self, example: Example) -> Example:
        """The example, its mask replaced by classes."""
        return {**example, "mask": self.classify(example["mask"])}


def value_range(records: Records) -> tuple[int, int]:
    """The least and the greatest value other than 255 in the masks of examples."""

    def of_mask(mask: tf.Tensor) -> tf.Tensor:
        values = decoding.labels(mask, None)
        ignored = values == _IGNORED_VALUE
        least = tf.reduce_min(tf.where(ignored, values.dtype.max, values))
        return tf.stack([least, tf.reduce_max(tf.where(ignored, 0, values))])

    masks = (
        tf.data.Dataset.range(len(records))
        .batch(1)
        .map(lambda index: of_mask(records.fetch(index)["mask"][0]), num_parallel_calls=2)
    )
    ranges = np.array([*masks.as_numpy_iterator()])
    return int(ranges[:, 0].min()), int(ranges[:, 1].max())


def find(
    data_set: str, names: Sequence[str] | None, value_range: Callable[[], tuple[int, int]]
) -> MaskClasses:
    """The classes of a data set's masks, by the rules above.

    Args:
        data_set: TFDS name without config and version.
        names: The labels that the feature names, if it does.
        value_range: Reads the least and the greatest value other than 255 in the training masks;
            called only if needed.
    """
    if data_set in _KNOWN:
        return MaskClasses.of(*_KNOWN[data_set])
    if names:
        void = [value for value, name in enumerate(names) if name.strip().lower() in _VOID]
        kept = {name: value for value, name in enumerate(names) if value not in void}
        return MaskClasses.of(kept, void)
    least, greatest = value_range()
    return MaskClasses.of({str(value): value for value in range(least, greatest + 1)})
