"""What tasks share that train networks of `tfnorm.models`: how one is built and fed."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfnorm import models
from tfnorm.data import Dataset, Example, Transform
from tfnorm.errors import UserError
from tfnorm.layers.norms import Normalizer
from tfnorm.tasks.task import Serving, Settings


def refuse_label_smoothing(settings: Settings) -> None:
    """Raises a UserError if labels are to be smoothed, of a task whose loss does not do it."""
    if settings.label_smoothing:
        raise UserError(
            f"label_smoothing={settings.label_smoothing} is for --task=classification, and the "
            f"loss of --task={settings.task} smooths no labels; leave it out"
        )


def refuse_max_objects(settings: Settings) -> None:
    """Raises a UserError if rows for objects are asked for, of a task that knows none."""
    if settings.max_objects:
        raise UserError(
            f"max_objects={settings.max_objects} is for tasks with objects, and "
            f"--task={settings.task} has none; leave it out"
        )


def build(
    settings: Settings,
    dataset: Dataset,
    normalizer: Normalizer,
    backbone_normalizer: Normalizer | None,
    weights: str | keras.Model | None,
    size: tuple[int | None, int | None] = (None, None),
) -> keras.Model:
    """The network that a configuration asks for, as `tfnorm.models.build` makes it.

    Args:
        settings: The run's.
        dataset: Whose classes it tells.
        normalizer: Of the whole network.
        backbone_normalizer: Of its backbone, if that is another.
        weights: What the backbone starts with.
        size: Height and width of images; None is any.
    """
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
        (*size, dataset.image_shape[-1]),
        dataset.num_classes,
        **{name: value for name, value in given.items() if value is not None},
    )


def standardization(settings: Settings, dataset: Dataset) -> Transform:
    """Brings pixels from 0 to 255 to the scale that the network was made for, or the data set's."""
    standardize = _own_scale(settings, dataset) or dataset.standardize

    def transform(batch: Example, seeds: tf.Tensor) -> Example:
        return {**batch, "image": standardize(batch["image"])}

    return transform


def serving(settings: Settings, dataset: Dataset, label_names: Sequence[str]) -> Serving:
    """What an export does around the network: to pixels what `standardization` does."""
    scale = _own_scale(settings, dataset) or dataset
    return Serving(tuple(scale.mean), tuple(scale.std), label_names)


def _own_scale(settings: Settings, dataset: Dataset) -> models.PixelScaling | None:
    channels = dataset.image_shape[-1]
    return models.pixel_scaling(settings.model, settings.backbone, channels=channels)
