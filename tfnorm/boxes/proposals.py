"""Region proposals: the anchors that most likely hold some object, moved to it."""

from collections.abc import Sequence

import tensorflow as tf

from tfnorm.boxes.coding import clip_boxes, decode
from tfnorm.boxes.overlaps import areas
from tfnorm.boxes.suppression import survivors

_FAR = 1e4  # more than any logit


def propose(
    objectness: Sequence[tf.Tensor],
    deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    image_size: tuple[int | tf.Tensor, int | tf.Tensor],
    *,
    candidates: int = 1000,
    proposals: int = 1000,
    iou_threshold: float = 0.7,
) -> tf.Tensor:
    """The best proposals of each image, [batch, proposals, 4], best first, without gradient.

    Of each level the best `candidates` are moved, clipped to the image and suppressed among
    themselves; of all levels together the best `proposals` remain. Source: Ren et al., "Faster
    R-CNN", 2015, section 3.3; by level as in Lin et al., "Feature Pyramid Networks", 2017.

    The number is always the same, which static shapes ask for: where fewer survive, the best of
    those that were suppressed follow them, and boxes without area come last.

    Args:
        objectness: [batch, anchors] logits of each level.
        deltas: [batch, anchors, 4] of each level, as `encode` makes them.
        anchors: [anchors, 4] of each level.
        image_size: height and width.
        candidates: at most so many of a level, the highest logits, are looked at.
        proposals: at most so many are returned.
        iou_threshold: the IoU above which a box suppresses another.
    """
    boxes, ranks = [], []
    for logits, moves, own in zip(objectness, deltas, anchors, strict=True):
        logits, moves = (tf.stop_gradient(tf.cast(x, tf.float32)) for x in (logits, moves))
        best, chosen = tf.math.top_k(logits, _at_most(candidates, logits))
        moves = tf.gather(moves, chosen, batch_dims=1)
        moved = clip_boxes(decode(moves, tf.gather(own, chosen)), *image_size)
        survives = survivors(moved, iou_threshold)
        rank = tf.where(areas(moved) > 0, tf.where(survives, best, best - _FAR), best - 2 * _FAR)
        boxes.append(moved)
        ranks.append(rank)
    boxes, ranks = tf.concat(boxes, 1), tf.concat(ranks, 1)
    chosen = tf.math.top_k(ranks, _at_most(proposals, ranks)).indices
    return tf.gather(boxes, chosen, batch_dims=1)


def _at_most(limit: int, values: tf.Tensor) -> int | tf.Tensor:
    """The limit, or how many there are of [batch, n]; a number where that is known."""
    number = values.shape[1]
    return tf.minimum(limit, tf.shape(values)[1]) if number is None else min(limit, number)
