"""Keras' optimizers on any number of replicas, label smoothing, frozen layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import on_replicas
from tfnorm import tasks, training
from tfnorm.errors import UserError
from tfnorm.training import batches, optimizer, strategies
from tfnorm.training.trainer import Trainer


def make(config):
    return Trainer(config, tasks.load(config), strategies.create(config))


def oracle(name, model, rate):
    """Keras' own, with what we add to it spelled out: decay of kernels alone."""
    if name == "rmsprop":
        return keras.optimizers.RMSprop(rate, rho=0.8, momentum=0.7, epsilon=0.01)
    adamw = keras.optimizers.AdamW(rate, weight_decay=0.3, beta_1=0.7, beta_2=0.8)
    adamw.exclude_from_weight_decay([v for v in model.trainable_variables if v.name != "kernel"])
    return adamw


OPTIONS = {"rmsprop": {"rho": 0.8, "epsilon": 0.01}, "adamw": {"beta_2": 0.8}}


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_steps_are_those_of_keras(small, name, replicas):
    config = small(
        norm="none", optimizer=name, optimizer_options=OPTIONS[name], learning_rate=0.01,
        momentum=0.7, weight_decay=0.3, warmup_epochs=0, schedule="step", reference_batch_size=0,
        label_smoothing=0.2,
    )  # fmt: skip
    trainer = make(on_replicas(config, replicas))
    model = keras.models.clone_model(trainer.model)
    model.set_weights(trainer.model.get_weights())
    expected = oracle(name, model, 0.01)
    variables = model.trainable_variables
    one = make(config)
    for batch in iter_batches(one, 3):
        with tf.GradientTape() as tape:
            targets = tf.one_hot(batch["label"], 10) * 0.8 + 0.02
            loss = tf.reduce_mean(
                tf.nn.softmax_cross_entropy_with_logits(targets, model(batch["image"]))
            )
        gradients = tape.gradient(loss, variables)
        if name == "rmsprop":
            gradients = [
                g + 0.3 * v if v.name == "kernel" else g for g, v in zip(gradients, variables)
            ]
        expected.apply(gradients, variables)
    records = trainer.train_steps(trainer.epoch_iterator(0, 0), 3)
    assert records[2, 0] == pytest.approx(float(loss), rel=1e-4)
    for a, b in zip(trainer.model.trainable_variables, variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)


def iter_batches(trainer, count):
    return batches.of_epoch(trainer.config, trainer.task, 0, 8).take(count)


def test_options_that_an_optimizer_does_not_take():
    with pytest.raises(UserError) as error:
        optimizer.build("momentum", 0.1, 0.9, 0.0, {"rho": 0.9})
    assert str(error.value) == "optimizer 'momentum' does not take rho; it takes nesterov"
    with pytest.raises(UserError) as error:
        optimizer.build("rmsprop", 0.1, 0.9, 0.0, {"rho": "much"})
    assert str(error.value) == "rho of optimizer 'rmsprop' must be a number, received 'much'"
    wrong = (("beta_2", 7, 1), ("beta_1", float("nan"), 1), ("epsilon", -1, "inf"))
    for option, value, below in wrong:
        with pytest.raises(UserError) as error:
            optimizer.build("adamw", 0.1, 0.9, 0.0, {option: value})
        assert str(error.value) == (
            f"{option} of optimizer 'adamw' must be from 0 to below {below}, received {value}"
        )


def test_frozen_layers_stay_as_they_are(small, notices):
    config = small(norm="bn", freeze="conv|norm")
    before = {v.path.partition("/")[2]: v.numpy() for v in make(config).model.variables}
    result = training.train(config, notice=notices.append)
    after = {v.path.partition("/")[2]: v.numpy() for v in result.model.variables}
    changed = {name for name in before if np.any(before[name] != after[name])}
    assert changed == {"kernel", "bias"} and result.params == 4 * 10 + 10


@pytest.mark.parametrize(
    "pattern, message",
    [("stem", "freeze='stem' matches no layer of "), (".", "freeze='.' leaves nothing of ")],
)
def test_freezing_nothing_or_all(small, pattern, message):
    with pytest.raises(UserError) as error:
        make(small(freeze=pattern))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_keras(rng, nesterov):
    values, gradients = rng.normal(size=(2, 3)), rng.normal(size=(4, 2, 3))
    found = []
    for make in (
        lambda: optimizer.build("momentum", 0.1, 0.9, 0.0, {"nesterov": nesterov}),
        lambda: keras.optimizers.SGD(0.1, 0.9, nesterov=nesterov),
    ):
        variable, own = keras.Variable(values, name="kernel"), make()
        own.build([variable])
        for gradient in gradients:
            own.apply([tf.constant(gradient, "float32")], [variable])
        found.append(variable.numpy())
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_what_is_true_or_false():
    with pytest.raises(UserError) as error:
        optimizer.build("momentum", 0.1, 0.9, 0.0, {"nesterov": 2})
    assert str(error.value) == (
        "nesterov of optimizer 'momentum' must be true or false, received 2"
    )
