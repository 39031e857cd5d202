"""Layers whose kernel is computed from the stored one."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.layers.linear import DEPTHWISE

_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_OTHERS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
)


class KernelWrapper(keras.layers.Wrapper):
    """Applies a layer with another kernel, which a subclass computes from the layer's own.

    The computation is part of the graph, so that the kernel's gradient goes through it.

    Args:
        layer: a Conv1D, 2D or 3D, one of their transposes, a DepthwiseConv1D or 2D, or a Dense.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: `layer` is of another kind.

    Attributes:
        KINDS: the classes of layers that it wraps.
    """

    KINDS = (*_OTHERS, *_TRANSPOSED, *DEPTHWISE)

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        if not isinstance(layer, self.KINDS):
            raise ValueError(
                f"{type(self).__name__} wraps {', '.join(kind.__name__ for kind in self.KINDS)}. "
                f"Received: {layer!r}. Give one of these, or leave the layer as it is."
            )
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking

    def transform_kernel(self, kernel: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
        """The kernel to use; `axes` are all but those of the output channels."""
        raise NotImplementedError

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The layer's output under the transformed kernel.

        Raises:
            ValueError: Keras has quantized the layer.
        """
        self._refuse_quantized()
        kernel = tf.convert_to_tensor(self.layer.kernel)
        return self._call_with(self.transform_kernel(kernel, self._axes()), inputs)

    def _refuse_quantized(self) -> None:
        if getattr(self.layer, "quantization_mode", None):
            raise ValueError(
                f"The layer in {self.name!r} was quantized, and the kernel that it is called with "
                "is computed from the one that was: it would be wrong by far. Quantize the model "
                "without such kernels, folded, model, _ = tfnorm.fold(model), or export it with "
                'quantize="int8".'
            )

    def effective_kernel(self, channels: slice = slice(None)) -> np.ndarray:
        """The transformed kernel, float64, in the layout of the layer's own.

        Args:
            channels: of the axis `channel_axis`, of which alone it is computed: for transforms of
                each channel by itself.
        """
        index = (slice(None),) * self.channel_axis + (channels,)
        kernel = tf.cast(tf.convert_to_tensor(self.layer.kernel)[index], tf.float64)
        return self.transform_kernel(kernel, self._axes()).numpy()

    @property
    def channel_axis(self) -> int:
        """The axis of the kernel that its output channels are on, or the first of two."""
        return min(set(range(len(self.layer.kernel.shape))) - set(self._axes()))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def _call_with(self, kernel: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """Calls the layer, whatever its kind, with another kernel."""
        # A stateless scope lends the layer what it finds in its variables for one call. Of a
        # scope around this one it knows nothing, so all of them are lent.
        lent = {v.name: (v, tf.convert_to_tensor(v.value)) for v in self.layer.variables}
        lent["kernel"] = (lent["kernel"][0], kernel)
        if getattr(self.layer, "lora_enabled", False):
            # `layer.kernel`, from which the kernel was made, has it already.
            factor, value = lent["lora_kernel_b"]
            lent["lora_kernel_b"] = (factor, tf.zeros_like(value))
        with keras.StatelessScope(state_mapping=lent.values(), collect_losses=True) as scope:
            outputs = self.layer(inputs)
        for loss in scope.losses:  # of an activity regularizer
            self.layer.add_loss(loss)
        return outputs

    def _axes(self) -> tuple[int, ...]:
        rank = len(self.layer.kernel.shape)
        if isinstance(self.layer, _TRANSPOSED):
            outputs = {rank - 2}
        elif isinstance(self.layer, DEPTHWISE):
            outputs = {rank - 2, rank - 1}
        else:
            outputs = {rank - 1}
        return tuple(sorted(set(range(rank)) - outputs))
