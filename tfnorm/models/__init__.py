"""Networks that take their normalizer as an argument and name none."""

import functools
import inspect
from typing import Any

import keras

from tfnorm.errors import UserError
from tfnorm.layers.norms import Normalizer
from tfnorm.models import registry
from tfnorm.models.convolving import frozen
from tfnorm.models.pyramid import Features, Pyramid
from tfnorm.models.registry import BACKBONES, NETWORKS, Backbone, Network
from tfnorm.models.scaling import PixelScaling
from tfnorm.models.weights import Weights, load

__all__ = [
    "BACKBONE_NAMES",
    "NAMES",
    "Backbone",
    "Network",
    "PixelScaling",
    "Pyramid",
    "build",
    "frozen",
    "names_of",
    "network",
    "options_of",
    "pixel_scaling",
]

NAMES = NETWORKS.keys()
"""Names of the networks; "hub:PRESET" is one as well."""

BACKBONE_NAMES = BACKBONES.keys()
"""Names of the backbones; "hub:PRESET" is one as well."""

network = registry.network


def names_of(task: str) -> tuple[str, ...]:
    """Names of the networks that a task can be trained with."""
    return tuple(name for name, found in NETWORKS.items() if found.task == task)


def build(
    name: str,
    normalizer: Normalizer,
    input_shape: tuple[int | None, int | None, int],
    num_classes: int,
    *,
    backbone: str | None = None,
    backbone_normalizer: Normalizer | None = None,
    weights: Weights | None = None,
    **options: Any,
) -> keras.Model:
    """The network called `name`.

    Args:
        name: one of `NAMES`, or "hub:PRESET".
        normalizer: from `tfnorm.layers.norms.get`; follows every convolution.
        input_shape: (height, width, channels) of an image; networks for images of any size take
            None for height and width.
        num_classes: number of classes.
        backbone: what the network stands on, one of `BACKBONE_NAMES` or "hub:PRESET"; its own
            choice by default.
        backbone_normalizer: of the backbone, if it is another one: `frozen(norms.get("bn"))` for a
            pretrained one.
        weights: of the backbone: a trained model of ours on the same backbone, whatever its head
            and its normalizers, or the PATH of its .keras file; "imagenet" or the PATH of Keras'
            own file for a network of keras.applications, "preset" for one of KerasHub. Random by
            default.
        **options: those of the network and of its backbone, see `options_of`; one that is
            None is left to the network.

    Example:
        build("resnet20", norms.get("mabn"), (32, 32, 3), 10, width=32)

    Raises:
        UserError: there is no such network or backbone, neither takes one of the options, or the
            weights are not there or of another network.
    """
    found, backbone = _resolve(name, backbone)
    given = {key: value for key, value in options.items() if value is not None}
    of_backbone = registry.options_of(registry.backbone(backbone).build)
    of_network = registry.options_of(found.build)
    unknown = sorted(set(given) - {*of_network, *of_backbone})
    if unknown:
        accepted = ", ".join(options_of(name, backbone)) or "no options"
        on = "" if found.is_fixed else f" on {backbone}"
        raise UserError(
            f"model {name!r}{on} does not take {', '.join(unknown)}; it takes {accepted}."
        )
    asked = {**found.backbone_options, **given}
    features = functools.partial(
        registry.backbone(backbone).build,
        normalizer=backbone_normalizer or normalizer,
        **{key: asked[key] for key in of_backbone if key in asked},
    )
    features = _with_weights(features, weights, backbone)
    own = {key: given[key] for key in of_network if key in given}
    return found.build(
        features, normalizer, tuple(input_shape), num_classes, name=_layer_name(name), **own
    )


def _layer_name(name: str) -> str:
    """What Keras takes as a name: of "hub:kaggle://user/preset", the preset."""
    return name.rstrip("/").rsplit("/", 1)[-1].replace(":", "_")


def _with_weights(features: functools.partial, weights: Weights | None, name: str) -> Features:
    """The backbone, which takes its weights itself or is given them by the names of its layers."""
    if weights is None:
        return features
    takes_weights = "weights" in inspect.signature(features.func).parameters
    if takes_weights and isinstance(weights, str) and not weights.endswith(".keras"):
        return functools.partial(features, weights=weights)

    def loaded(images: keras.KerasTensor) -> Pyramid:
        pyramid = features(images)
        body = keras.Model(images, list(pyramid.levels.values()))
        load(body, weights, features.keywords["normalizer"], name)
        return pyramid

    return loaded


def options_of(name: str, backbone: str | None = None) -> dict[str, Any]:
    """The options that `build` takes for a network and its backbone, and their defaults.

    Example:
        options_of("inception_small") == {"width": 32, "stem_stride": 2}

    Raises:
        UserError: there is no such network or backbone.
    """
    found, backbone = _resolve(name, backbone)
    of_backbone = registry.options_of(registry.backbone(backbone).build)
    asked = {key: found.backbone_options.get(key, of_backbone[key]) for key in of_backbone}
    return {**asked, **registry.options_of(found.build)}


def pixel_scaling(
    name: str, backbone: str | None = None, *, channels: int = 3
) -> PixelScaling | None:
    """The scale of pixels that a network is fed; None where any will do, as the data set's own.

    Raises:
        UserError: there is no such network or backbone.
    """
    _, backbone = _resolve(name, backbone)
    scaling = registry.backbone(backbone).scaling
    return None if scaling is None else scaling(channels)


def _resolve(name: str, backbone: str | None) -> tuple[Network, str]:
    found = network(name)
    if backbone is None or backbone == found.backbone:
        return found, found.backbone
    if found.is_fixed:
        raise UserError(
            f"model {name!r} is a backbone itself and stands on no other ({backbone!r})"
        )
    registry.backbone(backbone)
    return found, backbone
