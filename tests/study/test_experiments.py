"""Every study: its grid, one real run of it, and what its chapter says of made-up results."""

import dataclasses
import re

import pytest

from tfnorm import tasks, training
from tfnorm.study import claims, grids, report, running
from tfnorm.study.chapter import Found, percent, recovery_column
from tfnorm.study.grid import Grid
from tfnorm.study.results import Results
from tfnorm.study.summary import rows_of

STUDIES = {name: study for name, study in grids.STUDIES.items() if study.chapter}
TINY = {
    "dataset": "sklearn_digits",
    "train_examples": 0,
    "width": 4,
    "steps": 300,
    "data_dir": None,
}
TINY_SCENES = {
    "dataset": "digit_scenes", "train_examples": 16, "test_split": "test[:4]", "steps": 300,
    "image_size": "32,32", "data_dir": None,
}  # fmt: skip

EMPTY = re.compile(r"\bnan\b|None")  # What no chapter says; "retinanet" it may.

WITHOUT_CLAIMS = ("learning-rate",)


def base_of(name, **fields):
    defaults = STUDIES[name].defaults
    tiny = TINY_SCENES if "task" in defaults else TINY
    return training.Config(**{**defaults, "distribution_strategy": "mirrored", **tiny, **fields})


def grid_of(name, seeds=(0, 1), **fields):
    study = STUDIES[name]
    return study.build(study.norms, list(seeds), base_of(name, **fields))


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.jsonl")


def record_all(grid, results, rng):
    """A made-up record for every run; returns the accuracies by hash."""
    accuracies = {}
    for cell in grid.cells:
        headline = tasks.get(cell.config.task).headline
        history = [
            {"loss": loss, headline: 1 - loss / 3, f"val_{headline}": 1 - loss / 2}
            for loss in sorted(rng.uniform(0.1, 1.0, 3), reverse=True)
        ]
        accuracies[cell.hash] = rng.uniform(0.5, 0.9)
        result = {
            f"test_{headline}": accuracies[cell.hash],
            "step_time_median": rng.uniform(0.01, 0.02),
            "params": 1000.0,
            "normalization_collectives": 18,
            "normalization_bytes": 5000,
        }
        probes = {
            "batch_statistics": {
                "test_accuracy_batch_statistics": 0.5,
                "test_accuracy_batch_statistics_sampled": 0.4,
            },
            "variance_gap": {
                "mean_relative_gap": 0.3,
                "layers": [
                    {
                        "layer": "a",
                        "mean_relative_gap": 0.3,
                        "moving_variance": [0.5, 2.0],
                        "gap": [[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]],
                    }
                ],
            },
            "statistics": {
                "step": [1, 20, 40],
                "noise": {"forward": [0.5, 0.4, 0.3], "backward": [0.8, 0.7, 0.5]},
                **{
                    name: {key: [1.0, 2.0, 3.0] for key in ("batch", "step", "window")}
                    for name in ("mean", "variance", "gradient", "gradient_product")
                },
            },
        }
        results.append(
            {
                "hash": cell.hash, "labels": {}, "error": None, "result": result,
                "history": history, "probes": probes, "config": {"task": cell.config.task},
            }
        )  # fmt: skip
    return accuracies


@pytest.mark.parametrize("name", STUDIES)
def test_the_chapter_of_every_study(name, results, rng, tmp_path):
    grid = grid_of(name)
    assert grid.name == name
    accuracies = record_all(grid, results, rng)
    found = Found(rows_of(grid, results))
    told = []
    report.chapter(grid, STUDIES[name].chapter, results, tmp_path / "plots", told.append)
    titles, lines = STUDIES[name].chapter.table(found)
    assert all(len(line) == len(titles) for line in lines)
    text = "\n".join(told)
    assert not EMPTY.search(text)
    if name not in WITHOUT_CLAIMS:
        made = STUDIES[name].chapter.claims(found)
        assert len({claim.text for claim in made}) == len(made) >= 4
        # Sizes that a grid lacks are none of its claims.
        missing = [claim.text for claim in made if not claim.outcome]
        assert not missing or name == "micro-batches"
        assert all(str(claim) in told for claim in made if claim.outcome)
    # Every setting has a mean of its two seeds, and all of them are in the table.
    by_labels = {}
    for cell in grid.cells:
        by_labels.setdefault(tuple(cell.labels.items()), []).append(accuracies[cell.hash])
    for values in by_labels.values():
        assert len(values) == 2
        cell = f"{percent(sum(values) / 2)} ± {percent(abs(values[0] - values[1]) / 2)}"
        assert cell in text
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert f"{name}.png" in plots
    assert plots == {re.search(r"[^/]+\.png", line)[0] for line in told if "wrote" in line}


