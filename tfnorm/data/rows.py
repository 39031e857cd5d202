"""A function of one example, applied to a batch."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def over_rows(function: Callable, rows: Any, signature: Any) -> Any:
    """Applies a function to each row of tensors.

    Args:
        function: Of one row.
        rows: A structure of tensors [b, ...].
        signature: The structure of tf.TensorSpec that `function` returns.

    Returns:
        The structure that `function` returns, of tensors [b, ...].
    """
    if tf.nest.flatten(rows)[0].shape[0] != 1:
        return tf.map_fn(function, rows, fn_output_signature=signature)
    # A loop around one row would only cost time.
    found = function(tf.nest.map_structure(lambda x: x[0], rows))
    return tf.nest.map_structure(lambda x: x[None], found)
