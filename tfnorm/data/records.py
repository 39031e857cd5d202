"""What data sets, the pipeline and tasks agree on: records and transforms of examples."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from tfnorm.data.example import Example


class Records(Protocol):
    """Examples that are fetched by their numbers, from memory or from files."""

    @property
    def spec(self) -> Mapping[str, tf.TensorSpec]:
        """What `fetch` returns of one example."""
        ...

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def fetch(self, indices: tf.Tensor) -> Example:
        """The examples of these numbers, in their order.

        It is called within the graph of an input pipeline, by several threads at once.

        Args:
            indices: [b] int64.

        Returns:
            [b, ...] of each feature; ragged where `spec` leaves a dimension open.
        """
        ...

    def column(self, name: str) -> np.ndarray:
        """[n, ...], a feature of all examples, in their order; of fixed shape, and small."""
        ...


Transform = Callable[[Example, tf.Tensor], Example]
"""From a batch as `Records.fetch` returns it to one as a network takes it.

What is random in it is a function of its seeds [b, 2] int64: the first of each row is the epoch's
(of the run's seed and the number of the epoch), the second the number of the example.
"""


@runtime_checkable
class EpochTransform(Protocol):
    """A transform whose random numbers are drawn for a whole epoch at once."""

    def for_epoch(self, rng: np.random.Generator, examples: int) -> Transform:
        """The transform of one epoch.

        Args:
            rng: Source of the numbers: of the run's seed and the number of the epoch, after the
                order of the examples has been drawn from it.
            examples: Number of examples, of which each has its draw.
        """
        ...


def compose(*transforms: Transform | None) -> Transform:
    """One after the other, None being nothing; drawn for a whole epoch where any of them is."""
    return _Composition(tuple(each for each in transforms if each is not None))


class _Composition:
    def __init__(self, transforms: tuple[Transform, ...]) -> None:
        self._transforms = transforms

    def __call__(self, batch: Example, seeds: tf.Tensor) -> Example:
        for transform in self._transforms:
            batch = transform(batch, seeds)
        return batch

    def for_epoch(self, rng: np.random.Generator, examples: int) -> Transform:
        return _Composition(tuple(of_epoch(t, rng, examples) for t in self._transforms))


def of_epoch(transform: Transform, rng: np.random.Generator, examples: int) -> Transform:
    """The transform itself, or what `EpochTransform.for_epoch` makes of it."""
    if isinstance(transform, EpochTransform):
        return transform.for_epoch(rng, examples)
    return transform
