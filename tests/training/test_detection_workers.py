"""Detection by two real workers, with accumulation: the same rows, precision and weights as one.

As a program it is one of the workers: python -m tests.training.test_detection_workers DIRECTORY.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np
import pytest

from tfnorm import training
from tfnorm.tasks.average_precision import AveragePrecision
from tfnorm.training import local_cluster

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = 5  # Of the test split: neither the workers nor their batches have equally many.


class FindMore(keras.callbacks.Callback):
    """A bias with which a network that has not learnt finds boxes of several classes."""

    def on_train_begin(self, logs=None):
        rng = np.random.default_rng(0)
        for variable in self.model.variables:
            if "class" in variable.path and variable.path.endswith("predictions/bias"):
                variable.assign(rng.normal(-2, 1, variable.shape))


def run(directory, **distribution):
    """What a run of two steps comes to, and what each evaluation was made of."""
    config = training.Config(
        task="detection", backbone="resnet8", width=16, norm="bn",
        model_options={"min_level": 2, "max_level": 3, "head_width": 16, "head_convolutions": 1},
        data_dir=str(directory / "data"), train_examples=8, test_split=f"test[:{EXAMPLES}]",
        replica_batch_size=1, accumulate_steps=2, steps=2, learning_rate=0.01, warmup_epochs=0.0,
        evaluation_batch_size=2, image_size="64,64", seed=3, **distribution,
    )  # fmt: skip
    seen = []
    with pytest.MonkeyPatch.context() as patch:
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
    """One process with two replicas; and its directory, where the data is."""
    directory = tmp_path_factory.mktemp("detection")
    return directory, run(directory, distribution_strategy="mirrored", num_replicas=2)


def test_two_workers_are_one_process_with_two_replicas(one, monkeypatch):
    directory, expected = one
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert local_cluster.run(2, [sys.executable, "-m", __name__, str(directory)]) == 0
    (rows,) = expected["rows"]
    assert len(rows) == EXAMPLES and sum(len(row["scores"]) for row in rows) > EXAMPLES
    for index in range(2):
        found = json.loads((directory / f"{index}.json").read_text())
        (own,) = found["rows"]
        assert len(own) == EXAMPLES
        for a, b in zip(own, rows):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-3)
        for name, value in expected["metrics"].items():
            np.testing.assert_allclose(found["metrics"][name], value, atol=1e-6)
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        for a, b in zip(found["weights"], expected["weights"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    place = pathlib.Path(sys.argv[1])
    own = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    came_to = run(place, distribution_strategy="multi_worker_mirrored")
    (place / f"{own}.json").write_text(json.dumps(came_to))
