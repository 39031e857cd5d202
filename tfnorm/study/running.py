"""Running the cells of a grid that are not done yet."""

import dataclasses
import datetime
import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import keras

from tfnorm import tasks, training
from tfnorm.errors import Diverged, UserError
from tfnorm.study import probes
from tfnorm.study.grid import Cell, Grid, in_words
from tfnorm.study.progress import Clock, count, duration
from tfnorm.study.results import Results
from tfnorm.version import versions

Tell = Callable[[str], None]

_FIELDS = ("labels", "seed", "error", "result", "history", "config", "seconds")

_NUMBERS = (
    "test_loss", "train_loss", "steps", "step_time_median", "params",
    "normalization_collectives", "normalization_bytes",
)  # fmt: skip


def run(grid: Grid, results: Results, directory: str | os.PathLike[str], tell: Tell) -> list[dict]:
    """Runs the cells that `results` lacks, one after the other, and records each as it ends.

    A run that diverges (its loss is NaN) is recorded as failed and stops no other. One that was
    interrupted, be it by a full disk, goes on from its last checkpoint.

    Args:
        grid: What to run.
        results: Where it is recorded.
        directory: Where the runs keep their checkpoints, each in its `model_dir`, and the run that
            others begin with.
        tell: Takes lines of text about the progress.

    Returns:
        The records of all cells of the grid, in its order.
    """
    results.check([cell.hash for cell in grid.cells], _FIELDS)
    missing = _missing(grid, results)
    total, done = len(grid.cells), len(grid.cells) - len(missing)
    tell(count(total, "run") + (f", {done} of {total} are done already" if done else ""))
    clock = Clock(len(missing))
    for number, cell in enumerate(missing, start=done + 1):
        tell(f"[{number}/{total}] {describe(cell)}")
        record = run_cell(cell, model_dir(directory, cell.hash), tell)
        results.append({"grid": grid.name, **record})
        tell(f"[{number}/{total}] {_outcome(record)}; {clock.tick()}")
    return results.select([cell.hash for cell in grid.cells])


def take_part(grid: Grid, results: Results, directory: str | os.PathLike[str]) -> None:
    """What a worker does that is not the chief: its share of the runs that `run` makes there.

    Args:
        grid: The same as the chief's.
        results: The chief's file, on a disk that all workers share; it is only read.
        directory: The same as the chief's.

    Raises:
        UserError: The runs begin with the weights of another, which only one process can make.
    """
    if any(cell.start for cell in grid.cells):
        raise UserError(
            f"the runs of study {grid.name} begin with the weights of another run and cannot be "
            "shared among workers; choose --distribution_strategy=mirrored or one_device"
        )
    for cell in _missing(grid, results):
        if cell.config.distribution_strategy == "multi_worker_mirrored":
            run_cell(cell, model_dir(directory, cell.hash), lambda text: None)


def _missing(grid: Grid, results: Results) -> list[Cell]:
    return [cell for cell in grid.cells if results.get(cell.hash) is None]


def model_dir(directory: str | os.PathLike[str], identity: str) -> str:
    """Where the run of this hash keeps its checkpoints."""
    return str(pathlib.Path(directory) / identity)


def run_cell(cell: Cell, directory: str, tell: Tell) -> dict:
    """Makes one run, with its checkpoints in `directory`.

    Returns:
        Its record, as results.jsonl keeps it: hash, labels, config, versions, machine, result and
        history, what its probes found if it has any, and the error if it failed.

    Raises:
        RunError: It could not be made, as on a full disk; that says nothing about the run.
    """
    start = time.time()
    config = dataclasses.replace(cell.config, model_dir=directory)
    if cell.start:
        at = str(pathlib.Path(directory).with_name(cell.start.hash))
        _make_start(dataclasses.replace(cell.start.config, model_dir=at), tell)
        config = dataclasses.replace(config, weights=at)
    record: dict[str, Any] = {
        "hash": cell.hash,
        "labels": dict(cell.labels),
        "error": None,
        "result": None,
        "history": [],
        "seed": config.seed,
        "config": config.to_dict(),
        "versions": versions("tensorflow", "keras", "numpy", "tensorflow-datasets"),
        "machine": machine(),
        "started": datetime.datetime.fromtimestamp(start, datetime.UTC).isoformat("T", "seconds"),
    }
    try:
        probing = _probes(cell, config)
        callbacks = [training.ProgressLines(), *probing.values()]
        outcome = training.train(config, callbacks, tell, validate=cell.validate)
        record["result"] = {
            **{f"test_{name}": value for name, value in outcome.metrics.items()},
            **{name: getattr(outcome, name) for name in _NUMBERS},
        }
        record["history"] = outcome.history
        if probing:
            record["probes"] = probes.results(probing)
    except Diverged as error:
        record["error"] = str(error)
    finally:
        keras.backend.clear_session()  # or the graphs of all runs stay in memory
    return {**record, "seconds": round(time.time() - start, 1)}


def _make_start(config: training.Config, tell: Tell) -> None:
    """Trains what other runs begin with, unless that has been done."""
    if not (pathlib.Path(config.model_dir) / "result.json").exists():
        tell(f"first what they begin with: {config.norm} on {config.dataset}")
        training.train(config, [training.ProgressLines()], tell, validate="at_end")


def _probes(cell: Cell, config: training.Config) -> dict[str, keras.callbacks.Callback]:
    if not cell.probes:
        return {}
    return probes.build(cell.probes, config, tasks.load(config))


def describe(cell: Cell) -> str:
    """A cell in a few words, such as "norm bn, replicas 4, seed 0"."""
    return in_words({**cell.labels, "seed": cell.config.seed})


def machine() -> dict[str, str | int | None]:
    """The machine that times were measured on."""
    return {"platform": platform.platform(), "cpus": os.cpu_count()}


def _outcome(record: dict) -> str:
    if record["error"] is not None:
        return f"failed: {record['error']}"
    headline = tasks.get(record["config"]["task"]).headline
    value = 100 * record["result"][f"test_{headline}"]
    return f"test {headline} {value:.1f} % in {duration(record['seconds'])}"
