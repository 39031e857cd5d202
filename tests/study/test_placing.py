"""The same grid on other replicas: what a step computes stays, where it runs changes."""

import dataclasses
import json

import pytest

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.study import placing
from tfnorm.study.experiments.comparison import comparison
from tfnorm.study.experiments.micro_batches import micro_batches

BASE = training.Config(
    distribution_strategy="mirrored", num_replicas=4, replica_batch_size=2, steps=1300
)
GRID = comparison(["brn", "cbn"], [3], BASE)


def places(grid):
    names = ("distribution_strategy", "num_replicas", "virtual_replicas", "replica_batch_size")
    return [tuple(getattr(cell.config, name) for name in names) for cell in grid.cells]


@pytest.mark.parametrize(
    ("strategy", "workers", "place", "title"),
    [
        ("one_device", 1, ("one_device", 0, 4, 8), "virtual replicas on one device"),
        ("mirrored", 1, ("mirrored", 4, 1, 2), "replicas of one machine"),
        ("multi_worker_mirrored", 2, ("multi_worker_mirrored", 2, 1, 2), "replicas of 2 workers"),
        ("tpu", 1, ("tpu", 4, 1, 2), "replicas of a TPU"),
    ],
)
def test_replicas_stand_elsewhere_and_the_reference_stays(strategy, workers, place, title):
    grid = placing.place(GRID, strategy, "local", workers)
    assert places(grid) == [place, place, ("one_device", 0, 1, 8)]
    assert [cell.labels for cell in grid.cells] == [cell.labels for cell in GRID.cells]
    for before, after in zip(GRID.cells, grid.cells):
        assert after.config.norm_options == before.config.norm_options
        assert after.config.seed == 3
    tpu = "local" if strategy == "tpu" else ""
    assert [cell.config.tpu for cell in grid.cells] == [tpu, tpu, ""]
    assert grid.title == f"{GRID.title}, {title}"


def test_virtual_replicas_become_real_ones():
    base = dataclasses.replace(BASE, num_replicas=1, replica_batch_size=4)
    grid = placing.place(micro_batches(["bn"], [0], base), "mirrored")
    assert places(grid) == [
        ("one_device", 0, 1, 4), ("mirrored", 2, 1, 2), ("mirrored", 4, 1, 1)
    ]  # fmt: skip


def test_where_a_run_stood_is_part_of_its_identity():
    grids = [placing.place(GRID, "one_device"), GRID]
    # A run of 8 replicas on 4 workers has the configuration of one of 4 replicas on 2.
    larger = comparison(["brn", "cbn"], [3], dataclasses.replace(BASE, num_replicas=8))
    grids += [
        placing.place(grid, "multi_worker_mirrored", workers=workers)
        for grid, workers in ((GRID, 2), (GRID, 4), (larger, 4))
    ]
    assert len({grid.cells[0].hash for grid in grids}) == len(grids)
    assert placing.place(GRID, "mirrored").cells[0].hash == GRID.cells[0].hash


def test_workers_share_replicas_evenly():
    with pytest.raises(UserError) as error:
        placing.place(GRID, "multi_worker_mirrored", workers=3)
    assert str(error.value) == (
        "4 replicas are not divisible by 3 workers; choose a multiple with --num_replicas"
    )


@pytest.mark.parametrize(
    ("cluster", "count"),
    [
        (None, 1),
        ({"worker": ["a:1", "b:1"]}, 2),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, 3),
    ],
)
def test_workers_are_those_of_tf_config(monkeypatch, cluster, count):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if cluster:
        task = {"type": "worker", "index": 0}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert placing.workers() == count


def test_a_cluster_with_tasks_that_do_not_train(monkeypatch):
    """The trainer refuses it as well."""
    cluster = {"chief": ["a:1"], "worker": ["b:1"], "evaluator": ["d:1"]}
    task = {"type": "worker", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    with pytest.raises(UserError, match="TF_CONFIG has tasks of type evaluator; "):
        placing.workers()


def test_a_broken_tf_config_is_named(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(UserError, match=r"needs the environment variable TF_CONFIG .* '\{'; such"):
        placing.workers()
