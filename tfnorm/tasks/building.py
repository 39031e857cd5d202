"""What tasks share that train networks of `tfnorm.models`: how one is built."""

import keras

from tfnorm import models
from tfnorm.layers.norms import Normalizer
from tfnorm.tasks.task import Settings


def build(
    settings: Settings,
    normalizer: Normalizer,
    input_shape: tuple[int | None, int | None, int],
    num_classes: int,
    backbone_normalizer: Normalizer | None,
    weights: str | keras.Model | None,
) -> keras.Model:
    """The network that a configuration asks for, as `tfnorm.models.build` makes it."""
    given = {
        "backbone": settings.backbone,
        "backbone_normalizer": backbone_normalizer,
        "weights": weights,
        "width": settings.width,
        "stem_stride": settings.stem_stride,
        **settings.model_options,
    }
    return models.build(
        settings.model,
        normalizer,
        input_shape,
        num_classes,
        **{name: value for name, value in given.items() if value is not None},
    )
