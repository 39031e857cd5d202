"""Ring buffers: the slot in place equals the pass over all of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm import functional
from tfnorm.layers import history, replicas

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


def write_all(buffers, held, step, new, count):
    """All but the last in passes over all of them, the last in place."""
    for buffer, old, value in list(zip(buffers, held, new, strict=True))[:-1]:
        history.write([buffer], [old], step, [value], count)
    history.write_slot(buffers[-1], held[-1], step, new[-1], count)


def read_all(buffers):
    return [*map(tf.convert_to_tensor, buffers[:-1]), history.read_shared(buffers[-1])]


@pytest.mark.parametrize(
    ("counts", "is_known"), [((7.0, 9.0), False), ((0.0, 9.0), False), ((7.0, 9.0), True)]
)
@pytest.mark.parametrize("step", [0, 2, 7])
def test_every_buffer_has_its_slot_written(values, new, step, counts, is_known):
    buffers = buffers_of(values)

    @tf.function
    def write(step, count):
        count = tf.constant([[c] for c in counts]) if is_known else count
        assert functional.is_statically_positive(count) == is_known
        held = read_all(buffers)
        write_all(buffers, held, step, list(map(tf.constant, new)), count)
        return held

    held = write(tf.constant(step), tf.constant(counts)[:, None])
    for buffer, old, value, seen in zip(buffers, values, new, held):
        wanted = old.copy()
        for group, count in enumerate(counts):
            if count:
                wanted[step % _STEPS, group] = value[group]
        np.testing.assert_array_equal(buffer.numpy(), wanted)
        np.testing.assert_array_equal(seen, old)  # what was read is from before


def test_a_stateless_scope_gets_the_update(values, new):
    buffers = buffers_of(values)
    lent = [(buffer, tf.constant(2 * value)) for buffer, value in zip(buffers, values)]
    with keras.StatelessScope(state_mapping=lent) as scope:
        held = read_all(buffers)
        count = tf.ones([_GROUPS, 1], "float64")
        write_all(buffers, held, tf.constant(1), list(map(tf.constant, new)), count)
        updates = [scope.get_current_value(buffer).numpy() for buffer in buffers]
    for buffer, old, value, update in zip(buffers, values, new, updates):
        wanted = 2 * old
        wanted[1] = value
        np.testing.assert_array_equal(update, wanted)
        np.testing.assert_array_equal(buffer.numpy(), old)


def test_reads_share_memory_until_a_slot_is_written(values, new):
    (buffer,) = buffers_of(values[-1:])
    count = tf.ones([_GROUPS, 1])
    history.write_slot(buffer, history.read_shared(buffer), tf.constant(0), new[-1], count)
    plain = [tf.convert_to_tensor(buffer) for _ in range(2)]
    shared = [history.read_shared(buffer) for _ in range(2)]
    assert len({address(read) for read in plain}) == 2
    assert len({address(read) for read in shared}) == 1
    before = shared[0].numpy().copy()
    history.write_slot(buffer, shared[0], tf.constant(1), new[-1], count)
    np.testing.assert_array_equal(shared[0], before)
    np.testing.assert_array_equal(buffer.numpy()[1], new[-1])


def address(tensor):
    return tensor._numpy().ctypes.data
