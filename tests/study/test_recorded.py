"""What was recorded stays found: a change of the configuration must not change old runs' hashes."""

import json
import pathlib
import types

import pytest

from tfnorm import tasks, training
from tfnorm.study import grids
from tfnorm.study.results import Results

RESULTS = pathlib.Path(__file__).parents[2] / "results"
FOLDERS = sorted(path.parent.name for path in RESULTS.glob("*/results.jsonl"))
FASHION_MNIST = 60_000


@pytest.fixture
def fashion_mnist(monkeypatch):
    """Grids of epochs ask the data set how many steps one has, and need nothing else of it."""

    def load(config):
        images = config.train_examples or FASHION_MNIST
        return types.SimpleNamespace(dataset=types.SimpleNamespace(num_train=images))

    monkeypatch.setattr(tasks, "load", load)


def hashes(name):
    study = grids.STUDIES[name]
    base = training.Config(**{**study.defaults, "distribution_strategy": "mirrored"})
    return {cell.hash for cell in study.build(study.norms, [0, 1], base).cells}


def test_every_study_is_guarded():
    assert {"study", "micro-batches", "segmentation", "detection", "instances"} <= {*FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_record_is_found_by_its_grid(fashion_mnist, folder):
    path = RESULTS / folder / "results.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) > 20
    found = {name: hashes(name) for name in {record["grid"] for record in records}}
    lost = [(r["grid"], r["hash"]) for r in records if r["hash"] not in found[r["grid"]]]
    assert not lost
    assert all(Results(path).get(record["hash"]) for record in records)
