"""Areas of boxes, and how far two of them are the same."""

import tensorflow as tf


def areas(boxes: tf.Tensor) -> tf.Tensor:
    """Of boxes [..., 4], as [...]; 0 where a side is negative."""
    sides = tf.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every pair of [..., n, 4] and [..., m, 4], as [..., n, m].

    0 where both are without area.
    """
    common = _intersections(boxes, others)
    union = areas(boxes)[..., :, None] + areas(others)[..., None, :] - common
    return tf.math.divide_no_nan(common, union)


def intersection_over_area(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """The share of each of [..., n, 4] that lies in each of [..., m, 4], as [..., n, m]."""
    return tf.math.divide_no_nan(_intersections(boxes, others), areas(boxes)[..., :, None])


def generalized_iou(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """IoU less the share of the common hull that neither covers, of pairs [..., 4], as [...].

    From −1 to 1. Source: Rezatofighi et al., "Generalized Intersection over Union", 2019, equation
    of Algorithm 1.
    """
    common = areas(_corners(boxes, others, tf.maximum, tf.minimum))
    union = areas(boxes) + areas(others) - common
    hull = areas(_corners(boxes, others, tf.minimum, tf.maximum))
    return tf.math.divide_no_nan(common, union) - tf.math.divide_no_nan(hull - union, hull)


def _intersections(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    # Side by side, with a matrix for each: all four edges of every pair would be much to write.
    def along(first: int, last: int) -> tf.Tensor:
        start = tf.maximum(boxes[..., :, None, first], others[..., None, :, first])
        end = tf.minimum(boxes[..., :, None, last], others[..., None, :, last])
        return tf.maximum(end - start, 0)

    return along(0, 2) * along(1, 3)


def _corners(boxes: tf.Tensor, others: tf.Tensor, of_first: object, of_last: object) -> tf.Tensor:
    first = of_first(boxes[..., :2], others[..., :2])
    return tf.concat([first, of_last(boxes[..., 2:], others[..., 2:])], -1)
