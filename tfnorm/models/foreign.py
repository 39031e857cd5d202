"""Networks of other libraries as backbones: their normalizers converted, their levels found."""

import keras

from tfnorm.errors import UserError, one_line
from tfnorm.layers.norms import Normalizer
from tfnorm.models.converting import converted
from tfnorm.models.pyramid import Pyramid


def pyramid_of(features: keras.Model, images: keras.KerasTensor, normalizer: Normalizer) -> Pyramid:
    """What a network of feature maps makes of images, with its normalizers converted.

    It becomes one layer, a functional model of its own; the state of a chain of normalizers ends
    at its border.

    Args:
        features: a functional model from images to a dict of feature maps by level ("2", "3").
        images: [batch, height, width, channels].
        normalizer: takes the place of every normalizer, by `tfnorm.convert`; "none" is for networks
            that have none.

    Raises:
        UserError: the normalizer does not suit the network, or the images are too small for it.
    """
    network = converted(features, normalizer)
    try:
        maps = network(images)
    except ValueError as error:
        raise UserError(
            f"model {features.name} cannot take images of {images.shape[1]}x{images.shape[2]} "
            f"pixels: {one_line(error)}"
        ) from error
    levels = {int(level): x for level, x in maps.items()}
    return Pyramid(levels, dict.fromkeys(levels))
