"""The one question about forward-mode differentiation: whether it follows a tensor."""

import tensorflow as tf
from tensorflow.python.eager import forwardprop_util  # it has no public name


def follows(*tensors: tf.Tensor) -> bool:
    """Whether a tf.autodiff.ForwardAccumulator has a tangent of one of them."""
    return bool(forwardprop_util.pack_tangents(list(tensors)).tangents)
