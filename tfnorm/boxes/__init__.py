"""The mathematics of boxes: tensors in, tensors out.

A box is [ymin, xmin, ymax, xmax] in pixels, float32. The pixel in row i and column j covers i to
i + 1 and j to j + 1.
"""

from tfnorm.boxes.anchors import AnchorGrid
from tfnorm.boxes.coding import clip_boxes, decode, decode_regions, encode, encode_regions
from tfnorm.boxes.losses import DetectionLosses, detection_losses, focal_loss, giou_loss, smooth_l1
from tfnorm.boxes.matching import BACKGROUND, IGNORED, Targets, match, match_regions
from tfnorm.boxes.overlaps import areas, generalized_iou, intersection_over_area, iou
from tfnorm.boxes.pasting import MASK_THRESHOLD, paste
from tfnorm.boxes.proposals import propose
from tfnorm.boxes.region_losses import mask_losses, proposal_losses, region_losses
from tfnorm.boxes.roi_align import align_instances, levels_of, roi_align
from tfnorm.boxes.sampling import sample
from tfnorm.boxes.suppression import Detections, region_candidates, suppress, survivors

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "MASK_THRESHOLD",
    "AnchorGrid",
    "DetectionLosses",
    "Detections",
    "Targets",
    "align_instances",
    "areas",
    "clip_boxes",
    "decode",
    "decode_regions",
    "detection_losses",
    "encode",
    "encode_regions",
    "focal_loss",
    "generalized_iou",
    "giou_loss",
    "intersection_over_area",
    "iou",
    "levels_of",
    "mask_losses",
    "match",
    "match_regions",
    "paste",
    "proposal_losses",
    "propose",
    "region_candidates",
    "region_losses",
    "roi_align",
    "sample",
    "smooth_l1",
    "suppress",
    "survivors",
]
