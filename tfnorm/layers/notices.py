"""What a layer says once while it runs, also within a graph."""

import itertools
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfnorm.functional import xla
from tfnorm.functional.traced_once import traced_for_any_size

_keys = itertools.count()
_layers: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_keys_of_layers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def key(layer: keras.layers.Layer) -> tf.Tensor:
    """By which the host finds a layer again."""
    if layer not in _keys_of_layers:
        number = _keys_of_layers[layer] = next(_keys)
        _layers[number] = layer
    return tf.constant(_keys_of_layers[layer], tf.int64)


@traced_for_any_size
def unless_finite(is_seen: tf.Tensor, is_finite: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Warns once the layer of a `key` that it leaves its state alone, unless all are finite.

    A graph for XLA cannot say it: it has no way to the host.

    Args:
        is_seen: which groups go into the state, [G, 1].
        is_finite: which had finite moments, [G, 1].
        key: of the layer.

    Returns:
        `is_seen`. What is made of it, and not of what was given, has the warning said.
    """
    if xla.is_compiling():
        return is_seen
    if tf.executing_eagerly():
        return is_seen if is_finite.numpy().all() else tf.constant(_say(key, is_seen.numpy()))

    def say() -> tf.Tensor:
        # With no effect that TensorFlow knows of: it would run all layers one after the other. And
        # of `is_seen`, because of constants alone its optimizer would run it at once.
        said = tf.numpy_function(_say, [key, is_seen], tf.bool, stateful=False)
        return tf.ensure_shape(said, is_seen.shape)

    return tf.cond(tf.reduce_all(is_finite), lambda: is_seen, say)


def _say(key: np.ndarray, is_seen: np.ndarray) -> np.ndarray:
    layer = _layers.pop(int(key), None)  # so it says it once
    if layer is not None:
        warnings.warn(
            f"{layer.name!r} leaves its statistics as they are in steps whose moments are not "
            "finite: its inputs were NaN or infinite, or too large to be squared. Look for bad "
            "examples or a learning rate that is too high. This is said once.",
            stacklevel=2,
        )
    return is_seen
