"""Convolutions and dense layers as linear maps that take in an affine map of channels."""

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from tfnorm.export.affine import Affine, Obstacle
from tfnorm.export.kernels import Kernel, Parts, read_parts
from tfnorm.graph import Call, Part, copy_operation

Kernels = list[Kernel]
Shape = tuple[int | None, ...]


class Kind(NamedTuple):
    """How the channels of a class of layers lie in its kernels.

    Attributes:
        scale_outputs: (kernels, scale [C_out]) -> kernels of the layer with scaled outputs.
        scale_inputs: (kernels, scale [C_in]) -> kernels of the layer on scaled inputs.
        response: (kernels, offset [C_in]) -> [C_out], what inputs of `offset` everywhere give
            where no kernel reaches over the border.
        uneven: (layer, input shape) -> whether a kernel of the layer reaches over the border, so
            that the response to the same input everywhere is not the same everywhere.
    """

    scale_outputs: Callable[[Kernels, np.ndarray], Kernels]
    scale_inputs: Callable[[Kernels, np.ndarray], Kernels]
    response: Callable[[Kernels, np.ndarray], np.ndarray]
    uneven: Callable[[keras.Layer, Shape], bool]


def _by_input(kernel: Kernel, values: np.ndarray) -> np.ndarray:
    """Values [C_in] for [C_in / groups, C_out]: the filters of a group see its channels only."""
    grouped = values.reshape(-1, kernel.shape[-2])
    if len(grouped) == 1:
        return values[:, None]
    return np.repeat(grouped.T, kernel.shape[-1] // len(grouped), axis=1)


def _never(layer: keras.Layer, shape: Shape) -> bool:
    return False


def _pads(layer: keras.Layer, shape: Shape) -> bool:
    """Whether a convolution of inputs of that shape puts zeros at the border."""
    if layer.padding == "causal":
        return any(size > 1 for size in layer.kernel_size)
    sizes = shape[2:] if layer.data_format == "channels_first" else shape[1:-1]
    windows = zip(sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
    return layer.padding == "same" and any(_same_pads(*window) for window in windows)


def _same_pads(size: int | None, kernel: int, stride: int, dilation: int) -> bool:
    if size is None or kernel == 1:
        return kernel > 1
    return (math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 > size


def _spreads(layer: keras.Layer, shape: Shape) -> bool:
    """Whether a transposed convolution is more than one matrix for each position.

    Else an output near the border, or between two strides, gets fewer terms than others.
    """
    return any(size > 1 for size in (*layer.kernel_size, *layer.strides))


# Kernels: [..., C_in / groups, C_out].
_CONVOLUTION = Kind(
    lambda k, scale: [k[0].times(scale)],
    lambda k, scale: [k[0].times(_by_input(k[0], scale))],
    lambda k, offset: k[0].times(_by_input(k[0], offset)).sum(1),
    _pads,
)
_DENSE = _CONVOLUTION._replace(uneven=_never)
# Kernels: [..., C_out, C_in].
_TRANSPOSED = Kind(
    lambda k, scale: [k[0].times(scale[:, None])],
    lambda k, scale: [k[0].times(scale)],
    lambda k, offset: k[0].times(offset).sum(2).sum(1),
    _spreads,
)
# Kernels: [..., C_in, multiplier]; the outputs are [C_in, multiplier], flattened.
_DEPTHWISE = Kind(
    lambda k, scale: [k[0].times(scale.reshape(k[0].shape[-2:]))],
    lambda k, scale: [k[0].times(scale[:, None])],
    lambda k, offset: k[0].times(offset[:, None]).sum(2).reshape(-1),
    _pads,
)
# Kernels: depthwise [..., C_in, multiplier], then pointwise [..., C_in · multiplier, C_out].
_SEPARABLE = Kind(
    lambda k, scale: [k[0], k[1].times(scale)],
    lambda k, scale: [k[0].times(scale[:, None]), k[1]],
    lambda k, offset: k[1].times(k[0].times(offset[:, None]).sum(2).reshape(-1)[:, None]).sum(1),
    _pads,
)

KINDS: dict[type, Kind] = {
    keras.layers.Dense: _DENSE,
    keras.layers.Conv1D: _CONVOLUTION,
    keras.layers.Conv2D: _CONVOLUTION,
    keras.layers.Conv3D: _CONVOLUTION,
    keras.layers.Conv1DTranspose: _TRANSPOSED,
    keras.layers.Conv2DTranspose: _TRANSPOSED,
    keras.layers.Conv3DTranspose: _TRANSPOSED,
    keras.layers.DepthwiseConv1D: _DEPTHWISE,
    keras.layers.DepthwiseConv2D: _DEPTHWISE,
    keras.layers.SeparableConv1D: _SEPARABLE,
    keras.layers.SeparableConv2D: _SEPARABLE,
}


class LinearPart(Part):
    """A layer of one of `KINDS` with weights of its own, computed in float64.

    Args:
        path: as in `Part`.
        operation: the model's layer, built.
        kernel: reads what takes the place of the layer's own kernel.
    """

    def __init__(
        self,
        path: str,
        operation: keras.Layer,
        kernel: Callable[[], Parts] | None = None,
    ) -> None:
        super().__init__(path, operation)
        self._kind = KINDS[type(operation)]
        self._kernels: Kernels | None = None
        self._bias: np.ndarray | None = None
        if kernel is not None:
            self._load()
            self._kernels = [Kernel(self._kernels[0].shape, kernel)]

    def check_affine_after(self, affine: Affine, call: Call) -> None:
        """Raises Obstacle unless `absorb_after` can take in a map of what the call returns."""
        self._check_place(affine, call)
        if self.operation.activation is not keras.activations.linear:
            function = self.operation.activation
            name = getattr(function, "__name__", type(function).__name__)
            raise Obstacle(f"{self.path} before it ends in the activation {name}")

    def absorb_after(self, affine: Affine) -> None:
        """Takes in a map of the outputs: s·(K x + b) + o = (s K) x + (s b + o).

        Where these cancel the layer itself has rounded K x + b as coarsely: no digit is lost.
        """
        self._load()
        self._kernels = self._kind.scale_outputs(self._kernels, affine.scale)
        self._bias = affine.scale * (0.0 if self._bias is None else self._bias) + affine.offset

    def check_affine_before(self, affine: Affine, call: Call) -> None:
        """Raises Obstacle unless `absorb_before` can take in a map of what the call is given."""
        self._check_place(affine, call)
        if affine.loses_digits(self.operation.compute_dtype):
            raise Obstacle(f"{self.path} after it would lose digits")
        shape = call.tensors[0].shape
        if np.any(affine.offset != 0) and self._kind.uneven(self.operation, shape):
            raise Obstacle(f"{self.path} after it pads its input with zeros")

    def absorb_before(self, affine: Affine) -> None:
        """Takes in a map of the inputs: K (s·x + o) + b = (K s) x + (K o + b)."""
        self._load()
        if np.any(affine.offset != 0):
            shift = self._kind.response(self._kernels, affine.offset)
            self._bias = shift + (0.0 if self._bias is None else self._bias)
        self._kernels = self._kind.scale_inputs(self._kernels, affine.scale)

    def make(self, name: str) -> keras.Layer:
        """A layer as the model's, with a bias if it needs one now."""
        if self._kernels is None:
            return super().make(name)
        return copy_operation(self.operation, name, use_bias=self._bias is not None)

    def borrowing(self, operation: keras.Layer) -> list[tuple[keras.Operation, ...]]:
        """All its weights, which are written afterwards."""
        return [(operation, self.operation)]

    def initialize(self, operation: keras.Layer) -> None:
        """Writes the kernels, and the bias if there is one."""
        if self._kernels is None:
            super().initialize(operation)
            return
        variables = operation.weights
        for kernel, variable in zip(self._kernels, variables):
            kernel.write(variable)
        if self._bias is not None:
            variables[-1].assign(self._bias)

    def _load(self) -> None:
        if self._kernels is not None:
            return
        variables = self.operation.weights
        if self.operation.use_bias:
            self._bias = keras.ops.convert_to_numpy(variables.pop()).astype("float64")
        self._kernels = [Kernel(tuple(v.shape), lambda v=v: read_parts(v)) for v in variables]

    def _check_place(self, affine: Affine, call: Call) -> None:
        first = getattr(self.operation, "data_format", "channels_last") == "channels_first"
        shape = call.outputs[0].shape
        axis = 1 if first else len(shape) - 1
        if affine.axis != axis:
            raise Obstacle(f"the channels of {self.path} are on axis {axis}, not {affine.axis}")
        # keras.ops.add takes a bias of shape [1, C, 1, 1] for one of a last axis of size C.
        if first and shape[-1] in (None, shape[1]):
            raise Obstacle(
                f"Keras may add the bias of {self.path} to axis {len(shape) - 1} instead of 1, "
                f"because that has size {shape[-1]}"
            )


def linear_part(part: Part, kernel: Callable[[], Parts] | None = None) -> LinearPart | None:
    """The part as a linear one, or None if it is no plain layer of one of the `KINDS`.

    A subclass may do anything in its `call`, and a quantized or LoRA layer holds no plain kernel.
    `kernel` reads what takes the place of the layer's own.
    """
    layer = part.operation
    plain = (
        type(layer) in KINDS
        and layer.quantization_mode is None
        and not getattr(layer, "lora_enabled", False)
    )
    return LinearPart(part.path, layer, kernel) if plain else None
