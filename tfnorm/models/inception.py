"""The small Inception network of the Batch Kalman Normalization paper."""

from typing import Any

import keras

from tfnorm.layers import norms
from tfnorm.layers.norms import Normalizer

# Per module: 1×1; 3×3 after its 1×1; 5×5 after its 1×1; 1×1 after pooling (paper, section 4.4).
_MODULES = (
    (64, (96, 128), (16, 32), 32),
    (128, (128, 192), (32, 96), 64),
    (192, (96, 208), (16, 48), 64),
)
_STEM = 32


def inception(
    normalizer: Normalizer,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = _STEM,
    stem_stride: int = 2,
) -> keras.Model:
    """A convolution and three Inception modules, average-pooled (Wang et al. 2018, section 4.4).

    Args:
        normalizer: follows every convolution.
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        width: channels of the first convolution, 32 in the paper; all others scale with it.
        stem_stride: of the first convolution; 2 makes the paper's 16×16 of a 32×32 image.

    Returns:
        A functional model from images to float32 logits.
    """

    def convolve(x: Any, state: Any, filters: int, size: int, stride: int = 1) -> tuple[Any, Any]:
        layer = keras.layers.Conv2D(
            max(filters * width // _STEM, 1),
            size,
            stride,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
        )
        y, state = normalizer(layer, x, state)
        return keras.layers.Activation("relu")(y), state

    def module(x: Any, state: Any, one: int, three: tuple, five: tuple, pool: int) -> tuple:
        pooled = keras.layers.MaxPooling2D(3, 1, padding="same")(x)
        branches = [
            convolve(x, state, one, 1),
            convolve(*convolve(x, state, three[0], 1), three[1], 3),
            convolve(*convolve(x, state, five[0], 1), five[1], 5),
            convolve(pooled, state, pool, 1),
        ]
        outputs, states = zip(*branches)
        return keras.layers.Concatenate()(outputs), norms.concatenate_states(states)

    images = keras.Input(input_shape, name="image")
    x, state = convolve(images, None, _STEM, 3, stem_stride)
    for one, three, five, pool in _MODULES:
        x, state = module(x, state, one, three, five, pool)
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name="inception_small")
