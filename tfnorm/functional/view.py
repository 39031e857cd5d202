"""Any tensor as [G, M, C], and back: the form in which every method sees its input.

G groups (virtual replicas) of M positions of C channels. A mask is [G, M, 1], True where a position
is valid, or None.
"""

import math

import tensorflow as tf

from tfnorm.functional.sizes import dimensions


class View:
    """Sees tensors of one shape and channel axis as [G, M, C], and brings results back."""

    def __init__(self, x: tf.Tensor, axis: int, groups: int = 1) -> None:
        """Takes the shape of `x`, its channel `axis` and the number of `groups`.

        Raises:
            ValueError: `groups` does not divide the batch.
        """
        rank = x.shape.rank
        axis %= rank
        self._groups = groups
        self._channels = x.shape[axis]
        self._dtype = x.dtype if x.dtype.is_floating else tf.float32
        self._to_last = None
        if axis != rank - 1:
            self._to_last = [i for i in range(rank) if i != axis] + [axis]
            self._from_last = [self._to_last.index(i) for i in range(rank)]
        self._positions = _without(axis, x)
        self._checks = []
        if groups > 1:
            self._check_batch(self._positions[0])

    def _check_batch(self, batch: int | tf.Tensor) -> None:
        text = (
            "the batch must be divisible by the number of virtual replicas. Received a batch of",
            f"and virtual_replicas={self._groups}. Choose a batch that is a multiple of it.",
        )
        if tf.is_tensor(batch):
            is_multiple = tf.equal(batch % self._groups, 0)
            self._checks = [tf.debugging.Assert(is_multiple, [text[0], batch, text[1]])]
        elif batch % self._groups:
            raise ValueError(f"{text[0]} {batch} {text[1]}")

    def flatten(self, x: tf.Tensor) -> tf.Tensor:
        """X as [G, M, C], integers as float32."""
        if x.dtype != self._dtype and not x.dtype.is_floating:
            x = tf.cast(x, self._dtype)
        if self._checks:
            # Else the reshape below would be the one to fail, with a message about itself.
            with tf.control_dependencies(self._checks):
                x = tf.identity(x)
        if self._to_last is not None:
            x = tf.transpose(x, self._to_last)
        if self._groups == 1:
            return tf.reshape(x, [1, -1, self._channels])
        return tf.reshape(x, [self._groups, _all_positions(x) // self._groups, self._channels])

    def flatten_mask(self, mask: tf.Tensor | None) -> tf.Tensor | None:
        """A mask as [G, M, 1].

        Its shape is that of x without its channel axis, or has 1 in place of sizes of that.
        """
        if mask is None:
            return None
        mask = tf.cast(mask, tf.bool)
        if list(mask.shape) != self._positions:
            mask = tf.broadcast_to(mask, self._positions)
        return tf.reshape(mask, [self._groups, -1, 1])

    @property
    def has_one_position(self) -> bool:
        """Whether each example is known to have one position alone, as behind a dense layer."""
        return all(isinstance(size, int) and size == 1 for size in self._positions[1:])

    def by_example(self, x: tf.Tensor | None) -> tf.Tensor | None:
        """[G, M, ...] as [n, P, ...]: the P positions of each of n examples together."""
        if x is None:  # a mask
            return None
        batch, *positions = self._positions or [1]  # a vector is one example
        return tf.reshape(x, [batch, math.prod(positions), x.shape[-1]])

    def restore(self, y: tf.Tensor, channels: int | None = None) -> tf.Tensor:
        """Brings [G, M, C], or another number of channels, back to the shape of x."""
        y = tf.reshape(y, [*self._positions, channels or self._channels])
        return y if self._to_last is None else tf.transpose(y, self._from_last)


def _all_positions(x: tf.Tensor) -> tf.Tensor | int:
    size = x.shape.num_elements()
    return (tf.size(x) if size is None else size) // x.shape[-1]


def _without(axis: int, x: tf.Tensor) -> list[int | tf.Tensor]:
    """The sizes of x but for one axis, as tensors where they are not known beforehand."""
    sizes = dimensions(x)
    return sizes[:axis] + sizes[axis + 1 :]
