"""Looking on while a model's layers are called, and calling it without leaving a trace."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnorm.layers import norms
from tfnorm.layers.batch_method import method_of

Tap = Callable[[keras.layers.Layer, Mapping[str, Any], Any], Any]


def normalizers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that keep moving statistics, tfnorm's and Keras', in the order of the model."""
    return [x for x in model._flatten_layers(recursive=True) if norms.keeps_statistics(x)]


@contextlib.contextmanager
def tapped(layers: Sequence[keras.layers.Layer], tap: Tap) -> Iterator[None]:
    """While it is entered, each call of the layers goes on with what `tap` makes of its outputs.

    Args:
        layers: Built layers.
        tap: Called with the layer, the arguments of its call by name, and its outputs.
    """

    def watched(layer: keras.layers.Layer, call: Callable) -> Callable:
        signature = inspect.signature(call)

        def tapping(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            return tap(layer, arguments, call(*args, **kwargs))

        return tapping

    for layer in layers:
        vars(layer)["call"] = watched(layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]


def normalized(
    layer: keras.layers.Layer, arguments: Mapping[str, Any]
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """What a normalizer normalizes in a call of these arguments, and its mask."""
    x = method_of(layer).normalized_inputs(next(iter(arguments.values())))
    return x, arguments.get("mask", arguments.get("inputs_mask"))


def discard_updates(model: keras.Model) -> keras.StatelessScope:
    """While it is entered, what is written to the model's Keras variables is forgotten after it."""
    # Lent as tensors, because a layer may write past Keras to a variable that it finds.
    lent = [(v, tf.convert_to_tensor(v)) for v in model.non_trainable_variables]
    return keras.StatelessScope(lent)
