"""How a layer reads and writes its state: once a step, whoever runs or repeats the step.

What every method has to respect stands here: that a recomputed forward pass changes nothing
(recomputation.py), that a step which loss scaling skips leaves no trace (loss_scaling.py), and that
nothing is written into a layer that was lent its variables (keras.StatelessScope).
"""

import functools
from collections.abc import Iterable

import keras
import tensorflow as tf
from keras.src.backend.common.stateless_scope import get_stateless_scope  # it has no public name

from tfnorm.layers import loss_scaling, recomputation

read = recomputation.read


class Writer:
    """Writes of a forward pass; made in it."""

    def __init__(self) -> None:
        self.optimizer = loss_scaling.current_optimizer()
        self._may_write = not recomputation.is_second_pass()

    def assign(self, variable: keras.Variable, value: tf.Tensor, old: tf.Tensor) -> None:
        """Variable ← value; `old` is what it held before this step."""
        if not self._is_open():
            return
        self._remember(variable, old)
        variable.assign(value)

    def assign_all(
        self,
        variables: Iterable[keras.Variable],
        values: Iterable[tf.Tensor],
        old: Iterable[tf.Tensor],
    ) -> None:
        """`assign` for each of several."""
        for each in zip(variables, values, old, strict=True):
            self.assign(*each)

    def assign_slot(
        self, variable: keras.Variable, slot: tf.Tensor, value: tf.Tensor, old: tf.Tensor
    ) -> None:
        """Variable[slot] ← value [1, ...] in place, for a variable that has a handle."""
        if not self._is_open():
            return
        self._remember_slot(variable, slot, old)
        _scatter(handle(variable), slot, value)

    def _remember(self, variable: keras.Variable, old: tf.Tensor) -> None:
        """Says what the variable held before this step, in case that loss scaling skips it."""
        resource = handle(variable)
        if self.optimizer is None or resource is None:
            return
        undo = functools.partial(tf.raw_ops.AssignVariableOp, resource=resource, value=old)
        loss_scaling.undo_if_skipped(self.optimizer, resource, undo)

    def _remember_slot(self, variable: keras.Variable, slot: tf.Tensor, old: tf.Tensor) -> None:
        """`_remember` for the one slot [1] that is written of a large variable."""
        resource = handle(variable)
        if self.optimizer is None or resource is None:
            return
        undo = functools.partial(_scatter, resource, slot, tf.gather(old, slot))
        loss_scaling.undo_if_skipped(self.optimizer, resource, undo)

    def _is_open(self) -> bool:
        return self._may_write


class BackwardWriter(Writer):
    """Writes of the backward pass; made in the forward pass.

    Forward-mode differentiation runs the backward pass within the forward pass, of other gradients:
    that writes nothing before `open`. Nor does the backward pass of a stateless call, which ended
    before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._may_write = False
        self._scope = get_stateless_scope()

    def open(self) -> None:
        """Says that the forward pass has ended."""
        self._may_write = True

    def _is_open(self) -> bool:
        return super()._is_open() and get_stateless_scope() is self._scope


def handle(variable: keras.Variable) -> tf.Tensor | None:
    """Its resource; none where a keras.StatelessScope lends it a value of its own."""
    scope = get_stateless_scope()
    if scope is not None and scope.get_current_value(variable) is not None:
        return None  # were it that of another variable, perhaps of this one
    return getattr(variable.value, "handle", None)


def _scatter(resource: tf.Tensor, slot: tf.Tensor, value: tf.Tensor) -> None:
    # Not scatter_update: variables of tf.distribute that are read as a mean lack it.
    tf.raw_ops.ResourceScatterUpdate(resource=resource, indices=slot, updates=value)
