"""Weight standardization."""

import keras
import tensorflow as tf

from tfnorm.functional.weight_standardization import standardize
from tfnorm.layers.kernel_wrapper import KernelWrapper


@keras.saving.register_keras_serializable(package="tfnorm")
class WeightStandardization(KernelWrapper):
    """Applies a layer with kernels of mean 0 and deviation 1: W ← (W − mean W)/(std W + 1e-5).

    Mean and biased standard deviation are those over all but the output channel. They are part of
    the graph, so that the kernel's gradient goes through them. The scale of a kernel has no effect
    any more: a normalizer behind it sets that of the outputs.

    When: before group normalization with one or two images on each device, the pair of its paper
    (the norm `gn_ws`); any norm takes it, as kernel="standardized". Cost: some passes over the
    kernel a step; nothing after folding, which bakes the standardized kernel in.

    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization", 2019, equations 7 to 9; the 1e-5 beside the deviation is the official code's.

    Paper: https://arxiv.org/abs/1903.10520

    Example:
        z = WeightStandardization(keras.layers.Conv2D(64, 3))(keras.Input((32, 32, 16)))
        y = keras.layers.GroupNormalization(32)(z)

    Args:
        layer: a Conv1D, 2D or 3D, one of their transposes, a DepthwiseConv1D or 2D, or a Dense.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: `layer` is of another kind.
    """

    def transform_kernel(self, kernel: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
        """(W − mean W)/(std W + 1e-5)."""
        return standardize(kernel, axes)
