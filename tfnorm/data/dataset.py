"""A data set by its name: records to train and to test with, and what its classes are called."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from tfnorm import pixels
from tfnorm.data import statistics, transforms
from tfnorm.data.mask_classes import MaskClasses
from tfnorm.data.records import Records, Transform, compose
from tfnorm.data.stream import StreamRecords


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """An image data set.

    Attributes:
        name: TFDS name.
        train: Training examples (after `train_examples`).
        test: Test examples.
        image_shape: (height, width, channels) that the network takes.
        label_names: One name a class.
        image_size: (height, width) of all images in the files; None is any.
        mask_classes: What the values of masks mean, where there are masks.
        notices: What a run should tell its user about the data, a line each.
    """

    name: str
    train: Records
    test: Records
    image_shape: tuple[int, int, int]
    label_names: tuple[str, ...]
    image_size: tuple[int | None, int | None] = (None, None)
    mask_classes: MaskClasses | None = None
    notices: tuple[str, ...] = ()

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def num_test(self) -> int:
        """Number of test examples."""
        return len(self.test)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel of pixel / 255, over the first training images."""
        return self._statistics[0]

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each channel of pixel / 255, over the same images as `mean`."""
        return self._statistics[1]

    @functools.cached_property
    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        with self.explained():
            return statistics.of_channels(self.train, self.image_shape[-1])

    def standardize(self, images: np.ndarray | tf.Tensor) -> tf.Tensor:
        """(pixel / 255 − mean) / std per channel, as the models are fed.

        Args:
            images: [..., channels], pixels from 0 to 255 of any type.

        Returns:
            Float32 tensor of the same shape.
        """
        return pixels.standardize(images, self.mean, self.std)

    def sizing(self) -> Transform:
        """From records to images of `image_shape` as an evaluation sees them, pixels 0 to 255.

        Images of that size stay as they are. Of others the centre is seen, as
        `tfnorm.data.transforms.ResizeAndCenterCrop` has it.
        """
        image = self.train.spec["image"]
        height, width, channels = self.image_shape
        if image.dtype != tf.string and image.shape == self.image_shape:
            return compose()
        if self.image_size == (height, width):
            return transforms.each(transforms.WholeImage(channels), _Shaped(self.image_shape))
        return transforms.each(transforms.ResizeAndCenterCrop((height, width), channels))

    def first_images(self, records: Records, count: int) -> np.ndarray:
        """The first images of records as one would send them, [n, *image_shape] uint8."""
        indices = tf.range(min(count, len(records)), dtype=tf.int64)
        seeds = tf.stack([indices, indices], axis=1)  # Nothing of it is random.
        images = self.sizing()(records.fetch(indices), seeds)["image"].numpy()
        return np.round(images).astype(np.uint8)

    def first_whole_images(self, records: Records, count: int) -> np.ndarray:
        """The first images of records in the size of their files, [n, h, w, channels] uint8.

        If the files have different sizes, it is the first image alone.
        """
        count = 1 if None in self.image_size else min(count, len(records))
        indices = tf.range(count, dtype=tf.int64)
        seeds = tf.stack([indices, indices], axis=1)  # Nothing of it is random.
        whole = transforms.each(transforms.WholeImage(self.image_shape[-1]))
        return tf.cast(whole(records.fetch(indices), seeds)["image"], tf.uint8).numpy()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Within it, a pipeline's failure at an example that cannot be used is one that names it.

        Raises:
            RunError: Instead of TensorFlow's error, which does not say what file it is about.
        """
        try:
            yield
        except tf.errors.OpError as error:
            streams = [r for r in (self.train, self.test) if isinstance(r, StreamRecords)]
            for records in streams if "terator" in error.message else ():
                found = records.explain(self.mask_classes and self.mask_classes.check)
                if found is not None:
                    raise found from error
            raise


@dataclasses.dataclass(frozen=True)
class _Shaped:
    """Says of images what size they have, which the reader of encoded ones cannot know."""

    shape: tuple[int, int, int]

    def __call__(self, example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        shapes = {"image": self.shape, "mask": self.shape[:2], "instances": self.shape[:2]}
        return {
            entry: tf.ensure_shape(value, shapes.get(entry, value.shape))
            for entry, value in example.items()
        }
