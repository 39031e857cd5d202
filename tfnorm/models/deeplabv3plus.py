"""DeepLabv3+ of Chen et al. (2018)."""

from typing import Any

import keras

from tfnorm.layers import norms
from tfnorm.layers.norms import Normalizer
from tfnorm.models.convolving import convolution, convolve
from tfnorm.models.pyramid import Features
from tfnorm.models.resizing import AverageBins, ResizeLike
from tfnorm.models.segmenter import segmenter

_LOW_LEVEL = 2
_LOW_WIDTH = 48


def deeplabv3plus(
    features: Features,
    normalizer: Normalizer,
    input_shape: tuple[int | None, int | None, int],
    num_classes: int,
    *,
    name: str,
    head_width: int = 256,
    rates: tuple[int, ...] = (6, 12, 18),
) -> keras.Model:
    """DeepLabv3+ ("Encoder-Decoder with Atrous Separable Convolution", section 3) on any backbone.

    Atrous spatial pyramid pooling of the deepest feature map (a 1×1, a dilated 3×3 for each rate,
    the mean of the image), projected; beside it the feature map of stride 4, projected to 48
    channels; two 3×3 convolutions; logits. A normalizer follows every convolution but the last.
    Convolutions are plain ones, as in the paper on ResNet; its dropout is left out.

    Args:
        features: the backbone; the paper's has stride 16 (rates 6, 12, 18) or 8 (twice that).
        normalizer: of the head.
        input_shape: (height, width, channels) of an image; None for any size.
        num_classes: number of logits.
        name: of the model.
        head_width: channels of the head's convolutions.
        rates: dilations of the 3×3 convolutions of the pooling.

    Returns:
        A functional model from images to float32 logits [batch, height, width, num_classes].
    """
    images = keras.Input(input_shape, name="image")
    pyramid = features(images)
    deepest, low = pyramid.deepest, pyramid.at_most(_LOW_LEVEL)
    x, state = _pooled(
        normalizer, pyramid.levels[deepest], pyramid.states[deepest], head_width, rates
    )
    y = pyramid.levels[low]
    layer = convolution(_LOW_WIDTH, 1, name="low_conv")
    y, y_state = convolve(normalizer, layer, y, pyramid.states[low])
    x = ResizeLike(name="aspp_resize")([x, y])
    x = keras.layers.Concatenate(name="decoder")([x, y])
    state = norms.concatenate_states([state, y_state])
    for number in (1, 2):
        layer = convolution(head_width, 3, name=f"decoder_conv{number}")
        x, state = convolve(normalizer, layer, x, state)
    return segmenter(images, x, num_classes, name)


def _pooled(
    normalizer: Normalizer, x: Any, state: Any, width: int, rates: tuple[int, ...]
) -> tuple[Any, Any]:
    """Atrous spatial pyramid pooling: (y, state)."""
    layers = [convolution(width, 1, name="aspp_conv1")]
    layers += [convolution(width, 3, dilation=r, name=f"aspp_conv3_rate{r}") for r in rates]
    branches = [convolve(normalizer, layer, x, state) for layer in layers]
    mean = AverageBins(1, name="aspp_mean")(x)
    mean, mean_state = convolve(
        normalizer, convolution(width, 1, name="aspp_mean_conv"), mean, state
    )
    branches.append((ResizeLike(name="aspp_mean_resize")([mean, x]), mean_state))
    outputs, states = zip(*branches)
    y = keras.layers.Concatenate(name="aspp")(outputs)
    state = norms.concatenate_states(states)
    return convolve(normalizer, convolution(width, 1, name="aspp_project"), y, state)
