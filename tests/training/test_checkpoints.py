"""Checkpoints on disk: whole or not there, nobody else's touched, whatever a directory's name."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import two_layers, weights
from tfnorm import models, training
from tfnorm.errors import RunError, UserError
from tfnorm.training import checkpoints
from tfnorm.training.checkpoints import Checkpoints, newest_first, steps
from tfnorm.training.optimizer import loss_scale

ROOT = pathlib.Path(__file__).parents[2]


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


@pytest.fixture
def run(small, tmp_path, notices):
    """A finished run of two epochs with three checkpoints."""
    config = small(model_dir=str(tmp_path), checkpoint_every=4)
    return config, training.train(config, notice=notices.append)


def assert_whole(config, result):
    model, loaded = training.load_model(config.model_dir, lambda text: None)
    assert loaded == config
    for a, b in zip(weights(result), model.variables):
        np.testing.assert_array_equal(a, b.numpy())


def test_the_first_checkpoint_was_cut_short(run, tmp_path, notices):
    """Of a run that was killed in it, there is nothing else to go on from: it begins anew."""
    config, result = run
    for path in (tmp_path / "checkpoints").iterdir():
        if not path.name.startswith("ckpt-8."):
            path.unlink()
    index = tmp_path / "checkpoints" / "ckpt-8.index"
    whole = index.read_bytes()
    for cut in (whole[: len(whole) // 2], b""):
        index.write_bytes(cut)
        with pytest.raises(RunError, match="none of the 1 checkpoints"):
            training.evaluate(config, notices.append)
        assert index.exists()  # Only who begins anew removes it.
    notices.clear()
    again = training.train(config, notice=notices.append)
    assert notices[0] == (
        f"the first checkpoint of a run, {tmp_path}/checkpoints/ckpt-8, was never whole: beginning "
        "anew"
    )
    assert again.steps == 12 and len(again.history) == 2
    assert_whole(config, result)
    assert steps(tmp_path / "checkpoints") == [12, 8, 4]


KILLED = """
import json, os, signal, sys
from tests.training.running import two_layers
from tfnorm import models, training

def replace_and_die(*paths, replace=os.replace):
    replace(*paths)
    if "ckpt-" in str(paths[1]):
        os.kill(os.getpid(), signal.SIGKILL)

models.build, os.replace = two_layers, replace_and_die
training.train(training.Config(**json.loads(sys.argv[1])))
"""


def test_killed_while_the_first_checkpoint_is_put_in_its_place(
    small, tmp_path, notices, monkeypatch
):
    """Its weights are there and its index is not: the run begins anew, and removes them."""
    monkeypatch.setattr(models, "build", two_layers)
    config = small(model_dir=str(tmp_path), epochs=1, checkpoint_every=4)
    command = [sys.executable, "-c", KILLED, json.dumps(config.to_dict())]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert "ckpt-4.data-00000-of-00001" in left and len(left) == 2
    assert training.train(config, notice=notices.append).steps == 6
    assert names(tmp_path / "checkpoints") == {"checkpoint", "ckpt-4", "ckpt-6"}


@pytest.mark.parametrize("content", [b"", b"\xff\x00 garbage", None])
def test_the_state_file_is_not_needed(run, tmp_path, notices, content):
    config, result = run
    state = tmp_path / "checkpoints" / "checkpoint"
    state.unlink()
    state.mkdir() if content is None else state.write_bytes(content)
    longer = dataclasses.replace(config, epochs=3)
    assert_whole(config, result)
    if content is None:  # It cannot be written either: one line, and nothing is lost.
        with pytest.raises(RunError, match="cannot write /"):
            training.train(longer, notice=notices.append)
        state.rmdir()
    assert training.train(longer, notice=notices.append).steps == 18


BROKEN = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "null": lambda text: b"null",
    "a list": lambda text: b"[1, 2]",
    "no UTF-8": lambda text: b"\xff\xfe\x00",
    "wrong types": lambda text: text.replace(b'"width": 4', b'"width": "four"'),
    "null for a number": lambda text: text.replace(b'"momentum": 0.9', b'"momentum": null'),
    "an unknown field": lambda text: text.replace(b'"width"', b'"breadth"'),
}


def test_a_broken_config_json_ends_nothing(run, tmp_path, notices):
    config, result = run
    path = tmp_path / "config.json"
    text = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + text)  # Whole, with a byte order mark.
    notices.clear()
    assert_whole(config, result)
    for name, breaks in BROKEN.items():
        broken = breaks(text)
        assert broken != text, name
        path.write_bytes(broken)
        assert_whole(config, result)
    notices.clear()
    evaluation = training.evaluate(config, notices.append)
    assert evaluation.metrics == result.metrics
    assert len(notices) == 1
    assert notices[0].startswith(f"{path} cannot be read (unknown config field breadth; known: ")
    notices.clear()
    training.train(dataclasses.replace(config, epochs=3), notice=notices.append)
    assert notices[0].startswith(f"{path} cannot be read (")
    assert notices[1:3] == [  # Each checkpoint says with what it was made.
        "this part of the run differs from the one before: epochs was 2 and is 3",
        f"going on from {tmp_path}/checkpoints/ckpt-12",
    ]
    assert training.load_model(str(tmp_path))[1].epochs == 3


def command(config, **changes):
    """The command line that trains so."""
    fields = {**config.to_dict(), **changes}
    flags = [
        f"--{name}={value}"
        for name, value in fields.items()
        if value is not None and not isinstance(value, dict)
    ]
    return [sys.executable, "-m", "tfnorm.train", *flags]


def test_two_runs_in_one_directory_and_kill_9(small, tmp_path, notices, monkeypatch):
    """The second is refused while the first lives, and takes over once it is killed."""
    monkeypatch.undo()  # The networks of the command.
    config = dataclasses.replace(
        training.Config(), width=2, train_examples=32, replica_batch_size=16, checkpoint_every=1,
        model_dir=str(tmp_path), steps=100_000, data_dir=small().data_dir,
    )  # fmt: skip
    first = subprocess.Popen(command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while len(steps(tmp_path / "checkpoints")) < 2:
            assert first.poll() is None
            time.sleep(0.1)
        before = time.time()
        with pytest.raises(UserError) as error:
            training.train(dataclasses.replace(config, seed=1), notice=notices.append)
        assert f"{tmp_path} is in use by process {first.pid} on " in str(error.value)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    assert time.time() - before < 60
    (found, *_) = steps(tmp_path / "checkpoints")
    (tmp_path / ".draft-of-a-killed-run").write_text("half")
    result = training.train(dataclasses.replace(config, steps=found + 1), notice=notices.append)
    assert result.steps == found + 1
    assert f"going on from {tmp_path}/checkpoints/ckpt-{found}" in notices
    assert not [path for path in tmp_path.rglob(".*")]


def test_nobody_reads_what_it_says(small, tmp_path, monkeypatch):
    """stdout is a pipe that was closed, as by `| head -1`; the disk of stderr's file is full."""
    config = small(model_dir=str(tmp_path / "run"), width=2, steps=8, norm="gn")
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full", "w") as full, open(write, "w") as closed:
        done = subprocess.run(command(config), stdout=closed, stderr=full, timeout=300)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 8


