"""A data set held in memory, and its deterministic batches.

Rows of a training batch are a function of (seed, epoch, position) only: not of the number of
replicas or workers, not of where a run was interrupted.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tfnorm.data import augmentation, sampling, sources
from tfnorm.errors import UserError

_STATISTICS_IMAGES = 10_000
_MEMORY_LIMIT = 16 * 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """An image-classification data set, decoded into memory on first use.

    Attributes:
        name: TFDS name.
        image_shape: (height, width, channels).
        label_names: One name a class.
        num_train: Number of training examples (after `train_examples`).
        num_test: Number of test examples.
    """

    name: str
    image_shape: tuple[int, int, int]
    label_names: tuple[str, ...]
    num_train: int
    num_test: int
    _builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @functools.cached_property
    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """Training images [n, height, width, channels] uint8 and labels [n] int32."""
        return sources.read(self._builder, "train", self.num_train)

    @functools.cached_property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """Test images [n, height, width, channels] uint8 and labels [n] int32."""
        return sources.read(self._builder, sources.evaluation_split(self._builder))

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
        return self.train[0][:_STATISTICS_IMAGES]

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

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of whole batches in the training images.

        Raises:
            UserError: There is none.
        """
        if batch_size > self.num_train:
            raise UserError(
                f"the global batch of {batch_size} is larger than the {self.num_train} training "
                f"images of '{self.name}'; lower --replica_batch_size or --num_replicas"
            )
        return self.num_train // batch_size

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        augment: str = "none",
        skip: int = 0,
        replicas: int = 1,
        local: range | None = None,
        sampled: str = "shuffled",
        images: int = 1,
    ) -> tf.data.Dataset:
        """Batches of one epoch in an order fixed by (seed, epoch); the remainder is dropped.

        Args:
            batch_size: Rows of a (global) batch.
            seed: Seed of the run, ≥ 0.
            epoch: Number of the epoch, from 0.
            augment: A key of `data.AUGMENTATIONS`.
            skip: Batches to leave out at the beginning, at no cost.
            replicas: Deliver every batch as so many consecutive elements of equal size, replica r's
                being rows [r·b, (r+1)·b), b = batch_size / replicas.
            local: Deliver only the elements of these replicas, those of one worker; None is all.
            sampled: A key of `data.SAMPLINGS`.
            images: Number of consecutive images that share statistics, which some samplings ask.

        Returns:
            tf.data.Dataset of (images [b, height, width, channels] float32, labels [b] int32).

        Raises:
            UserError: Unknown augmentation or sampling, or a batch larger than the data set.
        """
        steps = self.steps_per_epoch(batch_size)
        rng = np.random.default_rng((seed, epoch))
        order = sampling.order(sampled, rng, self.train[1], images)
        draws = augmentation.draw(augment, rng, self.num_train, self.image_shape)
        rows = _rows_by_replica(order[: steps * batch_size].reshape(steps, -1), replicas, local)
        rows = rows[skip * (len(rows) // steps) :]
        images, labels = self._tensors("train")
        draws = None if draws is None else [tf.constant(values) for values in draws]

        def fetch(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            batch = self.standardize(tf.gather(images, indices))
            if draws is not None:
                batch = augmentation.crop(batch, *(tf.gather(values, indices) for values in draws))
            return batch, tf.gather(labels, indices)

        return _pipeline(rows, fetch)

    def evaluation_batches(
        self,
        batch_size: int,
        split: str = "test",
        replicas: int = 1,
        local: range | None = None,
    ) -> tf.data.Dataset:
        """Every example of a split exactly once; the last batch is filled up with weight 0.

        Args:
            batch_size: Rows of a (global) batch.
            split: "test" or "train".
            replicas: As in `train_batches`.
            local: As in `train_batches`.

        Returns:
            tf.data.Dataset of (images [b, height, width, channels] float32, labels [b] int32,
            weights [b] float32), as many elements for every replica.
        """
        images, labels = self._tensors(split)
        total = len(labels)
        steps = -(-total // batch_size)
        order = np.arange(steps * batch_size, dtype=np.int32).reshape(steps, -1)
        rows = _rows_by_replica(order, replicas, local)

        def fetch(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            weights = tf.cast(indices < total, tf.float32)
            indices = tf.minimum(indices, total - 1)
            batch = self.standardize(tf.gather(images, indices))
            return batch, tf.gather(labels, indices), weights

        return _pipeline(rows, fetch)

    def _tensors(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = {"train": lambda: self.train, "test": lambda: self.test}[split]()
        with tf.device("CPU:0"):
            return tf.constant(images), tf.constant(labels)


@functools.lru_cache(maxsize=4)
def load(name: str, data_dir: str | None = None, train_examples: int | None = None) -> Dataset:
    """Opens a data set, preparing or downloading it where needed.

    Args:
        name: "sklearn_digits" or any TFDS image-classification data set with images of one size.
        data_dir: Directory of prepared TFDS data sets; None is TFDS' default.
        train_examples: Use only so many training images, the first ones; None is all.

    Returns:
        The data set. The same arguments return the same object, decoded once.

    Raises:
        UserError: Unknown data set, one without image and label, or a wrong `train_examples`.
        RunError: The download failed.
    """
    builder = sources.open_builder(name, data_dir)
    sources.check_classification(builder)
    available = builder.info.splits["train"].num_examples
    if train_examples is not None and not 0 < train_examples <= available:
        raise UserError(
            f"train_examples={train_examples} of '{name}': it has {available} training images"
        )
    num_train = train_examples or available
    num_test = builder.info.splits[sources.evaluation_split(builder)].num_examples
    shape = tuple(builder.info.features["image"].shape)
    size = (num_train + num_test) * int(np.prod(shape))
    if size > _MEMORY_LIMIT:
        raise UserError(
            f"data set '{name}' takes {size / 2**30:.0f} GiB in memory, more than the limit of "
            f"{_MEMORY_LIMIT / 2**30:.0f} GiB; lower --train_examples (now {num_train})"
        )
    label_names = tuple(builder.info.features["label"].names)
    return Dataset(name, shape, label_names, num_train, num_test, builder)


def _rows_by_replica(order: np.ndarray, replicas: int, local: range | None) -> np.ndarray:
    """[steps, global batch] -> [steps · local replicas, batch of a replica]."""
    steps, batch_size = order.shape
    by_replica = order.reshape(steps, replicas, batch_size // replicas)
    if local is not None:
        by_replica = by_replica[:, local.start : local.stop]
    return by_replica.reshape(-1, batch_size // replicas)


def _pipeline(rows: np.ndarray, fetch: Callable) -> tf.data.Dataset:
    options = tf.data.Options()
    # The destructor of an iterator waits for its autotuner to wake up, up to a minute, an epoch.
    options.autotune.enabled = False
    return (
        tf.data.Dataset.from_tensor_slices(rows)
        .map(fetch, num_parallel_calls=2, deterministic=True)
        .prefetch(4)
        .with_options(options)
    )
