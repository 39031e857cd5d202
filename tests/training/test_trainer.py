import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import on_replicas, two_layers
from tfnorm import models, tasks
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.training import batches, strategies
from tfnorm.training.optimizer import MomentumSGD
from tfnorm.training.trainer import Trainer


def make(config):
    return Trainer(config, tasks.load(config), strategies.create(config))


def first_batch(trainer, size):
    return next(iter(batches.of_epoch(trainer.config, trainer.task, 0, size)))


def run(config, steps):
    trainer = make(config)
    records = trainer.train_steps(trainer.epoch_iterator(0, 0), steps)
    return trainer, records, [variable.numpy() for variable in trainer.model.variables]


@pytest.mark.parametrize(("norm", "tolerance"), [("none", 1e-6), ("gn", 1e-6), ("syncbn", 1e-5)])
def test_four_replicas_make_the_step_of_one_device(small, norm, tolerance):
    config = small(norm=norm, weight_decay=0.1)
    _, one_records, one = run(config, 4)
    _, four_records, four = run(on_replicas(config, 4), 4)
    np.testing.assert_allclose(four_records, one_records, rtol=tolerance, atol=tolerance)
    for a, b in zip(one, four):
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance)


def test_four_replicas_of_plain_bn_do_not(small):
    """The control of the test above: statistics of 2 images are not those of 8."""
    _, one, _ = run(small(norm="bn"), 4)
    _, four, _ = run(on_replicas(small(norm="bn"), 4), 4)
    assert np.abs(four[:, 0] - one[:, 0]).max() > 1e-2


def test_first_step_is_the_formula(small):
    """Against plain Keras and NumPy, for two steps with momentum and L2 decay of the kernels."""
    config = small(norm="none", weight_decay=0.3, warmup_epochs=0, momentum=0.7, epochs=1)
    trainer = make(config)
    model = keras.models.clone_model(trainer.model)
    model.set_weights(trainer.model.get_weights())
    records = trainer.train_steps(trainer.epoch_iterator(0, 0), 2)
    velocity = [np.zeros(v.shape) for v in model.trainable_variables]
    epoch = batches.of_epoch(config, trainer.task, 0, 8)
    for step, batch in enumerate(epoch.take(2)):
        images, labels = batch["image"], batch["label"]
        with tf.GradientTape() as tape:
            logits = model(images)
            losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            loss = tf.reduce_mean(losses)
        np.testing.assert_allclose(records[step, 0], loss, rtol=1e-6)
        hits = np.mean(np.argmax(logits, -1) == labels)
        assert records[step, 1:].tolist() == [hits * 8, 8]
        rate = 0.5 * 8 / 32 * 0.5 * (1 + np.cos(np.pi * step / 6))
        for i, gradient in enumerate(tape.gradient(loss, model.trainable_variables)):
            variable = model.trainable_variables[i]
            decay = 0.3 * variable.numpy() * (variable.name == "kernel")
            velocity[i] = 0.7 * velocity[i] - rate * (gradient.numpy() + decay)
            variable.assign_add(velocity[i])
    for expected, actual in zip(model.trainable_variables, trainer.model.trainable_variables):
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_layers_own_penalties_count_once(small, monkeypatch):
    build = models.build

    def with_penalty(*args, **kwargs):
        model = build(*args, **kwargs)
        model.layers[-1].kernel_regularizer = keras.regularizers.L2(0.2)
        model.layers[-1].kernel.regularizer = model.layers[-1].kernel_regularizer
        return model

    base = small(norm="none", weight_decay=0.0)
    _, _, without = run(base, 1)
    monkeypatch.setattr(models, "build", with_penalty)
    _, _, one = run(base, 1)
    _, _, four = run(on_replicas(base, 4), 1)
    part = dataclasses.replace(base, replica_batch_size=base.replica_batch_size // 2)
    _, _, accumulated = run(dataclasses.replace(part, accumulate_steps=2), 1)
    assert max(np.abs(a - b).max() for a, b in zip(one, without)) > 1e-4
    for others in (four, accumulated):
        for a, b in zip(one, others):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-6)


