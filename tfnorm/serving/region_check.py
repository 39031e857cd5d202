"""Are these the regions, detections and masks of a network, up to choices between equals?

A detector of two stages chooses in the middle of its graph: which proposals it looks at again, and
in which order. Two networks that differ by rounding errors may choose differently, so their outputs
are not compared place by place but region by region, each with the nearest one of the other.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfnorm import boxes
from tfnorm.boxes import suppression
from tfnorm.serving import detections_check
from tfnorm.serving.distance import distance, largest
from tfnorm.serving.interface import Arrays, Error

_FIRST_STAGE = ("objectness", "anchor_deltas")
_OF_REGIONS = ("class_logits", "region_deltas")
OUTPUTS = (*_FIRST_STAGE, "regions", *_OF_REGIONS)
"""What is looked at of a network, besides what it finds."""
CONTINUOUS = (*_FIRST_STAGE, *_OF_REGIONS)
"""Those of them that boxes and scores are made of."""

# The largest share of regions and of detections that one network has and the other has not: of
# proposals that overlap by just the threshold, one or the other is looked at.
_TIES = 0.05
# And of detections, whose scores are the same wherever an image is empty.
_OTHER_DETECTIONS = 0.5
# Boxes of one class that are nearer than this, in pixels of the canvas, are the same detection.
_SAME = 0.5
# Scores below this share of the threshold are no candidates, whatever is rounded.
_CLEARLY_BELOW = 0.5


def inner_errors(found: Arrays, expected: Arrays, side: float) -> dict[str, Error]:
    """The errors of a network's outputs, by name.

    Regions are compared with the nearest, and so are masks with those of the nearest object of the
    same class. The worst of them, a share of `_TIES`, are left out, and masks of objects that the
    other network has not found, if these are at most `_OTHER_DETECTIONS`. What a network finds
    follows from the rest, and is compared by `errors`.

    Args:
        found: outputs of a network.
        expected: those of the other.
        side: the longest one of the canvas, in pixels.
    """
    result = {
        name: Error(distance(found[name], expected[name]), largest(expected[name]) or 1.0)
        for name in _FIRST_STAGE
    }
    scales = {name: largest(expected[name]) or 1.0 for name in _OF_REGIONS}
    scales["regions"] = (1 + largest(expected["anchor_deltas"])) * side
    result |= _compared(
        [_nearest(a, b) for a, b in zip(found["regions"], expected["regions"])],
        found, expected, scales,
    )  # fmt: skip
    if "mask_logits" in expected:
        scale = largest(expected["mask_logits"]) or 1.0
        images = range(len(found["boxes"]))
        own, other = ([_with_class(x, image) for image in images] for x in (found, expected))
        nearest = list(map(_nearest, own, other))
        (errors,) = _compared(nearest, found, expected, {"mask_logits": scale}).values()
        for image, places in enumerate(nearest):
            is_other = np.abs(own[image] - other[image][places]).max(-1) > _SAME
            if is_other.mean() <= _OTHER_DETECTIONS:
                errors.difference[image, is_other] = 0.0
        result["mask_logits"] = errors
    return result


def _with_class(outputs: Arrays, image: int) -> np.ndarray:
    """[n, 5]: boxes of one image, and their classes, far apart from each other."""
    far = 1e6 * outputs["classes"][image][:, None]
    return np.concatenate([outputs["boxes"][image], far], -1)


def _nearest(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """[n], for each row the number of the nearest of the others, by the largest difference."""
    return np.array([np.argmin(np.abs(expected - row).max(-1)) for row in found], int)


def _compared(
    nearest: Sequence[np.ndarray], found: Arrays, expected: Arrays, scales: dict[str, float]
) -> dict[str, Error]:
    """Errors [batch, n] of some outputs, without those of the share that may be other choices."""
    apart = {name: [] for name in scales}
    for image, places in enumerate(nearest):
        rows = {
            name: distance(found[name][image], expected[name][image][places])
            .reshape(len(places), -1)
            .max(-1)
            for name in scales
        }
        ratio = np.max([rows[name] / scales[name] for name in scales], axis=0)
        kept = np.argsort(ratio, kind="stable")[: len(places) - int(_TIES * len(places))]
        for name, values in rows.items():
            apart[name].append(np.where(np.isin(np.arange(len(places)), kept), values, 0.0))
    return {name: Error(np.array(apart[name]), scale) for name, scale in scales.items()}


def errors(found: Arrays, expected: Arrays, given: Arrays, side: float) -> dict[str, Error]:
    """The errors of "boxes", "classes", "scores", "count" and, if there are any, "masks".

    Detections are compared as `detections_check` does it, with each class of a region as a box of
    its own. Masks are compared pixel by pixel with that of the network's own detection of the same
    class and place, and may differ where its probability is as good as the threshold; where there
    is none, because another was chosen between equals, a mask must lie in its box.

    Args:
        found: answers of the export.
        expected: those of the model.
        given: as `RegionDetections.scores` returns it.
        side: the longest one of the canvas.
    """
    most = float(given["largest"])
    pairs = [_pairs(given, image) for image in range(len(given["scores"]))]
    candidates = {name: [own[name] for own in pairs] for name in ("boxes", "located", "scores")}
    # The network looks at all of them, whatever the number of regions.
    rule = detections_check.Rule(candidates=max(len(own["boxes"]) for own in pairs))
    # A box is moved twice, by either stage.
    result = detections_check.errors(
        found, expected, {**candidates, "pixels": given["pixels"]}, most, 2 * side, rule
    )
    if "masks" in expected:
        apart = [_mask_errors(found, given, image) for image in range(len(pairs))]
        # A probability moves by a quarter of what its logit moves by, at most.
        result["masks"] = Error(np.array(apart), 1 + most / 4)
    return result


def _pairs(given: Arrays, image: int) -> Arrays:
    """Of one image the pairs of a region and a class that may be found, each with its own box."""
    scores = given["scores"][image]
    threshold = min(_CLEARLY_BELOW * suppression.SCORE_THRESHOLD, scores.max())
    regions, classes = np.nonzero(scores >= threshold)
    places = regions * scores.shape[1] + classes
    own = np.zeros((len(places), scores.shape[1]))
    own[np.arange(len(places)), classes] = scores[regions, classes]
    located, canvas = given["located"][image][places], given["boxes"][image][places]
    return {"boxes": canvas, "located": located, "scores": own}


def _mask_errors(found: Arrays, given: Arrays, image: int) -> np.ndarray:
    """[n], how far from the threshold the probability of a pixel is that differs, at most."""
    masks = found["masks"][image]
    apart = np.zeros(len(masks))
    for row, mask in enumerate(masks):
        if row >= int(found["count"][image]) or not np.isin(mask, (0, 1)).all():
            apart[row] = np.inf if mask.any() else 0.0
            continue
        box, kind = found["boxes"][image][row], found["classes"][image][row]
        own = _same_detection(box, kind, given, image)
        if own is None:
            y, x = np.nonzero(mask)
            top, left, bottom, right = box
            inside = (y > top - 1) & (y < bottom) & (x > left - 1) & (x < right)
            apart[row] = 0.0 if inside.all() else np.inf
            continue
        # In the box of the answer, whose own error is another's, but not clipped as that is.
        frame = box + (given["kept_frames"][image][own] - given["kept_boxes"][image][own])
        sure = _probabilities(given["kept_masks"][image][own], frame, mask.shape)
        differs = (sure >= boxes.MASK_THRESHOLD) != (mask == 1)
        apart[row] = np.max(np.abs(sure - boxes.MASK_THRESHOLD), initial=0.0, where=differs)
    return apart


def _same_detection(box: np.ndarray, kind: float, given: Arrays, image: int) -> int | None:
    """The number of the network's own detection of that class and place; None if there is none."""
    same = [
        i for i in range(int(given["kept_count"][image])) if given["kept_classes"][image][i] == kind
    ]
    far = [distance(given["kept_boxes"][image][i], box).max() for i in same]
    if not far or min(far) > _SAME * float(given["pixels"][image]):
        return None
    return same[int(np.argmin(far))]


def _probabilities(mask: np.ndarray, box: np.ndarray, size: Sequence[int]) -> np.ndarray:
    with tf.device("CPU:0"):
        one = (values[None].astype("float32") for values in (mask, box))
        return boxes.paste(*one, tuple(size)).numpy()[0].astype("float64")
