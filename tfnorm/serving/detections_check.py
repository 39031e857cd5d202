"""May a suppression have given these detections, where scores and boxes are known to a tolerance?

Suppression jumps: of two boxes whose scores are nearly the same, one or the other stays. So its
results are not compared with each other, but with all boxes and scores that it chose from. An error
is a ratio to the scale of what rounding does: where it is below the tolerance, there are boxes and
scores within the tolerance of the given ones that lead to just these detections.
"""

from typing import NamedTuple

import numpy as np

from tfnorm import boxes
from tfnorm.boxes import suppression
from tfnorm.serving.distance import distance
from tfnorm.serving.interface import Arrays, Error


class Rule(NamedTuple):
    """The arguments of `tfnorm.boxes.suppress`."""

    detections: int = suppression.DETECTIONS
    iou_threshold: float = suppression.IOU_THRESHOLD
    score_threshold: float = suppression.SCORE_THRESHOLD
    candidates: int = suppression.CANDIDATES


class Candidates(NamedTuple):
    """All that was chosen from on one image, and what a rounding error of each counts against.

    Attributes:
        boxes: [n, 4], on the canvas.
        located: [n, 4], in pixels of the image.
        scores: [n, classes].
        pixels: of the image, that one of the canvas is.
        box_scale: [n], on the canvas: a delta moves in proportion to the largest output, a box by
            that times its anchor's side or its own, at most.
        score_scale: [n, classes]: a sigmoid p moves by p·(1 − p)·δ where its logit moves by δ.
        iou_scale: [n]: an IoU moves by 4 times what the borders of a box move by, over its side.
    """

    boxes: np.ndarray
    located: np.ndarray
    scores: np.ndarray
    pixels: float
    box_scale: np.ndarray
    score_scale: np.ndarray
    iou_scale: np.ndarray


def candidates(
    canvas_boxes: np.ndarray,
    located: np.ndarray,
    scores: np.ndarray,
    pixels: float,
    largest: float,
    side: float,
) -> Candidates:
    """What was chosen from on one image, with scales.

    Args:
        canvas_boxes: [n, 4], on the canvas.
        located: [n, 4], in pixels of the image.
        scores: [n, classes].
        pixels: of the image, that one of the canvas is.
        largest: absolute value in the network's outputs.
        side: the longest one of the canvas and of an anchor.
    """
    sides = np.maximum(canvas_boxes[:, 2:] - canvas_boxes[:, :2], 1e-6)
    box_scale = (1 + largest) * np.maximum(sides.max(-1), side)
    score_scale = 1 + largest * scores * (1 - scores)
    iou_scale = 1 + 4 * box_scale / sides.min(-1)
    return Candidates(canvas_boxes, located, scores, pixels, box_scale, score_scale, iou_scale)


def errors(
    found: Arrays, expected: Arrays, given: Arrays, largest: float, side: float, rule: Rule
) -> dict[str, Error]:
    """The errors of "boxes", "classes", "scores" and "count".

    Args:
        found: detections of the export.
        expected: those of the model; only their shapes count.
        given: "boxes", "located", "scores" and "pixels", as `candidates` takes them of each image.
        largest: absolute value in the network's outputs.
        side: the longest one of the canvas and of an anchor.
        rule: of the suppression.
    """
    result = {
        name: Error(np.zeros(expected[name].shape), np.ones(expected[name].shape))
        for name in ("boxes", "classes", "scores", "count")
    }
    for image, count in enumerate(found["count"]):
        every = candidates(
            *(given[name][image] for name in ("boxes", "located", "scores", "pixels")),
            largest,
            side,
        )
        own = {name: found[name][image] for name in ("boxes", "classes", "scores")}
        padding_is_zero = count in range(rule.detections + 1) and not any(
            np.any(values[int(count) :]) for values in own.values()
        )
        if not padding_is_zero:
            result["count"].difference[image] = np.inf
            continue
        number = int(count)
        classes = own["classes"][:number]
        wrong = ~np.isin(classes, np.arange(every.scores.shape[1]))
        if np.any(wrong):
            result["classes"].difference[image, :number][wrong] = np.inf
            continue
        classes = classes.astype(int)
        kept = match(every, own["boxes"][:number], classes, own["scores"][:number])
        for name, right, scale in (
            ("boxes", every.located[kept], every.box_scale[kept][:, None] * every.pixels),
            ("scores", every.scores[kept, classes], every.score_scale[kept, classes]),
        ):
            result[name].difference[image, :number] = distance(own[name][:number], right)
            result[name].scale[image, :number] = scale
        result["count"].difference[image] = inconsistency(every, kept, classes, rule)
    return result


