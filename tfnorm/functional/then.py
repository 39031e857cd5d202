"""What a layer wants beside the outputs, computed in the same operation of its graph."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfnorm.functional.traced_once import traced_for_any_size


class Then(NamedTuple):
    """A function that is called with what is known by then, if anything, and its own arguments.

    function: one object for all layers that want the same, else each would be traced for itself.
    arguments: tensors.
    """

    function: Callable
    arguments: tuple[tf.Tensor, ...] = ()

    def of(self, *known: Any) -> Any:
        """What it makes of what is known; one operation of a graph, unless it is part of one."""
        return _call(known, self.arguments, function=self.function)


NOTHING = Then(lambda *_: ())


@traced_for_any_size
def _call(known: tuple, arguments: tuple[tf.Tensor, ...], *, function: Callable) -> Any:
    return function(*known, *arguments)
