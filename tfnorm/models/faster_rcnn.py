"""Faster R-CNN of Ren et al. (2015), on the feature pyramid of Lin et al. (2017).

KerasHub 0.32 has neither it nor Mask R-CNN. What it has of parts was looked at: its anchors,
matching and suppression are not taken for the reasons said in `tfnorm.models.retinanet`; the
RoIAlign of its SAM 3 takes one feature map and loops over images. Keras' own `ops.image` cuts one
window out of one image, and XLA does not compile `tf.image.crop_and_resize`. `tf.image` has a
suppression of static shape, which pads to tiles of 512 boxes and is a tf.function of its own, which
XLA does not trace again; that of `tfnorm.boxes` is a few lines, and says which boxes survive.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfnorm.boxes import AnchorGrid, Detections
from tfnorm.errors import UserError
from tfnorm.layers.norms import Normalizer
from tfnorm.models.convolving import convolution, convolve
from tfnorm.models.fpn import feature_pyramid
from tfnorm.models.pyramid import Features, Pyramid
from tfnorm.models.regions import Found, PerImage, RegionFeatures, Regions

ExtraHead = Callable[["RegionHeads", Detections], dict[str, Any]]
"""From what heads are made of, and what two stages find, to more outputs of the network."""

_BOX_SIZE = 7  # cells along each side of what the box head sees


@dataclasses.dataclass(frozen=True)
class RegionHeads:
    """What the heads are made of that look at regions.

    Attributes:
        normalizer: of the heads.
        pyramid: the levels that regions are cut out of.
        num_classes: number of classes.
        width: channels of a head's convolutions.
        convolutions: how many there are.
        canonical_level: the level of a region of 224² pixels.
    """

    normalizer: Normalizer
    pyramid: Pyramid
    num_classes: int
    width: int
    convolutions: int
    canonical_level: int

    def cut_out(self, regions: Any, size: int, name: str) -> Any:
        """The features of regions [batch, n, 4], [batch · n, size, size, channels]."""
        levels = self.pyramid.levels
        layer = RegionFeatures(size, min(levels), self.canonical_level, name=name)
        return layer([regions, *(levels[level] for level in sorted(levels))])

    def convolved(self, x: Any, name: str) -> Any:
        """The convolutions of a head on what was cut out, each with its normalizer."""
        state = None
        for number in range(1, self.convolutions + 1):
            layer = convolution(self.width, 3, name=f"{name}_conv{number}")
            x, state = convolve(self.normalizer, layer, x, state)
        return x


def anchor_grid(min_level: int, max_level: int, anchor_size: float) -> AnchorGrid:
    """The anchors of the first stage: one scale a level, and one level more than regions have."""
    return AnchorGrid(min_level, max_level + 1, anchor_size, scales=1)


def faster_rcnn(
    features: Features,
    normalizer: Normalizer,
    input_shape: tuple[int | None, int | None, int],
    num_classes: int,
    *,
    name: str,
    head_width: int = 256,
    head_convolutions: int = 4,
    box_head: str = "4conv1fc",
    fc_width: int = 1024,
    min_level: int = 2,
    max_level: int = 5,
    anchor_size: float = 8.0,
    canonical_level: int = 4,
    candidates: int = 1000,
    proposals: int = 1000,
    regions: int = 512,
    object_share: float = 0.25,
    extra_heads: Sequence[ExtraHead] = (),
) -> keras.Model:
    """Faster R-CNN ("Faster R-CNN", 2015) with a feature pyramid on any backbone.

    The first stage says of each anchor of the pyramid whether there is an object and where. Of its
    best proposals, `tfnorm.models.regions.Regions`, the second stage sees the features
    (`tfnorm.boxes.roi_align`), and says the class, background being the last, and the box for each
    class. A normalizer follows every convolution of the pyramid and of the box head, "4conv1fc" of
    Wu & He, "Group Normalization", 2018; "2fc" has none. As there, the first stage has none.

    In training the regions are drawn by the truth, if `tfnorm.models.truth.known` tells it.

    Args:
        features: the backbone.
        normalizer: of the pyramid and of the heads.
        input_shape: (height, width, channels) of an image; None for any size.
        num_classes: number of classes of objects.
        name: of the model.
        head_width: channels of the pyramid and of the heads.
        head_convolutions: of the box head "4conv1fc" (4 in the papers), and of further heads.
        box_head: "4conv1fc" or "2fc", two dense layers.
        fc_width: units of a dense layer.
        min_level: the finest level of the pyramid, of stride 2^min_level.
        max_level: the coarsest that regions are cut out of; proposals have one more.
        anchor_size: side of a square anchor, in cells of its level.
        canonical_level: the level of a region of 224² pixels, see `tfnorm.boxes.levels_of`.
        candidates: the most proposals of a level, before suppression.
        proposals: the most of an image after it, and the regions of an image at inference.
        regions: regions of an image in training.
        object_share: the largest share of these that have an object.
        extra_heads: of networks that stand on this one.

    Returns:
        A functional model from images to, all float32 but for classes and count:

        - "objectness" [batch, anchors], logits, and "anchor_deltas" [batch, anchors, 4], anchors in
          the order of `anchor_grid`;
        - "regions" [batch, n, 4]; "class_logits" [batch, n, num_classes + 1] and "region_deltas"
          [batch, n, num_classes, 4] of them, as `tfnorm.boxes.decode_regions` takes them;
        - what is found, as `tfnorm.boxes.Detections` in pixels of the images: "boxes" [batch,
          100, 4], "scores" [batch, 100], "classes" [batch, 100] int32, "count" [batch] int32. In
          training they are regions that have an object instead, see `tfnorm.models.regions.Found`.

    Raises:
        UserError: there is no such box head, or the backbone lacks a level.
    """
    if box_head not in _BOX_HEADS:
        raise UserError(
            f"unknown box_head {box_head!r}; the known ones are {', '.join(_BOX_HEADS)}"
        )
    images = keras.Input(input_shape, name="image")
    pyramid = feature_pyramid(
        features(images), normalizer, min_level=min_level, max_level=max_level, width=head_width
    )
    grid = anchor_grid(min_level, max_level, anchor_size)
    objectness, deltas = _first_stage(pyramid, grid.per_cell, head_width)
    objects = max(round(regions * object_share), 1)
    chosen, drawn = Regions(
        dataclasses.asdict(grid), candidates, proposals, regions, objects, name="regions"
    )([images, *objectness, *deltas])
    heads = RegionHeads(
        normalizer, pyramid, num_classes, head_width, head_convolutions, canonical_level
    )
    x = _BOX_HEADS[box_head](heads, heads.cut_out(chosen, _BOX_SIZE, "box_features"), fc_width)
    logits = _predictions(x, chosen, (num_classes + 1,), 0.01, "class_logits")
    moves = _predictions(x, chosen, (num_classes, 4), 0.001, "region_deltas")
    found = Detections(*Found(objects, name="found")([images, chosen, drawn, logits, moves]))
    outputs = {
        "objectness": _joined(objectness, "objectness"),
        "anchor_deltas": _joined(deltas, "anchor_deltas"),
        "regions": chosen,
        "class_logits": logits,
        "region_deltas": moves,
        **found._asdict(),
    }
    for head in extra_heads:
        outputs |= head(heads, found)
    return keras.Model(images, outputs, name=name)


def _first_stage(pyramid: Pyramid, anchors: int, width: int) -> tuple[list[Any], list[Any]]:
    """Objectness [batch, anchors] and deltas [batch, anchors, 4] of each level.

    The coarsest level is every other cell of the one before ("Feature Pyramid Networks", 4.1).
    """
    top = max(pyramid.levels)
    coarsest = keras.layers.MaxPooling2D(1, 2, name=f"pyramid{top + 1}")(pyramid.levels[top])
    small = keras.initializers.RandomNormal(stddev=0.01)
    hidden = keras.layers.Conv2D(
        width, 3, padding="same", activation="relu", kernel_initializer=small, name="proposal_conv"
    )
    heads = [
        keras.layers.Conv2D(
            anchors * size, 1, kernel_initializer=small, dtype="float32", name=f"proposal_{head}"
        )
        for head, size in (("objectness", 1), ("deltas", 4))
    ]
    objectness, deltas = [], []
    for level, x in sorted({**pyramid.levels, top + 1: coarsest}.items()):
        x = hidden(x)
        for head, found, shape in zip(heads, (objectness, deltas), ((-1,), (-1, 4))):
            name = f"{head.name}{level}"
            found.append(keras.layers.Reshape(shape, dtype="float32", name=name)(head(x)))
    return objectness, deltas


def _joined(levels: list[Any], name: str) -> Any:
    return keras.layers.Concatenate(axis=1, dtype="float32", name=name)(levels)


def _convolutions_and_dense(heads: RegionHeads, x: Any, width: int) -> Any:
    x = keras.layers.Flatten(name="box_flatten")(heads.convolved(x, "box"))
    return keras.layers.Dense(width, "relu", name="box_dense1")(x)


def _two_dense(heads: RegionHeads, x: Any, width: int) -> Any:
    del heads
    x = keras.layers.Flatten(name="box_flatten")(x)
    for number in (1, 2):
        x = keras.layers.Dense(width, "relu", name=f"box_dense{number}")(x)
    return x


_BOX_HEADS = {"4conv1fc": _convolutions_and_dense, "2fc": _two_dense}


def _predictions(x: Any, regions: Any, shape: tuple[int, ...], stddev: float, name: str) -> Any:
    """[batch, n, *shape] float32."""
    layer = keras.layers.Dense(
        math.prod(shape),
        kernel_initializer=keras.initializers.RandomNormal(stddev=stddev),
        dtype="float32",
        name=f"{name}_dense",
    )
    return PerImage(shape, dtype="float32", name=name)([layer(x), regions])
