"""All networks of keras.applications, by their own names, with any normalizer."""

import functools
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from tfnorm.errors import UserError, one_line
from tfnorm.layers.norms import Normalizer
from tfnorm.models.foreign import pyramid_of
from tfnorm.models.pyramid import Pyramid
from tfnorm.models.scaling import PixelScaling
from tfnorm.models.strides import feature_maps

# Their cells are fitted together by the sizes of the images that they are built for.
_OF_ONE_SIZE = ("NASNetLarge", "NASNetMobile")

NAMES = tuple(name for name in dir(keras.applications) if name[0].isupper())


def application(
    images: Any, normalizer: Normalizer, *, name: str, weights: str | None = None
) -> Pyramid:
    """A network of keras.applications without its top, its normalizers converted.

    It is fed images scaled by `pixel_scaling`; where Keras' preprocessing turns RGB to BGR, the
    model does so itself.

    Args:
        images: [batch, height, width, channels].
        normalizer: takes the place of every batch normalization, by `tfnorm.convert`; "none" is
            for networks that have none (VGG, ConvNeXt).
        name: one of `NAMES`.
        weights: "imagenet" (from the network, or Keras' cache), or the PATH of a file in which
            Keras stores the weights of this network, with its top or without.

    Returns:
        Its feature maps by level; the state of a chain of normalizers ends at its border.

    Raises:
        UserError: the weights are not there or of another network, the normalizer does not suit
            the network, or the images are too small for it, or of any size where it takes one.
    """
    size = images.shape[1:3] if name in _OF_ONE_SIZE else (None, None)
    if name in _OF_ONE_SIZE and None in size:
        raise UserError(
            f"{name} is for images of one size, and this network takes images of any; choose "
            "another --backbone"
        )
    network = _with_weights(name, (*size, images.shape[-1]), weights)
    features = keras.Model(network.inputs, feature_maps(network), name=name)
    if _preprocessing(name).order != (0, 1, 2):
        images = keras.ops.flip(images, axis=-1)
    return pyramid_of(features, images, normalizer)


def pixel_scaling(name: str, channels: int = 3) -> PixelScaling:
    """What Keras' `preprocess_input` of the network does to pixels, as mean and deviation.

    For images of other than three channels, the mean of both over the three.
    """
    offset, scale, order = _preprocessing(name)
    return PixelScaling.of_affine(scale[list(order)], offset[list(order)], channels)


class _Preprocessing(NamedTuple):
    """Channel i of what a network takes is offset[i] + scale[i]·pixel; channel j of an image is
    channel order[j] of it.
    """  # noqa: D205

    offset: np.ndarray
    scale: np.ndarray
    order: tuple[int, ...]


@functools.cache
def _preprocessing(name: str) -> _Preprocessing:
    """Read off from what Keras' function makes of black, red, green and blue."""
    preprocess = sys.modules[_builder(name).__module__].preprocess_input
    colours = np.concatenate([np.zeros([1, 3]), 255 * np.eye(3)]).astype("float32")
    answer = np.asarray(preprocess(colours.reshape([1, 1, 4, 3]))[0, 0], "float64")
    rise = (answer[1:] - answer[0]) / 255  # [channel of an image, channel of the input]
    order = tuple(int(i) for i in np.abs(rise).argmax(1))
    return _Preprocessing(answer[0], rise.max(0), order)


def _builder(name: str) -> Callable[..., keras.Model]:
    return getattr(keras.applications, name)


def _with_weights(name: str, shape: tuple, weights: str | None) -> keras.Model:
    build = functools.partial(_builder(name), include_top=False, input_shape=shape, name=name)
    if weights is None:
        return build(weights=None)
    with warnings.catch_warnings():
        # Of sizes that its images need not have, and of parts that a file stores twice.
        warnings.simplefilter("ignore")
        return _load(build, name, shape, weights)


def _load(build: Callable[..., keras.Model], name: str, shape: tuple, weights: str) -> keras.Model:
    if weights == "imagenet":
        return _from_imagenet(build, name, shape[-1])
    if not pathlib.Path(weights).is_file():
        raise UserError(
            f"weights '{weights}' is neither 'imagenet' nor a file; give the PATH of weights of "
            f"{name}"
        )
    try:
        return build(weights=weights)
    except Exception as error:  # What a file that does not fit raises depends on its format.
        values = _of_the_whole_network(name, weights)
        if values is None:
            raise UserError(
                f"weights '{weights}' are not those of {name}: {one_line(error)}"
            ) from error
    network = build(weights=None)
    network.set_weights(values[: len(network.weights)])
    return network


def _of_the_whole_network(name: str, weights: str) -> list[np.ndarray] | None:
    """The values in a file of the network with its top for ImageNet's classes; None if it is not.

    The top's weights are the last.
    """
    try:
        return _builder(name)(include_top=True, weights=weights).get_weights()
    except Exception:  # As above.
        return None


def _from_imagenet(build: Callable[..., keras.Model], name: str, channels: int) -> keras.Model:
    if channels != 3:
        raise UserError(
            f"the weights of {name} on ImageNet are for images of 3 channels, received {channels}"
        )
    try:
        return build(weights="imagenet")
    except Exception as error:  # Of the network's layers, or Keras' own around one.
        raise UserError(
            f"the weights of {name} on ImageNet cannot be fetched ({one_line(error)}); fetch them "
            "elsewhere and give the file as --weights=PATH"
        ) from error
