"""COCO's average precision of boxes and of masks, by pycocotools."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm import boxes
from tfnorm.data import Records, decoding, run_lengths
from tfnorm.data.example import ABSENT, Example
from tfnorm.tasks.average_precision import (
    Annotations,
    LastRows,
    Precision,
    corner_and_sides,
    evaluated,
)

Row = Mapping[str, Any]
_MASK = "mask_"


class MaskAveragePrecision:
    """AP of boxes as of `AveragePrecision`, and of masks, whose IoU is that of their pixels.

    Masks are compared in the pixels of the files. What is there is read from the records anew, for
    no batch could carry it: masks may overlap, and each image has its own size. A measure without
    any object is NaN. The size of an object is what the data set says (COCO's areas are of
    polygons), else its mask's, for masks and boxes alike, as in COCO's own evaluation. What matches
    a crowd counts neither for nor against.

    Args:
        detect: From the network's outputs and a batch to [b, ...] of "boxes", "scores", "classes",
            "count", "masks" (probabilities), "frames" (the boxes that these are of, which may reach
            over the border of the image) and "size", in pixels of the files.
        label_names: One name a class.
        records: What is evaluated.

    Raises:
        UserError: pycocotools is missing.
    """

    def __init__(
        self,
        detect: Callable[[Any, Example], dict[str, tf.Tensor]],
        label_names: Sequence[str],
        records: Records,
    ) -> None:
        run_lengths.check_installed("average precision")
        self._detect = detect
        self._label_names = label_names
        self._records = records
        self._evaluated = LastRows(self._evaluate)

    def over(self, records: Records) -> "MaskAveragePrecision":
        """The same of other examples."""
        return MaskAveragePrecision(self._detect, self._label_names, records)

    def outputs(self, outputs: Any, batch: Example) -> dict[str, tf.Tensor]:
        """What `detect` returns, and the numbers of the examples."""
        return {**self._detect(outputs, batch), "number": batch["index"]}

    def row(self, example: Mapping[str, np.ndarray]) -> Row:
        """What was found in an image and what is there, masks as run lengths."""
        found = slice(0, int(example["count"]))
        size = [int(side) for side in example["size"]]
        masks = [
            _pasted(example["masks"][i], example["frames"][i], size) for i in range(found.stop)
        ]
        return {
            "size": size,
            **{name: example[name][found].tolist() for name in ("boxes", "scores", "classes")},
            "masks": masks,
            **self._truth(int(example["number"]), size),
        }

    def _truth(self, number: int, size: Sequence[int]) -> Row:
        """Boxes, classes, masks and which of them are crowds, of an example as its file has it."""
        example = {
            name: value[0] for name, value in self._records.fetch(tf.constant([number])).items()
        }
        if "segmentations" in example:
            there = np.flatnonzero(example["classes"].numpy() != ABSENT)
            masks = [example["segmentations"][i].numpy().decode() for i in there]
        else:
            seen = decoding.labels(example["instances"], None).numpy()
            present = np.setdiff1d(seen, 0) - 1
            there = present[example["classes"].numpy()[present] != ABSENT]
            masks = [run_lengths.encode(seen[None] == i + 1)[0] for i in there]
        crowd = example.get("crowd", tf.zeros_like(example["classes"], tf.bool)).numpy()
        return {
            "true_classes": example["classes"].numpy()[there].tolist(),
            "true_masks": masks,
            "true_areas": (
                example["areas"].numpy()[there].tolist()
                if "areas" in example
                else run_lengths.areas(masks, size)
            ),
            "crowd": crowd[there].tolist(),
            "true_boxes": _boxes(example["boxes"].numpy()[there], masks, size),
        }

    def results(self, rows: Sequence[Row]) -> dict[str, float]:
        """COCO's six figures of masks ("mask_ap", ...), and of boxes ("ap", ...)."""
        of_masks, of_boxes = self._evaluated(rows)
        named = {f"{_MASK}{name}": value for name, value in of_masks.figures.items()}
        return {**named, **of_boxes.figures}

    def by_class(self, rows: Sequence[Row]) -> Mapping[str, Mapping[str, float]]:
        """Mask_ap and ap of each class by its name; NaN for one without any object."""
        of_masks, of_boxes = (found.of_classes for found in self._evaluated(rows))
        return {
            name: {f"{_MASK}ap": of_mask, "ap": of_box}
            for name, of_mask, of_box in zip(self._label_names, of_masks, of_boxes)
        }

    def _evaluate(self, rows: Sequence[Row]) -> tuple[Precision, Precision]:
        """That of masks and that of boxes."""
        images = [dict(zip(("height", "width"), row["size"])) for row in rows]
        there = _there(rows)
        of_masks, of_boxes = (
            evaluated(there, _found(rows, kind), images, self._label_names, kind)
            for kind in ("segm", "bbox")
        )
        return of_masks, of_boxes


def _pasted(mask: np.ndarray, frame: np.ndarray, size: Sequence[int]) -> str:
    """The run lengths of one mask in an image, whose pixels are many: not of all at a time."""
    with tf.device("CPU:0"):
        probabilities = boxes.paste(mask[None], frame[None], tuple(size)).numpy()
    return run_lengths.encode(probabilities >= boxes.MASK_THRESHOLD)[0]


def _boxes(of_file: np.ndarray, masks: Sequence[str], size: Sequence[int]) -> list:
    """The boxes of a file, or the least ones around the masks where it has none."""
    return of_file.tolist() if of_file.any() else run_lengths.boxes(masks, size)


def _there(rows: Sequence[Row]) -> Annotations:
    names = ("true_boxes", "true_classes", "true_masks", "true_areas", "crowd")
    return [
        {
            "image_id": number,
            "category_id": kind,
            "bbox": corner_and_sides(box),
            "segmentation": run_lengths.with_size(mask, row["size"]),
            "area": area,
            "iscrowd": int(is_crowd),
            "difficult": 0,
        }
        for number, row in enumerate(rows)
        for box, kind, mask, area, is_crowd in zip(*(row[name] for name in names))
    ]


def _found(rows: Sequence[Row], kind: str) -> Annotations:
    """The area of what is found is that of its box or of its mask, as COCO's own results have."""
    found = []
    for number, row in enumerate(rows):
        names = ("boxes", "classes", "scores", "masks")
        for box, label, score, mask in zip(*(row[name] for name in names)):
            corner = corner_and_sides(box)
            area = corner[2] * corner[3]
            if kind == "segm":
                (area,) = run_lengths.areas([mask], row["size"])
            found.append(
                {
                    "image_id": number,
                    "category_id": label,
                    "bbox": corner,
                    "segmentation": run_lengths.with_size(mask, row["size"]),
                    "score": score,
                    "area": area,
                }
            )
    return found
