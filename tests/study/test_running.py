"""Runs are made once, survive an interruption, and fail on their own."""

import dataclasses
import json
import types

import pytest

from tfnorm import training
from tfnorm.errors import Diverged, RunError, UserError
from tfnorm.study import running
from tfnorm.study.grid import Cell, Grid
from tfnorm.study.results import Results
from tfnorm.training.workers import LostWorker
from tfnorm.version import __version__


@pytest.fixture
def trained(monkeypatch):
    """The configurations that would have been trained, in place of training."""
    configs = []

    def train(config, callbacks=(), notice=None, validate=True):
        configs.append(config)
        if config.learning_rate > 1:
            raise Diverged("the loss of step 3 is nan")
        notice("starting")
        history = [{"epoch": 1, "loss": 2.5, "val_accuracy": 0.75}]
        return types.SimpleNamespace(
            metrics={"accuracy": 0.75}, test_loss=0.5, train_loss=2.5, steps=9,
            step_time_median=0.125, params=1234, normalization_collectives=18,
            normalization_bytes=23456, history=history,
        )  # fmt: skip

    monkeypatch.setattr(training, "train", train)
    return configs


def grid(*configs):
    cells = tuple(Cell({"norm": c.norm}, c) for c in configs)
    return Grid("test", "a test", cells, {}, {})


A, B, BAD = (
    training.Config(norm="bn", seed=7),
    training.Config(norm="gn"),
    training.Config(norm="ln", learning_rate=2.0),
)


def test_record_says_all_that_a_run_depends_on(tmp_path, trained):
    results = Results(tmp_path / "results.jsonl")
    (record,) = running.run(grid(A), results, tmp_path / "models", lambda text: None)
    assert json.loads((tmp_path / "results.jsonl").read_text()) == record
    assert record["grid"] == "test" and record["labels"] == {"norm": "bn"}
    assert record["hash"] == Cell({}, A).hash
    model_dir = str(tmp_path / "models" / record["hash"])
    assert training.Config.from_dict(record["config"]) == dataclasses.replace(
        A, model_dir=model_dir
    )
    assert record["seed"] == 7
    assert record["error"] is None
    assert record["result"] == {
        "test_accuracy": 0.75, "test_loss": 0.5, "train_loss": 2.5, "steps": 9,
        "step_time_median": 0.125, "params": 1234, "normalization_collectives": 18,
        "normalization_bytes": 23456,
    }  # fmt: skip
    assert record["history"] == [{"epoch": 1, "loss": 2.5, "val_accuracy": 0.75}]
    assert record["versions"]["tfnorm"] == __version__
    assert set(record["versions"]) > {"python", "tensorflow", "keras", "numpy"}
    assert record["machine"]["cpus"] >= 1 and record["seconds"] >= 0


def test_only_missing_and_changed_cells_are_run(tmp_path, trained):
    path = tmp_path / "results.jsonl"
    told = []
    running.run(grid(A), Results(path), tmp_path, told.append)
    assert told[0] == "1 run"
    told.clear()
    first = running.run(grid(A, B), Results(path), tmp_path, told.append)
    assert [config.norm for config in trained] == ["bn", "gn"]
    assert told[:2] == ["2 runs, 1 of 2 are done already", "[2/2] norm gn, seed 0"]
    assert told[-1].startswith("[2/2] test accuracy 75.0 % in ")
    assert told[-1].endswith("; all runs are done")
    changed = dataclasses.replace(B, epochs=21)
    second = running.run(grid(A, changed), Results(path), tmp_path, told.append)
    assert [config.norm for config in trained] == ["bn", "gn", "gn"]
    assert second[0] == first[0] and second[1]["hash"] != first[1]["hash"]
    assert len(path.read_text().splitlines()) == 3


def test_a_failed_run_is_recorded_and_stops_no_other(tmp_path, trained):
    told = []
    results = Results(tmp_path / "results.jsonl")
    bad, good = running.run(grid(BAD, A), results, tmp_path, told.append)
    assert (bad["error"], bad["result"], bad["history"]) == ("the loss of step 3 is nan", None, [])
    assert good["error"] is None
    assert any(t.startswith("[1/2] failed: the loss of step 3 is nan; about ") for t in told)
    running.run(grid(BAD, A), results, tmp_path, told.append)
    assert len(trained) == 2


