"""Average precision on scenes whose value is known without COCO's code."""

import contextlib
import importlib.util
import io
import json

import numpy as np
import pytest

from tfnorm.errors import UserError
from tfnorm.tasks import average_precision
from tfnorm.tasks.average_precision import AveragePrecision

NAMES = ("cell", "platelet")
ONE = pytest.approx(1, abs=1e-12)  # It divides by what is right plus the spacing of numbers.


@pytest.fixture
def measure():
    pytest.importorskip("pycocotools", reason="pip install 'tfnorm[detection]'")
    return AveragePrecision(None, NAMES)


def image(found, there, crowd=(), difficult=(), areas=None):
    """Rows of (box, class, score) that are found, of (box, class) that are there.

    Areas are those of the boxes unless they are given.
    """
    return {
        "boxes": [box for box, _, _ in found],
        "classes": [kind for _, kind, _ in found],
        "scores": [score for _, _, score in found],
        "true_boxes": [box for box, _ in there],
        "true_classes": [kind for _, kind in there],
        "true_areas": areas or [(box[2] - box[0]) * (box[3] - box[1]) for box, _ in there],
        "crowd": [place in crowd for place in range(len(there))],
        "difficult": [place in difficult for place in range(len(there))],
    }


BOX, OTHER = [10.0, 20.0, 60.0, 70.0], [100.0, 100.0, 140.0, 150.0]


def test_what_is_found_exactly_is_right(measure):
    results = measure.results([image([(BOX, 0, 0.9), (OTHER, 1, 0.3)], [(BOX, 0), (OTHER, 1)])])
    assert results == pytest.approx(
        {"ap": 1, "ap50": 1, "ap75": 1, "ap_medium": 1, "ap_small": np.nan, "ap_large": np.nan},
        nan_ok=True,
    )


def test_iou_decides_at_which_thresholds_a_box_is_found(measure):
    # 50 × 50 moved by 10 rows: 40 · 50 / (60 · 50) = 2/3, found at 0.5, 0.55, 0.6 and 0.65.
    moved = [20.0, 20.0, 70.0, 70.0]
    results = measure.results([image([(moved, 0, 0.9)], [(BOX, 0)])])
    assert results["ap50"] == ONE and results["ap75"] == 0
    assert results["ap"] == pytest.approx(4 / 10)


def test_a_false_alarm_of_a_higher_score_halves_precision(measure):
    results = measure.results([image([(OTHER, 0, 0.9), (BOX, 0, 0.8)], [(BOX, 0)])])
    assert results["ap50"] == pytest.approx(1 / 2)


def test_the_class_counts_and_every_class_has_its_own(measure):
    rows = [image([(BOX, 1, 0.9), (OTHER, 1, 0.8)], [(BOX, 0), (OTHER, 1)])]
    assert measure.by_class(rows) == {
        "cell": {"ap": 0.0},
        "platelet": {"ap": pytest.approx(1 / 2)},
    }


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_what_is_left_out_counts_neither_for_nor_against(measure, kind):
    there = [(BOX, 0), (OTHER, 0)]
    found = [(OTHER, 0, 0.9), (BOX, 0, 0.8)]
    counted = measure.results([image(found[1:], there)])
    assert counted["ap50"] == pytest.approx(51 / 101)  # half is found: 51 of 101 recalls
    assert measure.results([image(found[1:], there, **{kind: {1}})])["ap50"] == ONE
    assert measure.results([image(found, there, **{kind: {1}})])["ap50"] == ONE


def test_a_box_within_a_crowd_is_of_it_but_within_a_difficult_object_is_not(measure):
    """COCO takes the share of the detection in the crowd, VOC the IoU."""
    part = [100.0, 100.0, 112.0, 112.0]
    there, found = [(BOX, 0), (OTHER, 0)], [(part, 0, 0.9), (BOX, 0, 0.8)]
    assert measure.results([image(found, there, crowd={1})])["ap50"] == ONE
    assert measure.results([image(found, there, difficult={1})])["ap50"] == pytest.approx(1 / 2)


