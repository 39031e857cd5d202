"""The predictions of a detector to boxes in pixels of the image, their classes and scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm import boxes
from tfnorm.boxes import suppression
from tfnorm.errors import UserError
from tfnorm.serving import detections_check
from tfnorm.serving.canvas import boxes_of_images, image_pixels, sizes_of
from tfnorm.serving.interface import Arrays, Error

LOGITS, DELTAS = "class_logits", "box_deltas"


@dataclasses.dataclass(frozen=True)
class DetectionPostprocessing:
    """Makes an export return what is found on each image, best first, padded with zeros.

    "boxes" [batch, 100, 4]: ymin, xmin, ymax, xmax in pixels of the image that was sent; "classes"
    [batch, 100] int32; "scores" [batch, 100], from 0 to 1; "count" [batch] int32, how many of the
    100 there are. Boxes are suppressed on the canvas, as `tfnorm.boxes.suppress` does it.

    Attributes:
        anchors: that the network's predictions start from.
        canvas: height and width of the images that the network sees.
        label_names: a name for each class, in the order of the network's logits.
    """

    anchors: boxes.AnchorGrid
    canvas: tuple[int, int]
    label_names: Sequence[str]

    def check(self, outputs: Mapping[str, keras.KerasTensor]) -> None:
        """Raises UserError unless the network predicts classes and boxes of these anchors."""
        shapes = {name: tuple(y.shape) for name, y in outputs.items()}
        last = {name: shape[-1] for name, shape in shapes.items()}
        if last != {LOGITS: len(self.label_names), DELTAS: 4}:
            raise UserError(
                f"Detections need a model with the outputs {LOGITS!r} [batch, anchors, "
                f"{len(self.label_names)}] and {DELTAS!r} [batch, anchors, 4]; this one has "
                f"{', '.join(f'{name} {shape}' for name, shape in shapes.items())}."
            )

    def __call__(
        self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        """The network's predictions to boxes in pixels of the images."""
        found = boxes.suppress(*self._candidates(outputs))
        return {
            "boxes": boxes_of_images(found.boxes, sizes_of(images), self.canvas),
            "classes": found.classes,
            "scores": found.scores,
            "count": found.count,
        }

    def _candidates(self, outputs: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        anchors = self.anchors.boxes(*self.canvas)
        decoded = boxes.decode(tf.cast(outputs[DELTAS], tf.float32), anchors)
        return decoded, tf.sigmoid(tf.cast(outputs[LOGITS], tf.float32))

    def scores(
        self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        """All boxes, on the canvas and in pixels of the images, with their scores.

        "pixels" [batch] says how many pixels of an image one of the canvas is.
        """
        decoded, scores = self._candidates(outputs)
        sizes = sizes_of(images)
        located = boxes_of_images(decoded, sizes, self.canvas)
        pixels = tf.reduce_max(image_pixels(sizes, self.canvas), -1)
        return {"boxes": decoded, "located": located, "scores": scores, "pixels": pixels}

    def errors(
        self, found: Arrays, expected: Arrays, scores: Arrays, largest: float
    ) -> dict[str, Error]:
        """How far the detections are from some that a suppression of the model's boxes may give.

        A score has to be that of a box of the model, and its place that box's. Of "count" the
        error is that of the set: see `detections_check.inconsistency`.
        """
        rule = detections_check.Rule()
        anchors = self.anchors.boxes(*self.canvas).numpy()
        side = max(*self.canvas, np.max(anchors[:, 2:] - anchors[:, :2]))
        return detections_check.errors(found, expected, scores, largest, side, rule)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            **described(self.label_names),
            "anchors": dataclasses.asdict(self.anchors),
        }


def described(label_names: Sequence[str], more: str = "") -> dict[str, Any]:
    """What an export of a detector returns, as JSON holds it.

    Args:
        label_names: a name for each class.
        more: what it returns of each box, besides its class and its score.
    """
    return {
        "returns": f"up to {suppression.DETECTIONS} boxes an image, ymin, xmin, ymax, xmax in "
        f"pixels of the image that was sent, best first{more}; their classes, counted from 0, "
        "scores and count; padded with zeros",
        "label_names": list(label_names),
        "iou_threshold": suppression.IOU_THRESHOLD,
        "score_threshold": suppression.SCORE_THRESHOLD,
    }
