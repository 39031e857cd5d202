"""The table of a comparison: relative times, failures in words, the winner."""

import csv
import io

import pytest

from tfnorm.study.grid import Grid
from tfnorm.study.inference import Inference
from tfnorm.study.summary import rows
from tfnorm.study.tables import Comparison, name


def labels(norm, replicas=4, images=2):
    return {
        "norm": norm, "replicas": replicas, "replica_batch": images, "statistics_batch": images
    }  # fmt: skip


def record(labels, accuracy=None, loss=0.5, step=0.01, error=None, **measured):
    result = {"test_accuracy": accuracy, "train_loss": loss, "step_time_median": step, **measured}
    return {"labels": labels, "error": error, "result": None if error else result}


GRID = Grid("comparison", "title", (), labels("bn"), labels("bn", 1, 8))
NAN = "the loss of step 3 is nan"


@pytest.fixture
def comparison():
    found = rows(
        [
            # Recorded before communication was counted, and after.
            record(labels("bn"), 0.9, 0.25, 0.010),
            record(
                labels("bn"),
                0.8,
                0.35,
                0.018,
                normalization_collectives=18,
                normalization_bytes=23456,
            ),
            record(labels("brn"), 0.95, 0.2, 0.014),
            record(labels("brn"), error=NAN),
            record(labels("gn"), 0.99, 0.1, None),
            record(labels("mabn"), error=NAN),
            record(
                labels("bn", 1, 8),
                0.97,
                0.2,
                0.004,
                normalization_collectives=0,
                normalization_bytes=0,
            ),
        ]
    )
    costs = [
        Inference(0.002, 9, 9), Inference(0.0021, 9, 9), Inference(0.004, 0, 9), None,
        Inference(0.002, 9, 9),
    ]  # fmt: skip
    return Comparison(GRID, found, costs)


def test_text(comparison):
    lines = comparison.text().splitlines()
    cells = [" ".join(line.split()) for line in lines]
    assert cells[3:8] == [
        "bn 4 x 2 2 85.0 ± 5.0 0.3000 1.00 18 23.5 1.00 yes",
        "brn 4 x 2 2 95.0 ± 0.0 (1 failed) 0.2000 1.40 - - 1.05 yes",
        "gn 4 x 2 2 99.0 ± 0.0 0.1000 - - - 2.00 0 of 9",
        "mabn 4 x 2 2 failed - - - - - -",
        "bn (reference) 1 x 8 8 97.0 ± 0.0 0.2000 0.40 0 0.0 1.00 yes",
    ]
    assert lines[9:] == [
        "Test accuracy: mean ± spread, half of the range over 2 seeds. Statistics batch: images "
        "that share a mean.",
        "Times are multiples of those of bn, 4 x 2: 10.0 ms a training step, 2.00 ms a batch of "
        "the folded model.",
        "Collectives and what a replica sends in them: for normalization, as counted in the "
        "training step; the gradients are not among it.",
        f"brn, 4 x 2 failed: {NAN}",
        f"mabn, 4 x 2 failed: {NAN}",
    ]
    assert len({line.index("yes") for line in lines if line.endswith("yes")}) == 1


def test_csv_has_all_numbers(comparison):
    bn, brn, _, mabn, _ = csv.DictReader(io.StringIO(comparison.csv()))
    assert bn["norm"] == "bn" and bn["statistics_batch"] == "2" and bn["runs"] == "2"
    assert float(bn["test_accuracy"]) == pytest.approx(0.85)
    assert float(bn["test_accuracy_spread"]) == pytest.approx(0.05)
    assert float(bn["train_loss_spread"]) == pytest.approx(0.05)
    assert (bn["normalization_collectives"], bn["normalization_bytes"]) == ("18", "23456")
    assert brn["normalization_bytes"] == "nan"
    assert float(brn["step_time"]) == pytest.approx(1.4)
    assert float(brn["inference_seconds"]) == 0.0021
    assert (brn["runs"], brn["failed"], brn["folded"], brn["normalizers"]) == ("1", "1", "9", "9")
    assert mabn["runs"] == "0" and mabn["test_accuracy"] == mabn["step_time"] == "nan"


def test_winner_is_the_most_accurate_that_folds_and_not_the_reference(comparison):
    assert comparison.winner().labels["norm"] == "brn"


def test_there_may_be_no_winner():
    found = rows([record(labels("bn"), error=NAN), record(labels("gn"), 0.9)])
    comparison = Comparison(GRID, found, [None, Inference(0.01, 0, 9)])
    assert comparison.winner() is None
    assert "gn 4 x 2 2 90.0 ± 0.0 0.5000 - - - - 0 of 9" in " ".join(comparison.text().split())


def test_name():
    (row,) = rows([record(labels("cbn", 8, 4), 0.5)])
    assert name(row) == "cbn, 8 x 4"
