"""What a method that normalizes by statistics of a batch tells about itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


class AveragedSteps(NamedTuple):
    """Over how many independent batches a method averages its statistics, on each way.

    The noise of the statistics is less by the root of it.
    """

    forward: float
    backward: float


def averaged_by(decay: float) -> float:
    """Over how many independent numbers an exponential average takes the mean; 1 has no end."""
    return math.inf if decay == 1 else (1 + decay) / (1 - decay)


class BatchMethod:
    """The answers of batch normalization; a layer of another method gives its own.

    Attributes:
        subtracts_mean: whether it is a method of mean and variance, and not of the mean square.
    """

    subtracts_mean = True

    def normalized_inputs(self, inputs: Any) -> Any:
        """What it normalizes when it is called with `inputs`."""
        return inputs

    def averaged_steps(self) -> AveragedSteps:
        """Over how many steps it averages, once its averages are in use."""
        return AveragedSteps(1, 1)

    def step_averages(self, group: int) -> Mapping[str, np.ndarray]:
        """What it keeps beside the moving statistics of one virtual replica: averages over steps.

        By the names of `tfnorm.training.statistics.Statistics`: "variance" or "gradient_product",
        [C]; those that are known already.
        """
        del group
        return {}

    def variance_in_training(self, mean: tf.Tensor, variance: tf.Tensor, outputs: Any) -> tf.Tensor:
        """The variance [G, C] that a training call takes of its batch.

        Args:
            mean: of the batch, [G, C].
            variance: likewise.
            outputs: of the call.
        """
        del mean, outputs
        return variance

    def population_statistics(
        self,
        mean: np.ndarray,
        variance: np.ndarray,
        previous: Sequence[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(moving_mean, moving_variance) for inputs of these moments: where training tends to.

        `previous` is the state that a normalizer in a chain gets, as (mean, variance, noise).
        """
        del previous
        return mean, variance


def method_of(layer: Any) -> BatchMethod:
    """What answers for a normalizer: the layer itself, for Keras' own batch normalization."""
    return layer if isinstance(layer, BatchMethod) else BatchMethod()
