"""U-Net of Ronneberger et al. (2015), on any backbone."""

import keras

from tfnorm.layers import norms
from tfnorm.layers.norms import Normalizer
from tfnorm.models.convolving import convolution, convolve
from tfnorm.models.pyramid import Features
from tfnorm.models.resizing import ResizeLike
from tfnorm.models.segmenter import segmenter


def unet(
    features: Features,
    normalizer: Normalizer,
    input_shape: tuple[int | None, int | None, int],
    num_classes: int,
    *,
    name: str,
    head_width: int = 256,
) -> keras.Model:
    """The expanding path of U-Net (section 2, figure 1), its contracting path any backbone.

    From the deepest level up: the feature map, enlarged, beside that of the next level, and two
    3×3 convolutions to as many channels as that has, at most `head_width`. A normalizer follows
    every convolution but the last. Enlarging is bilinear, where the paper has a transposed
    convolution, and convolutions are padded, so that an image's border is classified as well.

    Args:
        features: the backbone.
        normalizer: of the expanding path.
        input_shape: (height, width, channels) of an image; None for any size.
        num_classes: number of logits.
        name: of the model.
        head_width: the most channels of a convolution.

    Returns:
        A functional model from images to float32 logits [batch, height, width, num_classes].
    """
    images = keras.Input(input_shape, name="image")
    pyramid = features(images)
    deepest, *others = sorted(pyramid.levels, reverse=True)
    x, state = pyramid.levels[deepest], pyramid.states[deepest]
    for level in others:
        skip = pyramid.levels[level]
        x = ResizeLike(name=f"up{level}_resize")([x, skip])
        state = norms.concatenate_states([state, pyramid.states[level]])
        x = keras.layers.Concatenate(name=f"up{level}")([x, skip])
        for number in (1, 2):
            width = min(skip.shape[-1], head_width)
            layer = convolution(width, 3, name=f"up{level}_conv{number}")
            x, state = convolve(normalizer, layer, x, state)
    return segmenter(images, x, num_classes, name)
