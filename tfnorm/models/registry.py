"""The one registry of networks: from a name to what builds it."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfnorm.errors import UserError
from tfnorm.models import applications, hub
from tfnorm.models.classifier import classifier
from tfnorm.models.deeplabv3plus import deeplabv3plus
from tfnorm.models.faster_rcnn import faster_rcnn
from tfnorm.models.inception import inception
from tfnorm.models.mask_rcnn import mask_rcnn
from tfnorm.models.pspnet import pspnet
from tfnorm.models.pyramid import Pyramid
from tfnorm.models.resnet import LARGE_DEPTHS, SMALL_DEPTHS, resnet, small_resnet
from tfnorm.models.retinanet import retinanet
from tfnorm.models.scaling import PixelScaling
from tfnorm.models.unet import unet


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network that feature maps are taken of.

    Attributes:
        build: (images, normalizer, **options) -> Pyramid; its keyword-only parameters are the
            options that it takes.
        scaling: (channels) -> the scale of pixels that it is fed; None: any, such as that of the
            data set.
    """

    build: Callable[..., Pyramid]
    scaling: Callable[[int], PixelScaling] | None = None


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of a task.

    Attributes:
        task: name of the task that its outputs are for.
        build: (features, normalizer, input_shape, num_classes, *, name, **options) -> keras.Model,
            where `features` is the backbone, from images to their Pyramid. Its keyword-only
            parameters are the options that it takes.
        backbone: name of the backbone that it stands on if none is asked for.
        is_fixed: whether it cannot stand on another.
        backbone_options: what it asks of its backbone, where that takes it and nothing else is
            asked for.
        stages: of a detector, how often it looks: 2 if it does at what the first stage proposes.
    """

    task: str
    build: Callable[..., keras.Model]
    backbone: str
    is_fixed: bool = False
    stages: int = 1
    backbone_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


BACKBONES: dict[str, Backbone] = {
    **{
        f"resnet{depth}": Backbone(functools.partial(small_resnet, depth=depth))
        for depth in SMALL_DEPTHS
    },
    "inception_small": Backbone(inception),
    **{
        f"resnet{depth}": Backbone(functools.partial(resnet, depth=depth)) for depth in LARGE_DEPTHS
    },
    **{
        name: Backbone(
            functools.partial(applications.application, name=name),
            functools.partial(applications.pixel_scaling, name),
        )
        for name in applications.NAMES
    },
}

NETWORKS: dict[str, Network] = {
    **{name: Network("classification", classifier, name, is_fixed=True) for name in BACKBONES},
    "pspnet": Network("segmentation", pspnet, "resnet50", backbone_options={"output_stride": 8}),
    "deeplabv3plus": Network(
        "segmentation", deeplabv3plus, "resnet50", backbone_options={"output_stride": 16}
    ),
    "unet": Network("segmentation", unet, "resnet34"),
    "retinanet": Network("detection", retinanet, "resnet50"),
    "faster_rcnn": Network(
        "detection", functools.partial(faster_rcnn, extra_heads=()), "resnet50", stages=2
    ),
    "mask_rcnn": Network("instance_segmentation", mask_rcnn, "resnet50", stages=2),
}


def network(name: str) -> Network:
    """The network called `name`, or "hub:PRESET" for a backbone of KerasHub.

    Raises:
        UserError: there is none.
    """
    if name.startswith(hub.PREFIX):
        return Network("classification", classifier, name, is_fixed=True)
    return _find(NETWORKS, "model", name)


def backbone(name: str) -> Backbone:
    """The backbone called `name`, or "hub:PRESET".

    Raises:
        UserError: there is none.
    """
    if name.startswith(hub.PREFIX):
        preset = name.removeprefix(hub.PREFIX)
        return Backbone(
            functools.partial(hub.hub_backbone, preset=preset),
            functools.partial(hub.pixel_scaling, preset),
        )
    return _find(BACKBONES, "backbone", name)


def _find(registry: Mapping[str, Any], kind: str, name: str) -> Any:
    if name not in registry:
        close = difflib.get_close_matches(name, registry, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"unknown {kind} {name!r}; the known ones are {', '.join(registry)}.{hint}")
    return registry[name]


def options_of(build: Callable) -> dict[str, Any]:
    """The options that a builder takes, its keyword-only parameters left open, and their defaults.

    One without a default of its own has None.
    """
    bound = build.keywords if isinstance(build, functools.partial) else {}
    return {
        parameter.name: None if parameter.default is parameter.empty else parameter.default
        for parameter in inspect.signature(build).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.name not in bound
        and parameter.name not in ("name", "weights")  # which `models.build` gives itself
    }
