"""A chain of transforms of one example, applied to a batch."""

import functools
from collections.abc import Callable

import tensorflow as tf

from tfnorm.data.example import Example
from tfnorm.data.rows import over_rows

OneTransform = Callable[[Example, tf.Tensor], Example]


def each(*transforms: OneTransform) -> OneTransform:
    """Applies transforms, one after the other, to every example of a batch by itself.

    Images of a batch may have any sizes before, as long as they are encoded, and have one size
    after. What an example comes to depends on itself and its seed, not on its batch; every
    transform of the chain gets a seed of its own, made of the example's.

    Args:
        transforms: Functions of (example, seed [2]).

    Returns:
        A function of (batch, seeds [b, 2]).
    """

    @functools.partial(tf.function, autograph=False)
    def one(example: Example, seed: tf.Tensor) -> Example:
        for number, transform in enumerate(transforms):
            example = transform(example, tf.random.fold_in(seed, number))
        return example

    def batch(examples: Example, seeds: tf.Tensor) -> Example:
        spec = {name: tf.TensorSpec(v.shape[1:], v.dtype) for name, v in examples.items()}
        traced = one.get_concrete_function(spec, tf.TensorSpec([2], seeds.dtype))
        signature = tf.nest.map_structure(tf.TensorSpec.from_tensor, traced.structured_outputs)
        return over_rows(lambda row: one(*row), (examples, seeds), signature)

    return batch
