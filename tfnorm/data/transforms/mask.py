"""From the values in the files of masks to classes."""

import dataclasses

import tensorflow as tf

from tfnorm.data.example import Example
from tfnorm.data.mask_classes import MaskClasses


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
        return self.classes.check(example)