def test_a_full_disk_ends_the_study_and_marks_no_run(tmp_path, monkeypatch):
    def train(*args, **kwargs):
        raise RunError("cannot write the checkpoint (No space left on device)")

    monkeypatch.setattr(training, "train", train)
    results = Results(tmp_path / "results.jsonl")
    with pytest.raises(RunError, match="No space left"):
        running.run(grid(A, B), results, tmp_path, lambda text: None)
    assert not len(results)


def test_runs_begin_with_the_weights_of_one_that_is_made_once(tmp_path, trained, monkeypatch):
    start = Cell({}, training.Config(norm="bn", seed=3))
    at = tmp_path / "models" / start.hash
    train = training.train

    def leaving_a_result(config, *args, **kwargs):
        at.mkdir(parents=True, exist_ok=True)
        (at / "result.json").write_text("{}")
        return train(config, *args, **kwargs)

    monkeypatch.setattr(training, "train", leaving_a_result)
    cells = tuple(Cell({"norm": c.norm}, c, start=start) for c in (A, B))
    results = Results(tmp_path / "results.jsonl")
    begun = Grid("test", "a test", cells, {}, {})
    records = running.run(begun, results, tmp_path / "models", lambda text: None)
    assert [(c.norm, c.model_dir == str(at), c.weights) for c in trained] == [
        ("bn", True, None), ("bn", False, str(at)), ("gn", False, str(at)),
    ]  # fmt: skip
    # It is part of what a run is, wherever it lies.
    assert records[0]["hash"] == cells[0].hash != Cell({"norm": "bn"}, A).hash
    other = dataclasses.replace(start.config, seed=4)
    assert dataclasses.replace(cells[0], start=Cell({}, other)).hash != cells[0].hash
    with pytest.raises(UserError, match="cannot be shared among workers"):
        running.take_part(begun, results, tmp_path / "models")


def test_when_test_images_are_evaluated_is_handed_on(tmp_path, trained, monkeypatch):
    asked = []
    train = training.train

    def noting(config, *args, validate=True):
        asked.append(validate)
        return train(config, *args)

    monkeypatch.setattr(training, "train", noting)
    cells = (Cell({}, A), Cell({}, B, validate="at_end"))
    grid = Grid("test", "a test", cells, {}, {})
    running.run(grid, Results(tmp_path / "results.jsonl"), tmp_path, lambda text: None)
    assert asked == [True, "at_end"]
    # It changes no weight: a record is found whenever its run was evaluated.
    assert dataclasses.replace(cells[1], validate=True).hash == cells[1].hash


def test_a_lost_worker_says_nothing_about_the_run(tmp_path, monkeypatch):
    def train(*args, **kwargs):
        raise LostWorker("lost contact with worker 1")

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(LostWorker):
        running.run(grid(A), Results(tmp_path / "results.jsonl"), tmp_path, lambda text: None)
    assert not (tmp_path / "results.jsonl").exists()


def test_other_workers_take_part_in_the_missing_runs_of_many_workers(tmp_path, trained):
    many = [
        Cell({"replicas": 4}, dataclasses.replace(c, distribution_strategy="multi_worker_mirrored"))
        for c in (A, B)
    ]
    cells = Grid("test", "a test", (many[0], Cell({"replicas": 1}, A), many[1]), {}, {})
    results = Results(tmp_path / "results.jsonl")
    results.append({"hash": many[0].hash})
    before = (tmp_path / "results.jsonl").read_bytes()
    running.take_part(cells, results, tmp_path / "models")
    assert [(c.norm, c.model_dir) for c in trained] == [
        ("gn", str(tmp_path / "models" / many[1].hash))
    ]
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_an_interrupted_grid_keeps_what_was_done(tmp_path, trained, monkeypatch):
    path = tmp_path / "results.jsonl"
    train = training.train

    def interrupted(config, *args, **kwargs):
        if config.norm == "gn":
            raise KeyboardInterrupt
        return train(config, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "train", interrupted)
        running.run(grid(A, B), Results(path), tmp_path, lambda text: None)
    assert len(Results(path)) == 1
    running.run(grid(A, B), Results(path), tmp_path, lambda text: None)
    assert [config.norm for config in trained] == ["bn", "gn"]
