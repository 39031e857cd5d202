"""Values for new variables."""

import keras
import numpy as np
import pytest

from tfnorm.graph.filling import borrowing, copy_weights

L = keras.layers


def test_layers_start_with_borrowed_values_and_keep_their_initializers(rng):
    source = L.Dense(3)
    source.build((None, 4))
    source.kernel.assign(rng.normal(size=(4, 3)))
    dense = L.Dense(3, kernel_initializer="he_normal", bias_initializer="ones")
    wide = L.Dense(5)
    config = dense.get_config()
    with borrowing([(dense, source), (wide, source), (keras.ops.relu, keras.ops.relu)]):
        dense.build((None, 4))
        wide.build((None, 4))
    np.testing.assert_array_equal(dense.kernel, source.kernel)
    assert not np.any(dense.bias) and not np.any(wide.kernel)
    assert dense.get_config() == config
    dense.kernel.assign_add(np.ones((4, 3)))
    np.testing.assert_allclose(dense.kernel - 1, source.kernel, atol=1e-6)


def test_weights_are_those_of_the_other_and_then_go_their_own_way(rng):
    one, other = L.Dense(3), L.Dense(3)
    for layer in (one, other):
        layer.build((None, 4))
    one.kernel.assign(rng.normal(size=(4, 3)))
    copy_weights(one, other)
    before = other.kernel.numpy().copy()
    np.testing.assert_array_equal(before, one.kernel)
    one.kernel.assign_add(np.ones((4, 3)))
    np.testing.assert_array_equal(other.kernel, before)
    other.kernel.value[1:2].assign(np.zeros((1, 3), "float32"))
    np.testing.assert_allclose(one.kernel, before + 1, rtol=1e-6)
    narrow = L.Dense(2)
    narrow.build((None, 4))
    with pytest.raises(ValueError, match=r"weights of shapes \[\(4, 3\), \(3,\)\], expected"):
        copy_weights(one, narrow)
