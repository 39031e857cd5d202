"""What all transforms of geometry come to: a window of the image, resized, on a canvas.

A transform draws or computes a `Placing`; what that does to image, mask, boxes, classes and
instances stands here once.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfnorm.data import decoding
from tfnorm.data.example import IGNORED, Example
from tfnorm.data.transforms import boxes

Fill = float | Sequence[float]


@dataclasses.dataclass(frozen=True, eq=False)
class Placing:
    """Where a part of an image goes.

    Attributes:
        window: [4] int32, top, left, height and width of the part; None is the whole image.
        size: [2] int32 or a pair of ints, the height and width that the part is resized to; None
            leaves it as it is.
        canvas: Height and width of the result; None is `size`.
        corner: [2] int32, top and left of the part on the canvas; None is (0, 0).
    """

    window: tf.Tensor | None = None
    size: tf.Tensor | tuple[int, int] | None = None
    canvas: tuple[int, int] | None = None
    corner: tf.Tensor | None = None


def place(example: Example, placing: Placing, channels: int, fill: Fill = 0.0) -> Example:
    """Applies a placing.

    Images are resized bilinearly, masks and instances to the nearest pixel, both with pixels'
    centres at half coordinates. Of the canvas around the part the image is `fill`, the mask
    `IGNORED`, instances 0. Boxes are clipped to the part, and around instances drawn anew: what is
    left of an object may be smaller than what is left of its box.

    Args:
        example: Image, mask and instances encoded or not.
        placing: Where to.
        channels: Of the image.
        fill: Pixel value around the part, or one a channel.

    Returns:
        The example, with image [height, width, channels] float32, mask and instances int32.
    """
    source = decoding.size(example["image"])
    window = tf.concat([[0, 0], source], 0) if placing.window is None else placing.window
    image = decoding.pixels(example["image"], placing.window, channels)
    placed = {**example, "image": _put(tf.cast(image, tf.float32), placing, "bilinear", fill)}
    for entry, outside in (("mask", IGNORED), ("instances", 0)):
        if entry in example:
            values = decoding.labels(example[entry], placing.window)[..., None]
            placed[entry] = _put(values, placing, "nearest", outside)[..., 0]
    if "boxes" in example:
        size = window[2:] if placing.size is None else tf.convert_to_tensor(placing.size)
        placed = _put_boxes(placed, window, size, placing.corner)
    return placed


def _put(image: tf.Tensor, placing: Placing, method: str, fill: Fill) -> tf.Tensor:
    """Resizes and pads [h, w, c]."""
    if placing.size is not None:
        image = tf.image.resize(image, placing.size, method)
    if placing.canvas is None:
        return image
    corner = tf.zeros([2], tf.int32) if placing.corner is None else placing.corner
    after = tf.constant(placing.canvas) - corner - tf.shape(image)[:2]
    paddings = tf.concat([tf.stack([corner, after], axis=1), [[0, 0]]], axis=0)
    inside = tf.pad(tf.ones(tf.shape(image)[:2], tf.bool), paddings[:2])
    image = tf.where(inside[..., None], tf.pad(image, paddings), tf.cast(fill, image.dtype))
    return tf.ensure_shape(image, [*placing.canvas, image.shape[-1]])


def _put_boxes(
    example: Example, window: tf.Tensor, size: tf.Tensor, corner: tf.Tensor | None
) -> Example:
    corner = tf.zeros([2], tf.int32) if corner is None else corner
    if "instances" in example:
        found = boxes.of_instances(example["instances"], example["boxes"].shape[0])
        return boxes.keep({**example, "boxes": found}, boxes.area(found) > 0)
    scale = tf.cast(size, tf.float32) / tf.cast(window[2:], tf.float32)
    moved = example["boxes"] - tf.cast(tf.tile(window[:2], [2]), tf.float32)
    moved = moved * tf.tile(scale, [2]) + tf.cast(tf.tile(corner, [2]), tf.float32)
    return boxes.clip({**example, "boxes": moved}, size, corner)
