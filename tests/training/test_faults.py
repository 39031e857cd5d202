"""What ends a run of one process: SIGTERM and a full disk, both real, and how it goes on."""

import dataclasses
import os
import signal
import subprocess

import keras
import numpy as np
import pytest

from tests.training.running import AfterStep, on_replicas, two_layers, weights, without_times
from tfnorm import models, tasks, train, training
from tfnorm.errors import RunError
from tfnorm.training import checkpoints
from tfnorm.training.trainer import Trainer


def sigterm():
    """Sends the signal to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


BRN = {"momentum": 0.8, "r_max": 3.0, "d_max": 5.0}  # Where it consults its moving values.
MABN = {"momentum": 0.8, "window": 3, "warmup_steps": 2, "correction_start_step": 3}


def preempted(config, notices, epoch, step):
    with pytest.raises(SystemExit) as stop:
        training.train(config, [AfterStep(epoch, step, sigterm)], notices.append)
    assert stop.value.code == 0
    return notices[-1]


@pytest.mark.parametrize(
    ("replicas", "norm", "options"),
    [
        (1, "cbn", {"window": 3}),
        (2, "brn", BRN),
        (2, "mabn", MABN),
    ],
)
def test_a_preempted_run_is_an_uninterrupted_one(
    small, tmp_path, notices, monkeypatch, replicas, norm, options
):
    monkeypatch.setattr(models, "build", two_layers)

    def config(name):
        made = small(
            norm=norm, norm_options=options, steps_per_loop=2, model_dir=str(tmp_path / name)
        )
        return made if replicas == 1 else on_replicas(made, replicas)

    whole = training.train(config("whole"), notice=notices.append)
    said = preempted(config("parts"), notices, 1, 1)  # The first of a loop of two.
    assert said == (
        "stopped by SIGTERM after step 8 of 12; the same command goes on from its checkpoint"
    )
    (newest, *_) = checkpoints.newest_first(tmp_path / "parts" / "checkpoints")
    assert newest.endswith("ckpt-8")
    resumed = training.train(config("parts"), notice=notices.append)
    for a, b in zip(weights(resumed), weights(whole)):
        np.testing.assert_array_equal(a, b)
    assert without_times(resumed.history) == without_times(whole.history)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(("evaluation", "step"), [(0, 6), (1, 12)], ids=["first", "last"])
def test_sigterm_ends_an_evaluation_which_is_made_anew(
    small, tmp_path, notices, monkeypatch, evaluation, step, replicas
):
    config = small(norm="bn", ema_decay=0.9, model_dir=str(tmp_path / "whole"))
    if replicas > 1:  # no checkpoint is due where an epoch ends
        config = dataclasses.replace(on_replicas(config, replicas), checkpoint_every=5)
    whole = training.train(config, notice=notices.append)
    evaluate, calls = Trainer._evaluate, []

    def evaluated(self, *args):
        calls.append(self)
        if len(calls) != evaluation + 1:
            return evaluate(self, *args)
        sigterm()
        sigterm()
        evaluate(self, *args)
        pytest.fail("it goes on")

    config = dataclasses.replace(config, model_dir=str(tmp_path / "run"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Trainer, "_evaluate", evaluated)
        training.train(config, [], notices.append)
    assert stop.value.code == 0
    assert notices[-1].startswith(f"stopped by SIGTERM after step {step} of 12; the same command")
    for expected in ([0, 1][evaluation:], []):
        ended = []
        note = keras.callbacks.LambdaCallback(on_epoch_end=lambda n, logs, to=ended: to.append(n))
        resumed = training.train(config, [note], notices.append)
        assert ended == expected
        for a, b in zip(weights(resumed), weights(whole), strict=True):
            np.testing.assert_array_equal(a, b)
        assert without_times(resumed.history) == without_times(whole.history)
    monkeypatch.setattr(Trainer, "_evaluate", lambda *args: pytest.fail("it is there already"))
    assert training.train(config, [], notices.append).test_loss == whole.test_loss
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(rows) == 3 and all(value for row in rows for value in row.split(","))


def test_sigterm_before_the_first_step_ends_at_once(small, tmp_path, notices, monkeypatch):
    def load(config):
        sigterm()
        pytest.fail("it goes on")

    monkeypatch.setattr(tasks, "load", load)
    with pytest.raises(SystemExit) as stop:
        training.train(small(model_dir=str(tmp_path / "run")), [], notices.append)
    assert stop.value.code == 0
    assert notices == ["stopped by SIGTERM before a step of this part; give the same command again"]
    assert not (tmp_path / "run").exists()


def test_a_preempted_run_goes_on_with_another_number_of_replicas(small, tmp_path, notices):
    """Then each starts from the mean of those before."""
    config = small(norm="bn", model_dir=str(tmp_path))
    preempted(on_replicas(config, 4), notices, 0, 1)
    model, _ = training.load_model(str(tmp_path), notices.append)
    means = []

    class Note(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            means.extend(v.numpy() for v in self.model.variables if v.name == "moving_mean")

    assert training.train(on_replicas(config, 2), [Note()], notices.append).steps == 12
    (expected,) = [v.numpy() for v in model.variables if v.name == "moving_mean"]
    np.testing.assert_allclose(means, [expected], rtol=1e-6)


def test_preempted_in_the_last_step_of_an_epoch(small, tmp_path, notices):
    """The epoch is evaluated and has its row; its checkpoint is the ordinary one."""
    config = small(model_dir=str(tmp_path))
    assert preempted(config, notices, 0, 6).startswith("stopped by SIGTERM after step 6 of 12")
    assert [row["step"] for row in training.train(config, notice=notices.append).history] == [6, 12]


def test_preempted_in_the_last_step_of_all(small, tmp_path, notices):
    config = small(model_dir=str(tmp_path))
    assert preempted(config, notices, 1, 6).startswith("stopped by SIGTERM after step 12 of 12")
    result = training.train(config, [], notices.append)
    assert result.steps == 12 and "val_loss" in result.history[-1]


def test_sigterm_is_as_before_after_a_run(small, tmp_path, notices):
    before = signal.getsignal(signal.SIGTERM)
    preempted(small(model_dir=str(tmp_path)), notices, 0, 1)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many KiB; called again, it changes its size."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = []

    def size(kibibytes):
        options = f"{'remount,' if mounted else ''}size={kibibytes}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tfnorm-test", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield size
    if mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk(small, small_disk, tmp_path, notices, capsys, data_dir):
    config = small(model_dir=str(small_disk(100_000)), checkpoint_every=3, width=32)
    config = dataclasses.replace(config, epochs=3)
    whole = training.train(dataclasses.replace(config, model_dir=None), notice=notices.append)
    directory = tmp_path / "disk" / "checkpoints"

    class Fill(keras.callbacks.Callback):
        """Leaves room for half a checkpoint, when the first three are there."""

        def on_train_batch_end(self, batch, logs=None):
            found = checkpoints.newest_first(directory)
            if found and found[0].endswith("ckpt-9"):
                size = sum(path.stat().st_size for path in directory.glob("ckpt-9*"))
                free = os.statvfs(directory)
                room = free.f_bavail * free.f_frsize - size // 2
                (tmp_path / "disk" / "ballast").write_bytes(bytes(max(room, 0)))

    with pytest.raises(RunError) as error:
        training.train(config, [Fill()], notices.append)
    message = str(error.value)
    assert message.startswith(f"cannot write the checkpoint of step 12 to {directory} (")
    assert "No space left on device" in message
    assert message.endswith("); the ones before it are untouched")
    assert checkpoints.newest_first(directory)[0].endswith("ckpt-9")
    names = {path.name.partition(".")[0] for path in directory.iterdir()}
    assert names == {"checkpoint", "ckpt-3", "ckpt-6", "ckpt-9"}

    (tmp_path / "disk" / "ballast").unlink()
    notices.clear()
    resumed = training.train(config, notice=notices.append)
    assert notices[0] == f"going on from {directory}/ckpt-9"
    for a, b in zip(weights(resumed), weights(whole)):
        np.testing.assert_array_equal(a, b)


def test_a_disk_that_is_full_from_the_first(small_disk, data_dir, capsys):
    """As the command: one line, exit code 1."""
    path = small_disk(64)
    code = train.main(
        ["train", "--steps=1", f"--data_dir={data_dir}", f"--model_dir={path}", "--width=16"]
    )
    assert code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("tfnorm: error: cannot write ")
    assert "No space left on device" in lines[-1]
