import csv
import dataclasses
import gc
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

from tests.training.running import on_replicas, weights, without_times
from tfnorm import training
from tfnorm.errors import RunError, UserError
from tfnorm.training import checkpoints, run_directory


def test_the_same_configuration_gives_the_same_bits(small, tmp_path, notices):
    config = on_replicas(small(norm="brn"), 2)
    one = training.train(config, notice=notices.append)
    np.random.default_rng().random()
    two = training.train(config, notice=notices.append)
    other = training.train(dataclasses.replace(config, seed=1), notice=notices.append)
    for a, b in zip(weights(one), weights(two)):
        np.testing.assert_array_equal(a, b)
    assert without_times(one.history) == without_times(two.history)
    assert any(np.any(a != b) for a, b in zip(weights(one), weights(other)))


def test_files_of_a_run(small, tmp_path, notices):
    config = small(model_dir=str(tmp_path / "new" / "run"), norm_options={"momentum": 0.9})
    result = training.train(config, notice=notices.append)
    root = tmp_path / "new" / "run"
    assert {path.name for path in root.iterdir()} == {
        "checkpoints", "config.json", "history.csv", "result.json", "train", "validation",
    }  # fmt: skip
    assert training.Config.from_dict(json.loads((root / "config.json").read_text())) == config
    assert json.loads((root / "result.json").read_text()) == result.to_dict()
    rows = list(csv.DictReader((root / "history.csv").open()))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == result.history
    assert result.history[1]["step"] == result.steps == 12
    assert result.params == 9 * 4 + 2 * 4 + 4 * 10 + 10


def test_scalars_for_tensorboard(small, tmp_path, notices):
    result = training.train(small(model_dir=str(tmp_path)), notice=notices.append)
    found = {}
    for name in ("train", "validation"):
        (path,) = (tmp_path / name).iterdir()
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                scalar = float(tf.make_ndarray(value.tensor))
                found.setdefault(f"{name}/{value.tag}", []).append((event.step, scalar))
    keys = {
        "train/loss": "loss",
        "train/accuracy": "accuracy",
        "train/learning_rate": "learning_rate",
        "validation/loss": "val_loss",
        "validation/accuracy": "val_accuracy",
    }
    assert set(found) == set(keys)
    for tag, key in keys.items():
        expected = [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in result.history]
        assert found[tag] == expected


