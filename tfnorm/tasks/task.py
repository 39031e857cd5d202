"""What a task is to the trainer, which knows none by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from tfnorm.data import Dataset, Example, Records, Transform
from tfnorm.layers.norms import Normalizer
from tfnorm.serving import Postprocessor, Preprocessor


class Settings(Protocol):
    """What a task may ask of a run's configuration, `tfnorm.training.Config`."""

    task: str
    dataset: str
    data_dir: str | None
    train_examples: int
    train_split: str | None
    test_split: str | None
    data_loading: str
    image_size: str | None
    max_objects: int
    skip_undecodable: bool
    augment: str
    label_smoothing: float
    model: str
    model_options: Mapping[str, Any]
    backbone: str | None
    width: int | None
    stem_stride: int | None


# Metrics by their names, by names of classes.
ByClass = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a run of a task does if its configuration leaves it open.

    Attributes:
        dataset: One that needs no network.
        model: A network that learns that data set in minutes.
        backbone: What it stands on; None is the network's own choice.
        model_options: More arguments of the network and its backbone.
    """

    dataset: str
    model: str
    backbone: str | None = None
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Evaluator(Protocol):
    """A measure that no sum over examples can say, such as average precision.

    The trainer sees to it that each example of a split is in `rows` once, in the order of the
    split, whatever the number of replicas and workers; all workers have the same rows.
    """

    def outputs(self, outputs: Any, batch: Example) -> dict[str, tf.Tensor]:
        """What is needed of a batch, on its device.

        Args:
            outputs: The network's, in inference mode.
            batch: What it was fed.

        Returns:
            [b, ...] of each name.
        """
        ...

    def row(self, example: Mapping[str, np.ndarray]) -> Any:
        """What is kept of one example, of `outputs` without its first dimension.

        Workers send it to each other as JSON: keep it small.
        """
        ...

    def results(self, rows: Sequence[Any]) -> dict[str, float]:
        """Metrics by name, from what was kept of all examples."""
        ...

    def by_class(self, rows: Sequence[Any]) -> ByClass:
        """Metrics of each class; empty where there are none."""
        ...


@runtime_checkable
class OverRecords(Protocol):
    """An evaluator that reads the truth itself, such as masks in the size of the files."""

    def over(self, records: Records) -> Evaluator:
        """The evaluator of these examples, of whose numbers `outputs` gets an "index" [b]."""
        ...


@dataclasses.dataclass(frozen=True)
class Serving:
    """What the exported network of a run does around itself.

    Attributes:
        mean: The network is fed (pixel / 255 − mean) / std, for each channel.
        std: As above.
        label_names: One name a class.
        preprocessing: What an export makes of uint8 images; None leaves it to who exports.
        postprocessing: What an export returns; None in the same way.
    """

    mean: Sequence[float]
    std: Sequence[float]
    label_names: Sequence[str]
    preprocessing: Preprocessor | None = None
    postprocessing: Postprocessor | None = None


class Task(Protocol):
    """What a network is trained for: its data, loss, metrics and serving.

    It is made of a run's configuration and its data set. To add one, write a class like
    `tfnorm.tasks.classification.Classification` into a file of its own and give it a line in
    `tfnorm.tasks.TASKS`.

    Attributes:
        needed: Names of `tfnorm.data.records.Example` that its data set must have.
        headline: Name of the metric that runs are compared by; more of it is better.
        num_sums: K, how many sums its metrics are made of.
        largest_evaluation_batch: The most examples of a replica in a step of evaluation, where
            their size or number of sizes sets a limit; None is any.
        defaults: What a run does that leaves its network or its data set open.
        dataset: The data.
    """

    needed: ClassVar[tuple[str, ...]]
    headline: ClassVar[str]
    defaults: ClassVar[Defaults]
    num_sums: int
    largest_evaluation_batch: int | None
    dataset: Dataset

    def __init__(self, settings: Settings, dataset: Dataset) -> None: ...

    def transform(self, *, training: bool) -> Transform:
        """From a batch of records to what `losses` and, its "image", the network take."""
        ...

    def build_model(
        self,
        normalizer: Normalizer,
        backbone_normalizer: Normalizer | None = None,
        weights: str | keras.Model | None = None,
    ) -> keras.Model:
        """The network.

        Args:
            normalizer: Of the whole network.
            backbone_normalizer: Of its backbone, if that is another.
            weights: What the backbone starts with, as of `tfnorm.models.build`; None is fresh
                weights.
        """
        ...

    def losses(self, outputs: Any, batch: Example) -> tf.Tensor:
        """[b], the loss of each example; a step's loss is their mean.

        Args:
            outputs: The network's.
            batch: What it was fed.
        """
        ...

    def sums(self, outputs: Any, batch: Example, losses: tf.Tensor) -> tf.Tensor:
        """[K], what the metrics are made of, additive over examples, batches and replicas.

        Args:
            outputs: The network's.
            batch: What it was fed, with the weight [b] of each example in every sum.
            losses: [b], what `losses` returned.
        """
        ...

    def results(self, sums: np.ndarray) -> dict[str, float]:
        """Metrics by name, the headline first, from sums over at least one example."""
        ...

    def by_class(self, sums: np.ndarray) -> ByClass:
        """Metrics of each class, from the same sums; empty where there are none."""
        ...

    def evaluator(self) -> Evaluator | None:
        """What is measured besides; None for a task whose metrics are all made of sums."""
        ...

    def serving(self) -> Serving:
        """What an export of the network needs to know."""
        ...
