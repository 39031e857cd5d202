"""Convolutions and dense layers as what they are without bias and activation: linear maps."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfnorm.functional.sizes import dimensions, with_any_row

DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
KINDS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    *DEPTHWISE,
    keras.layers.Dense,
)


@dataclasses.dataclass(frozen=True)
class Map:
    """A layer of `KINDS` without its kernel, equal to that of every layer which computes the same.

    Attributes:
        kind: its class among `KINDS`.
        kernel_shape: of its kernel.
        kernel_size: as the layer has it, () of a Dense, and so the others.
        strides: likewise.
        dilation_rate: likewise.
        padding: likewise.
        data_format: likewise.
        groups: of channels.
    """

    kind: type[keras.layers.Layer]
    kernel_shape: tuple[int | None, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    padding: str
    data_format: str
    groups: int

    @classmethod
    def of(cls, layer: keras.layers.Layer) -> "Map":
        """Of a layer that is built."""
        return cls(
            next(kind for kind in KINDS if isinstance(layer, kind)),
            tuple(layer.kernel.shape),
            *(tuple(getattr(layer, x, ())) for x in ("kernel_size", "strides", "dilation_rate")),
            getattr(layer, "padding", "valid"),
            getattr(layer, "data_format", "channels_last"),
            getattr(layer, "groups", 1),
        )

    def of_any_size(self, **others: Any) -> "Map":
        """It for kernels of any number of channels, equal for layers that differ in it alone.

        `others` take the place of more attributes, which do not count either.
        """
        unknown = (None,) * len(self.kernel_shape)
        return dataclasses.replace(self, kernel_shape=unknown, **others)

    @property
    def takes_any_size(self) -> bool:
        """Whether TensorFlow has it, and its gradient, for sizes that are not known before."""
        return self.groups == 1 and max(self.dilation_rate, default=1) == 1

    @property
    def is_dense(self) -> bool:
        """Whether it is a product with each vector of channels."""
        return issubclass(self.kind, keras.layers.Dense)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has kernels of its own."""
        return issubclass(self.kind, DEPTHWISE)


