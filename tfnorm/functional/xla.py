"""The one question about the compiler: whether it will have this graph."""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util


def is_compiling() -> bool:
    """Whether what is traced now is for XLA: jit_compile=True, or a TPU.

    XLA lacks some operations, and makes loops of its own of others. TensorFlow's own functions ask
    this way; it has no public one. A tf.function that was traced outside keeps its graph when one
    with jit_compile=True calls it: there hand on the Python function.
    """
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
