"""Nested models written out, so that an edit sees across their borders."""

import inspect
from typing import Any

import keras

from tfnorm.graph.graph import Call, Graph, Part, Tensor, map_tensors
from tfnorm.graph.reading import graph_of, read_function


def inline(graph: Graph) -> Graph:
    """Returns the graph with each nested functional or Sequential model replaced by its calls.

    A nested model called twice becomes two sets of calls of the same parts. A nested model stays
    one call where its calls alone would not do the same: it gets a mask, or an input of another
    rank than its own. A float dtype that differs is cast, as Keras does at the border.
    """
    parts = {id(call.part.operation): call.part for call in graph.calls}
    return _inline(graph, parts)


def _inline(graph: Graph, parts: dict[int, Part]) -> Graph:
    templates: dict[Part, Graph] = {}
    calls: list[Call] = []
    replaced: dict[Tensor, Tensor] = {}

    def current(tensor: Tensor) -> Tensor:
        return replaced.get(tensor, tensor)

    for call in graph.calls:
        args, kwargs = map_tensors(current, (call.args, call.kwargs))
        call = Call(call.part, args, kwargs, call.outputs)
        function = graph_of(call.part.operation)
        values = None if function is None else _border_values(function, call)
        if values is None:
            calls.append(call)
            continue
        if call.part not in templates:
            inner = read_function(function, graph.name, f"{call.part.path}/", parts)
            templates[call.part] = _inline(inner, parts)
        inner_calls, outputs = _instantiate(templates[call.part], values, call)
        calls.extend(inner_calls)
        replaced.update(zip(call.outputs, outputs, strict=True))
    return Graph(
        graph.name, graph.inputs, map_tensors(current, graph.outputs), calls, graph.input_parts
    )


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
