"""The mathematics of boxes: tensors in, tensors out.

A box is [ymin, xmin, ymax, xmax] in pixels, float32. The pixel in row i and column j covers i to
i + 1 and j to j + 1.
"""

from tfnorm.boxes.anchors import AnchorGrid
from tfnorm.boxes.coding import clip_boxes, decode, encode
from tfnorm.boxes.losses import DetectionLosses, detection_losses, focal_loss, giou_loss, smooth_l1
from tfnorm.boxes.matching import BACKGROUND, IGNORED, Targets, match
from tfnorm.boxes.overlaps import areas, generalized_iou, intersection_over_area, iou
from tfnorm.boxes.pasting import MASK_THRESHOLD, paste
from tfnorm.boxes.suppression import Detections, suppress

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "MASK_THRESHOLD",
    "AnchorGrid",
    "DetectionLosses",
    "Detections",
    "Targets",
    "areas",
    "clip_boxes",
    "decode",
    "detection_losses",
    "encode",
    "focal_loss",
    "generalized_iou",
    "giou_loss",
    "intersection_over_area",
    "iou",
    "match",
    "paste",
    "smooth_l1",
    "suppress",
]
