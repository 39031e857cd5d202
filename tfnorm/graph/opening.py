"""Layers that are more than one operation, as graphs of the calls that their code makes."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state  # Keras has no public names for these
from keras.src.layers.layer import CallContext
from keras.src.models.functional import Functional
from keras.src.ops.node import Node
from keras.src.ops.numpy import Reshape

_CONTEXT = "current_call_ctx"


def open_layer(
    layer: keras.Layer, args: tuple, kwargs: dict[str, Any], *, own_weights: bool = False
) -> Functional | None:
    """What a layer's code calls, as a function over the very layers that it holds.

    Its `call` is run on symbolic tensors, once in training and once not. `TimeDistributed` becomes
    its layer on all times at once, which is the same at inference.

    Args:
        layer: a layer or model that holds others.
        args: arguments of its `call`, with a `keras.KerasTensor` where a tensor goes.
        kwargs: likewise.
        own_weights: whether it may have weights of its own, or use those of a layer without a
            call of that layer; a graph with them cannot be built anew.

    Returns:
        The function, of the list of the tensors among the arguments. None if there is none: the
        code cannot be run on symbolic tensors, does something else in training, gives a layer a
        `training` of its own, asks for a size that is left open, or the layer adds to the loss.
    """
    if not layer.built or layer.activity_regularizer is not None:
        return None
    try:
        functions = [_traced(layer, args, kwargs, training) for training in (False, True)]
    except Exception:  # Code that is not made for symbolic tensors fails in its own way.
        return None
    if not _follow_training(*functions):
        return None
    function, _ = functions
    if not _knows_sizes(function):
        return None
    return function if own_weights or not _uses_weights_aside(layer, function) else None


def open_model(model: keras.Model) -> Functional | None:
    """The same of a model by the shapes that it was built with; its batch size is left open."""
    shape = shape_of(model)
    if shape is None:
        return None
    inputs = keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[1:]), model.input_dtype), shape
    )
    function = open_layer(model, (inputs,), {})
    if function is None:
        return None
    function._inputs_struct = keras.tree.pack_sequence_as(inputs, function.inputs)
    parameter = next(iter(inspect.signature(model.call).parameters))
    for path, x in keras.tree.flatten_with_path(function.input):
        is_named = path and isinstance(path[-1], str)
        name = path[-1] if is_named else "_".join([parameter, *map(str, path)])
        x.name = x._keras_history.operation.name = name
    return function


def shape_of(model: keras.Layer) -> Any:
    """Of its one argument: that of the first call; None if it has several, or was not called."""
    shapes = list((model._build_shapes_dict or {}).values())
    return shapes[0] if len(shapes) == 1 else None


def _traced(layer: keras.Layer, args: tuple, kwargs: dict, training: bool) -> Functional:
    parameters = inspect.signature(layer.call).parameters
    if "training" in parameters:
        kwargs = {**kwargs, "training": training}
    tensors: list[keras.KerasTensor] = []

    def symbol(x: Any) -> Any:
        if not isinstance(x, keras.KerasTensor):
            return x
        casts = layer.autocast and "float" in x.dtype and "float" in layer.input_dtype
        dtype = layer.input_dtype if casts else x.dtype
        tensors.append(keras.Input(batch_shape=x.shape, dtype=dtype, name=f"input_{len(tensors)}"))
        return tensors[-1]

    args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))
    call = _all_times if type(layer) is keras.layers.TimeDistributed else type(layer).call
    with _no_trace_left(layer), _shapes_without_training(layer), _context(training):
        outputs = call(layer, *args, **kwargs)
        with _unique_names(layer):
            function = Functional(tensors, outputs, name=layer.name)
        function.output_names = [x._keras_history.operation.name for x in function.outputs]
        return function


def _all_times(layer: keras.layers.TimeDistributed, inputs: keras.KerasTensor, **kwargs: Any):  # noqa: ANN202
    if kwargs.get("mask") is not None:
        raise ValueError("The steps of a mask are not those of the batch.")
    _, steps, *shape = inputs.shape
    outputs = layer.layer(keras.ops.reshape(inputs, (-1, *shape)))
    return keras.ops.reshape(outputs, (-1, steps, *outputs.shape[1:]))


@contextlib.contextmanager
def _no_trace_left(layer: keras.Layer) -> Iterator[None]:
    """Takes out the nodes that the calls write into the layers that they call."""
    lists = [
        x for one in layer._flatten_layers() for x in (one._inbound_nodes, one._outbound_nodes)
    ]
    lengths = [len(x) for x in lists]
    try:
        yield
    finally:
        for nodes, length in zip(lists, lengths):
            del nodes[length:]


@contextlib.contextmanager
def _shapes_without_training(layer: keras.Layer) -> Iterator[None]:
    """Lets layers tell shapes in a call with `training` whose code for shapes does not know it."""
    changed = [one for one in layer._flatten_layers() if not _shapes_know_training(one)]
    try:
        for one in changed:
            vars(one)["compute_output_spec"] = _without_training(one.compute_output_spec)
        yield
    finally:
        for one in changed:
            del vars(one)["compute_output_spec"]


def _shapes_know_training(layer: keras.Layer) -> bool:
    parameters = inspect.signature(layer.compute_output_spec).parameters.values()
    return any(x.name == "training" or x.kind is x.VAR_KEYWORD for x in parameters)


def _without_training(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        del training
        return function(*args, **kwargs)

    return wrapped


@contextlib.contextmanager
def _unique_names(layer: keras.Layer) -> Iterator[None]:
    """Keras' functions want them; layers of different blocks may well be called the same."""
    layers = layer._flatten_layers()
    names = [one.name for one in layers]
    try:
        for i, one in enumerate(layers):
            one.name = f"layer_{i}"
        yield
    finally:
        for one, name in zip(layers, names):
            one.name = name


