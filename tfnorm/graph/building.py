"""From a graph to a new Keras model with variables of its own."""

from collections.abc import Collection
from typing import Any

import keras
from keras.src.saving.serialization_lib import ObjectSharingScope  # not in Keras' public names

from tfnorm.errors import UserError
from tfnorm.graph.filling import borrowing
from tfnorm.graph.graph import Graph, Part, Tensor, map_tensors


def build(graph: Graph, shared: list[str] | None = None) -> keras.Model:
    """Returns a functional model that makes the calls of the graph, with the weights of its parts.

    Every layer is a copy by its config, with the `trainable` flags of all layers inside. A layer
    is used as it is, and shared with the model that the graph was read from, where no copy can
    be made, or where it shares weights with another one, which copies would not.

    Args:
        graph: what to build.
        shared: a list to add the paths of the layers to that are used as they are.

    Raises:
        UserError: a layer that stands in the place of another cannot be made.
    """
    as_they_are = _that_share_weights(graph)
    while True:
        try:
            model = _built(graph, as_they_are)
        except _NoCopyError as error:
            as_they_are.add(error.part)
        else:
            if shared is not None:
                used = [part for part in dict.fromkeys(_parts(graph)) if part in as_they_are]
                shared += [part.path for part in used]
            return model


class _NoCopyError(Exception):
    """A part of the model's own does not do as a copy."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.path)
        self.part = part


def _parts(graph: Graph) -> list[Part]:
    return list(graph.input_parts.values()) + [call.part for call in graph.calls]


def _that_share_weights(graph: Graph) -> set[Part]:
    """Layers of which a weight is another one's as well.

    Whoever does not write nested models out wants what they share to be layers of each.
    """
    if not graph.written_out:
        return set()
    owners: dict[int, set[Part]] = {}
    for part in dict.fromkeys(_parts(graph)):
        if _is_models_own(part):
            for variable in part.operation.variables:
                owners.setdefault(id(variable), set()).add(part)
    return {part for together in owners.values() if len(together) > 1 for part in together}


def _is_models_own(part: Part) -> bool:
    return type(part) is Part and isinstance(part.operation, keras.Layer)


def _built(graph: Graph, as_they_are: set[Part]) -> keras.Model:
    names = _unique_names(dict.fromkeys(_parts(graph)), as_they_are)
    with ObjectSharingScope():  # so that what several layers hold is made once
        made = {part: _made(part, name, as_they_are) for part, name in names.items()}
    values: dict[Tensor, keras.KerasTensor] = {
        tensor: made[part].output for tensor, part in graph.input_parts.items()
    }
    copies = [part for part in made if part not in as_they_are]
    with borrowing(pair for part in copies for pair in part.borrowing(made[part])):
        for call in graph.calls:
            args, kwargs = map_tensors(values.__getitem__, (call.args, call.kwargs))
            results = _called(call.part, made[call.part], args, kwargs, as_they_are)
            values.update(zip(call.outputs, keras.tree.flatten(results), strict=True))
    for part in copies:
        _initialize(part, made[part])
    inputs, outputs = map_tensors(values.__getitem__, (graph.inputs, graph.outputs))
    return keras.Model(inputs, outputs, name=graph.name)


def _made(part: Part, name: str, as_they_are: set[Part]) -> keras.Operation:
    if part in as_they_are:
        return part.operation
    try:
        return part.make(name)
    except UserError as error:
        if _is_models_own(part):
            raise _NoCopyError(part) from error
        raise


def _called(
    part: Part, operation: keras.Operation, args: tuple, kwargs: dict, as_they_are: set[Part]
) -> Any:
    try:
        return operation(*args, **kwargs)
    except Exception as error:
        if _is_models_own(part) and part not in as_they_are:
            raise _NoCopyError(part) from error
        raise


def _unique_names(parts: Collection[Part], as_they_are: set[Part]) -> dict[Part, str]:
    """Each part's own name, or its path where another part has that name already.

    Raises:
        UserError: two of those that are used as they are have one name.
    """
    names: dict[Part, str] = {}
    owners: dict[str, Part] = {}
    for part in sorted(parts, key=lambda part: part not in as_they_are):
        name = part.operation.name
        if part not in as_they_are:
            path = part.path.replace("/", "_")
            candidates = [part.path.rsplit("/", 1)[-1], path]
            candidates += [f"{path}_{i}" for i in range(1, len(owners) + 1)]
            name = next(name for name in candidates if name not in owners)
        elif name in owners:
            raise UserError(
                f"The layers {owners[name].path!r} and {part.path!r} are both called {name!r}, and "
                f"cannot be copied under other names. Give {type(part.operation).__name__} a "
                "get_config() that returns all arguments of its constructor, or give the layers "
                "names of their own."
            )
        names[part] = name
        owners[name] = part
    return {part: names[part] for part in parts}


def _initialize(part: Part, operation: keras.Operation) -> None:
    try:
        part.initialize(operation)
    except ValueError as error:
        if _is_models_own(part):
            raise _NoCopyError(part) from error
        raise UserError(
            f"The weights of the layer {part.path!r} do not fit a copy of it: {error} "
            f"Check get_config() and build() of {type(part.operation).__name__}."
        ) from error
    if _is_models_own(part) and not _takes_flags(part.operation, operation):
        raise _NoCopyError(part)


def _takes_flags(layer: keras.Layer, copy: keras.Layer) -> bool:
    """Freezes in a copy what is frozen in the layer; whether the two are alike then.

    A config tells the flag of a layer and of none inside.
    """
    layers, copies = layer._flatten_layers(), copy._flatten_layers()
    if [type(x) for x in layers] != [type(x) for x in copies]:
        return False
    for theirs, ours in zip(layers, copies):  # the outer ones first, which hand theirs down
        if ours.trainable != theirs.trainable:
            ours.trainable = theirs.trainable
    variables, copied = layer.variables, copy.variables
    for theirs, ours in zip(variables, copied):
        if ours.trainable != theirs.trainable:
            ours.trainable = theirs.trainable
    counts = [[tuple(v.shape) for v in x] for x in (variables, copied)]
    trainable = [len(x.trainable_variables) for x in (layer, copy)]
    return counts[0] == counts[1] and trainable[0] == trainable[1]
