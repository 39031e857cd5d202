"""The small Inception network of the Batch Kalman Normalization paper."""

import math
from typing import Any

import keras

from tfnorm.layers import norms
from tfnorm.layers.norms import Normalizer
from tfnorm.models.convolving import convolution, convolve
from tfnorm.models.pyramid import Pyramid

# Per module: 1×1; 3×3 after its 1×1; 5×5 after its 1×1; 1×1 after pooling (paper, section 4.4).
_MODULES = (
    (64, (96, 128), (16, 32), 32),
    (128, (128, 192), (32, 96), 64),
    (192, (96, 208), (16, 48), 64),
)
_STEM = 32


def inception(
    images: Any, normalizer: Normalizer, *, width: int = _STEM, stem_stride: int = 2
) -> Pyramid:
    """A convolution and three Inception modules (Wang et al. 2018, section 4.4).

    Args:
        images: [batch, height, width, channels].
        normalizer: follows every convolution.
        width: channels of the first convolution, 32 in the paper; all others scale with it.
        stem_stride: of the first convolution; 2 makes the paper's 16×16 of a 32×32 image.

    Returns:
        The output of the last module, the only level.
    """

    def block(
        x: Any, state: Any, filters: int, size: int, name: str, stride: int = 1
    ) -> tuple[Any, Any]:
        channels = max(filters * width // _STEM, 1)
        return convolve(normalizer, convolution(channels, size, stride, name=name), x, state)

    def module(
        x: Any, state: Any, one: int, three: tuple, five: tuple, pool: int, name: str
    ) -> tuple:
        pooled = keras.layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
        branches = [
            block(x, state, one, 1, f"{name}_one"),
            block(
                *block(x, state, three[0], 1, f"{name}_three_reduce"),
                three[1],
                3,
                f"{name}_three",
            ),
            block(*block(x, state, five[0], 1, f"{name}_five_reduce"), five[1], 5, f"{name}_five"),
            block(pooled, state, pool, 1, f"{name}_pool_project"),
        ]
        outputs, states = zip(*branches)
        x = keras.layers.Concatenate(name=f"{name}_out")(outputs)
        return x, norms.concatenate_states(states)

    x, state = block(images, None, _STEM, 3, "stem", stem_stride)
    for number, (one, three, five, pool) in enumerate(_MODULES, 1):
        x, state = module(x, state, one, three, five, pool, f"module{number}")
    level = round(math.log2(stem_stride))
    return Pyramid({level: x}, {level: state})
