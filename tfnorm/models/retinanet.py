"""RetinaNet of Lin et al. (2017).

KerasHub 0.32 has a RetinaNet. None of its parts is taken, each for a reason that was found in its
source: its feature pyramid can have Keras' BatchNormalization alone, gives it epsilon for its
momentum, and makes three normalizers that nothing calls; its heads can have group normalization
alone, shared by all levels, and put the prior probability of the class head into the box head; its
losses belong to Keras' own train_step and average over the batch, where a step under strategy.run
wants a loss an image; its label encoder knows neither crowds nor objects that no anchor reaches;
its suppression takes all classes for one; its anchors stand on corners of cells and their sides are
rounded. What this one has instead is in `tfnorm.models.fpn` and `tfnorm.boxes`, and runs under
strategy.run and XLA with static shapes.
"""

import math
from typing import Any

import keras

from tfnorm.layers.norms import Normalizer
from tfnorm.models.convolving import convolution, convolve_shared
from tfnorm.models.fpn import feature_pyramid
from tfnorm.models.pyramid import Features, Pyramid

_PRIOR = 0.01  # What a class head says of every anchor at the start (paper, section 4.1).


def retinanet(
    features: Features,
    normalizer: Normalizer,
    input_shape: tuple[int | None, int | None, int],
    num_classes: int,
    *,
    name: str,
    head_width: int = 256,
    head_convolutions: int = 4,
    min_level: int = 3,
    max_level: int = 7,
    anchors_per_cell: int = 9,
) -> keras.Model:
    """RetinaNet ("Focal Loss for Dense Object Detection", section 4) on any backbone.

    A feature pyramid, and on each of its levels the same two heads: four 3×3 convolutions, and one
    to what is predicted of each anchor. Levels share the heads' convolutions, and each level has
    normalizers of its own, because the statistics of levels differ: a chain of Kalman normalizers
    goes along each level for itself. A normalizer follows every convolution of the pyramid and of
    the heads but the last.

    Args:
        features: the backbone.
        normalizer: of the pyramid and of the heads.
        input_shape: (height, width, channels) of an image; None for any size.
        num_classes: number of logits of an anchor.
        name: of the model.
        head_width: channels of the pyramid and of the heads.
        head_convolutions: of each head, before the last.
        min_level: the finest level of the pyramid, of stride 2^min_level.
        max_level: the coarsest.
        anchors_per_cell: number of anchors at each position of a level.

    Returns:
        A functional model from images to float32 {"class_logits": [batch, anchors, num_classes],
        "box_deltas": [batch, anchors, 4]}, anchors in the order of `tfnorm.boxes.AnchorGrid`:
        by level, row, column, and in their cell.
    """
    images = keras.Input(input_shape, name="image")
    pyramid = feature_pyramid(
        features(images), normalizer, min_level=min_level, max_level=max_level, width=head_width
    )
    outputs = {}
    for head, size, prior in (("class", num_classes, _PRIOR), ("box", 4, 0.5)):
        maps = pyramid
        for number in range(1, head_convolutions + 1):
            layer = convolution(head_width, 3, name=f"{head}_conv{number}")
            maps = convolve_shared(normalizer, layer, maps)
        outputs[head] = _predictions(maps, anchors_per_cell, size, prior, head)
    outputs = {"class_logits": outputs["class"], "box_deltas": outputs["box"]}
    return keras.Model(images, outputs, name=name)


def _predictions(maps: Pyramid, anchors: int, size: int, prior: float, head: str) -> Any:
    """[batch, anchors of all levels, size], by one convolution for all levels."""
    layer = keras.layers.Conv2D(
        anchors * size,
        3,
        padding="same",
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=keras.initializers.Constant(-math.log((1 - prior) / prior)),
        dtype="float32",
        name=f"{head}_predictions",
    )
    flat = [
        keras.layers.Reshape((-1, size), dtype="float32", name=f"{head}_level{level}")(layer(x))
        for level, x in sorted(maps.levels.items())
    ]
    if len(flat) == 1:
        return flat[0]
    return keras.layers.Concatenate(axis=1, dtype="float32", name=f"{head}_all_levels")(flat)
