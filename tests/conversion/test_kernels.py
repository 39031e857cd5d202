"""Converting frees the kernels of eager operations, and what a caller holds goes on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tfnorm.conversion import kernels

L = keras.layers


def draw():
    """What a kernel returns that counts its calls: a new kernel begins anew."""
    return tf.raw_ops.RandomUniform(shape=[3], dtype=tf.float32, seed=7, seed2=11).numpy().tolist()


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((4, 4, 2)), L.Conv2D(3, 1), L.BatchNormalization()])


def test_kernels_of_operations_that_have_run_are_freed():
    kernels.forget()
    first, second = draw(), draw()
    assert first != second
    kernels.forget()
    assert [draw(), draw()] == [first, second]


def test_a_new_model_is_made_without_the_kernels_of_making_it(model):
    kernels.forget()
    first, second = draw(), draw()
    tfnorm.convert(model, "brn", in_place=True)  # the model's own functions keep their kernels
    third = draw()
    assert third not in (first, second)
    tfnorm.convert(model, "bn")
    assert draw() == first


def test_what_a_caller_holds_goes_on(model, rng):
    count = tf.Variable(0)
    table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -2, -3)
    table.insert([5], [6])
    queue = tf.queue.FIFOQueue(3, [tf.float32])
    queue.enqueue_many([[1.0, 2.0, 3.0]])
    examples = iter(tf.data.Dataset.range(9).shuffle(9, seed=1))
    rest = [*map(int, tf.data.Dataset.range(9).shuffle(9, seed=1))]

    @tf.function
    def step(x):
        count.assign_add(1)
        return model(x, training=True)

    x = tf.constant(rng.normal(size=(3, 4, 4, 2)), tf.float32)
    outputs, compute = step(x), step.get_concrete_function(x)
    seen = [int(next(examples)), float(queue.dequeue())]
    tfnorm.convert(model, "brn")
    for again in (step(x), compute(x)):
        np.testing.assert_array_equal(again, outputs)
    assert int(count) == 3 and step.experimental_get_tracing_count() == 1
    assert [int(table[tf.constant([5], tf.int64)][0]), int(table.size())] == [6, 1]
    assert [seen[0], *map(int, examples)] == rest
    assert [seen[1], float(queue.dequeue()), float(queue.dequeue())] == [1, 2, 3]
