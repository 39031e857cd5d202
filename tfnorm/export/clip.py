"""What bounds the output of a normalizer, and stays where its affine map is folded."""

import keras
from keras.src.ops import numpy as operations  # a clip in a graph has no public name

from tfnorm.graph import Part


class ClipPart(Part):
    """A clip to ±bound.

    Attributes:
        bound: the largest absolute value.
    """

    def __init__(self, part: Part, bound: float) -> None:
        super().__init__(f"{part.path}/clip", part.operation)
        self.bound = bound

    def make(self, name: str) -> keras.Operation:
        """Keras' operation; it has a name of its own."""
        del name
        return operations.Clip(-self.bound, self.bound)

    def initialize(self, operation: keras.Operation) -> None:
        """It has no weights."""
        del operation
