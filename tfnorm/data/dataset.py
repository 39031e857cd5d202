"""A data set by its name: records to train and to test with, and what its classes are called."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfnorm.data import features, sources, splits
from tfnorm.data.memory import MemoryRecords
from tfnorm.data.records import Records
from tfnorm.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_STATISTICS_IMAGES = 10_000
_MEMORY_LIMIT = 16 * 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """An image data set.

    Attributes:
        name: TFDS name.
        train: Training examples (after `train_examples`).
        test: Test examples.
        label_names: One name a class.
    """

    name: str
    train: Records
    test: Records
    label_names: tuple[str, ...]

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def num_test(self) -> int:
        """Number of test examples."""
        return len(self.test)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return tuple(self.train.spec["image"].shape)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Mean of each channel of pixel / 255, over the first 10,000 training images or fewer."""
        return self._statistics_images().mean((0, 1, 2), dtype=np.float64) / 255

    @functools.cached_property
    def std(self) -> np.ndarray:
        """Standard deviation of each channel of pixel / 255, over the same images as `mean`."""
        std = self._statistics_images().std((0, 1, 2), dtype=np.float64) / 255
        return np.maximum(std, 1 / 255)  # A constant channel is not blown up.

    def _statistics_images(self) -> np.ndarray:
        return self.train.column("image")[:_STATISTICS_IMAGES]

    def standardize(self, images: np.ndarray | tf.Tensor) -> tf.Tensor:
        """(pixel / 255 − mean) / std per channel, as the models are fed.

        Args:
            images: [..., channels], pixels from 0 to 255 of any type.

        Returns:
            Float32 tensor of the same shape.
        """
        scale = (1 / (255 * self.std)).astype(np.float32)
        offset = (self.mean / self.std).astype(np.float32)
        return tf.cast(images, tf.float32) * scale - offset


@functools.lru_cache(maxsize=4)
def load(
    name: str,
    data_dir: str | None = None,
    train_examples: int | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    needed: tuple[str, ...] = ("image", "label"),
) -> Dataset:
    """Opens a data set, preparing or downloading it where needed.

    Args:
        name: "sklearn_digits" or any TFDS image data set with images of one size.
        data_dir: Directory of prepared TFDS data sets; None is TFDS' default.
        train_examples: Use only so many training examples, the first ones; None is all.
        train_split: TFDS expression, such as "train[:80%]"; None is "train".
        test_split: TFDS expression; None is "test", or "validation" where there is no test.
        needed: Names of `tfnorm.data.records.Example` that its examples must have.

    Returns:
        The data set. The same arguments return the same object, decoded once.

    Raises:
        UserError: Unknown data set, one without what is needed, a wrong split or `train_examples`.
        RunError: The download failed.
    """
    builder = sources.open_builder(name, data_dir)
    paths = features.find(builder, needed)
    sources.check_images(builder, paths["image"])
    available = splits.train(builder, train_split).num_examples
    if train_examples is not None and not 0 < train_examples <= available:
        raise UserError(
            f"train_examples={train_examples} of '{name}': it has {available} training images"
        )
    num_train = train_examples or available
    num_test = splits.test(builder, test_split).num_examples
    shape = features.feature(builder, paths["image"]).shape
    size = (num_train + num_test) * int(np.prod(shape))
    if size > _MEMORY_LIMIT:
        raise UserError(
            f"data set '{name}' takes {size / 2**30:.0f} GiB in memory, more than the limit of "
            f"{_MEMORY_LIMIT / 2**30:.0f} GiB; lower --train_examples (now {num_train})"
        )
    return Dataset(
        name,
        _in_memory(builder, train_split or "train", paths, num_train),
        _in_memory(builder, test_split or splits.default_test(builder), paths, num_test),
        _label_names(builder, paths),
    )


def _in_memory(
    builder: "tfds.core.DatasetBuilder", split: str, paths: dict[str, str], examples: int
) -> MemoryRecords:
    read = functools.partial(sources.read, builder, split, paths, examples)
    return MemoryRecords(read, sources.spec(builder, paths), examples)


def _label_names(builder: "tfds.core.DatasetBuilder", paths: dict[str, str]) -> Sequence[str]:
    """Of the classes of images, boxes or pixels, of whichever there are."""
    own = (features.feature(builder, paths[name]) for name in ("label", "classes", "mask")
           if name in paths)  # fmt: skip
    for feature in own:
        if getattr(feature, "num_classes", None):
            return tuple(getattr(feature, "names", None) or map(str, range(feature.num_classes)))
    return ()