def test_areas_are_those_of_the_files_pixels(measure):
    small, large = [0.0, 0.0, 31.0, 31.0], [0.0, 0.0, 97.0, 97.0]
    rows = [image([(small, 0, 0.9)], [(small, 0)]), image([], [(large, 0)])]
    results = measure.results(rows)
    assert results["ap_small"] == ONE and results["ap_large"] == 0
    assert np.isnan(results["ap_medium"])


def test_areas_are_those_of_the_annotations_as_pycocotools_reads_them(measure, tmp_path, rng):
    """A file of COCO's, whose areas are of masks, and its results, by pycocotools alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows, annotations, results = [], [], []
    for number in range(6):
        corners = rng.uniform(0, 200, (8, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 140, (8, 2))], 1)
        moved, scores = boxes + rng.normal(0, 6, (8, 4)), rng.permutation(8) / 8 + number / 100
        kinds, crowd = rng.integers(0, 2, 8), {int(rng.integers(8))}
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) * rng.uniform(0.05, 1, 8)
        own = {"crowd": crowd, "areas": areas.tolist()}
        found = list(zip(moved.tolist(), kinds.tolist(), scores.tolist()))
        rows.append(image(found, list(zip(boxes.tolist(), kinds.tolist())), **own))
        for place in range(8):
            kind, pair = int(kinds[place]), (boxes[place], moved[place])
            box, other = ([x, y, x2 - x, y2 - y] for y, x, y2, x2 in pair)
            common = {"image_id": number, "category_id": kind}
            more = {"id": len(annotations) + 1, "area": areas[place]}
            annotations.append({**common, **more, "bbox": box, "iscrowd": int(place in crowd)})
            results.append({**common, "bbox": other, "score": scores[place]})
    content = {
        "images": [{"id": number} for number in range(6)], "annotations": annotations,
        "categories": [{"id": kind, "name": name} for kind, name in enumerate(NAMES)],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "instances.json"))
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = measure.results(rows)
    assert [*figures.values()] == pytest.approx(evaluation.stats[:6].tolist())
    for row in rows:
        row["true_areas"] = [(y2 - y) * (x2 - x) for y, x, y2, x2 in row["true_boxes"]]
    assert abs(measure.results([*rows])["ap_medium"] - figures["ap_medium"]) > 0.01


def test_images_without_objects_or_detections(measure):
    assert measure.results([image([], []), image([(BOX, 0, 0.9)], [(BOX, 0)])])["ap"] == ONE
    assert np.isnan(measure.results([image([], [])])["ap"])


def test_padding_is_left_out_of_a_row(measure):
    row = measure.row(
        {
            "boxes": np.array([BOX, [0, 0, 0, 0]]), "scores": np.array([0.5, 0.0]),
            "classes": np.array([1, 0]), "count": np.int32(1),
            "true_boxes": np.array([OTHER, [0, 0, 0, 0]]), "true_classes": np.array([0, -1]),
            "true_areas": np.array([2000.0, 0.0]),
            "crowd": np.zeros(2, bool), "difficult": np.zeros(2, bool),
        }
    )  # fmt: skip
    assert row == image([(BOX, 1, 0.5)], [(OTHER, 0)])


def test_all_and_each_class_are_of_one_evaluation(measure, monkeypatch):
    calls = []
    evaluated = average_precision.evaluated
    monkeypatch.setattr(
        average_precision, "evaluated", lambda *args: calls.append(1) or evaluated(*args)
    )
    right, wrong = ([image([(BOX, kind, 0.9)], [(BOX, 0), (OTHER, 1)])] for kind in (0, 1))
    assert measure.results(right)["ap"] == pytest.approx(1 / 2)
    assert measure.by_class(right) == {"cell": {"ap": ONE}, "platelet": {"ap": 0}}
    assert len(calls) == 1
    assert measure.by_class(wrong) == {"cell": {"ap": 0}, "platelet": {"ap": 0}}
    assert measure.results(right)["ap"] == pytest.approx(1 / 2)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tfnorm\[detection\]'"):
        average_precision.AveragePrecision(None, NAMES)


def test_nothing_is_printed(measure, capsys):
    with contextlib.suppress(AssertionError):
        measure.results([image([(BOX, 0, 0.9)], [(BOX, 0)])])
    assert capsys.readouterr().out == ""
