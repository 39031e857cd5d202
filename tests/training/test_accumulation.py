"""Micro-batches whose gradients make one step of the optimizer."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import on_replicas
from tfnorm import tasks, training
from tfnorm.training import strategies
from tfnorm.training.trainer import Trainer


def run(config, steps=3):
    trainer = Trainer(config, tasks.load(config), strategies.create(config))
    records = trainer.train_steps(trainer.epoch_iterator(0, 0), steps)
    return records, trainer


def trainable(trainer):
    return [v.numpy() for v in trainer.model.trainable_variables]


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("norm", ["bn", "syncbn"])
def test_they_are_those_of_virtual_replicas(small, norm, replicas):
    """Losses and weights to 1e-6; syncbn's are the same rows of all replicas together."""
    base = small(norm=norm, replica_batch_size=16, weight_decay=0.1)
    accumulated = on_replicas(dataclasses.replace(base, replica_batch_size=4), replicas)
    accumulated = dataclasses.replace(accumulated, accumulate_steps=4)
    virtual = on_replicas(base, replicas)
    if norm == "bn":
        virtual = dataclasses.replace(virtual, virtual_replicas=4)
        found, one = run(accumulated)
        expected, other = run(virtual)
        assert one.global_batch_size == other.global_batch_size == 16
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        for a, b in zip(trainable(one), trainable(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        plain, _ = run(on_replicas(base, replicas))
        assert np.abs(plain[:, 0] - expected[:, 0]).max() > 1e-3
    else:
        found, trainer = run(accumulated)
        assert np.isfinite(found).all()
        assert len(trainer.payloads) == (2 if replicas > 1 else 0)


def test_each_is_a_step_of_its_own_to_normalizers(small):
    config = small(norm="brn", replica_batch_size=4, accumulate_steps=2)
    records, trainer = run(config, steps=3)
    (counter,) = [v for v in trainer.model.variables if v.name == "step"]
    assert counter.numpy() == 6
    assert trainer.optimizer.iterations.numpy() == 3
    assert records[:, -1].tolist() == [8.0, 8.0, 8.0]  # images of a step


def test_half_precision(small):
    """A step of parts that overflow is left out as a whole, and the next goes on."""
    config = small(
        norm="none", mixed_precision="mixed_float16", replica_batch_size=4, accumulate_steps=2
    )
    keras.config.set_dtype_policy("mixed_float16")
    records, trainer = run(config, steps=2)
    assert np.isfinite(records).all()
    before = trainable(trainer)
    trainer._gradients[0].assign(tf.fill(trainer._gradients[0].shape, np.inf))
    trainer.strategy.run(trainer._apply_accumulated)
    for a, b in zip(before, trainable(trainer), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.all(trainer._gradients[0].numpy() == 0)


def test_a_run_resumes_bit_for_bit(small, tmp_path, notices):
    config = small(norm="bn", replica_batch_size=4, accumulate_steps=2, model_dir=None)
    whole = training.train(config, notice=notices.append)
    part = dataclasses.replace(config, model_dir=str(tmp_path), checkpoint_every=4)

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: stop() if batch == 4 else None
    )
    with pytest.raises(Stop):
        training.train(part, [callback], notice=notices.append)
    resumed = training.train(part, notice=notices.append)
    for a, b in zip(whole.model.variables, resumed.model.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
