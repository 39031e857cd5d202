"""The feature pyramid network of Lin et al. (2017)."""

from typing import Any

import keras

from tfnorm.errors import UserError
from tfnorm.layers.norms import Normalizer
from tfnorm.models.convolving import convolution, normalize, relu
from tfnorm.models.pyramid import Pyramid
from tfnorm.models.resizing import ResizeLike


def feature_pyramid(
    backbone: Pyramid, normalizer: Normalizer, *, min_level: int, max_level: int, width: int = 256
) -> Pyramid:
    """A top-down path over the levels of a backbone, and coarser levels below the deepest.

    P_l = conv3×3(conv1×1(C_l) + enlarged conv1×1(C_{l+1}) + ...), ("Feature Pyramid Networks for
    Object Detection", section 3). Levels that the backbone does not have are made by 3×3
    convolutions of stride 2, of C5 first, with a ReLU between them ("Focal Loss for Dense Object
    Detection", section 4). A normalizer follows every convolution; a chain of them goes along each
    level for itself.

    Args:
        backbone: feature maps, `min_level` among them.
        normalizer: follows every convolution.
        min_level: the finest level.
        max_level: the coarsest level.
        width: channels of every level.

    Returns:
        All levels from `min_level` to `max_level`.

    Raises:
        UserError: the backbone lacks a level that is needed.
    """
    top = min(backbone.deepest, max_level)
    missing = sorted(set(range(min_level, top + 1)) - backbone.levels.keys())
    if missing or min_level > backbone.deepest:
        raise UserError(
            f"a pyramid of the levels {min_level} to {max_level} needs feature maps of strides "
            f"from {2**min_level}; the backbone has the levels "
            f"{', '.join(map(str, sorted(backbone.levels)))}. Choose another --backbone, or "
            "min_level"
        )
    laterals, states = _top_down(backbone, normalizer, range(top, min_level - 1, -1), width)
    levels: dict[int, Any] = {}
    for level in range(min_level, top + 1):
        layer = convolution(width, 3, name=f"pyramid{level}_conv")
        levels[level], states[level] = normalize(normalizer, layer, laterals[level], states[level])
    x, state = backbone.levels[top], backbone.states[top]
    for level in range(top + 1, max_level + 1):
        if level > top + 1:
            x = relu(x, f"pyramid{level}_relu")
        layer = convolution(width, 3, 2, name=f"pyramid{level}_conv")
        x, state = normalize(normalizer, layer, x, state)
        levels[level], states[level] = x, state
    return Pyramid(levels, states)


def _top_down(
    backbone: Pyramid, normalizer: Normalizer, levels: range, width: int
) -> tuple[dict[int, Any], dict[int, Any]]:
    """The sums of lateral connections and of the path from the top, by level, and the states."""
    sums: dict[int, Any] = {}
    states: dict[int, Any] = {}
    for level in levels:
        layer = convolution(width, 1, name=f"lateral{level}_conv")
        x, states[level] = normalize(
            normalizer, layer, backbone.levels[level], backbone.states[level]
        )
        if level + 1 in sums:
            upper = ResizeLike("nearest", name=f"lateral{level}_resize")([sums[level + 1], x])
            x = keras.layers.Add(name=f"lateral{level}_sum")([x, upper])
        sums[level] = x
    return sums, states
