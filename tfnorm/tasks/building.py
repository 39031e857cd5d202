"""What tasks share that train networks of `tfnorm.models`: how one is built and fed."""

import keras
import tensorflow as tf

from tfnorm import models
from tfnorm.data import Dataset
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


def standardize(settings: Settings, dataset: Dataset, images: tf.Tensor) -> tf.Tensor:
    """Pixels from 0 to 255 as the network's weights want them, else by the data set's moments."""
    return (_own_scale(settings, dataset) or dataset.standardize)(images)


def scale(settings: Settings, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of pixel / 255, by which `standardize` does it."""
    found = _own_scale(settings, dataset) or dataset
    return tuple(found.mean), tuple(found.std)


def _own_scale(settings: Settings, dataset: Dataset) -> models.PixelScaling | None:
    channels = dataset.image_shape[-1]
    return models.pixel_scaling(settings.model, settings.backbone, channels=channels)
