"""Boxes as what a detector predicts: their difference to anchors."""

import math

import tensorflow as tf

_LARGEST = math.log(
    1000 / 16
)  # of a logarithm of sizes: what is predicted at first may be anything

_UNITS = (0.1, 0.1, 0.2, 0.2)


def encode(boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """((y − y_a)/h_a, (x − x_a)/w_a, log(h/h_a), log(w/w_a)), with (y, x) the middle of a box.

    Source: Girshick et al., "Rich feature hierarchies", 2014, appendix C. Sides below 1e-3 pixels
    count as that, so that padding has finite numbers.

    Args:
        boxes: [..., anchors, 4].
        anchors: [anchors, 4].
    """
    middle, sides = _middle_and_sides(boxes)
    of_anchor, sides_of_anchor = _middle_and_sides(anchors)
    shift = (middle - of_anchor) / sides_of_anchor
    return tf.concat([shift, tf.math.log(tf.maximum(sides, 1e-3) / sides_of_anchor)], -1)


def decode(deltas: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """The inverse of `encode`; no side is more than 62.5 times as long as its anchor's."""
    of_anchor, sides_of_anchor = _middle_and_sides(anchors)
    middle = of_anchor + deltas[..., :2] * sides_of_anchor
    sides = sides_of_anchor * tf.exp(tf.minimum(deltas[..., 2:], _LARGEST))
    return tf.concat([middle - sides / 2, middle + sides / 2], -1)


def encode_regions(boxes: tf.Tensor, regions: tf.Tensor) -> tf.Tensor:
    """`encode` in units of (1/10, 1/10, 1/5, 1/5), about the deviation of each number.

    Source: Girshick, "Fast R-CNN", 2015, section 2.3 (targets of unit variance); the numbers are
    those of its code.

    Args:
        boxes: [batch, regions, 4].
        regions: likewise.
    """
    return encode(boxes, regions) / tf.constant(_UNITS)


def decode_regions(deltas: tf.Tensor, regions: tf.Tensor) -> tf.Tensor:
    """The inverse of `encode_regions`, of each class.

    Args:
        deltas: [batch, regions, classes, 4].
        regions: [batch, regions, 4].
    """
    return decode(deltas * tf.constant(_UNITS), regions[..., None, :])


def clip_boxes(
    boxes: tf.Tensor, height: int | float | tf.Tensor, width: int | float | tf.Tensor
) -> tf.Tensor:
    """Boxes [..., 4] without what lies outside of images of that one size."""
    largest = tf.cast(tf.stack([height, width, height, width], -1), boxes.dtype)
    return tf.clip_by_value(boxes, tf.zeros_like(largest), largest)


def _middle_and_sides(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    first, last = boxes[..., :2], boxes[..., 2:]
    return (first + last) / 2, last - first
