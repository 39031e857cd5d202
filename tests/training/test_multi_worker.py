"""Workers as processes of this machine: the same numbers as one process, and every kind of end."""

import json
import pathlib
import sys

import numpy as np
import pytest

from tests.training.running import StepLosses, two_layers
from tfnorm import models, training
from tfnorm.training import local_cluster

ROOT = pathlib.Path(__file__).parents[2]
WORKER = pathlib.Path(__file__).parent / "worker.py"

# Each as it is in the middle of a run, where every part of its formulas works.
NORMS = {
    "bn": {"momentum": 0.9},
    "syncbn": {"momentum": 0.9},
    "brn": {"momentum": 0.8, "r_max": 3.0, "d_max": 5.0},
    "mabn": {"momentum": 0.8, "window": 3, "warmup_steps": 2, "correction_start_step": 3},
    "cbn": {"window": 3},
    "bkn": {"momentum": 0.9},
}
# Of two replicas each as well: one that communicates in a step, one whose state is a replica's own.
IN_BOTH = ("syncbn", "mabn")
FAULTY = {"norm": "brn", "norm_options": NORMS["brn"], "epochs": 4, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def fields(data_dir):
    """A run of two epochs of 6 steps, 4 images a replica and step."""

    def make(replicas, **changes):
        return {
            "width": 3,
            "data_dir": data_dir,
            "train_examples": 25 * replicas,
            "replica_batch_size": 4,
            "epochs": 2,
            "learning_rate": 0.2,
            "reference_batch_size": 0,
            "steps_per_loop": 1,
            **changes,
        }

    return make


@pytest.fixture(scope="module")
def start():
    """Starts two workers; returns the launcher's exit code and what each of them noted.

    A fault, such as (1, "SIGKILL", 7), is of the last of the runs.
    """

    def run(output, runs, fault=None):
        output.mkdir()
        task = json.dumps({"runs": runs, "output": str(output), "fault": fault})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            code = local_cluster.run(2, [sys.executable, str(WORKER), task])
        return code, [json.loads((output / f"{index}.json").read_text()) for index in range(2)]

    return run


def clustered(run):
    return {**run, "distribution_strategy": "multi_worker_mirrored"}


@pytest.fixture(scope="module")
def faulty(fields, tmp_path_factory):
    """A run that ends by a fault, and goes on whenever it is started again."""
    return clustered(fields(2, model_dir=str(tmp_path_factory.mktemp("faulty") / "run"), **FAULTY))


@pytest.fixture(scope="module")
def two(start, fields, faulty, tmp_path_factory):
    """Two workers of one replica: a run for each norm, one of FAULTY with no fault, one with."""
    output = tmp_path_factory.mktemp("two") / "output"
    runs = {n: clustered(fields(2, norm=n, norm_options=o)) for n, o in NORMS.items()}
    model_dir = f"{output}/{{index}}"
    runs["whole"] = clustered(fields(2, model_dir=model_dir, **FAULTY))
    return output, *start(output, {**runs, "faulty": faulty}, (1, "SIGKILL", 7))


@pytest.fixture(scope="module")
def four(start, fields, tmp_path_factory):
    """Two workers of two replicas."""
    output = tmp_path_factory.mktemp("four") / "output"
    runs = {n: clustered(fields(4, norm=n, norm_options=NORMS[n], num_replicas=2)) for n in IN_BOTH}
    return output, *start(output, runs)


@pytest.mark.parametrize(
    ("replicas", "cluster", "norm"),
    [*((2, "two", norm) for norm in NORMS), *((4, "four", norm) for norm in IN_BOTH)],
)
def test_workers_are_one_process(request, fields, monkeypatch, replicas, cluster, norm):
    output, code, _ = request.getfixturevalue(cluster)
    assert code == {"two": 137, "four": 0}[cluster]  # One of the two is killed at the end.
    monkeypatch.setattr(models, "build", two_layers)
    run = fields(
        replicas, norm=norm, norm_options=NORMS[norm],
        distribution_strategy="mirrored", num_replicas=replicas,
    )  # fmt: skip
    losses = StepLosses()
    result = training.train(training.Config(**run), [losses], lambda text: None, validate=False)
    assert len(losses.values) == 12
    for index in range(2):
        arrays = np.load(output / f"{index}.npz")
        np.testing.assert_allclose(arrays[f"{norm}/losses"], losses.values, rtol=0, atol=1e-5)
        for number, variable in enumerate(result.model.variables):
            actual = arrays[f"{norm}/{number:02d} {variable.name}"]
            np.testing.assert_allclose(actual, variable.numpy(), rtol=1e-5, atol=1e-5)


def test_only_the_chief_leaves_files(two, faults):
    output, _, _ = two
    assert {path.name for path in (output / "0").iterdir()} == {
        "checkpoints", "config.json", "history.csv", "result.json", "train", "validation",
    }  # fmt: skip
    assert not (output / "1").exists()
    _, (_, other) = faults[1]["finished"]
    assert not pathlib.Path(other["temporary"]).exists()


@pytest.fixture(scope="module")
def faults(start, two, faulty, tmp_path_factory):
    """One run, started four times; the first three parts end by a fault."""
    root = tmp_path_factory.mktemp("faults")
    each = {
        "chief killed": (0, "SIGKILL", 10),
        "worker preempted": (1, "SIGTERM", 15),
        "finished": None,
    }
    later = {name: start(root / name, {"faulty": faulty}, fault) for name, fault in each.items()}
    return root, {"worker killed": two[1:], **later}


@pytest.mark.parametrize(("name", "victim"), [("worker killed", 1), ("chief killed", 0)])
def test_who_loses_another_says_so_and_ends(faults, name, victim):
    code, noted = faults[1][name]
    assert code == 137
    survivor = noted[1 - victim]
    assert survivor["error"] == (
        f"lost contact with worker {victim}; start all workers again: they go on from the last "
        "checkpoint"
    )
    assert survivor["ended"] - noted[victim]["fault"] < 90


def test_each_part_goes_on_from_the_last_checkpoint(faults, faulty):
    for name, step in (("chief killed", 4), ("worker preempted", 8), ("finished", 15)):
        for worker in faults[1][name][1]:
            checkpoint = f"{faulty['model_dir']}/checkpoints/ckpt-{step}"
            assert worker["notices"][0] == f"going on from {checkpoint}"


def test_all_stop_in_order_when_one_is_preempted(faults):
    code, noted = faults[1]["worker preempted"]
    assert code == 0
    for worker in noted:
        assert worker["notices"][-1] == (
            "stopped by SIGTERM after step 15 of 24; the same command goes on from its checkpoint"
        )


def test_a_run_with_faults_is_one_without(two, faults):
    output, _, whole = two
    root, parts = faults
    code, resumed = parts["finished"]
    assert code == 0
    for index in range(2):
        assert resumed[index]["faulty"] == whole[index]["whole"]
        one, other = np.load(output / f"{index}.npz"), np.load(root / "finished" / f"{index}.npz")
        names = [name for name in other if name != "faulty/losses"]
        assert len(names) == 14
        for name in names:
            np.testing.assert_array_equal(other[name], one[name.replace("faulty", "whole")])
