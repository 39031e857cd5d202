"""What a layer says once while it runs, also within a graph."""

import functools
import itertools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.functional import xla
from tfnorm.functional.traced_once import traced_for_any_width

_keys = itertools.count()
_layers: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_keys_of_layers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def say_if_not_finite(layer: keras.layers.Layer, is_finite: tf.Tensor) -> None:
    """Warns once a layer that it left its state alone; `is_finite` is [G, 1], of its groups.

    A graph for XLA cannot say it: it has no way to the host.
    """
    _say_unless(is_finite, _key(layer))


def and_say(layer: keras.layers.Layer, function: Callable, *args: Any, **options: Any) -> list:
    """All but the last of what `function` returns, which is given to `say_if_not_finite`.

    Both are one operation of a layer's graph.

    Args:
        layer: that warns.
        function: such as `traced_for_any_width` takes.
        *args: of the function.
        **options: of the function, constants.
    """
    return _with_notice(function)(_key(layer), *args, **options)


@functools.cache
def _with_notice(function: Callable) -> Callable:
    @traced_for_any_width
    def run(key: tf.Tensor, *args: Any, **options: Any) -> list:
        *results, is_finite = function(*args, **options)
        _say_unless(is_finite, key)
        return results

    return run


def _key(layer: keras.layers.Layer) -> tf.Tensor:
    """By which the host finds the layer again."""
    if layer not in _keys_of_layers:
        key = _keys_of_layers[layer] = next(_keys)
        _layers[key] = layer
    return tf.constant(_keys_of_layers[layer], tf.int64)


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


def _say_unless(is_finite: tf.Tensor, key: tf.Tensor) -> None:
    if xla.is_compiling():
        return
    if tf.executing_eagerly():
        if not is_finite.numpy().all():
            _say(key.numpy())
        return
    _say_unless_in_graph(is_finite, key)


@traced_for_any_width
def _say_unless_in_graph(is_finite: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    return tf.cond(
        tf.reduce_all(is_finite),
        lambda: key,
        lambda: tf.ensure_shape(tf.numpy_function(_say, [key], tf.int64), []),
    )
