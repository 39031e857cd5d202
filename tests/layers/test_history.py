"""Ring buffers: the slot in place equals the pass over all of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm.functional import ring
from tfnorm.layers import history, replicas, state

_STEPS, _GROUPS, _SHAPES = 3, 2, ((4,), (1,), (5, 2, 3))


def buffers_of(values):
    """A variable of these values each."""
    variables = []
    for index, value in enumerate(values):
        variable = replicas.state_variable("zeros", value.shape, "float64", f"history_{index}")
        variable.assign(value)
        variables.append(variable)
    return variables


@pytest.fixture
def values(rng):
    return [rng.normal(size=(_STEPS, _GROUPS, *shape)) for shape in _SHAPES]


@pytest.fixture
def new(rng):
    return [rng.normal(size=(_GROUPS, *shape)) for shape in _SHAPES]


def write_all(buffers, held, step, new, is_seen):
    """All but the last in passes over all of them, the last in place."""
    writer = state.Writer()
    for buffer, old, value in list(zip(buffers, held, new, strict=True))[:-1]:
        (updated,) = ring.put([old], step, [value], is_seen)
        writer.assign(buffer, updated, old)
    slot = history.slot_of(step, held[-1])
    is_seen = tf.reshape(is_seen, [1, -1] + [1] * (new[-1].shape.rank - 1))
    value = tf.where(is_seen, new[-1], tf.gather(held[-1], slot))
    history.write_slot(writer, buffers[-1], held[-1], slot, value)


def read_all(buffers):
    return [*map(tf.convert_to_tensor, buffers[:-1]), history.read_shared(buffers[-1])]


@pytest.mark.parametrize("are_seen", [(True, True), (False, True)])
@pytest.mark.parametrize("step", [0, 2, 7])
def test_every_buffer_has_its_slot_written(values, new, step, are_seen):
    buffers = buffers_of(values)

    @tf.function
    def write(step, is_seen):
        held = read_all(buffers)
        write_all(buffers, held, step, list(map(tf.constant, new)), is_seen)
        return held

    held = write(tf.constant(step), tf.constant(are_seen)[:, None])
    for buffer, old, value, seen in zip(buffers, values, new, held):
        wanted = old.copy()
        for group, is_seen in enumerate(are_seen):
            if is_seen:
                wanted[step % _STEPS, group] = value[group]
        np.testing.assert_array_equal(buffer.numpy(), wanted)
        np.testing.assert_array_equal(seen, old)  # what was read is from before


def test_a_stateless_scope_gets_the_update(values, new):
    buffers = buffers_of(values)
    lent = [(buffer, tf.constant(2 * value)) for buffer, value in zip(buffers, values)]
    with keras.StatelessScope(state_mapping=lent) as scope:
        held = read_all(buffers)
        is_seen = tf.ones([_GROUPS, 1], tf.bool)
        write_all(buffers, held, tf.constant(1), list(map(tf.constant, new)), is_seen)
        updates = [scope.get_current_value(buffer).numpy() for buffer in buffers]
    for buffer, old, value, update in zip(buffers, values, new, updates):
        wanted = 2 * old
        wanted[1] = value
        np.testing.assert_array_equal(update, wanted)
        np.testing.assert_array_equal(buffer.numpy(), old)


def test_reads_share_memory_until_a_slot_is_written(values, new):
    (buffer,) = buffers_of(values[-1:])
    writer = state.Writer()
    held = history.read_shared(buffer)
    history.write_slot(writer, buffer, held, tf.constant([0]), new[-1][None])
    plain = [tf.convert_to_tensor(buffer) for _ in range(2)]
    shared = [history.read_shared(buffer) for _ in range(2)]
    assert len({address(read) for read in plain}) == 2
    assert len({address(read) for read in shared}) == 1
    before = shared[0].numpy().copy()
    history.write_slot(writer, buffer, shared[0], tf.constant([1]), new[-1][None])
    np.testing.assert_array_equal(shared[0], before)
    np.testing.assert_array_equal(buffer.numpy()[1], new[-1])


def address(tensor):
    return tensor._numpy().ctypes.data
