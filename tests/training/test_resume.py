import csv
import dataclasses
import json
import shutil
import types

import keras
import numpy as np
import pytest

from tests.training.running import AfterStep, on_replicas, weights, without_times
from tfnorm import training
from tfnorm.errors import RunError, UserError
from tfnorm.schedules import LinearRamp
from tfnorm.training import batches, checkpoints, run, run_directory


def interrupt():
    """Ends a run as Ctrl-C would."""
    raise KeyboardInterrupt


@pytest.fixture
def interrupted(small, tmp_path, notices):
    """A run with a checkpoint after every third step, ended in its second epoch after step 5."""

    def make(**changes):
        config = small(model_dir=str(tmp_path / "run"), checkpoint_every=3, epochs=3, **changes)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, [AfterStep(1, 5, interrupt)], notices.append)
        return config

    return make


@pytest.mark.parametrize("norm", ["brn", "cbn"])
def test_a_resumed_run_is_an_uninterrupted_one(interrupted, notices, norm):
    config = interrupted(norm=norm)
    resumed = training.train(config, notice=notices.append)
    whole = training.train(dataclasses.replace(config, model_dir=None), notice=notices.append)
    # Without files nothing is saved, and nothing synchronized: one device needs no synchronization.
    for a, b in zip(weights(resumed), weights(whole)):
        np.testing.assert_array_equal(a, b)
    assert without_times(resumed.history) == without_times(whole.history)
    assert resumed.steps == whole.steps == 18


def test_a_resumed_run_on_replicas_is_an_uninterrupted_one(small, tmp_path, notices):
    def config(name):
        changes = dict(norm="brn", checkpoint_every=3, model_dir=str(tmp_path / name))
        return on_replicas(small(**changes), 2)

    whole = training.train(config("whole"), notice=notices.append)
    with pytest.raises(KeyboardInterrupt):
        training.train(config("parts"), [AfterStep(1, 5, interrupt)], notices.append)
    resumed = training.train(config("parts"), notice=notices.append)
    for a, b in zip(weights(resumed), weights(whole)):
        np.testing.assert_array_equal(a, b)
    assert without_times(resumed.history) == without_times(whole.history)


def test_what_a_resumption_says(interrupted, tmp_path, notices):
    """It compares itself with what the checkpoint was made with, and not with the last attempt."""
    config = interrupted()
    other = dataclasses.replace(config, momentum=0.8)
    with pytest.raises(KeyboardInterrupt):  # Before it has a checkpoint of its own.
        training.train(other, [AfterStep(1, 4, interrupt)], notices.append)
    assert training.load_model(config.model_dir, notices.append)[1] == config
    notices.clear()
    training.train(other, notice=notices.append)
    assert notices == [
        "this part of the run differs from the one before: momentum was 0.9 and is 0.8",
        f"going on from {tmp_path}/run/checkpoints/ckpt-9",
        "resnet8 with bn on sklearn_digits: 50 images, 1 x 8 a step, steps 9 to 18, 6 an epoch; "
        "dropped in each epoch, being less than a step: 2",
    ]


class Start(keras.callbacks.Callback):
    """Notes what every replica has of each variable, before the first step."""

    def on_train_begin(self, logs=None):
        strategy = self.model.variables[0].value.distribute_strategy
        self.values = [
            [value.numpy() for value in strategy.experimental_local_results(v.value)]
            for v in self.model.variables
        ]


@pytest.mark.parametrize(("replicas", "norm"), [(1, "mabn"), (4, "brn")])
def test_a_checkpoint_of_two_replicas_goes_on_with_others(small, tmp_path, notices, replicas, norm):
    options = {"norm": norm, "model_dir": str(tmp_path / "run")}
    training.train(on_replicas(small(**options, steps=4), 2), notice=notices.append)
    saved, _ = training.load_model(options["model_dir"], notices.append)
    more = dataclasses.replace(on_replicas(small(**options), replicas), steps=6)
    start = Start()
    result = training.train(more, [start], notices.append)
    assert result.steps == 6
    assert [row["epoch"] for row in result.history] == [1]
    for variable, values in zip(saved.variables, start.values):
        for value in values:
            np.testing.assert_array_equal(value, variable.numpy())


