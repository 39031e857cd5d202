"""From a detector's predictions to a few boxes."""

from typing import NamedTuple

import tensorflow as tf

from tfnorm.boxes.coding import clip_boxes, decode_regions
from tfnorm.boxes.overlaps import iou

DETECTIONS, IOU_THRESHOLD, SCORE_THRESHOLD, CANDIDATES = 100, 0.5, 0.05, 1000
"""Defaults of `suppress` ("Focal Loss", section 4.1)."""


class Detections(NamedTuple):
    """The detections of each image, best first, padded with zeros to one number.

    Attributes:
        boxes: [batch, detections, 4].
        scores: [batch, detections], from 0 to 1.
        classes: [batch, detections] int32.
        count: [batch] int32, how many there are.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    count: tf.Tensor


def suppress(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    *,
    detections: int = DETECTIONS,
    iou_threshold: float = IOU_THRESHOLD,
    score_threshold: float = SCORE_THRESHOLD,
    candidates: int | None = CANDIDATES,
) -> Detections:
    """Non-maximum suppression, each class for itself ("Focal Loss", section 4.1, inference).

    Of boxes of a class that overlap, the one of the highest score stays; of all that stay, the best
    `detections` of the image.

    Args:
        boxes: [batch, boxes, 4], or [batch, boxes, classes, 4] if each class has its own.
        scores: [batch, boxes, classes], from 0 to 1.
        detections: the most that are returned of an image.
        iou_threshold: the IoU above which a box suppresses another of its class.
        score_threshold: what a score must exceed.
        candidates: so many boxes, of the highest scores in any class, are looked at; None is all.
    """
    best = tf.reduce_max(scores, -1)
    number = tf.shape(best)[1]
    if candidates is not None:
        number = tf.minimum(candidates, number)
    _, chosen = tf.math.top_k(best, number)
    boxes = tf.gather(boxes, chosen, batch_dims=1)
    if boxes.shape.rank == 3:
        boxes = boxes[:, :, None]
    found = tf.image.combined_non_max_suppression(
        boxes,
        tf.gather(scores, chosen, batch_dims=1),
        max_output_size_per_class=detections,
        max_total_size=detections,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
    classes = tf.cast(found.nmsed_classes, tf.int32)
    return Detections(found.nmsed_boxes, found.nmsed_scores, classes, found.valid_detections)


def region_candidates(
    class_logits: tf.Tensor,
    deltas: tf.Tensor,
    regions: tf.Tensor,
    image_size: tuple[int | tf.Tensor, int | tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Boxes [batch, regions, classes, 4] and scores [batch, regions, classes] of a second stage.

    `suppress` takes them. Boxes are clipped to the image; scores are those of a softmax, without
    the background's ("Fast R-CNN", section 3).

    Args:
        class_logits: [batch, regions, classes + 1], background last.
        deltas: [batch, regions, classes, 4], as `decode_regions` takes them.
        regions: [batch, regions, 4].
        image_size: height and width.
    """
    class_logits, deltas, regions = (
        tf.cast(x, tf.float32) for x in (class_logits, deltas, regions)
    )
    moved = clip_boxes(decode_regions(deltas, regions), *image_size)
    return moved, tf.nn.softmax(class_logits)[..., :-1]


def survivors(boxes: tf.Tensor, iou_threshold: float) -> tf.Tensor:
    """Which boxes no better one suppresses, [batch, boxes] bool, all taken for one class.

    Of two boxes whose IoU is above the threshold the better one suppresses the other, unless it is
    suppressed itself: greedy non-maximum suppression. One pass over all pairs is right for boxes
    that only the best can suppress, a second for those that such ones can, and so on until nothing
    changes. Shapes are static and nothing but plain operations is used, so that XLA takes it.

    Args:
        boxes: [batch, boxes, 4], best first.
        iou_threshold: the IoU above which a box suppresses another.
    """
    numbers = tf.range(tf.shape(boxes)[1])
    is_better = numbers[:, None] < numbers[None]
    suppresses = (iou(boxes, boxes) > iou_threshold) & is_better

    def again(survive: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(survive != before)

    def look(survive: tf.Tensor, before: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        del before
        return ~tf.reduce_any(suppresses & survive[:, :, None], 1), survive

    everyone = tf.ones_like(boxes[..., 0], tf.bool)
    return tf.while_loop(again, look, (look(everyone, everyone)[0], everyone))[0]
