"""Tensors that are what they are said to be."""

import tensorflow as tf


def checked(tensor: tf.Tensor, holds: tf.Tensor, otherwise: str, value: tf.Tensor) -> tf.Tensor:
    """The tensor, if a condition holds.

    Args:
        tensor: Any; whatever is computed from what is returned waits for the check.
        holds: [] bool.
        otherwise: What is wrong if it does not hold.
        value: What was found instead.

    Returns:
        The tensor. Evaluating it raises tf.errors.InvalidArgumentError with `otherwise` and `value`
        if the condition does not hold.
    """
    check = tf.debugging.Assert(holds, [otherwise, value], summarize=16)
    with tf.control_dependencies([] if check is None else [check]):  # None when run eagerly.
        return tf.identity(tensor)
