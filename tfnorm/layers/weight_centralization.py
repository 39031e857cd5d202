"""Weight centralization."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.layers import linear

_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_OTHERS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
)
KINDS = (*_OTHERS, *_TRANSPOSED, *_DEPTHWISE)


@keras.saving.register_keras_serializable(package="tfnorm")
class WeightCentralization(keras.layers.Wrapper):
    """Applies a layer with zero-mean kernels: W ← W − mean(W over all but the output channel).

    The subtraction is part of the graph, so that the kernel's gradient is centralized as well.
    `MovingAverageBatchNormalization` wants it before itself, because it subtracts no mean.

    Source: Yan et al. 2020, equation 18, after Qiao et al. 2019. Cost: six passes over the kernel
    a step, or over the input where that is smaller and the kernel 1 wide; nothing after folding,
    which bakes the centralized kernel in.

    Args:
        layer: a Conv1D, 2D or 3D, one of their transposes, a DepthwiseConv1D or 2D, or a Dense.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: `layer` is of another kind.

    Attributes:
        KINDS: the classes of layers that it wraps.
    """

    KINDS = KINDS

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        if not isinstance(layer, KINDS):
            raise ValueError(
                "WeightCentralization wraps "
                f"{', '.join(kind.__name__ for kind in KINDS)}. "
                f"Received: {layer!r}. Give one of these, or leave the layer as it is."
            )
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The layer's output under the centralized kernel."""
        if self._is_larger_than(inputs):
            # ⟨W − mean(W), x⟩ = ⟨W, x − mean(x)⟩, and so it is for the gradients: mabn's step of
            # ResNet-50 on 8 images of 64×64 takes 0.9 of its time so.
            return self.layer(_subtract_mean(inputs, (linear.channel_axis(self.layer),)))
        centralized = _subtract_mean(tf.convert_to_tensor(self.layer.kernel), self._mean_axes())
        # A stateless scope lends the layer another kernel for one call, whatever its kind.
        with keras.StatelessScope(state_mapping=[(self._kernel_variable(), centralized)]):
            return self.layer(inputs)

    def effective_kernel(self) -> np.ndarray:
        """The centralized kernel, float64, in the layout of the layer's own."""
        kernel = keras.ops.convert_to_numpy(self.layer.kernel).astype(np.float64)
        return kernel - kernel.mean(self._mean_axes(), keepdims=True)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def _is_larger_than(self, inputs: tf.Tensor) -> bool:
        """Whether the layer mixes channels at each position, by a kernel larger than the input."""
        # A subclass may do more than that, and a mean needs dense floating-point numbers.
        if type(self.layer) not in _OTHERS or getattr(self.layer, "groups", 1) > 1:
            return False
        if not isinstance(inputs, tf.Tensor) or not inputs.dtype.is_floating:
            return False
        kernel, size = self.layer.kernel.shape, inputs.shape.num_elements()
        return max(kernel[:-2], default=1) == 1 and size is not None and size < math.prod(kernel)

    def _kernel_variable(self) -> keras.Variable:
        return next(v for v in self.layer.weights if v.name == "kernel")

    def _mean_axes(self) -> tuple[int, ...]:
        rank = len(self.layer.kernel.shape)
        if isinstance(self.layer, _TRANSPOSED):
            outputs = {rank - 2}
        elif isinstance(self.layer, _DEPTHWISE):
            outputs = {rank - 2, rank - 1}
        else:
            outputs = {rank - 1}
        return tuple(sorted(set(range(rank)) - outputs))


def _subtract_mean(kernel: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """W − mean(W), whose gradient is the same of the gradient: dW − mean(dW); or so for x.

    Said so, because a tape would write mean(dW) out in the shape of W, twice: ten passes over a
    kernel where these are six.
    """

    @tf.custom_gradient
    def subtract(kernel: tf.Tensor):  # noqa: ANN202
        return kernel - _mean(kernel, axes), lambda gradient: _subtract_mean(gradient, axes)

    return subtract(kernel)


def _mean(kernel: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    # Half precision would add up in half precision: thousands of elements, most of them in vain.
    wide = tf.cast(kernel, tf.float64 if kernel.dtype == tf.float64 else tf.float32)
    if axes == tuple(range(kernel.shape.rank - 1)):
        # The sum over all but the last axis by the kernel made for it (5.4, 7.1 ms for 94 MB).
        sums = tf.raw_ops.BiasAddGrad(out_backprop=wide)
        mean = sums / (kernel.shape.num_elements() // kernel.shape[-1])
    else:
        mean = tf.reduce_mean(wide, axes, keepdims=True)
    return tf.cast(mean, kernel.dtype)
