"""What the predictions of a detector of two stages cost, an image at a time."""

import tensorflow as tf

from tfnorm.boxes.losses import DetectionLosses, smooth_l1
from tfnorm.boxes.matching import IGNORED, Targets, match, match_regions
from tfnorm.boxes.roi_align import align_instances
from tfnorm.boxes.sampling import sample


def proposal_losses(
    objectness: tf.Tensor,
    deltas: tf.Tensor,
    anchors: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    crowd: tf.Tensor | None,
    seeds: tf.Tensor,
    *,
    number: int = 256,
    object_share: float = 0.5,
    beta: float = 1 / 9,
) -> DetectionLosses:
    """The loss of the first stage ("Faster R-CNN", section 3.1.2 and equation 1).

    Cross-entropy of "object or background" and smooth L1 of a random sample of anchors, both
    divided by the number of the sample. An anchor has the object of the largest IoU if that is at
    least 0.7, or the largest that the object has with any anchor; it is background below 0.3.

    Args:
        objectness: [batch, anchors] logits.
        deltas: [batch, anchors, 4].
        anchors: [anchors, 4].
        boxes: of the objects, as of `match`.
        classes: likewise.
        crowd: likewise.
        seeds: [batch, 2] int, of the sample.
        number: of anchors in the sample.
        object_share: the largest share of these that have an object.
        beta: of smooth L1.
    """
    found = match(anchors, boxes, classes, crowd, positive=0.7, negative=0.3)
    number = min(number, anchors.shape[0])
    chosen = sample(found.classes, number, max(int(number * object_share), 1), seeds)
    objectness, deltas, targets, moves = (
        tf.gather(values, chosen, batch_dims=1)
        for values in (objectness, deltas, found.classes, found.deltas)
    )
    has_object = targets >= 0
    of_classes = tf.nn.sigmoid_cross_entropy_with_logits(
        tf.cast(has_object, tf.float32), objectness
    )
    of_classes = tf.where(targets == IGNORED, 0.0, of_classes)
    of_boxes = tf.where(has_object, smooth_l1(deltas, moves, beta=beta), 0.0)
    return DetectionLosses(*(tf.reduce_sum(x, -1) / number for x in (of_classes, of_boxes)))


def region_losses(
    class_logits: tf.Tensor, deltas: tf.Tensor, targets: Targets, *, beta: float = 1.0
) -> DetectionLosses:
    """The loss of the second stage ("Fast R-CNN", section 2.3, equations 1 to 3).

    Cross-entropy of the classes and the background, and smooth L1 of the box that the true class
    predicts, both divided by the number of regions that are not ignored.

    Args:
        class_logits: [batch, regions, classes + 1], background last.
        deltas: [batch, regions, classes, 4], in the units of `encode_regions`.
        targets: from `match_regions`.
        beta: of smooth L1.
    """
    has_object, counts = targets.classes >= 0, targets.classes != IGNORED
    number = tf.maximum(tf.reduce_sum(tf.cast(counts, tf.float32), -1), 1.0)
    own = tf.maximum(targets.classes, 0)
    labels = tf.where(has_object, own, class_logits.shape[-1] - 1)
    of_classes = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, class_logits)
    of_boxes = smooth_l1(tf.gather(deltas, own, batch_dims=2), targets.deltas, beta=beta)
    return DetectionLosses(
        tf.reduce_sum(tf.where(counts, of_classes, 0.0), -1) / number,
        tf.reduce_sum(tf.where(has_object, of_boxes, 0.0), -1) / number,
    )


def mask_losses(
    mask_logits: tf.Tensor,
    regions: tf.Tensor,
    instances: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    crowd: tf.Tensor | None = None,
) -> tf.Tensor:
    """The loss of the mask head, [batch] ("Mask R-CNN", section 3).

    The mean over the pixels of a mask, and over the regions that have an object, of the
    cross-entropy with the object's mask, of which the region cuts out its part; 0 where there is
    none. A pixel of the target is the object's where that covers half of it.

    Args:
        mask_logits: [batch, regions, size, size], those of each region's class.
        regions: [batch, regions, 4].
        instances: [batch, height, width] int, i + 1 where object i is seen.
        boxes: of the objects, as of `match`.
        classes: likewise.
        crowd: likewise.
    """
    found = match_regions(regions, boxes, classes, crowd)
    has_object = tf.cast(found.classes >= 0, tf.float32)
    covered = align_instances(
        instances, tf.maximum(found.objects, 0), regions, mask_logits.shape[-1]
    )
    truth = tf.cast(covered >= 0.5, tf.float32)
    each = tf.nn.sigmoid_cross_entropy_with_logits(truth, mask_logits)
    each = tf.reduce_mean(each, (2, 3)) * has_object
    return tf.reduce_sum(each, -1) / tf.maximum(tf.reduce_sum(has_object, -1), 1.0)