@pytest.mark.parametrize("name", STUDIES)
def test_chapters_bear_runs_that_failed_or_are_missing(name, results, rng, tmp_path):
    grid = grid_of(name, seeds=[0])
    half = dataclasses.replace(grid, cells=grid.cells[::2])
    record_all(half, results, rng)
    cell = grid.cells[1]
    failed = {"hash": cell.hash, "labels": {}, "error": "NaN", "result": None, "history": []}
    results.append(failed)
    found = Found(rows_of(grid, results))
    chapter = STUDIES[name].chapter
    _, lines = chapter.table(found)
    assert any("failed" in text for line in lines for text in line)
    words = [chapter.seen(found), *map(str, claims.measured(chapter.claims(found)))]
    words += [text for line in lines for text in line]
    assert not any(EMPTY.search(text) for text in words)
    assert report.draw(grid, chapter, found, tmp_path / "plots")


@pytest.mark.parametrize("norm", ["gn", "mabn"])
@pytest.mark.parametrize("name", STUDIES)
def test_chapters_bear_a_single_norm(name, norm, results, rng, tmp_path):
    grid = STUDIES[name].build([norm], [0], base_of(name))
    record_all(grid, results, rng)
    told = []
    report.chapter(grid, STUDIES[name].chapter, results, tmp_path, told.append)
    assert not EMPTY.search("\n".join(told))


@pytest.mark.parametrize("name", STUDIES)
def test_a_run_of_every_study(name, results, tmp_path):
    """The last one, which differs most from plain training, for three steps."""
    small = {} if "task" in STUDIES[name].defaults else {"model": "resnet8"}
    grid = grid_of(name, seeds=[3], steps=3, num_replicas=2, epochs=1, **small)
    cell = max(grid.cells, key=lambda cell: len(cell.config.norm_options))
    virtual = min(cell.config.virtual_replicas, 2)
    config = dataclasses.replace(cell.config, replica_batch_size=8, virtual_replicas=virtual)
    one = Grid(name, "", (dataclasses.replace(cell, config=config, start=None),), {}, {})
    (record,) = running.run(one, results, tmp_path / "models", lambda text: None)
    assert record["error"] is None and record["result"]["steps"] == 3


def _imagenet(labels):
    """Top-1 accuracies: CBN, tables 2 and 3; MABN, table 1; BKN, figure 3 and section 4.2."""
    images = labels["replica_batch"]
    tables = {
        "bn": {32: 70.2, 16: 70.2, 8: 68.4, 4: 65.1, 2: 55.9, 1: 0.1},
        "brn": {32: 70.1, 16: 68.5, 8: 68.2, 4: 67.9, 2: 60.3, 1: 20.0},
        "cbn": {32: 70.2, 16: 70.2, 8: 70.1, 4: 70.0, 2: 69.6, 1: 69.3},
        "bkn": {4: 68.8, 2: 57.0, 1: 0.4},
    }
    if labels.get("shared") == "two":
        return {"bn": 0.30, "brn": 0.32, "bkn": 0.35}.get(labels["norm"], 0.3)
    single = {"gn": 68.9, "ln": 67.9, "in": 64.4}
    accuracy = single.get(labels["norm"]) or tables.get(labels["norm"], {}).get(images, 70.0)
    return accuracy / 100


def _mabn(labels):
    """1 − top-1 error: tables 2 and 4."""
    errors = {
        "regular batch": 23.41, "of centralized convolutions": 34.27,
        "EMA forward, SMA backward, centralized": 23.58,
        "SMA forward, SMA backward, centralized": 26.63,
        "EMA forward, batch backward, centralized": 27.03,
        "batch forward, batch backward, centralized": 29.68,
        "EMA forward, SMA backward, not centralized": 25.45,
        "batch forward, batch backward, not centralized": 32.95,
    }  # fmt: skip
    plain = {"bn": 35.22, "brn": 30.29}.get(labels["norm"], 25.0)
    return 1 - errors.get(labels["variant"], plain) / 100


def _pairs(labels):
    """BRN, section 4.3, and what is carried further here."""
    bn = {"shuffled": 0.783, "pairs": 0.670, "sorted": 0.10}[labels["sampling"]]
    return {"bn": bn, "brn": 0.786}.get(labels["norm"], 0.7)


def _coco(labels):
    """Box AP: MABN, table 3; CBN, table 4 (head)."""
    table = {"bn": 0.304, "brn": 0.319, "syncbn": 0.348, "mabn": 0.349, "cbn": 0.345}
    return table.get(labels["norm"], 0.3)


