"""Records that are decoded into memory on first use."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tfnorm.data.records import Example


class MemoryRecords:
    """Examples of fixed shapes, held as arrays.

    Args:
        read: Makes the arrays [n, ...] of all features; called once, when they are first needed.
        spec: Of one example.
        examples: n.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, np.ndarray]],
        spec: Mapping[str, tf.TensorSpec],
        examples: int,
    ) -> None:
        self._read = read
        self._spec = dict(spec)
        self._examples = examples

    @property
    def spec(self) -> Mapping[str, tf.TensorSpec]:
        """What `fetch` returns of one example."""
        return self._spec

    def __len__(self) -> int:
        """Number of examples."""
        return self._examples

    @functools.cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """All examples, [n, ...] of each feature."""
        with tf.init_scope():  # Also where a pipeline, being traced, is the first to ask.
            return self._read()

    def column(self, name: str) -> np.ndarray:
        """[n, ...], a feature of all examples."""
        return self.arrays[name]

    def fetch(self, indices: tf.Tensor) -> Example:
        """The examples of these numbers, [b, ...] of each feature."""
        # Outside of the graph that is being traced: it takes tensors in, and arrays as constants,
        # of which it may hold two gigabytes.
        with tf.init_scope(), tf.device("CPU:0"):
            tensors = {name: tf.constant(array) for name, array in self.arrays.items()}
        return {name: tf.gather(tensor, indices) for name, tensor in tensors.items()}
