"""What the optimizer of a fitted model knows after a conversion in place."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfnorm
from tfnorm.errors import UserError
from tfnorm.layers import norms


def network(bias=False):
    return keras.Sequential(
        [
            keras.Input((9, 9, 4)),
            L.Conv2D(8, 3, use_bias=bias, name="conv"),
            L.BatchNormalization(name="norm"),
            L.ReLU(),
            L.GlobalAveragePooling2D(),
            L.Dense(4, name="dense"),
        ]
    )


@pytest.fixture
def fitted(rng, randomized):
    """Makes a fitted model, and fits it again."""
    x, y = rng.normal(size=(8, 9, 9, 4)).astype("float32"), rng.normal(size=(8, 4))

    def fit(model, epochs=1):
        model.fit(x, y, batch_size=4, epochs=epochs, verbose=0, shuffle=False)
        return model

    def make(optimizer, bias=False):
        model = randomized(network(bias))
        model.compile(optimizer, "mse")
        return fit(model, 2)

    make.again = fit
    return make


def values(variables):
    return {v.path: keras.ops.convert_to_numpy(v) for v in variables}


def slots(optimizer, kind):
    """By the variable: what an Adam keeps of it."""
    kept = getattr(optimizer, kind)
    known = optimizer._trainable_variables
    return {id(v): keras.ops.convert_to_numpy(slot) for v, slot in zip(known, kept, strict=True)}


@pytest.mark.parametrize("norm", ["bin", "cbn", "mabn"])
def test_averages_of_weights_go_on(fitted, norm):
    """At a learning rate of 0 they are the weights, which Keras overwrites by them."""
    model = fitted(keras.optimizers.SGD(0.0, use_ema=True))
    tfnorm.convert(model, norm, in_place=True)
    before = values(model.trainable_variables)
    fitted.again(model)
    for path, value in values(model.trainable_variables).items():
        np.testing.assert_allclose(value, before[path], rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["bin", "cbn", "gn_ws", "mabn"])
def test_momenta_of_what_stays_are_kept_and_saved(fitted, norm, bias, tmp_path):
    model = fitted(keras.optimizers.Adam(0.01), bias)
    before = {kind: slots(model.optimizer, kind) for kind in ("_momentums", "_velocities")}
    iterations = int(model.optimizer.iterations)
    tfnorm.convert(model, norm, in_place=True)
    assert int(model.optimizer.iterations) == iterations == 4
    known = [id(v) for v in model.optimizer._trainable_variables]
    assert known == [id(v) for v in model.trainable_variables]
    for kind, old in before.items():
        new = slots(model.optimizer, kind)
        assert len(set(old) & set(new)) >= 5 and np.abs(next(iter(old.values()))).max() > 0
        for key in set(old) & set(new):
            np.testing.assert_array_equal(new[key], old[key])
    fitted.again(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_who_is_not_decayed_stays_so_and_the_loss_scale_too(fitted):
    inner = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_names=["gamma", "beta"])
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
    model = fitted(optimizer)
    optimizer.dynamic_scale.assign(16.0)
    tfnorm.convert(model, "bin", in_place=True)
    new = model.optimizer
    assert new is not optimizer and float(new.dynamic_scale) == 16.0
    assert int(new.step_counter) == int(optimizer.step_counter)
    decays = {v.name for v in model.trainable_variables if new.inner_optimizer._use_weight_decay(v)}
    assert decays == {"kernel", "bias", "gate"}


class Particular(keras.optimizers.SGD):
    """Its configuration does not make it."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor


@pytest.mark.parametrize("is_dry", [False, True])
def test_one_that_cannot_be_made_anew_leaves_the_model_as_it_was(fitted, is_dry):
    optimizer = Particular(2.0, learning_rate=0.01)
    model = fitted(optimizer)
    before = values(model.variables)
    with pytest.raises(UserError, match="Particular cannot be made from its configuration"):
        tfnorm.convert(model, "bin", in_place=True, dry_run=is_dry)
    assert type(model.get_layer("norm")) is L.BatchNormalization
    assert model.optimizer is optimizer
    for path, value in values(model.variables).items():
        np.testing.assert_array_equal(value, before[path])
    fitted.again(model)


def test_one_that_knows_all_stays(fitted):
    optimizer = keras.optimizers.Adam(0.01)
    model = fitted(optimizer)
    tfnorm.convert(model, "brn", in_place=True)
    assert norms.name_of(model.get_layer("norm")) == "brn"
    assert model.optimizer is optimizer
