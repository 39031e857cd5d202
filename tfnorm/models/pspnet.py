"""The Pyramid Scene Parsing network of Zhao et al. (2017)."""

import keras

from tfnorm.layers import norms
from tfnorm.layers.norms import Normalizer
from tfnorm.models.convolving import convolution, convolve
from tfnorm.models.pyramid import Features
from tfnorm.models.resizing import AverageBins, ResizeLike
from tfnorm.models.segmenter import segmenter

_BINS = (1, 2, 3, 6)


def pspnet(
    features: Features,
    normalizer: Normalizer,
    input_shape: tuple[int | None, int | None, int],
    num_classes: int,
    *,
    name: str,
    head_width: int = 512,
) -> keras.Model:
    """PSPNet ("Pyramid Scene Parsing Network", section 3.2, figure 3) on any backbone.

    The deepest feature map beside its means over 1, 2² , 3² and 6² parts, each after a 1×1
    convolution to a fourth of the channels; a 3×3 convolution; logits. A normalizer follows every
    convolution but the last. Left out are the paper's auxiliary loss and its dropout.

    With one image a device the coarsest mean has one value a channel: normalizers that subtract
    the batch's mean make it β until they know better.

    Args:
        features: the backbone; the paper's has stride 8.
        normalizer: of the head.
        input_shape: (height, width, channels) of an image; None for any size.
        num_classes: number of logits.
        name: of the model.
        head_width: channels of the 3×3 convolution.

    Returns:
        A functional model from images to float32 logits [batch, height, width, num_classes].
    """
    images = keras.Input(input_shape, name="image")
    pyramid = features(images)
    x, state = pyramid.levels[pyramid.deepest], pyramid.states[pyramid.deepest]
    branches, states = [x], [state]
    for bins in _BINS:
        y = AverageBins(bins, name=f"bins{bins}")(x)
        layer = convolution(max(x.shape[-1] // 4, 1), 1, name=f"bins{bins}_conv")
        y, y_state = convolve(normalizer, layer, y, state)
        branches.append(ResizeLike(name=f"bins{bins}_resize")([y, x]))
        states.append(y_state)
    x = keras.layers.Concatenate(name="pyramid")(branches)
    state = norms.concatenate_states(states)
    x, _ = convolve(normalizer, convolution(head_width, 3, name="head_conv"), x, state)
    return segmenter(images, x, num_classes, name)