def test_another_global_batch_goes_on_at_the_same_place(interrupted, notices):
    config = interrupted()
    result = training.train(
        dataclasses.replace(config, replica_batch_size=4), notice=notices.append
    )
    # Step 9 of batches of 8 is 24 images into the second epoch: step 12 + 6 of batches of 4.
    assert "steps 18 to 36, 12 an epoch" in notices[-1]
    assert [row["step"] for row in result.history] == [6, 24, 36]
    assert result.model is not None


def test_a_finished_run_returns_its_result(small, tmp_path, notices):
    config = small(model_dir=str(tmp_path), norm="gn")
    one = training.train(config, notice=notices.append)
    before = json.loads((tmp_path / "result.json").read_text())
    two = training.train(config, notice=notices.append)
    assert "no step left, 12 of 12 are made" in notices[-1]
    assert two.history == one.history
    assert (two.test_accuracy, two.test_loss) == (one.test_accuracy, one.test_loss)
    assert two.step_time_median == one.step_time_median > 0
    assert two.normalization_collectives == one.normalization_collectives == 0
    assert json.loads((tmp_path / "result.json").read_text()) == before
    for a, b in zip(weights(one), weights(two)):
        np.testing.assert_array_equal(a, b)


def test_other_examples_make_epochs_of_another_length(interrupted, notices):
    """After step 9, the 3rd of an epoch of 6, the 1st of one of 4; no loss counts twice."""
    config = interrupted(learning_rate=1e-6)
    before = training.train(
        dataclasses.replace(config, model_dir=None, epochs=2), notice=notices.append
    )
    result = training.train(dataclasses.replace(config, train_examples=35), notice=notices.append)
    assert "steps 9 to 12, 4 an epoch" in notices[-1]
    assert result.steps == 12
    assert result.train_loss == pytest.approx(before.train_loss, rel=0.15)


def test_fewer_examples_than_a_step_had_before(small, tmp_path, notices):
    config = small(model_dir=str(tmp_path), replica_batch_size=32, epochs=1, warmup_epochs=0)
    training.train(config, notice=notices.append, validate=False)
    changes = dict(replica_batch_size=8, train_examples=20, steps=6)
    result = training.train(dataclasses.replace(config, **changes), notice=notices.append)
    assert result.steps == 6


def test_a_checkpoint_within_the_first_epoch_that_is_the_last(small, tmp_path, notices):
    config = small(model_dir=str(tmp_path), steps=4, warmup_epochs=0.1, checkpoint_every=2)
    training.train(config, notice=notices.append)
    (tmp_path / "checkpoints" / "ckpt-4.index").unlink()  # as if killed
    result = training.train(dataclasses.replace(config, steps=2), notice=notices.append)
    assert result.steps == 2 and [row["step"] for row in result.history] == [2]
    assert result.test_loss > 0 and 0 < result.train_loss < 10


def test_a_run_that_was_trained_alone_is_evaluated_once_it_is_asked_for(small, tmp_path, notices):
    config = small(model_dir=str(tmp_path))
    first = training.train(config, notice=notices.append, validate=False)
    assert first.test_loss is None
    second = training.train(config, notice=notices.append)
    found = training.evaluate(config)
    assert (second.test_loss, second.metrics) == (found.loss, found.metrics)
    assert "val_loss" in (tmp_path / "history.csv").read_text()


@pytest.mark.parametrize("changes", [{"train_examples": 0}, {"train_split": "train[:100]"}])
def test_an_evaluation_standardizes_as_the_training_did(small, tmp_path, notices, changes):
    config = small(model_dir=str(tmp_path))
    result = training.train(config, notice=notices.append)
    found = training.evaluate(dataclasses.replace(config, **changes))
    assert found.loss == pytest.approx(result.test_loss, rel=1e-6)


@pytest.mark.parametrize("steps, is_told", [(5, True), (6, False)])
def test_a_warm_up_that_is_longer_than_the_run_is_told(small, notices, steps, is_told):
    training.train(small(steps=steps), notice=notices.append, validate=False)
    told = (
        f"the learning rate would rise until step 6, and the run ends after {steps}; choose a "
        "shorter --warmup_epochs"
    )
    assert (told in notices) is is_told