def test_checkpoints_of_one_precision_go_on_in_another(small, tmp_path, notices):
    def run(precision, steps):
        config = small(
            model_dir=str(tmp_path), mixed_precision=precision, steps=steps, checkpoint_every=2
        )
        return training.train(config, notice=notices.append)

    before = weights(run("mixed_float16", 2))
    for steps_, precision in enumerate(("float32", "mixed_float16", "mixed_bfloat16"), start=2):
        model, _ = training.load_model(str(tmp_path), notices.append)
        for a, b in zip(before, model.variables):
            np.testing.assert_array_equal(a, b.numpy())
        result = run(precision, 2 * steps_)
        assert result.steps == 2 * steps_ and np.isfinite(result.train_loss)
        before = weights(result)


def test_a_resumed_run_in_float16_keeps_its_loss_scale(small, tmp_path, notices):
    """Each part starts from the scale, and the count of steps, that the one before ended with."""
    scales = []

    class Scale(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            strategy_optimizer = optimizers[-1]
            scales.append(loss_scale(strategy_optimizer))

    optimizers = []
    build = training.run.Trainer._build_optimizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training.run.Trainer,
            "_build_optimizer",
            lambda self: optimizers.append(build(self)) or optimizers[-1],
        )
        config = small(model_dir=str(tmp_path), mixed_precision="mixed_float16", steps=3)
        training.train(config, [Scale()], notices.append)
        ended = loss_scale(optimizers[-1])
        training.train(dataclasses.replace(config, steps=6), [Scale()], notices.append)
    assert scales[1] == ended != scales[0]


def test_the_history_in_a_checkpoint_does_not_grow_without_bound(
    small, tmp_path, notices, monkeypatch
):
    """It keeps the last rows; those before come from history.csv, if it is there."""
    monkeypatch.setattr(checkpoints, "ROWS", 2)
    config = small(model_dir=str(tmp_path), epochs=5, train_examples=10)
    whole = training.train(config, notice=notices.append)
    kept = checkpoints.newest_progress(tmp_path / "checkpoints").history
    assert kept == whole.history[-2:] and [row["epoch"] for row in kept] == [4, 5]
    longer = training.train(dataclasses.replace(config, epochs=7), notice=notices.append)
    assert longer.history[:5] == whole.history and len(longer.history) == 7
    (tmp_path / "history.csv").write_text("epoch,step\n1,\xff\n")
    notices.clear()
    again = training.train(dataclasses.replace(config, epochs=8), notice=notices.append)
    assert [row["epoch"] for row in again.history] == [6, 7, 8]
    assert any(f"{tmp_path}/history.csv cannot be read" in notice for notice in notices)