def _cityscapes(labels):
    """MABN, table 8; else as the claims of other papers have it."""
    few = labels["replica_batch"] < 8
    table = {"bn": 0.7711 if few else 0.785, "brn": 0.7730, "syncbn": 0.7852, "mabn": 0.7820}
    ours = {"cbn": 0.78 if labels["variant"] == "" else 0.79, "on": 0.785, "evalnorm": 0.78}
    return {**table, **ours, "gn_ws": 0.785}.get(labels["norm"], 0.77)


def _detectors(labels):
    """CBN, table 4 and figures 3 and 5; MABN, tables 5 to 7."""
    if labels["variant"]:
        return {
            "window 2": 0.37, "window 4": 0.375, "window 4, naive": 0.37, "window 8, naive": 0.35,
            "window 16": 0.35,
            "no burn-in": 0.36, "burn-in of half the run": 0.376, "whole gradient": 0.38,
        }[labels["variant"]]  # fmt: skip
    places = {
        "head, backbone frozen": {
            "none": 0.369, "bn": 0.363, "syncbn": 0.377, "gn": 0.378, "cbn": 0.377,
        },
        "all layers": {"bn": 0.355, "syncbn": 0.379, "gn": 0.378, "cbn": 0.373, "mabn": 0.381},
        "all layers, from scratch": {"bn": 0.3238, "brn": 0.3407, "syncbn": 0.3681, "mabn": 0.3650},
    }  # fmt: skip
    return places[labels["where"]].get(labels["norm"], 0.37)


def _masks(labels):
    """MABN, tables 5 and 6; CBN, tables 4 and 5."""
    table = {"bn": 0.2907, "brn": 0.3098, "mabn": 0.3412, "syncbn": 0.3422, "gn": 0.35}
    return {**table, "cbn": 0.346, "none": 0.36}[labels["norm"]]


def _cifar(labels):
    """BKN, table 3: by moving statistics."""
    return (
        0.921
        if labels["variant"] == "regular batch"
        else {"bn": 0.894, "bkn": 0.909}[labels["norm"]]
    )


@pytest.mark.parametrize(
    ("name", "reported", "others"),
    [
        ("batch-size", _imagenet, {"cbn on one image is above gn"}),  # by 0.4 points
        ("gradient-batch", _imagenet, set()),
        ("mabn-ablation", _mabn, set()),
        ("non-iid", _pairs, {"tested on pairs by their own statistics it is better"}),
        ("sync", _coco, set()),
        ("segmentation", _cityscapes, set()),
        ("detection", _detectors, set()),
        ("instances", _masks, set()),
        ("bkn", _cifar, {
            "so it is by the test batches' statistics", "by them bn is above bn by moving ones",
            "bkn by these is as good as by moving ones",
            "bn's variances lie farther from their average",
        }),
    ],
)  # fmt: skip
def test_the_papers_own_numbers_bear_their_claims_out(name, reported, others, results, rng):
    """But for those that are not about accuracy by moving statistics."""
    images = {"sync": 2, "segmentation": 8, "detection": 4}.get(name, 32)
    grid = grid_of(name, seeds=[0], replica_batch_size=images)
    record_all(grid, results, rng)
    for cell in grid.cells:
        record = results.get(cell.hash)
        record["result"][f"test_{tasks.get(cell.config.task).headline}"] = reported(cell.labels)
    found = Found(rows_of(grid, results))
    made = claims.measured(STUDIES[name].chapter.claims(found))
    assert len(made) > 4
    assert [str(c) for c in made if c.outcome != claims.SEEN and c.text not in others] == []


def test_settings_of_a_study_differ_and_norms_do_not_multiply():
    for name in STUDIES:
        cells = grid_of(name, seeds=[0]).cells
        assert len({tuple(cell.labels.items()) for cell in cells}) == len(cells)


def test_batch_sizes_halve_down_to_one_with_the_same_gradient():
    cells = grid_of("batch-size", seeds=[0], replica_batch_size=8).cells
    of_bn = [c.config for c in cells if c.config.norm == "bn"]
    assert [c.statistics_batch_size for c in of_bn] == [8, 4, 2, 1]
    assert {c.config.replica_batch_size for c in cells} == {8}
    assert [c.config.virtual_replicas for c in cells if c.config.norm == "gn"] == [1]


def test_gradient_batches_see_the_same_images():
    cells = grid_of("gradient-batch", seeds=[0], replica_batch_size=8, steps=0, epochs=2).cells
    configs = [c.config for c in cells if c.config.norm == "gn"]
    assert [c.replica_batch_size for c in configs] == [8, 4, 2, 1]
    assert {(c.epochs, c.virtual_replicas, c.learning_rate) for c in configs} == {(2, 1, 0.1)}
    assert {c.reference_batch_size for c in configs} == {32}  # the linear scaling rule