@pytest.mark.parametrize("broken", ["data-00000-of-00001", "index"])
def test_a_truncated_checkpoint_is_passed_over(interrupted, tmp_path, notices, broken):
    config = interrupted()
    whole = training.train(dataclasses.replace(config, model_dir=None), notice=notices.append)
    path = tmp_path / "run" / "checkpoints" / f"ckpt-9.{broken}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "run" / "checkpoints" / "checkpoint").write_text("garbage")
    notices.clear()
    result = training.train(config, notice=notices.append)
    assert notices[0].startswith(f"checkpoint {tmp_path}/run/checkpoints/ckpt-9 cannot be read (")
    assert notices[0].endswith("); trying the one before")
    assert notices[1] == f"going on from {tmp_path}/run/checkpoints/ckpt-6"
    for a, b in zip(weights(result), weights(whole)):
        np.testing.assert_array_equal(a, b)


def test_no_checkpoint_can_be_read(interrupted, tmp_path, notices):
    config = interrupted()
    for path in (tmp_path / "run" / "checkpoints").glob("*.data*"):
        path.write_bytes(b"")
    with pytest.raises(RunError) as error:
        training.train(config, notice=notices.append)
    assert str(error.value) == (
        f"none of the 3 checkpoints in {tmp_path}/run/checkpoints can be read; "
        "to start anew choose another --model_dir, or remove it"
    )


def test_another_architecture(small, tmp_path, notices):
    training.train(small(model_dir=str(tmp_path)), notice=notices.append)
    changed = small(model_dir=str(tmp_path), norm="gn", width=8, freeze="norm")
    with pytest.raises(UserError) as error:
        training.train(changed, notice=notices.append)
    # What the optimizer and the averages keep is numbered by the weights that are trained.
    assert str(error.value) == (
        f"model_dir {tmp_path} holds a run of another architecture: width was 4 and is 8, norm was "
        "bn and is gn, freeze was None and is norm; give the flags it was trained with, or another "
        "--model_dir"
    )


def test_options_of_a_norm_are_told_as_they_are_given(small, tmp_path, notices):
    ramp = LinearRamp(1.0, 3.0, 2, 10)
    saved = small(model_dir=str(tmp_path), norm="brn", norm_options={"r_max": ramp})
    training.train(saved, notice=notices.append)
    with pytest.raises(UserError) as error:
        training.train(dataclasses.replace(saved, norm_options={}), notice=notices.append)
    assert "norm_options was r_max=ramp(1,3,2,10) and is empty; give" in str(error.value)


def test_another_architecture_where_config_json_is_lost(small, tmp_path, notices):
    training.train(small(model_dir=str(tmp_path)), notice=notices.append)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError) as error:
        training.train(small(model_dir=str(tmp_path), width=8), notice=notices.append)
    assert str(error.value) == (
        f"model_dir {tmp_path} holds a run of another architecture: width was 4 and is 8; give the "
        "flags it was trained with, or another --model_dir"
    )


def test_another_optimizer(small, tmp_path, notices):
    """What one keeps of a weight is not what another calls so, even where shapes agree."""
    training.train(small(model_dir=str(tmp_path)), notice=notices.append)
    for changes, told in (
        ({"momentum": 0.0}, "momentum was 0.9 and is 0.0"),
        ({"optimizer": "adamw"}, "optimizer was momentum and is adamw"),
        (
            {"optimizer": "rmsprop", "momentum": 0.0},
            "optimizer was momentum and is rmsprop, momentum was 0.9 and is 0.0",
        ),
    ):
        with pytest.raises(UserError) as error:
            training.train(small(model_dir=str(tmp_path), **changes), notice=notices.append)
        assert str(error.value) == (
            f"model_dir {tmp_path} holds a run whose optimizer keeps other things of the weights: "
            f"{told}; give the flags it was trained with, or another --model_dir"
        )
        training.evaluate(small(model_dir=str(tmp_path), **changes), notice=notices.append)
    changed = small(model_dir=str(tmp_path), momentum=0.8, epochs=3)
    assert training.train(changed, notice=notices.append).steps == 18


def test_a_checkpoint_of_another_optimizer(small, tmp_path, notices, monkeypatch):
    """Of which no configuration tells."""
    training.train(small(model_dir=str(tmp_path), momentum=0.0), notice=notices.append)
    monkeypatch.setattr(run_directory, "_check_optimizer", lambda *args: None)
    with pytest.raises(UserError) as error:
        training.train(small(model_dir=str(tmp_path)), notice=notices.append)
    message = str(error.value)
    assert message.startswith(
        f"checkpoint {tmp_path}/checkpoints/ckpt-12 is of another network or optimizer ("
    )
    assert message.endswith("); give the flags it was trained with, or another --model_dir")
    assert "\n" not in message


