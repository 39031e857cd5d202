"""What a detector of two stages finds, in pixels of the image: boxes, classes, scores and masks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnorm import boxes
from tfnorm.errors import UserError
from tfnorm.serving import region_check
from tfnorm.serving.canvas import boxes_of_images, frames_of_images, image_pixels, sizes_of
from tfnorm.serving.detections import described
from tfnorm.serving.interface import Arrays, Error

_FOUND = boxes.Detections._fields
MASKS = "masks"


@dataclasses.dataclass(frozen=True)
class RegionDetections:
    """Makes an export return what the network finds on each image, best first, padded with zeros.

    "boxes" [batch, 100, 4]: ymin, xmin, ymax, xmax in pixels of the image that was sent; "classes"
    [batch, 100] int32; "scores" [batch, 100], from 0 to 1; "count" [batch] int32, how many of the
    100 there are. Of a network with a mask head also "masks" [batch, 100, height, width] uint8, in
    the pixels of the image, 1 where the object is: `tfnorm.boxes.paste`.

    Attributes:
        canvas: height and width of the images that the network sees.
        label_names: a name for each class.
        with_masks: whether the network has a mask head.
    """

    canvas: tuple[int, int]
    label_names: Sequence[str]
    with_masks: bool = False

    def check(self, outputs: Mapping[str, keras.KerasTensor]) -> None:
        """Raises UserError unless the network finds regions of these classes."""
        needed = (*region_check.OUTPUTS, *_FOUND, *((MASKS,) if self.with_masks else ()))
        missing = [name for name in needed if name not in outputs]
        if missing:
            raise UserError(
                f"Detections of regions need a model with the outputs {', '.join(needed)}; this "
                f"one lacks {', '.join(missing)}."
            )
        classes = outputs["class_logits"].shape[-1] - 1
        if classes != len(self.label_names):
            raise UserError(
                f"There are {len(self.label_names)} labels for a model of {classes} classes."
            )

    def __call__(
        self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        """What the network finds, boxes and masks in pixels of the images."""
        found = {name: outputs[name] for name in _FOUND}
        found["boxes"] = boxes_of_images(outputs["boxes"], sizes_of(images), self.canvas)
        if self.with_masks:
            frames = frames_of_images(outputs["boxes"], sizes_of(images), self.canvas)
            found[MASKS] = _pasted(outputs[MASKS], frames, tf.shape(images)[1:3])
        return found

    def scores(
        self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        """The boxes of all regions and classes with their scores, and what is kept of them.

        "pixels" [batch] says how many pixels of an image one of the canvas is; "largest" [], how
        far the numbers go that boxes and scores are made of.
        """
        sizes = sizes_of(images)
        moved, scores = boxes.region_candidates(
            *(outputs[name] for name in ("class_logits", "region_deltas", "regions")), self.canvas
        )
        flat = tf.reshape(moved, [tf.shape(moved)[0], -1, 4])
        continuous = [outputs[name] for name in region_check.CONTINUOUS]
        kept = ("classes", "scores", "count", *((MASKS,) if self.with_masks else ()))
        return {
            "boxes": flat,
            "located": boxes_of_images(flat, sizes, self.canvas),
            "scores": scores,
            "pixels": tf.reduce_max(image_pixels(sizes, self.canvas), -1),
            "largest": tf.reduce_max([tf.reduce_max(tf.abs(x)) for x in continuous]),
            "kept_boxes": boxes_of_images(outputs["boxes"], sizes, self.canvas),
            "kept_frames": frames_of_images(outputs["boxes"], sizes, self.canvas),
            **{f"kept_{name}": outputs[name] for name in kept},
        }

    def errors(
        self, found: Arrays, expected: Arrays, scores: Arrays, largest: float
    ) -> dict[str, Error]:
        """How far the answers are from such as a suppression of the network's regions may give."""
        del largest  # That of all outputs, boxes in pixels among them.
        return region_check.errors(found, expected, scores, max(self.canvas))

    def inner_errors(self, found: Arrays, expected: Arrays) -> dict[str, Error]:
        """How far a network's outputs are from those of another, region by region."""
        return region_check.inner_errors(found, expected, max(self.canvas))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return described(self.label_names, "; their masks in its pixels" if self.with_masks else "")


def _pasted(masks: tf.Tensor, frames: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """[batch, n, height, width] uint8; mask by mask, for their probabilities take four times that.

    Args:
        masks: [batch, n, m, m].
        frames: [batch, n, 4], the boxes that they are of, in pixels of the images.
        size: [2], height and width of these.
    """

    def paste(one: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        mask, box = one
        inside = boxes.paste(mask[None], box[None], size)[0] >= boxes.MASK_THRESHOLD
        return tf.cast(inside, tf.uint8)

    flat = tf.reshape(masks, [-1, *masks.shape[2:]]), tf.reshape(frames, [-1, 4])
    pasted = tf.map_fn(paste, flat, fn_output_signature=tf.TensorSpec([None, None], tf.uint8))
    return tf.reshape(pasted, tf.concat([tf.shape(frames)[:2], size], 0))
