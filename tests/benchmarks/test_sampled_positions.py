"""What benchmarks.sampled_positions compares: the same steps under several compensations."""

import json

import keras
import numpy as np
import pytest

from benchmarks import sampled_positions
from tests.training.running import two_layers
from tfnorm import models
from tfnorm.layers import CrossIterationBatchNormalization

_SMALL = {
    "all positions": {},
    "2 positions": {"sampled_positions": 2},
    "naive": {"compensate": False},
}


def test_the_others_see_what_it_sees(rng, monkeypatch):
    """Each is the layer of its setting alone; none has a part in the outputs."""
    monkeypatch.setattr(sampled_positions, "SETTINGS", _SMALL)
    dense = keras.layers.Dense(3, use_bias=False)
    compared = sampled_positions.ComparedCrossIteration(dense, window=3)
    alone = [
        CrossIterationBatchNormalization(dense, window=3, momentum=0.0, **options)
        for options in _SMALL.values()
    ]
    for _ in range(4):
        x = rng.normal(1, 2, (20, 4)).astype("float32")
        y, wanted, *_ = (layer(x, training=True) for layer in (compared, *alone))
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
        dense.kernel.assign_add(rng.normal(0, 0.2, dense.kernel.shape))
    deviations = [np.sqrt(layer.moving_variance.numpy() + layer.epsilon) for layer in alone]
    wanted = np.stack(deviations[1:]) / deviations[0] - 1
    np.testing.assert_allclose(compared.errors(), wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(wanted).min() > 1e-5
    assert len(compared.trainable_variables) == 3  # γ, β and the kernel: the others have none.


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(models, "build", two_layers)
    monkeypatch.setattr(sampled_positions, "SETTINGS", _SMALL)
    monkeypatch.setattr(sampled_positions, "_LOOP", 4)
    monkeypatch.setattr(sampled_positions, "_WINDOW", 3)
    replace = sampled_positions.dataclasses.replace
    fields = {
        "dataset": "sklearn_digits", "model": "resnet8", "width": 4, "stem_stride": 1,
        "train_examples": 160,
    }  # fmt: skip
    for name in ("config", "config_of_estimate"):
        make = getattr(sampled_positions, name)
        monkeypatch.setattr(
            sampled_positions, name, lambda *args, make=make, **given: replace(
                make(*args, **given), **fields
            ),
        )  # fmt: skip


def test_a_run_is_measured(small, tmp_path, capsys):
    path = tmp_path / "found.jsonl"
    command = ["sampled_positions", "--parts=estimate,classification", "--settings=2 positions"]
    assert sampled_positions.main([*command, "--seeds=3", "--steps=8", f"--output={path}"]) == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    estimates = {r["setting"]: r["error"] for r in records if r["part"] == "estimate"}
    assert list(estimates) == ["2 positions", "naive"] and min(estimates.values()) > 0
    (found,) = [r for r in records if r["part"] == "classification"]
    assert found["setting"] == "2 positions" and found["seed"] == 3 and found["steps"] == 8
    assert 0 <= found["accuracy"] <= 1
    assert "classification: accuracy, mean over seeds (range)" in capsys.readouterr().out


def test_runs_differ_in_their_setting_alone():
    found = {
        (part, name): sampled_positions.config(part, name, 2, 40)
        for part in ("classification", "segmentation")
        for name in ("all positions", "8 positions")
    }
    for (part, name), run in found.items():
        assert run.seed == 2 and run.virtual_replicas > 1
        options = dict(run.norm_options)
        assert options.pop("sampled_positions", None) == (8 if name == "8 positions" else None)
        assert options == found[part, "all positions"].norm_options
