"""Mask R-CNN of He et al. (2017)."""

import functools
from typing import Any

import keras

from tfnorm.boxes import Detections
from tfnorm.models.faster_rcnn import RegionHeads, faster_rcnn
from tfnorm.models.regions import OfClass, PerImage

_SIZE = 14  # cells along each side of what the mask head sees; masks have twice as many


def mask_head(heads: RegionHeads, found: Detections) -> dict[str, Any]:
    """A fully convolutional network on each object that is found ("Mask R-CNN", section 3.1).

    Convolutions, each with its normalizer, a transposed one of stride 2, and one to a mask for each
    class, of which that of the object's class is taken.

    Args:
        heads: what it is made of.
        found: by the two stages before it, tensors of Keras.

    Returns:
        "mask_logits" and "masks" [batch, n, 28, 28] float32, the latter from 0 to 1: whether the
        object covers each part of its box, in the rows of "boxes".
    """
    x = heads.convolved(heads.cut_out(found.boxes, _SIZE, "mask_features"), "mask")
    x = keras.layers.Conv2DTranspose(
        heads.width, 2, 2, activation="relu", kernel_initializer="he_normal", name="mask_enlarge"
    )(x)
    x = keras.layers.Conv2D(heads.num_classes, 1, dtype="float32", name="mask_predictions")(x)
    shape = (2 * _SIZE, 2 * _SIZE, heads.num_classes)
    x = PerImage(shape, dtype="float32", name="mask_of_classes")([x, found.boxes])
    logits = OfClass(dtype="float32", name="mask_logits")([x, found.classes])
    masks = keras.layers.Activation("sigmoid", dtype="float32", name="masks")(logits)
    return {"mask_logits": logits, "masks": masks}


mask_rcnn = functools.partial(faster_rcnn, extra_heads=(mask_head,))
"""`faster_rcnn` with a mask head: its outputs are those of both."""
