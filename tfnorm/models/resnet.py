"""The residual networks of He et al. (2015), for small images and for large ones."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras

from tfnorm.layers.norms import Normalizer
from tfnorm.models.convolving import convolution, convolve, normalize, relu
from tfnorm.models.pyramid import Pyramid

SMALL_DEPTHS = (8, 14, 20, 32, 56, 110)


def small_resnet(
    images: Any,
    normalizer: Normalizer,
    *,
    depth: int,
    width: int = 16,
    stem_stride: int = 1,
    output_stride: int = 0,
) -> Pyramid:
    """A residual network of depth 6n + 2 in three stages of n blocks ("Deep Residual Learning for
    Image Recognition", section 4.2), with projection shortcuts where the shape changes.

    Args:
        images: [batch, height, width, channels].
        normalizer: follows every convolution.
        depth: one of `SMALL_DEPTHS`.
        width: channels of the first stage; the second has twice, the third four times as many.
        stem_stride: of the first convolution; 2 quarters the work of all that follows.
        output_stride: the largest stride, beyond which stages are dilated instead; 0 is no limit.

    Returns:
        The outputs of the three stages, at strides 1, 2 and 4 times that of the stem.
    """  # noqa: D205
    x, state = convolve(normalizer, convolution(width, 3, stem_stride, name="stem"), images, None)
    blocks = (depth - 2) // 6
    stages = [_Stage(blocks, width * 2**i, 1 if i == 0 else 2) for i in range(3)]
    return _run(normalizer, x, state, _basic, stages, stem_stride, output_stride)


def resnet(
    images: Any,
    normalizer: Normalizer,
    *,
    depth: int,
    width: int = 64,
    stem_stride: int = 2,
    output_stride: int = 0,
) -> Pyramid:
    """ResNet-18, -34, -50 or -101 for large images ("Deep Residual Learning", table 1).

    Strides are those of version 1.5 (torchvision, TensorFlow's official models): a bottleneck's 3×3
    convolution has it, not its first 1×1. A dilated stage starts with the dilation of the one
    before it, as torchvision's does.

    Args:
        images: [batch, height, width, channels].
        normalizer: follows every convolution.
        depth: one of `LARGE_DEPTHS`.
        width: channels of the stem and of the first stage's 3×3 convolutions.
        stem_stride: of the first convolution.
        output_stride: the largest stride, beyond which stages are dilated instead: 8 or 16 for
            segmentation; 0 is no limit.

    Returns:
        The outputs of the four stages: levels 2 to 5, C2 to C5 in the papers.
    """
    block, counts = _LARGE[depth]
    x, state = convolve(normalizer, convolution(width, 7, stem_stride, name="stem"), images, None)
    x = keras.layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    stages = [_Stage(n, width * 2**i, 1 if i == 0 else 2) for i, n in enumerate(counts)]
    return _run(normalizer, x, state, block, stages, 2 * stem_stride, output_stride)


class _Stage(NamedTuple):
    blocks: int
    filters: int
    stride: int


class _Shape(NamedTuple):
    """Of a block: its channels, its stride, and the dilation of its strided and other 3×3."""

    filters: int
    stride: int
    first_dilation: int
    dilation: int


_Block = Callable[[Normalizer, Any, Any, _Shape, str], tuple[Any, Any]]


def _run(
    normalizer: Normalizer,
    x: Any,
    state: Any,
    block: _Block,
    stages: Iterable[_Stage],
    stride: int,
    output_stride: int,
) -> Pyramid:
    """The stages on a stem of that stride."""
    pyramid = Pyramid({}, {})
    level, dilation = round(math.log2(stride)), 1
    for number, stage in enumerate(stages, 1):
        before = dilation
        step = stage.stride
        if output_stride and stride * step > output_stride:
            dilation, step = dilation * step, 1
        for index in range(stage.blocks):
            first = index == 0
            shape = _Shape(
                stage.filters, step if first else 1, before if first else dilation, dilation
            )
            name = f"stage{number}_block{index + 1}"
            x, state = block(normalizer, x, state, shape, name)
        stride *= step
        level += round(math.log2(stage.stride))
        pyramid.levels[level], pyramid.states[level] = x, state
    return pyramid


def _basic(normalizer: Normalizer, x: Any, state: Any, shape: _Shape, name: str) -> tuple[Any, Any]:
    filters, stride, first_dilation, dilation = shape
    layer = convolution(filters, 3, stride, dilation=first_dilation, name=f"{name}_conv1")
    y, y_state = convolve(normalizer, layer, x, state)
    layer = convolution(filters, 3, dilation=dilation, name=f"{name}_conv2")
    y, y_state = normalize(normalizer, layer, y, y_state)
    x = _shortcut(normalizer, x, state, filters, stride, name)
    return _joined(x, y, name), y_state


def _bottleneck(
    normalizer: Normalizer, x: Any, state: Any, shape: _Shape, name: str
) -> tuple[Any, Any]:
    filters, stride, dilation, _ = shape
    y, y_state = convolve(normalizer, convolution(filters, 1, name=f"{name}_conv1"), x, state)
    layer = convolution(filters, 3, stride, dilation=dilation, name=f"{name}_conv2")
    y, y_state = convolve(normalizer, layer, y, y_state)
    layer = convolution(4 * filters, 1, name=f"{name}_conv3")
    y, y_state = normalize(normalizer, layer, y, y_state)
    x = _shortcut(normalizer, x, state, 4 * filters, stride, name)
    return _joined(x, y, name), y_state


def _shortcut(
    normalizer: Normalizer, x: Any, state: Any, filters: int, stride: int, name: str
) -> Any:
    if stride == 1 and x.shape[-1] == filters:
        return x
    # The shortcut starts from the state at the block's input, the main path hands on its own.
    layer = convolution(filters, 1, stride, name=f"{name}_shortcut")
    return normalize(normalizer, layer, x, state)[0]


def _joined(x: Any, y: Any, name: str) -> Any:
    return relu(keras.layers.Add(name=f"{name}_add")([x, y]), f"{name}_out")


_LARGE: dict[int, tuple[_Block, tuple[int, ...]]] = {
    18: (_basic, (2, 2, 2, 2)),
    34: (_basic, (3, 4, 6, 3)),
    50: (_bottleneck, (3, 4, 6, 3)),
    101: (_bottleneck, (3, 4, 23, 3)),
}
LARGE_DEPTHS = tuple(_LARGE)
