"""COCO's average precision of boxes, by pycocotools."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfnorm.data import run_lengths
from tfnorm.data.example import ABSENT, Example

_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
Annotations = list[dict[str, Any]]


class Precision(NamedTuple):
    """What pycocotools found. A measure without any object is NaN.

    Attributes:
        figures: COCO's six figures of average precision, by name.
        of_classes: Average precision of each class.
    """

    figures: dict[str, float]
    of_classes: list[float]


class LastRows:
    """A function of rows that knows what it returned for the last ones.

    `results` and `by_class` of an evaluator are asked about the same rows, one after the other, and
    an evaluation of thousands of images takes minutes.
    """

    def __init__(self, function: Callable[[Sequence[Any]], Any]) -> None:
        self._function = function
        self._rows: Sequence[Any] | None = None
        self._found: Any = None

    def __call__(self, rows: Sequence[Any]) -> Any:
        """What the function returns for these rows, which nobody changes."""
        if rows is not self._rows:
            self._rows, self._found = rows, self._function(rows)
        return self._found


class AveragePrecision:
    """AP of boxes over IoUs of 0.5 to 0.95, at 0.5 and 0.75, and of small, medium, large objects.

    Areas are in pixels of the files: small is below 32², large from 96² on. Those of objects are
    what the data set says (COCO's are of masks), those of detections are of their boxes, as in
    COCO's own evaluation. A measure without any object is NaN. What matches a crowd (by the share
    of the detection in it, COCO's rule), and of the detections of a difficult object (by IoU) the
    best one, counts neither for nor against.

    Args:
        detect: From the network's outputs and a batch to [b, ...] of "boxes", "scores", "classes",
            "count", "true_boxes", "true_classes", "true_areas", "crowd" and "difficult".
        label_names: One name a class.

    Raises:
        UserError: pycocotools is missing.
    """

    def __init__(
        self,
        detect: Callable[[Any, Example], dict[str, tf.Tensor]],
        label_names: Sequence[str],
    ) -> None:
        run_lengths.check_installed("average precision")
        self.outputs = detect
        self._label_names = label_names
        self._evaluated = LastRows(self._evaluate)

    def row(self, example: Mapping[str, np.ndarray]) -> dict[str, list]:
        """What was found in an image and what is there, without padding."""
        found = slice(0, int(example["count"]))
        there = example["true_classes"] != ABSENT
        return {
            **{name: example[name][found].tolist() for name in ("boxes", "scores", "classes")},
            **{
                name: example[name][there].tolist()
                for name in ("true_boxes", "true_classes", "true_areas", "crowd", "difficult")
            },
        }

    def results(self, rows: Sequence[Mapping[str, list]]) -> dict[str, float]:
        """COCO's six figures of average precision."""
        return self._evaluated(rows).figures

    def by_class(self, rows: Sequence[Mapping[str, list]]) -> Mapping[str, Mapping[str, float]]:
        """Ap of each class by its name; NaN for one without any object."""
        of_classes = self._evaluated(rows).of_classes
        return {name: {"ap": ap} for name, ap in zip(self._label_names, of_classes)}

    def _evaluate(self, rows: Sequence[Mapping[str, list]]) -> Precision:
        found = [
            {
                "image_id": number,
                "category_id": kind,
                "bbox": corner_and_sides(box),
                "area": (box[2] - box[0]) * (box[3] - box[1]),
                "score": score,
            }
            for number, row in enumerate(rows)
            for box, kind, score in zip(row["boxes"], row["classes"], row["scores"])
        ]
        images = [{} for _ in rows]
        return evaluated(_annotations(rows), found, images, self._label_names, "bbox")


def evaluated(
    there: Annotations,
    found: Annotations,
    images: Annotations,
    label_names: Sequence[str],
    kind: str,
) -> Precision:
    """Evaluates detections by pycocotools.

    Args:
        there: Annotations in COCO's format, with "area" and, besides, "difficult".
        found: The same of detections, with "score".
        images: Of each, 0, 1, ..., its "height" and "width", which masks ask for.
        label_names: One name a class.
        kind: "bbox" or "segm".
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):
        def _prepare(self) -> None:
            super()._prepare()
            for objects in self._gts.values():
                for one in objects:
                    one["ignore"] = one["ignore"] or one["difficult"]

    common = {
        "images": [{**image, "id": number} for number, image in enumerate(images)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(label_names)],
    }

    def indexed(annotations: Annotations) -> COCO:
        coco = COCO()
        # Numbers from 1 on: pycocotools takes 0 for none.
        numbered = [{**one, "id": number} for number, one in enumerate(annotations, 1)]
        coco.dataset = {**common, "annotations": numbered}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):  # It prints what it does.
        evaluation = Evaluation(indexed(there), indexed(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = (float(value) for value in evaluation.stats[: len(_NAMES)])
    figures = {name: value if value >= 0 else float("nan") for name, value in zip(_NAMES, values)}
    # [IoUs, recalls, classes, areas, numbers of detections]; -1 where there is no object.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    of_classes = np.where(precision.min((0, 1)) < 0, np.nan, precision.mean((0, 1)))
    return Precision(figures, of_classes.tolist())


def _annotations(rows: Sequence[Mapping[str, list]]) -> list[dict[str, Any]]:
    names = ("true_boxes", "true_classes", "true_areas", "crowd", "difficult")
    return [
        {
            "image_id": number,
            "category_id": kind,
            "bbox": corner_and_sides(box),
            "area": area,
            "iscrowd": int(is_crowd),
            "difficult": int(is_difficult),
        }
        for number, row in enumerate(rows)
        for box, kind, area, is_crowd, is_difficult in zip(*(row[name] for name in names))
    ]


def corner_and_sides(box: Sequence[float]) -> list[float]:
    """COCO's [x, y, width, height] of [top, left, bottom, right]."""
    top, left, bottom, right = box
    return [left, top, right - left, bottom - top]