@contextlib.contextmanager
def _context(training: bool) -> Iterator[None]:
    """As if the layers were called by another one, which is what tells them `training`."""
    outer = global_state.get_global_attribute(_CONTEXT)
    context = CallContext(entry_layer=None)
    context.set_value("training", training)
    global_state.set_global_attribute(_CONTEXT, context)
    try:
        yield
    finally:
        global_state.set_global_attribute(_CONTEXT, outer)


def nodes_of(function: Functional) -> list[Node]:
    """The calls of a function, in Keras' own order: by depth, as they run."""
    by_depth = function._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in nodes if not node.is_input]


def _follow_training(at_inference: Functional, in_training: Functional) -> bool:
    """Whether both are the same calls, each with the `training` that it runs in.

    Takes that argument out of the first: whoever runs the function gives it anew.
    """
    (ours, our_ends), (theirs, their_ends) = map(_described, (at_inference, in_training))
    if len(ours) != len(theirs) or our_ends != their_ends:
        return False
    for (node, arguments, given), (other, their_arguments, their_given) in zip(ours, theirs):
        if (given, their_given) not in ((False, True), (..., ...)):
            return False
        if not _is_same_operation(node.operation, other.operation):
            return False
        if not _is_equal(arguments, their_arguments):
            return False
        node.arguments.kwargs.pop("training", None)
    return True


def _knows_sizes(function: Functional) -> bool:
    """Whether no operation was given the size of an axis that is left open, which is then None.

    In the one operation that finds a size by itself it becomes -1.
    """
    for node in nodes_of(function):
        operation = node.operation
        if isinstance(operation, keras.Layer):
            continue
        if isinstance(operation, Reshape) and -1 not in operation.newshape:
            sizes = [-1 if size is None else size for size in operation.newshape]
            if sizes.count(-1) == 1:
                node.operation = operation = Reshape(tuple(sizes), name=operation.name)
        values = [x for x in vars(operation).values() if isinstance(x, tuple | list)]
        if any(size is None for value in values for size in value):
            return False
    return True


def _described(function: Functional) -> tuple[list[tuple[Node, Any, Any]], list[str]]:
    """Each call with its arguments and its `training`, and the outputs; tensors by numbers."""
    names = {id(x): f"tensor {i}" for i, x in enumerate(function.inputs)}

    def described(x: Any) -> Any:
        return names[id(x)] if isinstance(x, keras.KerasTensor) else x

    calls = []
    for node in nodes_of(function):
        kwargs = {**node.arguments.kwargs}
        given = kwargs.pop("training", ...)
        arguments = keras.tree.map_structure(described, (node.arguments.args, kwargs))
        calls.append((node, arguments, given))
        for x in node.outputs:
            names[id(x)] = f"tensor {len(names)}"
    return calls, [described(x) for x in function.outputs]


def _is_same_operation(one: keras.Operation, other: keras.Operation) -> bool:
    """The same layer, or one without weights that the code makes anew each time."""
    if isinstance(one, keras.Layer):
        if one is other or type(one) is not type(other) or one.variables:
            return one is other
        return one.get_config() | {"name": ""} == other.get_config() | {"name": ""}
    hidden = {"name", "_inbound_nodes", "_outbound_nodes", "_auto_config"}
    members = [{k: v for k, v in vars(x).items() if k not in hidden} for x in (one, other)]
    return type(one) is type(other) and _is_equal(*members)


def _is_equal(one: Any, other: Any) -> bool:
    flat = keras.tree.flatten(one), keras.tree.flatten(other)
    return len(flat[0]) == len(flat[1]) and all(map(_is_same_value, *flat))


def _is_same_value(one: Any, other: Any) -> bool:
    if one is other:
        return True
    values = [isinstance(x, np.ndarray | tf.Tensor) for x in (one, other)]
    if any(values):
        return all(values) and np.array_equal(*map(keras.ops.convert_to_numpy, (one, other)))
    return type(one) is type(other) and bool(one == other)


def _uses_weights_aside(layer: keras.Layer, function: Functional) -> bool:
    """Whether a graph of the calls would lose weights: its own, or what a layer was asked for."""
    if layer._trainable_variables or layer._non_trainable_variables:
        return True
    called = {id(v) for one in function.layers for v in one.variables}
    if all(id(v) in called for v in layer.variables):
        return False
    values = keras.tree.flatten(
        [(x.arguments.args, x.arguments.kwargs) for x in nodes_of(function)]
    )
    return any(isinstance(x, keras.Variable | tf.Tensor) for x in values)
