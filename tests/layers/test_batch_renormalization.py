"""What BRN has beside its oracle in test_against_references.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.layers import running
from tfnorm import functional, schedules
from tfnorm.layers import BatchNormalization, BatchRenormalization


@pytest.mark.parametrize("virtual_replicas", [1, 2])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_without_correction_it_is_batch_normalization(rng, dtype, virtual_replicas):
    options = {"momentum": 0.9, "virtual_replicas": virtual_replicas, "dtype": dtype}
    plain, renormalized = BatchNormalization(**options), BatchRenormalization(**options)
    shape = (4, 3, 3)
    for layer in (plain, renormalized):
        layer.build(shape)
        running.randomize(layer, np.random.default_rng(8))
    trains = [running.trainer(layer) for layer in (plain, renormalized)]
    tolerance = {"float64": 1e-12, "float32": 1e-5}[dtype]
    for _ in range(3):
        x, dy, _ = running.data(rng, shape)
        for a, b in zip(*(train(x, dy) for train in trains)):
            running.assert_close(a, b, tolerance)
        running.assert_close(
            running.number(renormalized.moving_mean), running.number(plain.moving_mean), tolerance
        )


def test_the_default_schedules_are_those_of_the_paper():
    layer = BatchRenormalization()
    steps = (0, 5_000, 15_000, 25_000, 40_000, 130_000)
    assert [float(layer.d_max(step)) for step in steps] == [0, 0, 2.5, 5, 5, 5]
    expected = np.interp(steps, [5_000, 40_000], [1, 3])
    np.testing.assert_allclose([float(layer.r_max(step)) for step in steps], expected, 1e-6)


@pytest.mark.parametrize(
    ("name", "ramp"), [("r_max", (0.5, 3)), ("r_max", (3, 0)), ("d_max", (-1, 5))]
)
def test_a_ramp_below_the_least_bound_is_refused(name, ramp):
    schedule = schedules.LinearRamp(*ramp, 5, 10)
    for value in (schedule, keras.saving.serialize_keras_object(schedule)):
        with pytest.raises(ValueError, match=f"{name} must be at least . all the way"):
            BatchRenormalization(**{name: value})


def test_bounds_that_are_no_schedule_are_refused():
    with pytest.raises(ValueError, match="r_max must be at least 1, or a schedule such as"):
        BatchRenormalization(r_max={"a": 1})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="LinearRamp needs finite values"):
            schedules.LinearRamp(1, value, 0, 10)


@pytest.mark.parametrize("name, value, least", [("r_max", 0.5, "1"), ("d_max", -0.5, "0")])
def test_bounds_out_of_range(name, value, least):
    with pytest.raises(ValueError) as error:
        BatchRenormalization(**{name: value})
    assert str(error.value) == (
        f"{name} must be at least {least}, or a schedule such as tfnorm.schedules.LinearRamp. "
        f"Received: {name}={value}."
    )


def test_schedules_and_numbers_come_through_the_configuration():
    layer = BatchRenormalization(r_max=schedules.LinearRamp(1, 3, 5, 9), d_max=2)
    copy = BatchRenormalization.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert [float(copy.r_max(s)) for s in (0, 5, 7, 9, 20)] == [1, 1, 2, 3, 3]
    assert copy.d_max == 2


def test_a_variance_of_zero_stays_a_variance(rng):
    layer = BatchRenormalization(momentum=0.0)
    x = np.full((4, 3), 7, np.float32)
    layer(x, training=True)
    assert (running.number(layer.moving_variance) >= 0).all()
    np.testing.assert_allclose(running.number(layer.moving_variance), 0, atol=1e-6)


def test_r_and_d_are_constants_of_second_derivatives(rng):
    x, weights = (tf.constant(rng.normal(1, 2, (6, 5, 3))) for _ in range(2))
    moving = tf.constant(rng.normal(size=3)), tf.constant(rng.uniform(2, 4, size=3))

    def plain(x):
        mean, variance = tf.nn.moments(x, [0, 1])
        sigma, moving_sigma = (tf.sqrt(v + 1e-3) for v in (variance, moving[1]))
        r = tf.clip_by_value(sigma / moving_sigma, 1 / 3.0, 3.0)
        d = tf.clip_by_value((mean - moving[0]) / moving_sigma, -5.0, 5.0)
        return tf.stop_gradient(r) * (x - mean) / sigma + tf.stop_gradient(d)

    def ours(x):
        return functional.batch_renormalization(x, None, None, *moving, 3.0, 5.0)[0]

    gradients = []
    for normalize in (ours, plain):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(weights * normalize(x) ** 3)
            penalty = tf.reduce_sum(inner.gradient(loss, x) ** 2)
        gradients.append(outer.gradient(penalty, x))
    running.assert_close(*gradients, 1e-9)
