"""Networks that take their normalizer as an argument and name none."""

import functools
from typing import Any

import keras

from tfnorm.errors import UserError
from tfnorm.layers.norms import Normalizer
from tfnorm.models.inception import inception
from tfnorm.models.resnet import DEPTHS, resnet

_REGISTRY = {
    **{f"resnet{depth}": functools.partial(resnet, depth=depth) for depth in DEPTHS},
    "inception_small": inception,
}

NAMES = tuple(_REGISTRY)


def build(
    name: str,
    normalizer: Normalizer,
    input_shape: tuple[int, int, int],
    num_classes: int,
    **options: Any,
) -> keras.Model:
    """The network called `name`.

    Args:
        name: one of `NAMES`.
        normalizer: from `tfnorm.layers.norms.get`; follows every convolution.
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        **options: width, stem_stride; the network's own defaults where left out.

    Raises:
        UserError: there is no such network.
    """
    if name not in _REGISTRY:
        raise UserError(f"unknown model {name!r}; the known ones are {', '.join(NAMES)}.")
    return _REGISTRY[name](normalizer, tuple(input_shape), num_classes, **options)