def test_without_momentum(small):
    config = small(norm="none", momentum=0.0)
    _, _, one = run(config, 3)
    _, _, two = run(on_replicas(config, 2), 3)
    for a, b in zip(one, two):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_evaluation_counts_every_example_once(small, replicas):
    """360 test images in steps of 3 x 50, 2 x 50, 50; none counts twice, none is left out."""
    config = on_replicas(small(norm="bn", evaluation_batch_size=50, replica_batch_size=6), replicas)
    trainer = make(config)
    trainer.train_steps(trainer.epoch_iterator(0, 0), 3)
    loss, metrics, _ = trainer.evaluate()
    dataset = trainer.task.dataset
    images, labels = (dataset.test.column(name) for name in ("image", "label"))
    logits = trainer.model(dataset.standardize(images), training=False).numpy()
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    assert metrics == {"accuracy": np.mean(logits.argmax(-1) == labels)}
    assert trainer._totals.read_value().numpy()[1] == 360


def test_evaluation_is_that_of_the_model_outside_the_strategy(small):
    """Replicas whose statistics have drifted apart are synchronized first."""
    config = on_replicas(small(norm="bn", learning_rate=0.01), 4)
    trainer = make(config)
    trainer.train_steps(trainer.epoch_iterator(0, 0), 4)
    (mean,) = [v for v in trainer.model.variables if v.name == "moving_mean"]
    local = [part.numpy() for part in trainer.strategy.experimental_local_results(mean.value)]
    assert np.ptp(local, axis=0).max() > 1e-3
    trainer.evaluate()
    after = [part.numpy() for part in trainer.strategy.experimental_local_results(mean.value)]
    np.testing.assert_allclose(after, [np.mean(local, axis=0)] * 4, rtol=1e-6)


@pytest.mark.parametrize("norm", norms.NAMES)
def test_collectives_and_bytes_of_a_step_are_counted(small, norm, monkeypatch):
    """Against TensorFlow's own calls: those for normalization, without that for the gradients."""
    calls = []
    reduce_to = tf.distribute.StrategyExtended.reduce_to

    def counted(self, reduce_op, value, *args):
        if not hasattr(value, "assign"):  # That is a metric, which is read after the step.
            calls.append(value.values[1].dtype.size * value.values[1].shape.num_elements())
        return reduce_to(self, reduce_op, value, *args)

    monkeypatch.setattr(tf.distribute.StrategyExtended, "reduce_to", counted)
    trainer = make(on_replicas(small(norm=norm), 4))
    assert trainer.payloads is None
    trainer.train_steps(trainer.epoch_iterator(0, 0), 1)
    assert trainer.payloads == calls[:-1]
    # One layer of 4 channels: (count, mean, variance) of 4 replicas; the sums of dy and dy·x̂.
    assert trainer.payloads == ([4 * 4 * 9, 4 * 8] if norm == "syncbn" else [])


@pytest.mark.parametrize("sampling, size", [("pairs", 2), ("sorted", 4)])
def test_images_that_share_statistics_come_together(small, sampling, size):
    """Two replicas of two virtual ones: four micro-batches of four images in a step."""
    config = on_replicas(small(replica_batch_size=16, virtual_replicas=2, sampling=sampling), 2)
    trainer = make(config)
    batch = next(trainer.epoch_iterator(0, skip=1))
    for labels in trainer.strategy.experimental_local_results(batch["label"]):
        runs = labels.numpy().reshape(-1, size)
        assert (runs == runs[:, :1]).all()
        assert len(set(runs[:, 0])) > 1


def test_one_replica_communicates_nothing(small):
    trainer, _, _ = run(small(norm="syncbn"), 1)
    assert trainer.payloads == []