def apply(layer: Map, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """What `layer` would make of `inputs` with another `kernel`, also one of fewer channels."""
    if layer.is_dense:
        return keras.ops.matmul(inputs, kernel)
    padding = layer.padding
    if padding == "causal":
        before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        spatial = 1 if layer.data_format == "channels_last" else 2
        inputs = keras.ops.pad(inputs, [(before if i == spatial else 0, 0) for i in range(3)])
        padding = "valid"
    convolve = keras.ops.depthwise_conv if layer.is_depthwise else keras.ops.conv
    return convolve(
        inputs,
        kernel,
        strides=layer.strides,
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _is_product(layer: Map) -> bool:
    """Whether it is a product of each position's channels with one matrix."""
    if layer.is_dense:
        return True
    sizes = (*layer.kernel_size, *layer.strides)
    is_whole = layer.data_format == "channels_last" and layer.groups == 1
    return is_whole and not layer.is_depthwise and all(size == 1 for size in sizes)


def kernel_gradient(
    layer: Map, inputs: tf.Tensor, kernel: tf.Tensor, cotangent: tf.Tensor
) -> tf.Tensor:
    """Gradient of ⟨cotangent, apply(layer, inputs, kernel)⟩ by the kernel; its value is unused.

    In a graph.
    """
    if _is_product(layer):  # in 0.6 to 0.8 of the time of a convolution's gradient
        rows = (tf.reshape(x, [-1, dimensions(x)[-1]]) for x in (inputs, cotangent))
        return tf.reshape(tf.matmul(*rows, transpose_a=True), dimensions(kernel))
    # Not by a tape: tf.recompute_grad stops all of them in the forward pass.
    return tf.gradients(apply(layer, inputs, kernel), kernel, cotangent)[0]


def mean_patches(
    layer: Map, images: tf.Tensor, shares: Sequence[tf.Tensor] | None = None
) -> tf.Tensor:
    """The mean of the input patches that the outputs of each of n images see, as [n, Q, g].

    Each dimension of space has a matrix of its own, of `shares_of`, and their products with a mean
    image take a tenth of the time of a convolution's kernel gradient for one output channel.

    Args:
        layer: whose patches they are.
        images: its inputs.
        shares: `shares_of(layer, images)`, where that is known already.
    """
    if shares is None:
        shares = shares_of(layer, images)
    if layer.data_format == "channels_first":
        images = tf.transpose(images, [0, *range(2, images.shape.rank), 1])
    rows, *space, channels = dimensions(images)
    if not shares:  # every position is a patch
        return tf.reshape(_mean_positions(images, rows, channels), [rows, channels, 1])
    # The dimensions of space in front, of which each product takes the first and puts its elements
    # of the kernel last: of matrices alone, as one of stacks of them takes 80 µs more.
    means = images
    if not isinstance(rows, int) or rows != 1:
        means = tf.transpose(images, [*range(1, len(space) + 1), 0, len(space) + 1])
    for share, size in zip(shares, space, strict=True):
        means = tf.reshape(means, [size, -1])
        means = tf.matmul(means, share, transpose_a=True, transpose_b=True)
    groups = _groups(layer, channels)
    means = tf.reshape(means, [rows, groups, channels // groups, math.prod(layer.kernel_size)])
    means = tf.transpose(means, [0, 3, 2, 1])
    return tf.reshape(means, [rows, math.prod(layer.kernel_size) * (channels // groups), groups])


def _mean_positions(
    images: tf.Tensor, rows: int | tf.Tensor, channels: int | tf.Tensor
) -> tf.Tensor:
    if isinstance(rows, int) and rows == 1:  # of the leading dimension it takes 0.6 of the time
        return tf.reduce_mean(tf.reshape(images, [-1, channels]), 0)
    return tf.reduce_mean(tf.reshape(images, [rows, -1, channels]), 1)


def shares_of(layer: Map, images: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """For each dimension of space a matrix [kernel size, size], of the dtype of the images.

    It says what share of the outputs sees a place through an element of the kernel. There are none
    where each position is a patch.
    """
    if _is_product(layer):
        return ()
    is_first = layer.data_format == "channels_first"
    space = dimensions(images)[2:] if is_first else dimensions(images)[1:-1]
    return tuple(_shares(layer, i, size, images.dtype) for i, size in enumerate(space))


def _shares(layer: Map, dimension: int, size: int | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """[k, size]: the share of the outputs along a dimension that see a place through an element."""
    is_known = isinstance(size, int)
    arange = np.arange if is_known else tf.range
    along = _along(layer, dimension, size)
    # The element a of the output o sees the place o·stride + a·dilation − before.
    element = np.arange(along.kernel_size, dtype=np.int32)[:, None]
    origin = arange(size) + along.before - along.dilation * element
    is_seen = (origin % along.stride == 0) & (origin >= 0) & (origin < along.outputs * along.stride)
    if is_known:
        return tf.constant(is_seen / along.outputs, dtype)
    return tf.cast(is_seen, dtype) / tf.cast(along.outputs, dtype)


class _Along(NamedTuple):
    """What a layer does along one dimension of space."""

    kernel_size: int
    stride: int
    dilation: int
    outputs: int | tf.Tensor  # their number
    before: int | tf.Tensor  # places of padding before the first input


def _along(layer: Map, dimension: int, size: int | tf.Tensor) -> _Along:
    kernel_size, stride, dilation, padding = 1, 1, 1, "valid"
    if not layer.is_dense:
        kernel_size = layer.kernel_size[dimension]
        stride, dilation = layer.strides[dimension], layer.dilation_rate[dimension]
        padding = layer.padding
    reach = dilation * (kernel_size - 1)
    outputs = (size - 1 - (reach if padding == "valid" else 0)) // stride + 1
    before = reach if padding == "causal" else 0
    if padding == "same":
        maximum = max if isinstance(size, int) else tf.maximum
        before = maximum((outputs - 1) * stride + reach + 1 - size, 0) // 2
    return _Along(kernel_size, stride, dilation, outputs, before)


class Places(NamedTuple):
    """Where in the inputs of a layer its outputs look, along the batch and all of space.

    Attributes:
        along: int32 [6, dimensions]: sizes of the inputs and of the outputs; how many places one of
            a dimension is apart from the next, in both; stride, and padding before the first place.
        within: int32 [kernel elements, dimensions], of the kernel's elements from the first one.
    """

    along: tf.Tensor
    within: tf.Tensor


def places_of(layer: Map, inputs: tf.Tensor) -> Places | None:
    """The `Places` of a layer's outputs in these inputs; None where each looks at its own place."""
    if _is_product(layer):
        return None
    channels = 1 if layer.data_format == "channels_first" else inputs.shape.rank - 1
    rows, *space = [x for i, x in enumerate(dimensions(inputs)) if i != channels]
    # The batch is a dimension of which each output sees its own place alone; not 0 to divide by.
    examples = max(rows, 1) if isinstance(rows, int) else tf.maximum(rows, 1)
    along = [
        _Along(1, 1, 1, examples, 0),
        *(_along(layer, i, size) for i, size in enumerate(space)),
    ]
    sizes, outputs = [rows, *space], [own.outputs for own in along]
    within = np.indices([own.kernel_size for own in along]).reshape(len(along), -1).T
    known = [
        *(sizes, outputs, _following(sizes), _following(outputs)),
        *([own.stride for own in along], [own.before for own in along]),
    ]
    return Places(
        tf.reshape(_vector([x for row in known for x in row]), [len(known), len(along)]),
        _vector(within * np.array([own.dilation for own in along])),
    )


def patches(
    layer: Map, inputs: tf.Tensor, positions: tf.Tensor, places: Places | None
) -> tf.Tensor:
    """The input patches that n of the outputs see, as [n, Q, g].

    Args:
        layer: whose they are.
        inputs: its inputs.
        positions: int32 [n], numbers of outputs: counted in order over the batch and all of space.
        places: `places_of(layer, inputs)`.
    """
    if layer.data_format == "channels_first":
        inputs = tf.transpose(inputs, [0, *range(2, inputs.shape.rank), 1])
    channels = dimensions(inputs)[-1]
    rows = with_any_row(tf.reshape(inputs, [-1, channels]))
    if places is None:
        return tf.expand_dims(tf.gather(rows, positions), 2)
    sizes, outputs, following, following_outputs, stride, before = tf.unstack(places.along)
    output = tf.expand_dims(positions, 1) // following_outputs % outputs
    first = output * stride - before
    seen = tf.expand_dims(first, 1) + places.within  # [n, kernel, dimensions]
    is_inside = tf.reduce_all((seen >= 0) & (seen < sizes), 2)
    found = tf.gather(rows, tf.where(is_inside, tf.reduce_sum(seen * following, 2), 0))
    found = tf.where(tf.expand_dims(is_inside, 2), found, tf.zeros([], found.dtype))
    groups, elements = _groups(layer, channels), places.within.shape[0]
    found = tf.reshape(found, [-1, elements, groups, channels // groups])
    found = tf.transpose(found, [0, 1, 3, 2])
    return tf.reshape(found, [-1, elements * (channels // groups), groups])


def _vector(sizes: Sequence[int | tf.Tensor] | np.ndarray) -> tf.Tensor:
    if any(map(tf.is_tensor, sizes)):
        return tf.stack(sizes)
    return tf.constant(np.asarray(sizes), tf.int32)


def _following(sizes: Sequence[int | tf.Tensor]) -> list[int | tf.Tensor]:
    """For each dimension the places of an array that one of its own is apart from the next."""
    products = [1]
    for size in reversed(sizes[1:]):
        products.append(products[-1] * size)
    return products[::-1]


def factors(
    layer: Map, kernel_shape: Sequence[int | tf.Tensor] | None = None
) -> tuple[int | tf.Tensor, int | tf.Tensor, int | tf.Tensor]:
    """(Q, g, c): a kernel holds Q elements for each of c output channels in g channel groups.

    A kernel reshaped to [Q, g, c] has its output channels in order, and all c of a group see the
    same input patches. Sizes that the layer does not know are in `kernel_shape`.
    """
    *spatial, inputs, outputs = kernel_shape or layer.kernel_shape
    if layer.is_depthwise:
        return math.prod(spatial), inputs, outputs
    return math.prod(spatial) * inputs, layer.groups, outputs // layer.groups


def _groups(layer: Map, channels: int | tf.Tensor) -> int | tf.Tensor:
    """The channel groups g, of so many channels of the inputs."""
    return channels if layer.is_depthwise else layer.groups


def probe_shape(layer: Map, channels: int) -> tuple[int, ...]:
    """The shape of a kernel with so many output channels in each group."""
    _, groups, _ = factors(layer)
    return (*layer.kernel_shape[:-1], channels * (1 if layer.is_depthwise else groups))


def channel_axis(layer: keras.layers.Layer) -> int:
    """Of the layer's output."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def keeps_positions(layer: keras.layers.Layer) -> bool:
    """Whether each output stands where an input does, so that a mask of the inputs fits it."""
    if isinstance(layer, keras.layers.Dense):
        return True
    is_padded = layer.padding != "valid" or max(layer.kernel_size) == 1
    return is_padded and max(layer.strides) == 1


def check(owner: str, layer: Any) -> None:
    """Raises a ValueError unless `layer` is a linear map that `owner` can wrap."""
    if not isinstance(layer, KINDS):
        raise ValueError(
            f"{owner} wraps {', '.join(kind.__name__ for kind in KINDS)}. Received: {layer!r}. "
            "Give one of these, or use another normalizer after this layer."
        )
    if layer.use_bias:
        raise ValueError(
            f"{owner} wraps a layer without bias: its statistics follow the kernel only because "
            "the output is linear in it, and β does the work of a bias. Received: "
            f"use_bias=True in {layer.name!r}. Give use_bias=False."
        )
    if layer.activation is not None and layer.activation is not keras.activations.linear:
        raise ValueError(
            f"{owner} normalizes between the layer and its activation. Received: "
            f"activation={layer.activation.__name__!r} in {layer.name!r}. Give no activation, "
            "and apply it to the output."
        )
