"""Averages of all weights: what a run is evaluated and exported with."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import on_replicas
from tfnorm import tasks, training
from tfnorm.training import strategies
from tfnorm.training.trainer import Trainer

AVERAGED = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")


def averaged(model):
    return [v for v in model.variables if v.name in AVERAGED]


@pytest.mark.parametrize("replicas", [1, 2])
def test_they_are_the_formula(small, replicas):
    config = on_replicas(small(norm="bn", ema_decay=0.4), replicas)
    trainer = Trainer(config, tasks.load(config), strategies.create(config))
    iterator = trainer.epoch_iterator(0, 0)
    expected = [v.numpy().astype(np.float64) for v in averaged(trainer.model)]
    for step in range(1, 5):
        trainer.train_steps(iterator, 1)
        decay = min(0.4, (1 + step) / (10 + step))
        for average, variable in zip(expected, averaged(trainer.model)):
            average += (1 - decay) * (variable.numpy() - average)
    found = [average.read_value().numpy() for average in trainer.averages.averages]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert max(np.abs(a - v.numpy()).max() for a, v in zip(found, averaged(trainer.model))) > 1e-3
    # An evaluation is by them, and leaves the weights that go on.
    before = [v.numpy() for v in trainer.model.variables]
    loss, _, _ = trainer.evaluate()
    for a, b in zip(before, trainer.model.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    clone = keras.models.clone_model(trainer.model)
    clone.set_weights(trainer.model.get_weights())
    for variable, average in zip(averaged(clone), found, strict=True):
        variable.assign(average)
    test = trainer.task.dataset.test
    logits = clone(trainer.task.dataset.standardize(test.column("image")), training=False)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(test.column("label"), logits)
    assert loss == pytest.approx(float(tf.reduce_mean(losses)), rel=1e-5)


def test_a_run_ends_with_them_and_resumes_bit_for_bit(small, tmp_path, notices):
    """Also from the middle of an epoch, where each replica has statistics of its own."""
    config = on_replicas(small(norm="bn", ema_decay=0.4, checkpoint_every=4), 2)
    whole = training.train(
        dataclasses.replace(config, model_dir=str(tmp_path / "whole")), notice=notices.append
    )

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                raise KeyboardInterrupt

    parts = dataclasses.replace(config, model_dir=str(tmp_path / "parts"))
    with pytest.raises(KeyboardInterrupt):
        training.train(parts, [Stop()], notice=notices.append)
    resumed = training.train(parts, notice=notices.append)
    assert any("going on from" in text for text in notices)
    for a, b in zip(whole.model.variables, resumed.model.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    loaded, _ = training.load_model(str(tmp_path / "parts"), notice=notices.append)
    for a, b in zip(averaged(whole.model), averaged(loaded), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    evaluation = training.evaluate(parts, notice=notices.append)
    assert evaluation.loss == pytest.approx(whole.test_loss, rel=1e-6)
    without = training.train(dataclasses.replace(config, ema_decay=0.0), notice=notices.append)
    assert abs(without.test_loss - whole.test_loss) > 1e-4