def test_parts_of_mabn_are_options_of_its_layer():
    cells = grid_of("mabn-ablation", seeds=[0]).cells
    own = {
        c.labels["variant"]: {
            k: v
            for k, v in c.config.norm_options.items()
            if k not in ("correction_start_step", "warmup_steps")  # which follow from the steps
        }
        for c in cells
        if c.config.norm == "mabn"
    }
    assert own["EMA forward, SMA backward, centralized"] == {}
    assert own["EMA forward, batch backward, not centralized"] == {
        "window": 1, "momentum": 0.9, "centralize": False,
    }  # fmt: skip
    assert own["batch forward, SMA backward, centralized"] == {
        "window": 1, "gradient_window": 16, "correction_limit": 1.0,
    }  # fmt: skip
    assert own["batch forward, batch backward, centralized"] == {
        "window": 1, "momentum": 0.9, "correction_limit": 1.0,
    }  # fmt: skip
    assert own["SMA forward, SMA backward, centralized"] == {"correction_limit": 1.0}
    assert own["window 64"] == {"window": 64}


def test_a_window_of_cbn_meets_bn_with_as_many_images():
    cells = grid_of("cbn-window", seeds=[0]).cells
    bn = {
        c.labels["window"]: c.config.statistics_batch_size for c in cells if c.config.norm == "bn"
    }
    assert bn == {1: 4, 2: 8, 4: 16, 8: 32}
    cbn = [c.config for c in cells if c.config.norm == "cbn"]
    assert {c.statistics_batch_size for c in cbn} == {4}
    windows = [(c.norm_options["window"], c.norm_options.get("compensate", True)) for c in cbn]
    assert windows == [(k, kept) for k in (2, 4, 8, 16) for kept in (True, False)]


def test_burn_ins_are_shares_of_the_steps():
    cells = grid_of("cbn-burn-in", seeds=[0], steps=80).cells
    found = [c.config.norm_options["burn_in_steps"] for c in cells if c.config.norm == "cbn"]
    assert found == 2 * [0, 5, 10, 20, 40]
    images = [c.config.statistics_batch_size for c in cells if c.config.norm == "cbn"]
    assert images == 5 * [4] + 5 * [1]


def test_real_replicas_share_one_batch():
    cells = grid_of("sync", seeds=[0]).cells
    found = {
        (c.config.distribution_strategy, c.config.num_replicas, c.config.replica_batch_size)
        for c in cells
    }
    assert found == {
        ("one_device", 0, 16), ("mirrored", 2, 8), ("mirrored", 4, 4), ("mirrored", 8, 2),
    }  # fmt: skip


def test_short_runs_correct_earlier():
    options = {
        name: next(
            c.config.norm_options
            for c in grid_of(name, seeds=[0], steps=steps).cells
            if c.config.norm == "mabn"
        )
        for name, steps in (("batch-size", 1600), ("sync", 500), ("micro-batches", 4000))
    }
    assert options == {
        "batch-size": {"correction_start_step": 400},
        "sync": {"correction_start_step": 300},
        "micro-batches": {},
    }


def test_recovery(results):
    grid = grid_of("batch-size", seeds=[0], replica_batch_size=4)
    accuracies = {("bn", 4): 0.9, ("bn", 2): 0.895, ("bn", 1): 0.5, ("mabn", 1): 0.86}
    for cell in grid.cells:
        key = cell.config.norm, cell.labels["statistics_batch"]
        if key in accuracies:
            result = {"test_accuracy": accuracies[key]}
            results.append(
                {"hash": cell.hash, "labels": {}, "error": None, "result": result, "history": []}
            )
    found = Found(rows_of(grid, results))
    assert recovery_column(found, "mabn", 1) == "90 %"
    assert recovery_column(found, "bn", 1) == "-"
    assert recovery_column(found, "cbn", 1) == "-"
    assert recovery_column(found, "mabn", 2) == "-"


def test_recovery_of_next_to_nothing_is_not_given(results, rng):
    grid = grid_of("batch-size", seeds=[0], replica_batch_size=4)
    for cell in grid.cells:
        result = {"test_accuracy": 0.5 + 0.001 * cell.labels["statistics_batch"]}
        results.append(
            {"hash": cell.hash, "labels": {}, "error": None, "result": result, "history": []}
        )
    found = Found(rows_of(grid, results))
    assert recovery_column(found, "mabn", 2) == "bn loses < 1 point"
    for cell in grid.cells:
        results.get(cell.hash)["result"]["test_accuracy"] *= -1
    assert recovery_column(Found(rows_of(grid, results)), "mabn", 2) == "bn gains"
