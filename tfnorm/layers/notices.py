"""What a layer says once while it runs, also within a graph."""

import itertools
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfnorm.functional import xla
from tfnorm.functional.traced_once import as_argument

_keys = itertools.count()
_layers: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_keys_of_layers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def say_if_not_finite(layer: keras.layers.Layer, is_finite: tf.Tensor) -> None:
    """Warns once a layer that it left its state alone; `is_finite` is [G, 1], of its groups.

    A graph for XLA cannot say it: it has no way to the host.
    """
    if xla.is_compiling():
        return
    if layer not in _keys_of_layers:
        key = _keys_of_layers[layer] = next(_keys)
        _layers[key] = layer
    # One function for all layers: in their graphs it is one operation.
    _say_unless(is_finite, _keys_of_layers[layer])


def _say(key: np.ndarray) -> np.ndarray:
    layer = _layers.pop(int(key), None)  # so it says it once
    if layer is not None:
        warnings.warn(
            f"{layer.name!r} leaves its statistics as they are in steps whose moments are not "
            "finite: its inputs were NaN or infinite, or too large to be squared. Look for bad "
            "examples or a learning rate that is too high. This is said once.",
            stacklevel=2,
        )
    return key


def _say_unless(is_finite: tf.Tensor, key: int) -> None:
    if tf.executing_eagerly():
        if not is_finite.numpy().all():
            _say(np.int64(key))
        return
    _say_unless_in_graph(is_finite, as_argument(tf.constant(key, tf.int64)))


@tf.function(
    input_signature=[tf.TensorSpec([None, 1], tf.bool), tf.TensorSpec([], tf.int64)],
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def _say_unless_in_graph(is_finite: tf.Tensor, key: tf.Tensor) -> None:
    tf.cond(
        tf.reduce_all(is_finite),
        lambda: key,
        lambda: tf.ensure_shape(tf.numpy_function(_say, [key], tf.int64), []),
    )
