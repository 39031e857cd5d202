"""What TensorFlow keeps of operations that have run eagerly."""

from tensorflow.python.eager import context  # it has no public name


def forget() -> None:
    """Frees the kernels of eager operations; what runs again makes its own again.

    There is one for every variable that was ever made, and one for every operation and shape of a
    forward pass: of ResNet-20 and what it is converted to 12 MB, an eighth of what its training
    takes. A tf.function that has run before is optimized again in its next call, as after
    `keras.backend.clear_session`, which does the same. Operations of tf.random that are given a
    seed and run eagerly begin their sequence anew, as after `tf.random.set_seed`.
    """
    context.context().clear_kernel_cache()
