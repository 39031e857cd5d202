"""The logits of a segmenter to a map of classes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.errors import UserError
from tfnorm.serving.distance import distance
from tfnorm.serving.interface import Arrays, Error
from tfnorm.serving.postprocessing import CLASSES


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """Makes an export return "classes" [batch, height, width] int32, the best class of each pixel.

    Attributes:
        label_names: a name for each class, in the order of the network's logits.
    """

    label_names: Sequence[str]

    def check(self, outputs: Mapping[str, keras.KerasTensor]) -> None:
        """Raises UserError unless the network has one output, a logit a pixel and class."""
        shapes = [tuple(y.shape) for y in outputs.values()]
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][-1] != len(self.label_names):
            raise UserError(
                f"A map of classes needs a model with one output of shape [batch, height, width, "
                f"{len(self.label_names)}]; this one has {', '.join(map(str, shapes))}."
            )

    def __call__(
        self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        """The network's logits to the best class of each pixel."""
        logits = self.scores(outputs, images)
        return {CLASSES: tf.argmax(logits, axis=-1, output_type=tf.int32)}

    def scores(self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None) -> tf.Tensor:
        """The logits, in float32."""
        del images
        (logits,) = outputs.values()
        return tf.cast(logits, tf.float32)

    def errors(
        self, found: Arrays, expected: Arrays, scores: np.ndarray, largest: float
    ) -> dict[str, Error]:
        """Half of how far the logit of each pixel's class is from the largest of the pixel.

        Two classes change places where the logit of each moves by half of their distance.
        """
        classes = found[CLASSES]
        exists = np.isin(classes, np.arange(scores.shape[-1]))
        columns = np.where(exists, classes, 0).astype(int)[..., None]
        given = np.take_along_axis(scores, columns, axis=-1)[..., 0]
        apart = np.where(exists, distance(given, np.max(scores, axis=-1)) / 2, np.inf)
        apart = np.where(classes == expected[CLASSES], 0.0, apart)
        return {CLASSES: Error(apart, largest or 1.0)}

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "returns": "the number of the class of each pixel, counted from 0",
            "label_names": list(self.label_names),
        }
