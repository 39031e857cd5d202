"""From the values in the files of masks to classes."""

import dataclasses

import tensorflow as tf

from tfnorm.data.checking import checked
from tfnorm.data.example import IGNORED, Example
from tfnorm.data.mask_classes import INVALID, MaskClasses


@dataclasses.dataclass(frozen=True)
class ClassifyMask:
    """Replaces the values of a mask by their classes, `IGNORED` where they have none.

    It stands behind the transform that decodes the mask, whose padding is ignored already. A value
    that the data set does not have ends in tf.errors.InvalidArgumentError, which names it.

    Attributes:
        classes: What the values mean.
    """

    classes: MaskClasses

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """One example; nothing in it is random."""
        mask = example["mask"]
        table = tf.constant([*self.classes.table, INVALID, IGNORED])
        # Values beyond the table are invalid, and padding is the last entry.
        place = tf.minimum(mask, len(self.classes.table))
        found = tf.gather(table, tf.where(mask == IGNORED, len(self.classes.table) + 1, place))
        invalid = found == INVALID
        greatest = tf.reduce_max(tf.where(invalid, mask, 0))
        text = "value in a mask that is no class:"
        found = checked(found, ~tf.reduce_any(invalid), text, greatest)
        return {**example, "mask": found}
