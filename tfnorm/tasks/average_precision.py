"""COCO's average precision, by pycocotools."""

import contextlib
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm.data.example import ABSENT, Example
from tfnorm.errors import UserError

_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class AveragePrecision:
    """AP of boxes over IoUs of 0.5 to 0.95, at 0.5 and 0.75, and of small, medium, large objects.

    Areas are in pixels of the files: small is below 32², large from 96² on. A measure without any
    object is NaN. A detection that matches a crowd (by the share of the detection in it, COCO's
    rule) or a difficult object (by IoU, VOC's rule) counts neither for nor against.

    Args:
        detect: From the network's outputs and a batch to [b, ...] of "boxes", "scores", "classes",
            "count", "true_boxes", "true_classes", "crowd" and "difficult".
        label_names: One name a class.

    Raises:
        UserError: pycocotools is missing.
    """

    def __init__(
        self,
        detect: Callable[[Any, Example], dict[str, tf.Tensor]],
        label_names: Sequence[str],
    ) -> None:
        if importlib.util.find_spec("pycocotools") is None:
            raise UserError(
                "average precision needs pycocotools, which is not installed; "
                "pip install 'tfnorm[detection]'"
            )
        self.outputs = detect
        self._label_names = label_names

    def row(self, example: Mapping[str, np.ndarray]) -> dict[str, list]:
        """What was found in an image and what is there, without padding."""
        found = slice(0, int(example["count"]))
        there = example["true_classes"] != ABSENT
        return {
            **{name: example[name][found].tolist() for name in ("boxes", "scores", "classes")},
            **{
                name: example[name][there].tolist()
                for name in ("true_boxes", "true_classes", "crowd", "difficult")
            },
        }

    def results(self, rows: Sequence[Mapping[str, list]]) -> dict[str, float]:
        """COCO's six figures of average precision."""
        stats = self._evaluated(rows).stats
        values = [float(value) if value >= 0 else float("nan") for value in stats[: len(_NAMES)]]
        return dict(zip(_NAMES, values))

    def by_class(self, rows: Sequence[Mapping[str, list]]) -> Mapping[str, Mapping[str, float]]:
        """Ap of each class by its name; NaN for one without any object."""
        # [IoUs, recalls, classes, areas, numbers of detections]; -1 where there is no object.
        precision = self._evaluated(rows).eval["precision"][:, :, :, 0, -1]
        of_class = np.where(precision.min((0, 1)) < 0, np.nan, precision.mean((0, 1)))
        return {name: {"ap": float(ap)} for name, ap in zip(self._label_names, of_class)}

    def _evaluated(self, rows: Sequence[Mapping[str, list]]) -> Any:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        class Evaluation(COCOeval):
            def _prepare(self) -> None:
                super()._prepare()
                for objects in self._gts.values():
                    for one in objects:
                        one["ignore"] = one["ignore"] or one["difficult"]

        truth = {
            "images": [{"id": number} for number in range(len(rows))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(self._label_names)],
            "annotations": _annotations(rows),
        }
        found = [
            {
                "image_id": number,
                "category_id": kind,
                "bbox": _corner_and_sides(box),
                "score": score,
            }
            for number, row in enumerate(rows)
            for box, kind, score in zip(row["boxes"], row["classes"], row["scores"])
        ]
        with contextlib.redirect_stdout(io.StringIO()):  # It prints what it does.
            coco = COCO()
            coco.dataset = truth
            coco.createIndex()
            results = COCO()
            results.dataset = {**truth, "annotations": _with_areas(found)}
            results.createIndex()
            evaluation = Evaluation(coco, results, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation


def _annotations(rows: Sequence[Mapping[str, list]]) -> list[dict[str, Any]]:
    names = ("true_boxes", "true_classes", "crowd", "difficult")
    annotations = [
        {
            "image_id": number,
            "category_id": kind,
            "bbox": _corner_and_sides(box),
            "iscrowd": int(is_crowd),
            "difficult": int(is_difficult),
        }
        for number, row in enumerate(rows)
        for box, kind, is_crowd, is_difficult in zip(*(row[name] for name in names))
    ]
    return _with_areas(annotations)


def _with_areas(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With a number from 1 on (pycocotools takes 0 for none), and the area."""
    return [
        {**one, "id": number, "area": one["bbox"][2] * one["bbox"][3]}
        for number, one in enumerate(annotations, 1)
    ]


def _corner_and_sides(box: Sequence[float]) -> list[float]:
    """COCO's [x, y, width, height] of [top, left, bottom, right]."""
    top, left, bottom, right = box
    return [left, top, right - left, bottom - top]
