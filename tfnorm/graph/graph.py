"""The graph of a Keras model as data: parts, calls of parts, and the tensors between the calls."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.graph.copying import copy_operation
from tfnorm.graph.filling import copy_weights


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A value that flows along the graph. Two tensors are the same only if they are one object.

    Attributes:
        shape: static shape, None where a dimension is unknown.
        dtype: name of the dtype, such as "float32".
        has_mask: whether Keras attaches a mask to it.
    """

    shape: tuple[int | None, ...]
    dtype: str
    has_mask: bool = False


class Part:
    """Something that can be called: a layer, or an operation such as `keras.ops.relu`.

    Two calls of one part share its weights. A subclass stands for a part that differs from the
    model's own: it says how to make it and which weights it gets.

    Attributes:
        path: where the part is in the model, such as "encoder/conv1".
        operation: the model's own layer or operation, which is never called.
    """

    def __init__(self, path: str, operation: keras.Operation) -> None:
        self.path = path
        self.operation = operation

    def make(self, name: str) -> keras.Operation:
        """Returns a fresh operation of that name. Raises UserError if it cannot be copied."""
        return copy_operation(self.operation, name)

    def weights(self) -> list[np.ndarray | tf.Tensor]:
        """The values for the weights of what `make` returns, in the order of `get_weights`.

        Those of the model's own variables take no memory of their own.
        """
        return [tf.convert_to_tensor(v) for v in getattr(self.operation, "weights", ())]

    def borrowing(self, operation: keras.Operation) -> list[tuple[keras.Operation, ...]]:
        """Which layers of what `make` returned may start with the values of which others.

        Those whose weights `initialize` sets, all of them.
        """
        return [(operation, self.operation)] if type(self).initialize is Part.initialize else []

    def initialize(self, operation: keras.Operation) -> None:
        """Gives what `make` returned its values, once it is built.

        Raises:
            ValueError: if they do not fit.
        """
        if type(self).weights is not Part.weights:
            operation.set_weights(self.weights())
        elif isinstance(self.operation, keras.Layer):
            copy_weights(self.operation, operation)
            # Keras' Normalization computes with constants that it makes of its weights.
            getattr(operation, "finalize_state", lambda: None)()


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a part: `outputs = part(*args, **kwargs)`.

    Attributes:
        part: what is called.
        args: positional arguments, a structure with a `Tensor` where a tensor goes.
        kwargs: keyword arguments, likewise.
        outputs: the tensors that the call returns, flattened.
    """

    part: Part
    args: tuple
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, one entry for each time that one is used."""
        return [x for x in keras.tree.flatten((self.args, self.kwargs)) if isinstance(x, Tensor)]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by the names of the parameters of the part's `call`."""
        return inspect.signature(self.part.operation.call).bind(*self.args, **self.kwargs).arguments

    @property
    def first(self) -> Any:
        """The first argument, under whatever name it was given."""
        return next(iter(self.arguments.values()))


class Graph:
    """Calls in an order in which they can be made, between `inputs` and `outputs`.

    Attributes:
        name: the model's name.
        inputs: structure of Tensors, in the form in which the model takes its inputs.
        outputs: structure of Tensors, in the form in which the model returns its outputs.
        calls: every call, after those whose outputs it uses.
        input_parts: for each input tensor, the part of its `keras.layers.InputLayer`.
        written_out: whether a nested model is a call in it only where it has to be one.
    """

    def __init__(
        self,
        name: str,
        inputs: Any,
        outputs: Any,
        calls: list[Call],
        input_parts: dict[Tensor, Part],
        *,
        written_out: bool = False,
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.calls = calls
        self.input_parts = input_parts
        self.written_out = written_out
        self._producers: dict[Tensor, Call] = {}
        self._users: dict[Tensor, list[Call]] = {}
        for call in calls:
            self._enter(call)

    def producer(self, tensor: Tensor) -> Call | None:
        """The call that returns the tensor, or None for an input of the model."""
        return self._producers.get(tensor)

    def users(self, tensor: Tensor) -> list[Call]:
        """The calls that use the tensor, one entry for each use."""
        return list(self._users.get(tensor, ()))

    def is_output(self, tensor: Tensor) -> bool:
        """Whether the model returns the tensor."""
        return any(tensor is x for x in keras.tree.flatten(self.outputs))

    def calls_of(self, part: Part) -> list[Call]:
        """All calls of one part, in order."""
        return [call for call in self.calls if call.part is part]

    def substitute(self, old: Tensor, new: Tensor) -> None:
        """Lets everything that uses `old` use `new`."""
        for user in dict.fromkeys(self.users(old)):
            self._leave(user)
            user.args, user.kwargs = map_tensors(
                lambda x: new if x is old else x, (user.args, user.kwargs)
            )
            self._enter(user)
        self.outputs = map_tensors(lambda x: new if x is old else x, self.outputs)

    def insert(self, call: Call, *, before: Call) -> None:
        """Adds a call in front of another one."""
        self.calls.insert(self._position(before), call)
        self._enter(call)

    def replace(self, old: Call, new: Call) -> None:
        """Puts a call that returns the same tensors, or those in use, in the place of another."""
        position = self._position(old)
        self._leave(old)
        self.calls[position] = new
        self._enter(new)

    def remove(self, call: Call) -> None:
        """Takes out a call whose outputs nobody uses any more."""
        used = [x for x in call.outputs if self._users.get(x) or self.is_output(x)]
        if used:
            raise ValueError(f"{call.part.path} cannot be removed: its outputs {used} are in use.")
        del self.calls[self._position(call)]
        self._leave(call)

    def _position(self, call: Call) -> int:
        return next(i for i, other in enumerate(self.calls) if other is call)

    def _enter(self, call: Call) -> None:
        self._producers.update((x, call) for x in call.outputs)
        for tensor in call.tensors:
            self._users.setdefault(tensor, []).append(call)

    def _leave(self, call: Call) -> None:
        for tensor in call.outputs:
            del self._producers[tensor]
        for tensor in call.tensors:
            self._users[tensor].remove(call)


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """The structure with `function` applied to each of its Tensors, all else as it is."""
    return keras.tree.map_structure(
        lambda x: function(x) if isinstance(x, Tensor) else x, structure
    )