def test_no_retracing(small):
    trainer = make(on_replicas(small(), 2))
    for skip, count in ((0, 1), (1, 4), (2, 3)):
        trainer.train_steps(trainer.epoch_iterator(skip, skip), count)
        trainer.evaluate()
    assert trainer._train_loop.experimental_get_tracing_count() == 1
    assert trainer._evaluation_loop.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("norm", norms.NAMES)
def test_the_step_compiles_under_xla(small, norm):
    """What a TPU would run of a step."""
    trainer = make(small(norm=norm))
    batch = first_batch(trainer, 8)
    step = tf.function(trainer.step, jit_compile=True)
    losses = [step(batch)[0].numpy() / 8 for _ in range(3)]
    assert step.experimental_get_tracing_count() == 1
    assert np.isfinite(losses).all()
    assert losses[2] < losses[0]


@pytest.mark.parametrize("replicas", [1, 2])
def test_float16_skips_a_step_that_overflows_on_one_replica(small, replicas):
    config = on_replicas(small(norm="none", mixed_precision="mixed_float16"), replicas)
    keras.config.set_dtype_policy("mixed_float16")
    trainer = make(config)
    trainer.train_steps(trainer.epoch_iterator(0, 0), 1)
    before = [v.numpy() for v in trainer.model.variables]
    scale = trainer.optimizer.dynamic_scale.numpy()

    batch = first_batch(trainer, config.replica_batch_size)

    @tf.function
    def overflow_on_the_last():
        def step():
            context = tf.distribute.get_replica_context()
            last = context.replica_id_in_sync_group == replicas - 1
            trainer.step({**batch, "image": batch["image"] * tf.where(last, 1e38, 1.0)})

        trainer.strategy.run(step)

    overflow_on_the_last()
    for a, b in zip(before, trainer.model.variables):
        np.testing.assert_array_equal(a, b.numpy())
    assert trainer.optimizer.dynamic_scale.numpy() == scale / 2
    records = trainer.train_steps(trainer.epoch_iterator(1, 0), 4)
    assert np.isfinite(records).all()
    assert any(np.any(a != b.numpy()) for a, b in zip(before, trainer.model.variables))


def test_optimizer_config_is_json(small):
    config = MomentumSGD(0.1, 0.9, l2=0.5).get_config()
    assert (config["momentum"], config["l2"]) == (0.9, 0.5)
    json.dumps(config)


@pytest.mark.parametrize(
    ("changes", "epochs"), [({"epochs": 2}, "2"), ({"steps": 15}, "2.5"), ({"steps": 3}, "0.5")]
)
def test_a_warm_up_that_never_ends(small, changes, epochs):
    with pytest.raises(UserError) as error:
        make(small(warmup_epochs=1e8, **changes))
    assert str(error.value) == (
        f"warmup_epochs=100000000.0 is more than the {epochs} epochs of the run, which would never "
        "reach its learning rate; choose a shorter --warmup_epochs"
    )


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_step_that_loss_scaling_skips_leaves_no_trace(small, monkeypatch, accumulate_steps):
    monkeypatch.setattr(models, "build", two_layers)
    config = small(
        norm="cbn",
        norm_options={"window": 3, "burn_in_steps": 1},
        mixed_precision="mixed_float16",
        accumulate_steps=accumulate_steps,
    )
    keras.config.set_dtype_policy("mixed_float16")
    trainer = make(config)
    for epoch, scale in enumerate((2.0**8, 2.0**126, 2.0**8, 2.0**126)):
        trainer.optimizer.dynamic_scale.assign(scale)
        before = [v.numpy() for v in trainer.model.variables]
        trainer.train_steps(trainer.epoch_iterator(epoch, 0), 1)
        is_same = [np.array_equal(v, a) for v, a in zip(trainer.model.variables, before)]
        assert all(is_same) if scale > 2.0**8 else not any(is_same[:2])
