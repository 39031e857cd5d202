"""Weight centralization."""

import math

import keras
import tensorflow as tf

from tfnorm.functional.weight_centralization import centralize, with_mean
from tfnorm.layers import linear
from tfnorm.layers.kernel_wrapper import KernelWrapper

_MIXES_CHANNELS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
)
# How many times larger than input and output together a kernel is that is worth their passes.
_MUCH_LARGER = 4


@keras.saving.register_keras_serializable(package="tfnorm")
class WeightCentralization(KernelWrapper):
    """Applies a layer with zero-mean kernels: W ← W − mean(W over all but the output channel).

    The subtraction is part of the graph, so that the kernel's gradient is centralized as well.
    `MovingAverageBatchNormalization` wants it before itself, because it subtracts no mean.

    Source: Yan et al. 2020, equation 18, after Qiao et al. 2019. Cost: six passes over the kernel
    a step; three, and some over input and output, where these are much smaller, in float32 and
    with channels last; of a kernel 1 wide, over the input alone, where that is smaller. Nothing
    after folding, which bakes the centralized kernel in.

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
        self._refuse_quantized()
        if not self._mixes_channels_of(inputs):
            return super().call(inputs)
        kernel, size = self.layer.kernel.shape, inputs.shape.num_elements()
        if max(kernel[:-2], default=1) == 1 and size < math.prod(kernel):
            # ⟨W − mean(W), x⟩ = ⟨W, x − mean(x)⟩, and so it is for the gradients: mabn's step of
            # ResNet-50 on 8 images of 64×64 takes 0.9 of its time so.
            return self.layer(centralize(inputs, (linear.channel_axis(self.layer),)))
        if self._has_plain_outputs_of(inputs):
            outputs = math.prod(self.layer.compute_output_shape(inputs.shape))
            if _MUCH_LARGER * (size + outputs) < math.prod(kernel):
                return self._less_sums_of_patches(inputs)
        return super().call(inputs)

    def _less_sums_of_patches(self, inputs: tf.Tensor) -> tf.Tensor:
        """⟨W − mean(W), patch⟩ as ⟨W, patch⟩ − mean(W)·Σ patch: no other kernel is written."""
        kernel, average = with_mean(tf.convert_to_tensor(self.layer.kernel), self._axes())
        outputs = self._call_with(kernel, inputs)
        ones = tf.ones([*self.layer.kernel_size, 1, 1], outputs.dtype)
        sums = keras.ops.conv(
            tf.reduce_sum(tf.cast(inputs, outputs.dtype), -1, keepdims=True),
            ones,
            strides=list(self.layer.strides),
            padding=self.layer.padding,
            dilation_rate=self.layer.dilation_rate,
            data_format="channels_last",
        )
        return outputs - sums * tf.cast(average, outputs.dtype)

    def _mixes_channels_of(self, inputs: tf.Tensor) -> bool:
        """Whether an output is the product of a patch of all channels, of inputs of known size."""
        # A subclass may do more than that, and a mean needs dense floating-point numbers.
        if type(self.layer) not in _MIXES_CHANNELS or getattr(self.layer, "groups", 1) > 1:
            return False
        if not isinstance(inputs, tf.Tensor) or not inputs.dtype.is_floating:
            return False
        return inputs.shape.num_elements() is not None

    def _has_plain_outputs_of(self, inputs: tf.Tensor) -> bool:
        """Whether outputs are these products and a bias, to the precision of the inputs."""
        layer = self.layer
        if inputs.dtype != layer.compute_dtype or inputs.dtype.size < 4:
            return False
        if getattr(layer, "data_format", "") != "channels_last" or layer.padding == "causal":
            return False
        is_linear = layer.activation in (None, keras.activations.linear)
        return is_linear and layer.activity_regularizer is None