def match(
    every: Candidates, located: np.ndarray, classes: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """For each detection the number of the box of the model that it is nearest to, [k]."""
    nearest = np.zeros(len(classes), int)
    for place, number in enumerate(classes):
        of_box = distance(every.located, located[place]).max(-1) / (every.box_scale * every.pixels)
        of_score = distance(every.scores[:, number], scores[place]) / every.score_scale[:, number]
        nearest[place] = np.argmin(np.maximum(of_box, of_score))
    return nearest


def inconsistency(every: Candidates, kept: np.ndarray, classes: np.ndarray, rule: Rule) -> float:
    """How far scores and IoUs would have to move for the kept boxes to be what suppression keeps.

    Kept ones exceed the threshold, come in order of their scores, and none overlaps a better one of
    its class by more than allowed. One that is not kept is of a score below the threshold, or of a
    box that is not among the best, or below the last place where all places are taken, or overlaps
    a kept one of its class with a higher score by more than allowed.

    Args:
        every: box of the model.
        kept: [k], which of them are kept, best first.
        classes: [k], in which class.
        rule: of the suppression.
    """
    own, own_scale = every.scores[kept, classes], every.score_scale[kept, classes]
    overlaps, overlap_scale = _overlaps(every, kept, kept)
    same = (classes[:, None] == classes) & ~np.eye(len(kept), dtype=bool)
    best, best_scale, places = _best(every), every.score_scale.max(-1), rule.candidates
    last_candidate = -np.sort(-best)[places - 1] if len(best) > places else -np.inf
    wrong = [
        (rule.score_threshold - own) / own_scale,
        (own[1:] - own[:-1]) / 2 / np.minimum(own_scale[1:], own_scale[:-1]),
        np.where(same, (overlaps - rule.iou_threshold) / overlap_scale, 0.0),
        (last_candidate - best[kept]) / 2 / best_scale[kept],
    ]
    rows, columns = np.nonzero(every.scores > rule.score_threshold)
    is_kept = np.zeros(every.scores.shape, bool)
    is_kept[kept, classes] = True
    left = ~is_kept[rows, columns]
    wrong.append(_unexplained(every, kept, classes, rule, rows[left], columns[left]))
    return float(max(np.max(x, initial=0.0) for x in wrong))


def _unexplained(
    every: Candidates,
    kept: np.ndarray,
    classes: np.ndarray,
    rule: Rule,
    rows: np.ndarray,
    columns: np.ndarray,
) -> np.ndarray:
    """For each score of a box that is not kept, how far from the nearest reason for it."""
    scores, scale = every.scores[rows, columns], every.score_scale[rows, columns]
    reasons = [(scores - rule.score_threshold) / scale]
    best = _best(every)
    if len(best) > rule.candidates:
        first_left_out = -np.sort(-best)[rule.candidates]
        reasons.append((best[rows] - first_left_out) / 2 / every.score_scale[rows].max(-1))
    own = every.scores[kept, classes]
    if len(kept) == rule.detections:
        reasons.append((scores - own.min()) / 2 / scale)
    if len(kept):
        overlaps, overlap_scale = _overlaps(every, rows, kept)
        too_little = (rule.iou_threshold - overlaps) / overlap_scale
        too_low = (scores[:, None] - own) / 2 / scale[:, None]
        by_each = np.maximum(too_little, too_low)
        same = columns[:, None] == classes
        reasons.append(np.min(np.where(same, by_each, np.inf), axis=1))
    return np.maximum(np.min(reasons, axis=0), 0.0)


def _best(every: Candidates) -> np.ndarray:
    return every.scores.max(-1)


def _overlaps(
    every: Candidates, some: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """IoUs [n, m] of two sets of boxes, and their scales."""
    pair = (every.boxes[numbers].astype("float32") for numbers in (some, others))
    scale = np.maximum(every.iou_scale[some][:, None], every.iou_scale[others])
    return boxes.iou(*pair).numpy().astype("float64"), scale
