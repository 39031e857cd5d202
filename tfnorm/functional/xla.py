"""What will run the graph that is traced: the compiler, or which kernels."""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

# On a CPU a compiled function takes 100 µs to begin with.
_SMALL = 131072


def is_compiling() -> bool:
    """Whether what is traced now is for XLA: jit_compile=True, or a TPU.

    XLA lacks some operations, and makes loops of its own of others. TensorFlow's own functions ask
    this way; it has no public one. A tf.function that was traced outside keeps its graph when one
    with jit_compile=True calls it: there hand on the Python function.
    """
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def is_for_cpu() -> bool:
    """Whether kernels run it that only CPUs have, or that were measured to be faster on these."""
    return not is_compiling() and not tf.config.list_physical_devices("GPU")


def pays_off(x: tf.Tensor) -> bool:
    """Whether passes over x alone are worth compiling: on a CPU, of a size known to be large."""
    size = x.shape.num_elements()
    return size is not None and size > _SMALL and is_for_cpu() and tf.test.is_built_with_xla()
