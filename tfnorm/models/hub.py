"""Backbones of KerasHub, by preset."""

import functools
import importlib
from types import ModuleType
from typing import Any

import keras
import numpy as np

from tfnorm.errors import UserError, one_line
from tfnorm.layers.norms import Normalizer
from tfnorm.models.foreign import pyramid_of
from tfnorm.models.pyramid import Pyramid
from tfnorm.models.scaling import PixelScaling
from tfnorm.models.strides import feature_maps

PREFIX = "hub:"


def hub_backbone(
    images: Any, normalizer: Normalizer, *, preset: str, weights: str | None = None
) -> Pyramid:
    """A backbone of KerasHub, its normalizers converted.

    Args:
        images: [batch, height, width, 3].
        normalizer: takes the place of every normalizer, by `tfnorm.convert`.
        preset: name of a preset, a handle such as kaggle://..., or a directory of one.
        weights: "preset" for those of the preset; random ones by default.

    Returns:
        Its feature maps by level; the state of a chain of normalizers ends at its border.

    Raises:
        UserError: KerasHub is not installed, the preset is not there or no backbone of images, or
            the normalizer does not suit it.
    """
    if weights not in (None, "preset"):
        raise UserError(f"weights '{weights}' of a KerasHub preset; known is 'preset'")
    backbone = _load("Backbone", preset, load_weights=weights is not None)
    if len(backbone.inputs) != 1 or len(backbone.inputs[0].shape) != 4:
        raise UserError(f"KerasHub's preset '{preset}' is no backbone of images")
    maps = {
        name.removeprefix("P"): x for name, x in getattr(backbone, "pyramid_outputs", {}).items()
    }
    name = preset.rstrip("/").rsplit("/", 1)[-1]
    features = keras.Model(backbone.inputs, maps or feature_maps(backbone), name=name)
    return pyramid_of(features, images, normalizer)


def pixel_scaling(preset: str, channels: int = 3) -> PixelScaling:
    """That of the preset's image converter: pixel·scale + offset; none is pixels as they are.

    Raises:
        UserError: KerasHub is not installed, the preset is not there, or its converter cannot be
            loaded.
    """
    converter = _image_converter(preset)
    found = getattr(converter, "scale", None), getattr(converter, "offset", None)
    scale, offset = (
        np.broadcast_to(np.asarray(default if value is None else value, "float64"), 3)
        for value, default in zip(found, (1.0, 0.0))
    )
    return PixelScaling.of_affine(scale, offset, channels)


def _image_converter(preset: str) -> Any | None:
    """None of a preset that comes without, and of no other."""
    try:
        return _load("ImageConverter", preset)
    except UserError as error:
        is_missing = isinstance(error.__cause__, FileNotFoundError)
        if is_missing and "doesn't exist" in str(error.__cause__):
            return None
        raise


@functools.cache
def _keras_hub() -> ModuleType:
    try:
        return importlib.import_module("keras_hub")
    except ImportError as error:
        missing = getattr(error, "name", None) or "keras_hub"
        named = "" if missing.partition(".")[0] == "keras_hub" else f", which misses {missing}"
        raise UserError(
            f"backbones of KerasHub need the package keras-hub{named}; install it with "
            "pip install 'tfnorm[hub]'"
        ) from error


def _load(kind: str, preset: str, **options: Any) -> Any:
    hub = _keras_hub()
    loader = hub.models.Backbone if kind == "Backbone" else hub.layers.ImageConverter
    try:
        return loader.from_preset(preset, **options)
    except Exception as error:  # KerasHub's, a downloader's, or the file system's
        raise UserError(
            f"KerasHub's preset '{preset}' cannot be loaded ({one_line(error)}); give the name of "
            "one, or a directory that save_to_preset wrote"
        ) from error
