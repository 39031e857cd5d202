"""Loss scaling: a step that it skips leaves no trace in any state, and nothing is kept scaled.

Under mixed_float16 Keras' LossScaleOptimizer multiplies the loss, so that small gradients do not
vanish, and skips a step of which a gradient overflowed. By then the forward pass of the step has
moved averages, histories and counters, and the backward pass may have. Who writes a state says so
here with what it held before, and the optimizer puts that back where it skips the step.

A layer finds the optimizer by itself in Keras' `fit`: it is that of the compiled model which is
being called. A training loop of one's own says which it is by `scaled_by`.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src.backend.common import global_state  # Keras has no public name for it

from tfnorm.layers import replicas


class _Declared(threading.local):
    """Each replica is traced in a thread of its own."""

    optimizer: Any = None


_declared = _Declared()


@contextlib.contextmanager
def scaled_by(optimizer: keras.Optimizer) -> Iterator[None]:
    """Around the forward pass of a training step of one's own, says whose loss scaling it has.

    Example:
        with scaled_by(optimizer), tf.GradientTape() as tape:
            loss = optimizer.scale_loss(compute_loss(model(x, training=True), y))
        optimizer.apply(tape.gradient(loss, variables), variables)
    """
    before, _declared.optimizer = _declared.optimizer, optimizer
    try:
        yield
    finally:
        _declared.optimizer = before


def current_optimizer() -> keras.Optimizer | None:
    """The optimizer that scales the loss of the step in which a layer is called now, if any."""
    optimizer = _declared.optimizer
    if optimizer is None:
        call = global_state.get_global_attribute("current_call_ctx")
        optimizer = getattr(getattr(call, "entry_layer", None), "optimizer", None)
    return optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else None


def scale(optimizer: keras.Optimizer | None, dtype: str) -> tf.Tensor | None:
    """The factor of the loss in this step; None where there is none."""
    return None if optimizer is None else tf.cast(optimizer.scale_loss(1.0), dtype)


def undo_if_skipped(optimizer: keras.Optimizer, resource: tf.Tensor, undo: Callable) -> None:
    """Has `undo` run if the optimizer skips this step.

    Args:
        optimizer: of `current_optimizer`.
        resource: what is written, as a handle. Of several writes in a step the first one counts.
        undo: writes back what the resource held before.
    """
    _watch(optimizer).remember(resource, undo)


def remember(optimizer: keras.Optimizer, variables: Sequence[keras.Variable]) -> None:
    """`undo_if_skipped` of variables, before a step with forward passes in a loop of its own.

    In a graph a layer can only speak for the graph in which it is called, and what a loop repeats
    is another than that of the optimizer behind it.
    """
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return
    for variable in variables:
        resource, value = variable.value.handle, tf.convert_to_tensor(variable)
        undo = functools.partial(tf.raw_ops.AssignVariableOp, resource=resource, value=value)
        undo_if_skipped(optimizer, resource, undo)


class _Undo(NamedTuple):
    graph: Any
    call: Any
    device: str
    undo: Callable


class _Watch:
    """What an optimizer has to undo where it skips the present step.

    Keras has no hook for that: the optimizer's own handling of such a step is extended.
    """

    def __init__(self, optimizer: keras.optimizers.LossScaleOptimizer) -> None:
        self._pending: dict[tuple[int, int], _Undo] = {}
        apply = optimizer.apply
        skip = optimizer._stateful_handle_non_finite_grads

        def watched_apply(*args: Any, **kwargs: Any) -> Any:
            try:
                return apply(*args, **kwargs)
            finally:
                self._forget()

        def watched_skip() -> None:
            skip()
            self._undo()

        optimizer.apply = watched_apply
        optimizer._stateful_handle_non_finite_grads = watched_skip

    def remember(self, resource: tf.Tensor, undo: Callable) -> None:
        key = replicas.replica_id(), id(resource)
        graphs, call = _graphs(), global_state.get_global_attribute("current_call_ctx")
        known = self._pending.get(key)
        # Eagerly, a call before this one may have been of a step that was never applied.
        if known and known.graph in graphs and (known.graph is not None or known.call is call):
            return
        self._pending[key] = _Undo(graphs[0], call, resource.device, undo)

    def _undo(self) -> None:
        graphs = _graphs()
        for entry in self._pending.values():
            if entry.graph in graphs:
                with tf.device(entry.device):
                    entry.undo()

    def _forget(self) -> None:
        own = replicas.replica_id()
        self._pending = {key: undo for key, undo in self._pending.items() if key[0] != own}


def _watch(optimizer: keras.optimizers.LossScaleOptimizer) -> _Watch:
    watch = vars(optimizer).get("_tfnorm_watch")
    if watch is None:
        watch = optimizer._tfnorm_watch = _Watch(optimizer)
    return watch


def _graphs() -> list[Any]:
    """The present graph and those around it; None stands for eager execution."""
    if tf.executing_eagerly():
        return [None]
    graphs = [tf.compat.v1.get_default_graph()]
    while getattr(graphs[-1], "outer_graph", None) is not None:
        graphs.append(graphs[-1].outer_graph)
    return graphs
