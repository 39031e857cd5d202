"""What a detector's predictions cost, an image at a time."""

from typing import NamedTuple

import tensorflow as tf

from tfnorm.boxes.coding import decode
from tfnorm.boxes.matching import IGNORED, Targets
from tfnorm.boxes.overlaps import generalized_iou


class DetectionLosses(NamedTuple):
    """The parts of the loss of a detector, or of one of its stages, each [batch].

    Attributes:
        classes: of what is there, by anchors or regions.
        boxes: of where it is, by those that have an object.
    """

    classes: tf.Tensor
    boxes: tf.Tensor


def focal_loss(
    logits: tf.Tensor, classes: tf.Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> tf.Tensor:
    """−α_t (1 − p_t)^γ log p_t of every anchor, summed over classes, as [...].

    p is the sigmoid of a logit; p_t = p, α_t = α for the anchor's class and 1 − p, 1 − α for all
    others; an ignored anchor costs nothing. Source: Lin et al., "Focal Loss for Dense Object
    Detection", 2017, equation 5.

    Args:
        logits: [..., classes].
        classes: [...] int: a class, or BACKGROUND or IGNORED of `tfnorm.boxes`.
        alpha: weight of the right class.
        gamma: how little an anchor counts that is right already.
    """
    truth = tf.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    # −log p_t and 1 − p_t, both of one number that is large where the prediction is wrong.
    wrong = (1 - 2 * truth) * logits
    weight = truth * alpha + (1 - truth) * (1 - alpha)
    each = weight * tf.math.sigmoid(wrong) ** gamma * tf.math.softplus(wrong)
    return tf.where(classes == IGNORED, 0.0, tf.reduce_sum(each, -1))


def smooth_l1(predictions: tf.Tensor, targets: tf.Tensor, *, beta: float = 0.1) -> tf.Tensor:
    """The sum over the last axis of d²/(2β) where d = |prediction − target| < β, else d − β/2.

    Source: Girshick, "Fast R-CNN", 2015, equation 3, with the quadratic part of width β that
    RetinaNet's code has (1/9 there).
    """
    distance = tf.abs(predictions - targets)
    each = tf.where(distance < beta, tf.square(distance) / (2 * beta), distance - beta / 2)
    return tf.reduce_sum(each, -1)


def giou_loss(deltas: tf.Tensor, targets: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """1 − the generalized IoU of the boxes that two encodings stand for, as [...]."""
    return 1 - generalized_iou(decode(deltas, anchors), decode(targets, anchors))


def detection_losses(
    class_logits: tf.Tensor,
    box_deltas: tf.Tensor,
    targets: Targets,
    anchors: tf.Tensor | None = None,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 0.1,
) -> DetectionLosses:
    """RetinaNet's loss of each image: focal loss of all anchors, and that of the matched boxes.

    Both are divided by the number of anchors of the image that have an object, at least 1 (Lin et
    al. 2017, section 4: "normalized by the number of anchors assigned to a ground-truth box").

    Args:
        class_logits: [batch, anchors, classes].
        box_deltas: [batch, anchors, 4].
        targets: from `tfnorm.boxes.match`.
        anchors: [anchors, 4] for the loss of generalized IoU; smooth L1 by default, the paper's.
        alpha: of the focal loss.
        gamma: of the focal loss.
        beta: of smooth L1.
    """
    has_object = targets.classes >= 0
    count = tf.maximum(tf.reduce_sum(tf.cast(has_object, tf.float32), -1), 1.0)
    of_classes = focal_loss(class_logits, targets.classes, alpha=alpha, gamma=gamma)
    if anchors is None:
        of_boxes = smooth_l1(box_deltas, targets.deltas, beta=beta)
    else:
        of_boxes = giou_loss(box_deltas, targets.deltas, anchors)
    of_boxes = tf.where(has_object, of_boxes, 0.0)
    return DetectionLosses(
        tf.reduce_sum(of_classes, -1) / count, tf.reduce_sum(of_boxes, -1) / count
    )
