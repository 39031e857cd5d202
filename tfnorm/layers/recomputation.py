"""Forward passes that run again in the backward pass: tf.recompute_grad and keras.remat.

The second pass has to see the state that the first one saw, and to leave it as it is. TensorFlow
does not tell anyone that it recomputes ("TODO: add is_recomputing" stands in its source), so the
call stack has to.
"""

import sys
import weakref
from typing import Any

import tensorflow as tf

_MODULE = "tensorflow.python.ops.custom_gradient"
_FIRST, _SECOND = "inner", "inner_recompute_grad"


class _Reads:
    """What a first pass has read of states, in order."""

    def __init__(self) -> None:
        self._values: list[tf.Tensor] = []
        self._next = 0

    def add(self, value: tf.Tensor) -> tf.Tensor:
        self._values.append(value)
        return value

    def again(self) -> tf.Tensor:
        """The values in the same order, from the start in every further pass."""
        value = self._values[self._next % len(self._values)]
        self._next += 1
        return value


_reads: dict[int, _Reads] = {}


def is_second_pass() -> bool:
    """Whether this forward pass has run before and runs again for its gradient."""
    frame = _outermost_frame()
    return frame is not None and frame.f_code.co_name == _SECOND


def read(variable: Any) -> tf.Tensor:
    """The variable's value; in a second pass, the one that the first pass read."""
    frame = _outermost_frame()
    if frame is None:
        return tf.convert_to_tensor(variable)
    # The one tuple that both passes have in common.
    arguments = frame.f_locals.get("args", ())
    key = id(arguments)
    if frame.f_code.co_name == _SECOND:
        return _reads[key].again() if key in _reads else tf.convert_to_tensor(variable)
    if key not in _reads and arguments:
        _reads[key] = _Reads()
        weakref.finalize(arguments[0], _reads.pop, key, None)
    value = tf.convert_to_tensor(variable)
    return _reads[key].add(value) if key in _reads else value


def _outermost_frame() -> Any:
    """Of recomputation, as one may stand within another; None outside of any."""
    found, frame = None, sys._getframe(1)
    while frame is not None:
        is_one = frame.f_code.co_name in (_FIRST, _SECOND)
        if is_one and frame.f_globals.get("__name__") == _MODULE:
            found = frame
        frame = frame.f_back
    return found
