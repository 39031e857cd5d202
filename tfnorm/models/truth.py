"""What a network may know of its images while it trains: the examples that they are of.

A detector of two stages learns from regions that are drawn with the truth in hand, in the middle of
its graph. The truth is no input of the network, which has images alone when it serves: so it is
converted, folded, saved and exported as any other. A training step says around the call which
examples the images belong to, and a layer asks for them.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping

import tensorflow as tf


class _Known(threading.local):
    """Each replica is traced in a thread of its own."""

    batch: Mapping[str, tf.Tensor] | None = None


_known = _Known()


@contextlib.contextmanager
def known(batch: Mapping[str, tf.Tensor]) -> Iterator[None]:
    """Around a call of a network in training, says what the batch of its images is.

    Args:
        batch: entries of `tfnorm.data.Example`, each [b, ...].

    Example:
        with truth.known(batch):
            outputs = model(batch["image"], training=True)
    """
    before, _known.batch = _known.batch, batch
    try:
        yield
    finally:
        _known.batch = before


def current() -> Mapping[str, tf.Tensor] | None:
    """The batch of the call that is being made; None if nobody said."""
    return _known.batch
