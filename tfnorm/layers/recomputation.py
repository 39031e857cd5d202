"""Forward passes that run again in the backward pass: tf.recompute_grad and keras.remat.

The second pass has to see the state that the first one saw, and to leave it as it is. TensorFlow
does not tell anyone that it recomputes ("TODO: add is_recomputing" stands in its source), so the
call stack has to. It cannot where a tf.function is recomputed: its one graph runs in both passes,
and is traced in the first.
"""

import collections
import sys
from typing import Any

import tensorflow as tf

_MODULE = "tensorflow.python.ops.custom_gradient"
_FIRST, _SECOND = "inner", "inner_recompute_grad"
_TRACING_MODULE = "tensorflow.python.eager.polymorphic_function.tracing_compilation"


class _FirstPass:
    """What a first pass has read of each state, in order.

    A part of it may run again alone, where one recomputation stands within another.

    Args:
        arguments: The tuple that both passes have in common, by whose id the pass is known: of one
            that is held here, no other has the id.
    """

    def __init__(self, arguments: tuple) -> None:
        self._arguments = arguments
        self._values: dict[int, list[tf.Tensor]] = {}
        self._again: collections.Counter[int] = collections.Counter()

    def is_over(self) -> bool:
        """Whether no second pass can follow: nobody else has the arguments any more."""
        return sys.getrefcount(self._arguments) == _REFERENCES_HERE

    def read(self, variable: Any) -> tf.Tensor:
        value = tf.convert_to_tensor(variable)
        self._values.setdefault(id(variable), []).append(value)
        return value

    def read_again(self, variable: Any) -> tf.Tensor:
        """The variable's values in the same order, from the start in every further pass."""
        key = id(variable)
        if key not in self._values:
            return tf.convert_to_tensor(variable)
        value = self._values[key][self._again[key] % len(self._values[key])]
        self._again[key] += 1
        return value


# The attribute, and the argument of getrefcount.
_REFERENCES_HERE = 2

_first_passes: dict[int, _FirstPass] = {}


def is_second_pass() -> bool:
    """Whether this forward pass has run before and runs again for its gradient."""
    frame = _outermost_frame()
    return frame is not None and frame.f_code.co_name == _SECOND


def read(variable: Any) -> tf.Tensor:
    """The variable's value; in a second pass, the one that the first pass read.

    Raises:
        ValueError: a tf.function stands between the recomputation and the layer.
    """
    frame = _outermost_frame()
    if frame is None:
        return tf.convert_to_tensor(variable)
    arguments = frame.f_locals.get("args", ())
    first = _first_passes.get(id(arguments))
    if frame.f_code.co_name == _SECOND:
        _forget_what_is_over()  # Inputs are kept no longer than until the next block's turn.
        return first.read_again(variable) if first else tf.convert_to_tensor(variable)
    if first is None and arguments:
        _forget_what_is_over()
        first = _first_passes[id(arguments)] = _FirstPass(arguments)
    return first.read(variable) if first else tf.convert_to_tensor(variable)


def _forget_what_is_over() -> None:
    for key, first in list(_first_passes.items()):
        if first.is_over():
            _first_passes.pop(key, None)


def _outermost_frame() -> Any:
    """Of recomputation, as one may stand within another; None outside of any."""
    found, is_traced, frame = None, False, sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if module == _MODULE and frame.f_code.co_name in (_FIRST, _SECOND):
            if is_traced:
                raise ValueError(
                    "a normalizer cannot train in a tf.function that is recomputed: both passes "
                    "would change its state, because they run the same graph. Received: "
                    "tf.recompute_grad of a tf.function. Give tf.recompute_grad the Python "
                    "function, and put tf.function around the step that takes the gradient."
                )
            found = frame
        is_traced = is_traced or module == _TRACING_MODULE
        frame = frame.f_back
    return found
