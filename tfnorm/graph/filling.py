"""Values for new variables without a second copy of them on the way."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf


@contextlib.contextmanager
def borrowing(pairs: Iterable[tuple[keras.Operation, keras.Operation]]) -> Iterator[None]:
    """While it is entered, layers that are built start with the values of others.

    For weights that are set afterwards: to draw random numbers first takes several times their
    memory, and variables of the same value take none of their own. The layers' initializers are
    theirs again at the end.

    Args:
        pairs: layers to be built, and those of whose weights they may borrow the ones of the same
            shape; all else starts with zeros.
    """
    own = [
        (operation, name, value, _Borrowed(source))
        for operation, source in pairs
        for name, value in vars(operation).items()
        if name.endswith("_initializer")
        and not name.startswith("_")  # composite layers hand on what is private
        and isinstance(value, keras.initializers.Initializer)
    ]
    for operation, name, _, borrowed in own:
        setattr(operation, name, borrowed)
    try:
        yield
    finally:
        for operation, name, value, _ in own:
            setattr(operation, name, value)


class _Borrowed(keras.initializers.Initializer):
    def __init__(self, source: keras.Operation | None = None) -> None:
        self._source = source

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
        for variable in getattr(self._source, "weights", ()):
            if tuple(variable.shape) == tuple(shape) and variable.dtype == dtype:
                return tf.convert_to_tensor(variable)
        return tf.zeros(shape, dtype)


def copy_weights(source: keras.Layer, target: keras.Layer) -> None:
    """Gives the weights of one layer to another.

    TensorFlow lets two variables share a value until one of them changes, so it takes no memory.

    Raises:
        ValueError: if they do not fit.
    """
    given, wanted = source.weights, target.weights
    if [tuple(v.shape) for v in given] != [tuple(v.shape) for v in wanted]:
        raise ValueError(
            f"weights of shapes {[tuple(v.shape) for v in given]}, expected "
            f"{[tuple(v.shape) for v in wanted]}."
        )
    for old, new in zip(given, wanted):
        new.assign(tf.convert_to_tensor(old))
