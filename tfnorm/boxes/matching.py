"""Which object each anchor is to find."""

from typing import NamedTuple

import tensorflow as tf

from tfnorm.boxes.coding import encode, encode_regions
from tfnorm.boxes.overlaps import intersection_over_area, iou

BACKGROUND = -1
"""The class of an anchor that no object is assigned to."""

IGNORED = -2
"""The class of an anchor that counts in no loss."""

# Anchors that an object lies in have the same IoU with it but for rounding.
_TIE = 1e-4


class Targets(NamedTuple):
    """What a detector is to predict of each anchor.

    Attributes:
        classes: [batch, anchors] int32: that of its object, BACKGROUND or IGNORED.
        deltas: [batch, anchors, 4]: its object's box, encoded; 0 where there is none.
        objects: [batch, anchors] int32: the index of its object, −1 where there is none.
    """

    classes: tf.Tensor
    deltas: tf.Tensor
    objects: tf.Tensor


def match(
    anchors: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    crowd: tf.Tensor | None = None,
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    match_every_object: bool = True,
) -> Targets:
    """The targets of anchors, by their overlap with the objects of an image.

    An anchor belongs to the object of the largest IoU with it if that is at least `positive`, to
    the background if it is below `negative`, and is ignored in between ("Focal Loss for Dense
    Object Detection", section 4). Beyond the paper, and as torchvision and Detectron2 do, the
    anchors of the largest IoU with an object belong to it however small that is: else an object
    that is smaller than all anchors is never found. A background anchor of which half lies in a
    crowd is ignored.

    Args:
        anchors: [anchors, 4], or [batch, anchors, 4] if each image has its own, such as proposals.
        boxes: [batch, objects, 4], padded to a number of objects.
        classes: [batch, objects] int, −1 for padding. A box without area is padding as well.
        crowd: [batch, objects] bool: regions of many objects, or difficult ones, that are neither
            found nor missed.
        positive: the least IoU of an anchor with its object.
        negative: the IoU from which on an anchor is no background.
        match_every_object: whether every object has an anchor.
    """
    anchors = tf.cast(anchors, tf.float32)
    classes, own, found = _assign(
        anchors, boxes, classes, crowd, positive, negative, match_every_object
    )
    return _targets(classes, encode(own, anchors), found)


def _assign(
    anchors: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    crowd: tf.Tensor | None,
    positive: float,
    negative: float,
    match_every_object: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The class of each anchor, and box and number of an object, its own if that is 0 or more."""
    boxes = tf.cast(boxes, tf.float32)
    if anchors.shape.rank == 2:
        anchors = anchors[None]
    exists = (classes >= 0) & tf.reduce_all(boxes[..., 2:] > boxes[..., :2], -1)
    is_crowd = tf.zeros_like(exists) if crowd is None else tf.cast(crowd, tf.bool) & exists
    is_object = exists & ~is_crowd
    # −1 where there is no object: less than any overlap.
    overlaps = tf.where(is_object[:, None, :], iou(anchors, boxes), -1.0)
    overlaps = tf.pad(overlaps, [[0, 0], [0, 0], [0, 1]], constant_values=-1.0)  # of no objects
    best, found = tf.reduce_max(overlaps, -1), tf.argmax(overlaps, -1, output_type=tf.int32)
    is_positive = best >= positive
    if match_every_object:
        most = tf.reduce_max(overlaps, 1, keepdims=True)
        is_best = (overlaps >= most * (1 - _TIE)) & (most > 0)
        is_forced = tf.reduce_any(is_best, -1)
        # Of several objects that an anchor is the best of, the one it overlaps most.
        forced = tf.argmax(tf.where(is_best, overlaps, -1.0), -1, output_type=tf.int32)
        found = tf.where(is_forced & ~is_positive, forced, found)
        is_positive |= is_forced
    in_crowd = tf.zeros_like(best, tf.bool)
    if crowd is not None:
        shares = tf.where(is_crowd[:, None, :], intersection_over_area(anchors, boxes), 0.0)
        in_crowd = tf.reduce_any(shares >= 0.5, -1)
    padded_boxes = tf.pad(boxes, [[0, 0], [0, 1], [0, 0]])
    padded_classes = tf.pad(tf.cast(classes, tf.int32), [[0, 0], [0, 1]])
    rest = tf.where((best < negative) & ~in_crowd, BACKGROUND, IGNORED)
    own_class, own_box = (tf.gather(v, found, batch_dims=1) for v in (padded_classes, padded_boxes))
    return tf.where(is_positive, own_class, rest), own_box, found


def _targets(classes: tf.Tensor, deltas: tf.Tensor, objects: tf.Tensor) -> Targets:
    """Those of anchors without an object are 0: of one without area they would be infinite."""
    has_object = classes >= 0
    deltas = tf.where(has_object[..., None], deltas, 0.0)
    return Targets(classes, tf.stop_gradient(deltas), tf.where(has_object, objects, -1))


def match_regions(
    regions: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, crowd: tf.Tensor | None = None
) -> Targets:
    """The targets of the regions of a second stage: an object from an IoU of 1/2 on.

    Source: Ren et al., "Faster R-CNN", 2015; Girshick, "Fast R-CNN", 2015, section 2.3. Deltas are
    those of `encode_regions`.

    Args:
        regions: [batch, regions, 4].
        boxes: as of `match`.
        classes: likewise.
        crowd: likewise.
    """
    regions = tf.cast(regions, tf.float32)
    classes, own, found = _assign(regions, boxes, classes, crowd, 0.5, 0.5, False)
    return _targets(classes, encode_regions(own, regions), found)
