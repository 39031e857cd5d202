"""Probes measure what is asked, once, and are kept in the record."""

import dataclasses
import json

import numpy as np
import pytest

from tfnorm import data, training
from tfnorm.errors import UserError
from tfnorm.study import probes, running
from tfnorm.study.grid import Cell

CONFIG = training.Config(
    width=4,
    stem_stride=2,
    train_examples=96,
    replica_batch_size=8,
    virtual_replicas=4,
    steps=6,
    learning_rate=0.05,
)


def run(tmp_path, config, *names):
    """A run's record with these probes."""
    cell = Cell({"norm": config.norm}, config, names)
    return running.run_cell(cell, str(tmp_path / "model"), lambda text: None)


def test_unknown_probes_are_user_errors_that_list_the_known():
    with pytest.raises(UserError) as error:
        probes.build(["batch_statistic"], CONFIG, None)
    known = ", ".join(probes.PROBES)
    assert str(error.value) == f"unknown probe 'batch_statistic'; known: {known}"


def test_probes_enter_the_hash_of_a_cell_only_if_there_are_any():
    plain = Cell({"norm": "bn"}, training.Config())
    assert plain.hash == "c244f7a32d73"
    assert Cell({"norm": "bn"}, training.Config(), ("batch_statistics",)).hash != plain.hash


@pytest.mark.parametrize("norm", ["bn", "mabn", "bkn"])
def test_accuracy_with_batch_statistics(tmp_path, norm):

    config = dataclasses.replace(CONFIG, norm=norm)
    record = run(tmp_path, config, "batch_statistics")
    assert json.loads(json.dumps(record)) == record
    (found,) = record["probes"]["batch_statistics"].items()
    model, _ = training.load_model(str(tmp_path / "model"), notice=lambda text: None)
    dataset = data.load(config.dataset, None, config.train_examples)
    images, labels = dataset.test
    whole = len(labels) // 8 * 8
    state = [v.numpy() for v in model.variables]
    hits = []
    for start in range(0, whole, 8):
        for variable, value in zip(model.variables, state):
            variable.assign(value)
        logits = model(dataset.standardize(images[start : start + 8]), training=True)
        hits.append(np.argmax(logits, -1) == labels[start : start + 8])
    assert found == ("test_accuracy_batch_statistics", pytest.approx(np.mean(hits)))
