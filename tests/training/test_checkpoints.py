"""Checkpoints on disk: whole or not there, nobody else's touched, whatever a directory's name."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import weights
from tfnorm import training
from tfnorm.training.checkpoints import Checkpoints, newest_first, steps


@pytest.fixture
def variable(rng):
    return tf.Variable(rng.normal(size=5))


def names(directory: pathlib.Path) -> set[str]:
    return {path.name.partition(".")[0] for path in directory.iterdir()}


@pytest.mark.parametrize("name", ["lr[1]", "lr*", "lr?", "a\\b", "lr=[0.1,2]"])
def test_a_directory_whose_name_is_a_pattern(tmp_path, variable, rng, notices, name):
    """Nothing outside is touched, three are kept, and they can be read."""
    beside = tmp_path / "lr1"
    other = tf.train.Checkpoint(variable=variable)
    for step in range(4):
        other.write(str(beside / f"ckpt-{step}"))
    before = {path: path.read_bytes() for path in beside.iterdir()}
    saved = Checkpoints(tmp_path / name, variable=variable)
    for step in range(1, 6):
        variable.assign(rng.normal(size=5))
        saved.save(step)
    assert names(tmp_path / name) == {"checkpoint", "ckpt-3", "ckpt-4", "ckpt-5"}
    assert {path: path.read_bytes() for path in beside.iterdir()} == before
    expected = variable.numpy()
    variable.assign(rng.normal(size=5))
    again = Checkpoints(tmp_path / name, variable=variable)
    assert again.restore(notices.append) == str(tmp_path / name / "ckpt-5")
    np.testing.assert_array_equal(variable.numpy(), expected)


def test_a_run_in_a_directory_whose_name_is_a_pattern(small, tmp_path, notices):
    one = training.train(small(model_dir=str(tmp_path / "lr1")), notice=notices.append)
    config = small(model_dir=str(tmp_path / "lr[1]"), checkpoint_every=1, epochs=1)
    training.train(config, notice=notices.append)
    longer = dataclasses.replace(config, epochs=2)
    two = training.train(longer, notice=notices.append)
    for a, b in zip(weights(one), weights(two)):
        np.testing.assert_array_equal(a, b)
    for path in ("lr1", "lr[1]"):
        model, _ = training.load_model(str(tmp_path / path), notices.append)
        for a, b in zip(weights(one), model.variables):
            np.testing.assert_array_equal(a, b.numpy())


def test_results_without_a_checkpoint(small, tmp_path, notices):
    config = small(model_dir=str(tmp_path), epochs=1)
    training.train(config, notice=notices.append)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    notices.clear()
    training.train(config, notice=notices.append)
    assert notices[0] == (
        f"model_dir {tmp_path} holds the results of a run (history.csv, result.json) but no "
        "checkpoint: beginning anew at step 0, which replaces them"
    )


def test_the_state_file_is_what_tensorflow_looks_for(tmp_path, variable):
    saved = Checkpoints(tmp_path, variable=variable)
    for step in (3, 10):
        saved.save(step)
    assert tf.train.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-10")
    state = tf.train.get_checkpoint_state(str(tmp_path))
    assert list(state.all_model_checkpoint_paths) == [
        str(tmp_path / f"ckpt-{step}") for step in (3, 10)
    ]


def test_what_is_kept_goes_by_step_and_not_by_time(tmp_path, variable, notices):
    """A clock that was set back, and checkpoints of a future that this run does not have."""
    saved = Checkpoints(tmp_path, variable=variable)
    for step in (2, 4, 6, 8):
        saved.save(step)
    for path in tmp_path.iterdir():
        os.utime(path, (2e9, 2e9))
    (tmp_path / "ckpt-8.data-00000-of-00001").write_bytes(b"")
    again = Checkpoints(tmp_path, variable=variable)
    assert again.restore(notices.append) == str(tmp_path / "ckpt-6")
    again.save(7)
    assert steps(tmp_path) == [7, 6, 4]


def test_an_unreadable_checkpoint_goes_with_the_next_that_is_saved(tmp_path, variable, notices):
    saved = Checkpoints(tmp_path, variable=variable)
    for step in (2, 4, 6):
        saved.save(step)
    (tmp_path / "ckpt-6.index").write_bytes(b"")
    again = Checkpoints(tmp_path, variable=variable)
    assert again.restore(notices.append) == str(tmp_path / "ckpt-4")
    assert steps(tmp_path) == [6, 4, 2]
    again.save(9)
    assert steps(tmp_path) == [9, 4, 2]


def test_workers_that_do_not_keep_theirs_write_nothing(tmp_path, variable):
    Checkpoints(tmp_path / "run", keep=False, variable=variable).save(1)
    assert newest_first(tmp_path / "run") == [] and not list(tmp_path.iterdir())
    assert not tf.io.gfile.glob("ram://tfnorm*/*")