def test_a_refused_run_leaves_what_is_there(small, tmp_path, notices, monkeypatch):
    """Also where the mistake is found when examples are to be read."""
    config = small(model_dir=str(tmp_path / "run"))
    training.train(config, notice=notices.append)
    before = contents(tmp_path / "run")

    def refuse(*args, **kwargs):
        raise UserError("such images cannot be augmented so")

    monkeypatch.setattr(batches, "of_epoch", refuse)
    for directory in ("run", "other"):
        changed = small(model_dir=str(tmp_path / directory), epochs=3, augment="none")
        with pytest.raises(UserError, match="cannot be augmented"):
            training.train(changed, notice=notices.append)
    assert contents(tmp_path / "run") == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def contents(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory): path.read_bytes() for path in files}


def test_more_examples_make_longer_epochs(small, tmp_path, notices):
    """What was written of the shorter ones stays, and their steps count as what they were."""
    config = small(train_examples=16)
    for epochs, examples, expected in (
        (3, 80, [(1, 2), (2, 4), (3, 6), (1, 10), (2, 20)]),
        (1, 80, [(1, 2), (1, 10), (2, 20)]),
        (2, 32, [(1, 2), (2, 4), (2, 8)]),
    ):
        directory = tmp_path / f"{epochs}-{examples}"
        config = dataclasses.replace(config, model_dir=str(directory), epochs=epochs)
        training.train(config, notice=notices.append, validate=False)
        longer = dataclasses.replace(config, train_examples=examples, epochs=2)
        result = training.train(longer, notice=notices.append, validate=False)
        assert [(row["epoch"], row["step"]) for row in result.history] == expected
        with open(directory / "history.csv") as file:
            rows = [(int(row["epoch"]), int(row["step"])) for row in csv.DictReader(file)]
        assert rows == expected
    trainer = types.SimpleNamespace(global_batch_size=8, steps_per_epoch=10)
    progress = checkpoints.Progress(
        step=6, global_batch_size=8, steps_per_epoch=2, loss_sum=3.0, sums=[5.0, 16.0]
    )
    run._count_in_epochs_of_now(progress, trainer)
    assert (progress.step, progress.loss_sum, progress.sums) == (6, 9.0, [15.0, 48.0])


def test_larger_steps_see_the_same_examples():
    trainer = types.SimpleNamespace(
        global_batch_size=16, steps_per_epoch=5, set_step=lambda step: None
    )
    progress = checkpoints.Progress(
        step=4, global_batch_size=8, steps_per_epoch=10, loss_sum=6.0, sums=[16.0, 32.0]
    )
    run._count_in_epochs_of_now(progress, trainer)
    assert (progress.step, progress.loss_sum, progress.sums) == (2, 3.0, [16.0, 32.0])


def test_a_run_that_must_not_be_resumed(small, tmp_path, notices):
    training.train(small(model_dir=str(tmp_path)), notice=notices.append)
    with pytest.raises(UserError) as error:
        training.train(small(model_dir=str(tmp_path), resume=False), notice=notices.append)
    assert str(error.value) == (
        f"model_dir {tmp_path} holds a run (ckpt-12) and resume is off; "
        "choose another --model_dir, remove it, or resume"
    )


def test_weights_that_are_gone_stop_no_run_that_has_its_own(data_dir, tmp_path, notices):
    first = training.Config(
        data_dir=data_dir, train_examples=50, replica_batch_size=8, epochs=1, steps=2,
        model_dir=str(tmp_path / "first"),
    )  # fmt: skip
    training.train(first, notice=notices.append, validate=False)
    second = dataclasses.replace(
        first, weights=str(tmp_path / "first"), model_dir=str(tmp_path / "second"),
    )  # fmt: skip
    training.train(second, notice=notices.append, validate=False)
    shutil.rmtree(tmp_path / "first")
    longer = dataclasses.replace(second, steps=4)
    assert training.train(longer, notice=notices.append, validate=False).steps == 4
    with pytest.raises(UserError, match="first' is not there; give"):
        training.train(
            dataclasses.replace(longer, model_dir=str(tmp_path / "third")), [], notices.append
        )
