"""From a graph to a new Keras model with variables of its own."""

from collections.abc import Iterable

import keras

from tfnorm.errors import UserError
from tfnorm.graph.filling import borrowing
from tfnorm.graph.graph import Graph, Part, Tensor, map_tensors


def build(graph: Graph) -> keras.Model:
    """Returns a functional model that makes the calls of the graph, with the weights of its parts.

    Raises:
        UserError: if a layer cannot be copied.
    """
    parts = list(graph.input_parts.values()) + [call.part for call in graph.calls]
    made = {part: part.make(name) for part, name in _unique_names(dict.fromkeys(parts)).items()}
    values: dict[Tensor, keras.KerasTensor] = {
        tensor: made[part].output for tensor, part in graph.input_parts.items()
    }
    with borrowing((made[part], part.operation) for part in made if part.sets_all_weights):
        for call in graph.calls:
            args, kwargs = map_tensors(values.__getitem__, (call.args, call.kwargs))
            results = keras.tree.flatten(made[call.part](*args, **kwargs))
            values.update(zip(call.outputs, results, strict=True))
    for part, operation in made.items():
        _initialize(part, operation)
    inputs, outputs = map_tensors(values.__getitem__, (graph.inputs, graph.outputs))
    return keras.Model(inputs, outputs, name=graph.name)


def _unique_names(parts: Iterable[Part]) -> dict[Part, str]:
    """Each part's own name, or its path where a part before it has that name already."""
    names: dict[Part, str] = {}
    taken: set[str] = set()
    for part in parts:
        path = part.path.replace("/", "_")
        candidates = [part.path.rsplit("/", 1)[-1], path]
        candidates += [f"{path}_{i}" for i in range(1, len(taken) + 1)]
        names[part] = next(name for name in candidates if name not in taken)
        taken.add(names[part])
    return names


def _initialize(part: Part, operation: keras.Operation) -> None:
    try:
        part.initialize(operation)
    except ValueError as error:
        raise UserError(
            f"The weights of the layer {part.path!r} do not fit a copy of it: {error} "
            f"Check get_config() and build() of {type(part.operation).__name__}."
        ) from error
