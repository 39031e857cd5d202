"""Schedules of a layer's own step counter."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm.schedules import LinearRamp, value_at


def test_values():
    ramp = LinearRamp(1.0, 3.0, 10, 14)
    assert [float(ramp(step)) for step in (0, 10, 11, 13, 14, 1000)] == [1, 1, 1.5, 2.5, 3, 3]


def test_downwards_in_a_graph():
    ramp = LinearRamp(2.0, -2.0, 0, 8)
    values = tf.function(ramp)
    assert [float(values(tf.constant(step))) for step in (0, 2, 8, 9)] == [2, 1, -2, -2]


def test_value_at_a_step():
    class Half(LinearRamp):
        def __call__(self, step):
            return super().__call__(step) / 2

    step, ramp = tf.constant(12), LinearRamp(1.0, 3.0, 10, 14)
    schedules = 0.3, lambda step: step + 1, Half(1.0, 3.0, 10, 14)
    np.testing.assert_allclose([value_at(step, each) for each in schedules], [0.3, 13, 1])
    later, same = (value_at(step, each) for each in (ramp, LinearRamp(1.0, 3.0, 10, 14)))
    assert later.function is same.function
    np.testing.assert_allclose(later.of(), 2)


def test_a_step_from_one_value_to_the_other():
    ramp = LinearRamp(1.0, 5.0, 3, 3)
    assert [float(ramp(step)) for step in (2, 3, 4)] == [1, 1, 5]


def test_steps_above_the_integers_of_float32():
    start = 2**24
    ramp = LinearRamp(0.0, 10.0, start, start + 10)
    assert [float(ramp(tf.constant(start + i))) for i in range(4)] == [0, 1, 2, 3]


def test_thirds_are_exact_in_float64():
    value = LinearRamp(0.0, 1.0, 0, 3)(1).numpy().astype(np.float64)
    assert abs(value - 1 / 3) < 1e-15


def test_configuration():
    ramp = LinearRamp(1.0, 3.0, 10, 14)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ramp))
    assert copy.get_config() == ramp.get_config()
    assert ramp.get_config() == {
        "start_value": 1.0,
        "end_value": 3.0,
        "start_step": 10,
        "end_step": 14,
    }


def test_an_end_before_the_start():
    with pytest.raises(ValueError) as error:
        LinearRamp(1.0, 3.0, 14, 10)
    assert str(error.value) == (
        "LinearRamp needs end_step at or after start_step. Received start_step=14, end_step=10. "
        "Exchange them?"
    )
