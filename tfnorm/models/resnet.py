"""The residual networks of He et al. (2015) for small images."""

from typing import Any

import keras

from tfnorm.layers.norms import Normalizer

DEPTHS = (8, 14, 20, 32, 56, 110)


def resnet(
    normalizer: Normalizer,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: int,
    width: int = 16,
    stem_stride: int = 1,
) -> keras.Model:
    """A residual network of depth 6n + 2 in three stages of n blocks ("Deep Residual Learning for
    Image Recognition", section 4.2), with projection shortcuts where the shape changes.

    Args:
        normalizer: follows every convolution.
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        depth: one of `DEPTHS`.
        width: channels of the first stage; the second has twice, the third four times as many.
        stem_stride: of the first convolution; 2 quarters the work of all that follows.

    Returns:
        A functional model from images to float32 logits.
    """  # noqa: D205
    images = keras.Input(input_shape, name="image")
    x, state = normalizer(_convolution(width, 3, stem_stride), images, None)
    x = keras.layers.Activation("relu")(x)
    for stage in range(3):
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            x, state = _block(normalizer, x, state, width * 2**stage, stride)
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name=f"resnet{depth}")


def _block(
    normalizer: Normalizer, x: Any, state: Any, filters: int, stride: int
) -> tuple[Any, Any]:
    y, y_state = normalizer(_convolution(filters, 3, stride), x, state)
    y = keras.layers.Activation("relu")(y)
    y, y_state = normalizer(_convolution(filters, 3, 1), y, y_state)
    if stride != 1 or x.shape[-1] != filters:
        # The shortcut starts from the state at the block's input, the main path hands on its own.
        x, _ = normalizer(_convolution(filters, 1, stride), x, state)
    return keras.layers.Activation("relu")(keras.layers.Add()([x, y])), y_state


def _convolution(filters: int, kernel_size: int, stride: int) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )
