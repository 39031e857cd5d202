"""Dense prediction by two real workers of two replicas: the numbers of four replicas of a process.

Of detection with accumulation, the same rows and precision too.

As a program it is one of the workers: python -m tests.training.test_dense_workers DIRECTORY.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np
import pytest

from tests.models.test_dense import tiny
from tfnorm import models, training
from tfnorm.models import registry
from tfnorm.tasks.average_precision import AveragePrecision
from tfnorm.training import local_cluster

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = 5  # Of the test split: neither the workers nor their batches have equally many.
RUNS = {
    "detection": {
        "accumulate_steps": 2,
        "model_options": {
            "min_level": 2, "max_level": 2, "head_width": 16, "head_convolutions": 1,
        },
    },
    "segmentation": {"model": "unet", "model_options": {"head_width": 16}},
}  # fmt: skip


class FindMore(keras.callbacks.Callback):
    """A bias with which a network that has not learnt finds boxes of several classes."""

    def on_train_begin(self, logs=None):
        rng = np.random.default_rng(0)
        for variable in self.model.variables:
            if "class" in variable.path and variable.path.endswith("predictions/bias"):
                variable.assign(rng.normal(-2, 1, variable.shape))


def run(directory, task, **distribution):
    """What a run of two steps comes to, and what each evaluation was made of."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BACKBONES, "tiny", models.Backbone(tiny))
        config = training.Config(
            task=task, backbone="tiny", norm="bn", **RUNS[task],
            data_dir=str(directory / "data"), train_examples=16, test_split=f"test[:{EXAMPLES}]",
            replica_batch_size=1, steps=2, learning_rate=0.01, warmup_epochs=0.0,
            evaluation_batch_size=1, image_size="64,64", seed=3, **distribution,
        )  # fmt: skip
        results = AveragePrecision.results
        noted = lambda self, rows: seen.append(rows) or results(self, rows)  # noqa: E731
        patch.setattr(AveragePrecision, "results", noted)
        result = training.train(config, [FindMore()], lambda text: None)
    return {
        "rows": seen,
        "metrics": result.metrics,
        "losses": [result.train_loss, result.test_loss],
        "weights": [v.numpy().tolist() for v in result.model.variables],
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The directory where the data is, and the runs of one process with four replicas."""
    directory = tmp_path_factory.mktemp("dense")
    distribution = {"distribution_strategy": "mirrored", "num_replicas": 4}
    return directory, {task: run(directory, task, **distribution) for task in RUNS}


@pytest.fixture(scope="module")
def two(one):
    """What each of two workers found."""
    directory, _ = one
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        program = [sys.executable, "-m", __name__, str(directory)]
        assert local_cluster.run(2, program) == 0
    return [json.loads((directory / f"{index}.json").read_text()) for index in range(2)]


@pytest.mark.parametrize("task", RUNS)
def test_two_workers_are_one_process_with_as_many_replicas(task, one, two):
    expected = one[1][task]
    for found in (worker[task] for worker in two):
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        for name, value in expected["metrics"].items():
            np.testing.assert_allclose(found["metrics"][name], value, atol=1e-6)
        for a, b in zip(found["weights"], expected["weights"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_example_is_found_once(one, two):
    (rows,) = one[1]["detection"]["rows"]
    assert len(rows) == EXAMPLES and sum(len(row["scores"]) for row in rows) > EXAMPLES
    for worker in two:
        (own,) = worker["detection"]["rows"]
        assert len(own) == EXAMPLES
        for a, b in zip(own, rows):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    place = pathlib.Path(sys.argv[1])
    own = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    distribution = {"distribution_strategy": "multi_worker_mirrored", "num_replicas": 2}
    came_to = {task: run(place, task, **distribution) for task in RUNS}
    (place / f"{own}.json").write_text(json.dumps(came_to))
