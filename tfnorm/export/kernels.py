"""Kernels that are scaled along their channels, computed in float64 part by part.

A kernel may be as large as all of a model, so that no whole copy of it is made on the way.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfnorm.layers.kernel_wrapper import KernelWrapper

Parts = Iterator[tuple[tuple[slice, ...], np.ndarray]]

_ELEMENTS = 2**18  # of a part
_ALIGNMENT = 64  # bytes, EIGEN_MAX_ALIGN_BYTES of TensorFlow


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """The product of an array and factors that broadcast to it.

    Attributes:
        shape: of the array.
        read: reads the array, as `read_parts` does.
        factors: arrays of as many dimensions as there are at most, aligned at the last.
    """

    shape: tuple[int, ...]
    read: Callable[[], Parts]
    factors: tuple[np.ndarray, ...] = ()

    def times(self, factor: np.ndarray) -> "Kernel":
        """The kernel multiplied by one more factor."""
        return dataclasses.replace(self, factors=(*self.factors, factor))

    def sum(self, axes: int) -> np.ndarray:
        """The sum over all axes but the last ones, so many, in float64."""
        total = np.zeros(self.shape[len(self.shape) - axes :])
        for index, values in self._parts():
            kept = index[len(self.shape) - axes :]
            total[kept] += values.sum(tuple(range(len(self.shape) - axes)))
        return total

    def write(self, variable: keras.Variable) -> None:
        """Assigns the kernel to a variable, rounded to its dtype.

        Raises:
            ValueError: if it is of another shape.
        """
        if tuple(variable.shape) != self.shape:
            raise ValueError(f"a kernel of shape {self.shape}, expected {tuple(variable.shape)}.")
        array = _aligned(self.shape, tf.as_dtype(variable.dtype).as_numpy_dtype)
        for index, values in self._parts():
            array[index] = values
        variable.assign(_without_copying(array))

    def _parts(self) -> Parts:
        for index, values in self.read():
            for factor in self.factors:
                values *= np.broadcast_to(factor, self.shape)[index]
            yield index, values


def read_parts(source: keras.Variable | np.ndarray) -> Parts:
    """An array part by part: their indices, and copies of them in float64."""
    if isinstance(source, keras.Variable):
        source = tf.convert_to_tensor(source)
    for index in parts(source.shape):
        yield index, np.asarray(source[index]).astype("float64")


def read_channels(layer: KernelWrapper) -> Parts:
    """The kernel that a wrapper computes channel by channel, in the same way."""
    shape, axis = layer.layer.kernel.shape, layer.channel_axis
    step = max(_ELEMENTS * shape[axis] // math.prod(shape), 1)
    for start in range(0, shape[axis], step):
        channels = slice(start, min(start + step, shape[axis]))
        yield (slice(None),) * axis + (channels,), layer.effective_kernel(channels)


def parts(shape: Sequence[int], elements: int = _ELEMENTS) -> Iterator[tuple[slice, ...]]:
    """Indices that cut an array into parts of so many elements, or single ones, row by row."""
    row = math.prod(shape[1:])
    if row <= elements:
        rows = max(elements // max(row, 1), 1)
        rest = tuple(slice(0, size) for size in shape[1:])
        for start in range(0, shape[0], rows):
            yield (slice(start, min(start + rows, shape[0])), *rest)
    else:
        for start in range(shape[0]):
            for rest in parts(shape[1:], elements):
                yield (slice(start, start + 1), *rest)


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """A new array that begins where TensorFlow's tensors may."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _without_copying(array: np.ndarray) -> tf.Tensor:
    """A tensor of the memory of an aligned array, where NumPy can hand it on."""
    if array.dtype.name not in ("float16", "float32", "float64") or not array.size:
        return tf.convert_to_tensor(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