def test_nothing_is_written_without_a_model_dir(small, tmp_path, notices, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert training.train(small(), notice=notices.append).model_dir is None
    assert not list(tmp_path.iterdir())


def test_steps_take_the_place_of_epochs(small, notices):
    result = training.train(small(steps=8), notice=notices.append)
    assert [row["step"] for row in result.history] == [6, 8]


def test_without_validation(small, notices):
    result = training.train(small(), notice=notices.append, validate=False)
    assert "val_loss" not in result.history[0]
    assert result.test_accuracy is None


def test_validation_at_the_end_alone(small, notices):
    config = small(steps=8)  # The last epoch is not whole.
    result = training.train(config, notice=notices.append, validate="at_end")
    assert ["val_loss" in row for row in result.history] == [False, True]
    every = training.train(config, notice=notices.append)
    assert result.metrics == every.metrics and result.test_loss == every.test_loss


class StopAfterTwo(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == 1


def test_callbacks_may_end_a_run_which_is_validated_at_that_end(small, tmp_path, notices):
    config = small(epochs=5, model_dir=str(tmp_path))
    result = training.train(config, [StopAfterTwo()], notices.append, validate="at_end")
    assert result.steps == 12
    assert ["val_loss" in row for row in result.history] == [False, True]
    evaluation = training.evaluate(config, notices.append)
    assert (result.test_loss, result.metrics) == (evaluation.loss, evaluation.metrics)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert float(rows[1]["val_loss"]) == result.test_loss
    (events,) = (tmp_path / "validation").iterdir()
    tags = [
        value.tag
        for record in tf.data.TFRecordDataset(str(events))
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    ]
    assert tags == ["loss", "accuracy"]
    assert training.load_run(str(tmp_path), notices.append)[2]["test_loss"] == result.test_loss


def test_mixed_precision_ends_with_the_run(small, notices):
    result = training.train(small(mixed_precision="mixed_bfloat16"), notice=notices.append)
    assert keras.config.dtype_policy().name == "float32"
    assert result.model.layers[1].compute_dtype == "bfloat16"
    assert result.model.layers[1].variable_dtype == "float32"


def test_a_checkpoint_that_cannot_be_written(small, tmp_path, notices, monkeypatch):
    def fail(self, path):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device\nat node x")

    monkeypatch.setattr(tf.train.Checkpoint, "write", fail)
    with pytest.raises(RunError) as error:
        training.train(small(model_dir=str(tmp_path)), notice=notices.append)
    assert str(error.value) == (
        f"cannot write the checkpoint of step 6 to {tmp_path}/checkpoints (No space left on "
        "device); the ones before it are untouched"
    )


def test_a_run_that_fails_before_it_writes_leaves_nothing(small, tmp_path, notices):
    directory = tmp_path / "runs" / "one"
    config = small(model_dir=str(directory), warmup_epochs=1e8)
    with pytest.raises(UserError, match="which would never reach its learning rate"):
        training.train(config, notice=notices.append)
    assert list(tmp_path.iterdir()) == []


def test_model_dir_that_cannot_be_written(small, tmp_path, notices):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError) as error:
        training.train(small(model_dir=str(tmp_path / "file" / "run")), notice=notices.append)
    assert str(error.value) == (
        f"cannot write to model_dir {tmp_path}/file/run (Not a directory); "
        "choose another --model_dir"
    )


def test_a_loss_that_is_not_finite(small, tmp_path, notices):
    class Blow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.epoch == 1 and batch == 0:
                for variable in self.model.trainable_variables:
                    variable.assign(variable * np.nan)

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    config = small(model_dir=str(tmp_path), norm="none", steps_per_loop=1)
    with pytest.raises(RunError) as error:
        training.train(config, [Blow()], notices.append)
    assert str(error.value) == (
        "the loss of step 8 is nan; the checkpoint of step 6 is kept; "
        "a lower --learning_rate may help"
    )
    (path,) = checkpoints.newest_first(tmp_path / "checkpoints")
    assert path.endswith("ckpt-6")
    model, _ = training.load_model(str(tmp_path))
    assert all(np.isfinite(variable.numpy()).all() for variable in model.variables)
    assert not (tmp_path / "result.json").exists()


def test_a_test_loss_that_is_not_finite(small, notices, monkeypatch):
    monkeypatch.setattr(
        training.run.Trainer, "evaluate", lambda self, **_: (float("inf"), {"accuracy": 0.1}, {})
    )
    with pytest.raises(RunError) as error:
        training.train(small(), notice=notices.append)
    assert str(error.value) == (
        "the test loss after step 6 is inf; nothing was saved; a lower --learning_rate may help"
    )


def test_evaluation_of_a_run(small, tmp_path, notices):
    config = on_replicas(small(model_dir=str(tmp_path), norm="bn"), 4)
    result = training.train(config, notice=notices.append)
    evaluation = training.evaluate(on_replicas(config, 2), notices.append)
    assert evaluation.loss == pytest.approx(result.test_loss, rel=1e-6)
    assert evaluation.metrics == result.metrics == {"accuracy": result.test_accuracy}
    assert evaluation.examples == 360
    assert evaluation.checkpoint == f"{tmp_path}/checkpoints/ckpt-12"


@pytest.mark.parametrize("norm", ["bn", "mabn", "none"])
def test_a_model_comes_back_outside_the_strategy(small, tmp_path, notices, norm, rng):
    config = on_replicas(small(model_dir=str(tmp_path), norm=norm, steps=2), 2)
    result = training.train(config, notice=notices.append)
    model, saved = training.load_model(str(tmp_path), notices.append)
    assert saved == config
    images = rng.normal(size=(5, 8, 8, 1)).astype(np.float32)
    expected = result.model(images, training=False)
    np.testing.assert_allclose(model(images, training=False), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("model_dir", "message"),
    [
        (None, "no model_dir; choose the --model_dir of a run"),
        ("{}/none", "no checkpoint in model_dir {}/none; train first, or choose another"),
    ],
)
def test_nothing_to_evaluate(small, tmp_path, model_dir, message):
    model_dir = model_dir and model_dir.format(tmp_path)
    with pytest.raises(UserError) as error:
        training.evaluate(small(model_dir=model_dir))
    assert str(error.value) == message.format(tmp_path)


def test_a_run_without_a_step_left_tells_its_configuration(small, tmp_path, notices):
    training.train(small(model_dir=str(tmp_path)), notice=notices.append)
    for size in (64, 32):
        config = small(model_dir=str(tmp_path), evaluation_batch_size=size)
        training.train(config, notice=notices.append)
        assert json.loads((tmp_path / "config.json").read_text())["evaluation_batch_size"] == size
        assert json.loads((tmp_path / "result.json").read_text())["step_time_median"] > 0


def test_an_evaluation_has_no_batch_of_training(small, tmp_path, notices):
    """Which may be larger than the examples that the run was trained on."""
    config = small(model_dir=str(tmp_path), train_examples=16, epochs=1, warmup_epochs=1.0)
    result = training.train(config, notice=notices.append)
    for changes in ({"replica_batch_size": 64}, {"sampling": "pairs", "replica_batch_size": 64}):
        evaluated = training.evaluate(small(model_dir=str(tmp_path), **changes))
        assert evaluated.loss == pytest.approx(result.test_loss)


def test_a_run_of_one_image_can_be_evaluated(small, tmp_path, notices):
    config = small(model_dir=str(tmp_path), train_examples=1, replica_batch_size=1, epochs=1)
    result = training.train(config, notice=notices.append)
    assert training.evaluate(config).loss == pytest.approx(result.test_loss)


def test_a_configuration_that_is_lost_is_in_the_checkpoint(small, tmp_path, notices, monkeypatch):
    config = small(model_dir=str(tmp_path))
    result = training.train(config, notice=notices.append)
    (tmp_path / "config.json").unlink()
    model, found = training.load_model(str(tmp_path))
    assert found == config
    for value, trained in zip(model.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, trained)
    monkeypatch.setattr(run_directory, "newest_progress", lambda directory: None)
    with pytest.raises(UserError) as error:
        training.load_model(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/config.json is missing, and no checkpoint says")


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_run_leaves_no_graph_in_its_process(small, notices, replicas):
    """TensorFlow registers gradients of custom functions for ever, and they hold their graph."""

    def left():
        keras.backend.clear_session(free_memory=False)
        gc.collect()
        graphs = [x for x in gc.get_objects() if isinstance(x, FuncGraph)]
        return {graph for graph in graphs if "_train_loop" in graph.name}

    before = left()
    config = small(norm="brn", epochs=1)
    config = config if replicas == 1 else on_replicas(config, replicas)
    result = training.train(config, notice=notices.append)
    if replicas == 1:  # The model itself is as it was.
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(result.model(tf.random.normal((4, 8, 8, 1)), training=True) ** 2)
        assert all(g is not None for g in tape.gradient(loss, result.model.trainable_variables))
        del tape, loss
    del result
    assert not left() - before  # Those of other tests are kept by `before` itself.
