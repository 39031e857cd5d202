"""A convolution and the normalizer behind it, under names that weights can be found by."""

import dataclasses
from typing import Any

import keras

from tfnorm.layers.norms import Normalizer
from tfnorm.models.pyramid import Pyramid


def convolution(
    filters: int,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    *,
    dilation: int = 1,
    name: str,
) -> keras.layers.Conv2D:
    """A padded convolution without bias, to be normalized."""
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        stride,
        padding="same",
        dilation_rate=dilation,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )


def normalize(
    normalizer: Normalizer, layer: keras.layers.Layer, x: Any, state: Any
) -> tuple[Any, Any]:
    """Applies an unbuilt layer and its normalizer, which is called after the layer: (y, state)."""
    return _named(normalizer, f"{layer.name}_norm")(layer, x, state)


def convolve(
    normalizer: Normalizer, layer: keras.layers.Layer, x: Any, state: Any
) -> tuple[Any, Any]:
    """The layer, its normalizer and a ReLU: (y, state)."""
    y, state = normalize(normalizer, layer, x, state)
    return relu(y, f"{layer.name}_relu"), state


def convolve_shared(normalizer: Normalizer, layer: keras.layers.Layer, maps: Pyramid) -> Pyramid:
    """The layer, shared by all levels, a normalizer for each of them, and a ReLU."""
    levels, states = {}, {}
    shared = normalizer.prepare(layer)
    for level, x in maps.levels.items():
        name = f"{layer.name}_level{level}"
        own = _named(normalizer, f"{name}_norm")
        y, states[level] = own.normalize(shared, x, maps.states[level])
        levels[level] = relu(y, f"{name}_relu")
    return Pyramid(levels, states)


def relu(x: Any, name: str) -> Any:
    """The rectifier as a layer of that name."""
    return keras.layers.Activation("relu", name=name)(x)


def frozen(normalizer: Normalizer) -> Normalizer:
    """The same with trainable=False: the formula of inference, and constant γ and β.

    It is what detectors and segmenters do with the normalizers of a pretrained backbone. The
    convolutions train on. It suits every normalizer that stands behind its convolution; cbn, which
    holds it, would freeze the kernel as well.
    """
    return dataclasses.replace(normalizer, options={**normalizer.options, "trainable": False})


def _named(normalizer: Normalizer, name: str) -> Normalizer:
    return dataclasses.replace(normalizer, options={**normalizer.options, "name": name})
