"""Nested models and layers of layers written out, so that an edit sees across their borders."""

import inspect
from typing import Any

import keras

from tfnorm.graph.graph import Call, Graph, Part, Tensor, map_tensors
from tfnorm.graph.opening import open_layer
from tfnorm.graph.reading import graph_of, read_function
from tfnorm.layers import Absorbed, norms


def inline(graph: Graph, *, rebuild: bool = True) -> Graph:
    """Returns the graph with nested models, and layers that hold normalizers, replaced by calls.

    A nested functional or Sequential model is replaced by its own calls, a layer by those that its
    code makes (`open_layer`). One that is called twice becomes two sets of calls of the same parts.
    It stays one call where its calls alone would not do the same: it gets a mask, or an input of
    another rank than its own. A float dtype that differs is cast, as Keras does at the border.

    Args:
        graph: what to write out; it stays as it is.
        rebuild: whether the graph is to be built anew: what is to be built must not have weights
            outside of layers, and needs no places of absorbed normalizers.
    """
    parts = {id(call.part.operation): call.part for call in graph.calls}
    return _inline(graph, parts, rebuild)


def _inline(graph: Graph, parts: dict[int, Part], rebuild: bool) -> Graph:
    templates: dict[Part, Graph] = {}
    calls: list[Call] = []
    replaced: dict[Tensor, Tensor] = {}

    def current(tensor: Tensor) -> Tensor:
        return replaced.get(tensor, tensor)

    for call in graph.calls:
        args, kwargs = map_tensors(current, (call.args, call.kwargs))
        call = Call(call.part, args, kwargs, call.outputs)
        if rebuild and isinstance(call.part.operation, Absorbed):
            replaced[call.outputs[0]] = call.first
            continue
        function = graph_of(call.part.operation)
        if function is not None:
            values = _border_values(function, call)
            template = templates.get(call.part)
        elif _holds_normalizers(call.part.operation):
            function, values, template = _opened(call, rebuild), call.tensors, None
        if function is None or values is None:
            calls.append(call)
            continue
        if template is None:
            inner = read_function(function, graph.name, f"{call.part.path}/", parts)
            template = templates[call.part] = _inline(inner, parts, rebuild)
        inner_calls, outputs = _instantiate(template, values, call)
        calls.extend(inner_calls)
        replaced.update(zip(call.outputs, outputs, strict=True))
    outputs = map_tensors(current, graph.outputs)
    inputs, input_parts = graph.inputs, graph.input_parts
    return Graph(graph.name, inputs, outputs, calls, input_parts, written_out=True)


def _holds_normalizers(operation: keras.Operation) -> bool:
    """Whether there are some inside, and it is none itself nor a part of one."""
    if not isinstance(operation, keras.Layer) or norms.name_of(operation) is not None:
        return False
    inside = operation._flatten_layers(include_self=False)
    return any(norms.name_of(layer) is not None for layer in inside)


def _opened(call: Call, rebuild: bool) -> keras.Function | None:
    """What the code of the call's layer does."""
    if any(x.has_mask for x in call.tensors):
        return None
    args, kwargs = map_tensors(
        lambda x: keras.KerasTensor(x.shape, x.dtype), (call.args, call.kwargs)
    )
    return open_layer(call.part.operation, args, kwargs, own_weights=not rebuild)


def _border_values(function: keras.Function, call: Call) -> list[Tensor] | None:
    """The tensors that enter the nested model, in its order; None if it has to stay one call."""
    arguments = call.arguments
    inputs = next(iter(arguments.values()))
    if isinstance(inputs, dict) and not isinstance(function._inputs_struct, dict):
        inputs = [inputs.get(x.name) for x in function.inputs]
    values = keras.tree.flatten(inputs)
    masked = any(x is not None for x in keras.tree.flatten(arguments.get("mask")))
    fits = len(values) == len(function.inputs) and all(
        isinstance(value, Tensor)
        and len(value.shape) == len(x.shape)
        and (value.dtype == x.dtype or ("float" in value.dtype and "float" in x.dtype))
        for value, x in zip(values, function.inputs)
    )
    return values if fits and not masked else None


def _instantiate(
    template: Graph, values: list[Tensor], call: Call
) -> tuple[list[Call], list[Tensor]]:
    """The calls of a nested model on new tensors, and what it returns then."""
    calls: list[Call] = []
    fresh: dict[Tensor, Tensor] = {}
    for x, value in zip(keras.tree.flatten(template.inputs), values, strict=True):
        if value.dtype != x.dtype:
            cast = keras.layers.Identity(dtype=x.dtype, name=f"{call.part.operation.name}_cast")
            border = Call(Part(f"{call.part.path}/cast", cast), (value,), {}, (_like(x),))
            calls.append(border)
            value = border.outputs[0]
        fresh[x] = value
    for inner in template.calls:
        args, kwargs = map_tensors(fresh.__getitem__, (inner.args, inner.kwargs))
        fresh.update((x, _like(x)) for x in inner.outputs)
        outputs = tuple(fresh[x] for x in inner.outputs)
        calls.append(Call(inner.part, args, _passed_down(call, inner.part) | kwargs, outputs))
    return calls, [fresh[x] for x in keras.tree.flatten(template.outputs)]


def _passed_down(call: Call, part: Part) -> dict[str, Any]:
    """The `training` argument of a nested model's call reaches every layer in it."""
    training = call.arguments.get("training")
    accepts = "training" in inspect.signature(part.operation.call).parameters
    return {"training": training} if training is not None and accepts else {}


def _like(tensor: Tensor) -> Tensor:
    return Tensor(tensor.shape, tensor.dtype, tensor.has_mask)
