"""From a Keras model to its graph."""

import keras
from keras.src.models.functional import Functional  # Keras has no public name for it

from tfnorm.errors import UserError
from tfnorm.graph.graph import Call, Graph, Part, Tensor
from tfnorm.graph.opening import nodes_of, open_model


def read(model: keras.Model) -> Graph:
    """Returns the graph of a model; a nested model, or a layer of several, is one call in it.

    A layer that is used inside of a nested model and outside is two layers when the graph is
    built; `inline` first where it has to stay one.

    Raises:
        UserError: if the model has no graph, because it is not built or its code does not tell.
    """
    return read_function(function_of(model), model.name, prefix="", parts={})


def function_of(model: keras.Model) -> Functional:
    """What a model runs: of a subclassed one, the calls of layers that its code makes.

    It knows the model's inputs and outputs.

    Raises:
        UserError: if the model has no graph, because it is not built or its code does not tell.
    """
    function = None
    if isinstance(model, keras.Model):
        function = graph_of(model) or open_model(model)
    if function is None:
        raise UserError(_why_not(model))
    return function


def graph_of(layer: keras.Operation) -> Functional | None:
    """The graph that a call of the layer runs through, or None where that is anything else.

    A functional model that overrides `call` has a graph but does not run it.
    """
    if isinstance(layer, keras.Sequential):
        inner, runs_it = layer._functional, type(layer).call is keras.Sequential.call
    else:
        inner, runs_it = layer, type(layer).call is Functional.call
    return inner if runs_it and isinstance(inner, Functional) else None


def read_function(function: Functional, name: str, prefix: str, parts: dict[int, Part]) -> Graph:
    """Returns the graph of a Keras function, in Keras' own order: by depth, as it runs.

    Args:
        function: what to read.
        name: name of the graph.
        prefix: goes in front of the path of each new part.
        parts: the parts known so far by the id of their operation; new ones are added, so that a
            layer that is used inside and outside of a nested model is one part.
    """
    tensors: dict[int, Tensor] = {}

    def tensor(x: keras.KerasTensor) -> Tensor:
        has_mask = getattr(x, "_keras_mask", None) is not None
        return tensors.setdefault(id(x), Tensor(tuple(x.shape), x.dtype, has_mask))

    def part(operation: keras.Operation) -> Part:
        return parts.setdefault(id(operation), Part(prefix + operation.name, operation))

    def argument(x):  # noqa: ANN001, ANN202
        return tensor(x) if isinstance(x, keras.KerasTensor) else x

    input_parts = {tensor(x): part(x._keras_history.operation) for x in function.inputs}
    calls = []
    for node in nodes_of(function):
        args = keras.tree.map_structure(argument, node.arguments.args)
        kwargs = keras.tree.map_structure(argument, node.arguments.kwargs)
        outputs = tuple(tensor(x) for x in node.outputs)
        calls.append(Call(part(node.operation), args, kwargs, outputs))
    return Graph(
        name,
        keras.tree.map_structure(tensor, function._inputs_struct),
        keras.tree.map_structure(tensor, function._outputs_struct),
        calls,
        input_parts,
    )


def not_keras(model: object, expected: str) -> str:
    """What there is to say of an object that is not what was expected."""
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    if "tf_keras" in packages:
        return (
            f"Expected {expected} of Keras 3, received {model.name!r} of class "
            f"{type(model).__name__}, which is a model of tf_keras, that is Keras 2. Build it by "
            "`import keras` (without TF_USE_LEGACY_KERAS=1), and load its weights into that."
        )
    return f"Expected {expected}, received {model!r} of type {type(model).__name__}."


def _why_not(model: object) -> str:
    if not isinstance(model, keras.Model):
        return not_keras(model, "a keras.Model")
    if isinstance(model, keras.Sequential) and not model.built:
        return (
            f"The Sequential model {model.name!r} has no graph yet, because its input shape is not "
            "known. Put a keras.Input first, or call the model once on data."
        )
    why_not = (
        f"The model {model.name!r} of class {type(model).__name__} has no graph of layers that "
        "can be read, because it is subclassed. Build it as a functional model, "
        "keras.Model(inputs, outputs), or as a keras.Sequential"
    )
    if not model.built:
        return f"{why_not}; or call it once on data, and its code is read."
    return (
        f"{why_not}. Its code cannot be run on symbolic tensors, does something else in training, "
        "or has weights of its own; tfnorm.convert takes any code with in_place=True."
    )
