"""The normalizers of a graph as plain places: x in, y out, each with what it hands on."""

import dataclasses

import keras

from tfnorm.conversion.parts import LinearPart
from tfnorm.conversion.source import Source, read_source
from tfnorm.graph import Call, Graph, Part, Tensor
from tfnorm.layers import norms


@dataclasses.dataclass(eq=False)
class Place:
    """A normalizer that another one can replace.

    Attributes:
        part: the normalizer.
        source: what it hands on.
        calls: its calls, each with one argument x, perhaps `mask` and `training`, and one output;
            none if no output depends on it, or only by a state that has disappeared.
        shared: what places have in common that share the layer before them, if all of them are
            converted; None where that layer is the place's own, or others use it too.
    """

    part: Part
    source: Source
    calls: list[Call]
    shared: "SharedLayer | None" = None

    @property
    def channels(self) -> int:
        """How many channels x has."""
        return self.calls[0].first.shape[self.source.axis]


@dataclasses.dataclass(eq=False)
class SharedLayer:
    """A layer that several places follow, as the levels of a pyramid share a detector's head.

    Attributes:
        part: what has taken its place for the first of them, and so for all.
    """

    part: LinearPart | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """A normalizer of a model.

    Attributes:
        path: where it is in the model.
        layer: the layer.
        part: its part in the graph, None if it has none of its own.
        source: what it hands on, None if it has to stay.
        obstacle: why it has to stay.
    """

    path: str
    layer: keras.Layer
    part: Part | None = None
    source: Source | None = None
    obstacle: str = ""


def find(graph: Graph) -> list[Found]:
    """All normalizers, in the order of their first calls."""
    parts = dict.fromkeys(call.part for call in graph.calls)
    whole = {part: _normalizers_inside(part) for part in parts}
    holders = {layer: part.path for part, layers in whole.items() for layer in layers}
    found = []
    for part, inside in whole.items():
        layer = part.operation
        if norms.name_of(layer) is not None and layer in holders:
            obstacle = f"it is inside {holders[layer]} too, which is one layer to us; left as it is"
            found.append(Found(part.path, layer, part, obstacle=obstacle))
        elif norms.name_of(layer) is not None:
            found.append(found_layer(part.path, layer, part))
        obstacle = f"inside {part.path}, which is one layer to us; left as it is"
        found += [Found(f"{part.path}/{x.name}", x, obstacle=obstacle) for x in inside]
    return found


def _normalizers_inside(part: Part) -> list[keras.Layer]:
    layer = part.operation
    if norms.name_of(layer) is not None or not isinstance(layer, keras.Layer):
        return []
    inside = layer._flatten_layers(recursive=True, include_self=False)
    return [x for x in inside if norms.name_of(x) is not None]


def found_layer(path: str, layer: keras.Layer, part: Part | None = None) -> Found:
    """A normalizer with what it hands on, or why it has to stay."""
    source = read_source(layer)
    if source is None:
        obstacle = f"{type(layer).__name__} may do more than its base class; left as it is"
        return Found(path, layer, part, obstacle=obstacle)
    return Found(path, layer, part, source)


def expand_wrappers(graph: Graph, found: list[Found]) -> dict[Found, Place]:
    """Rewrites normalizers as plain places; the graph means the same at inference.

    A convolution comes out of its normalizer (cbn), wrapped kernels become plain ones (mabn),
    states disappear (bkn). A normalizer of which a state is still in use has no place.
    """
    prune(graph)
    places: dict[Found, Place] = {}
    held: dict[keras.Layer, Part] = {}
    for one in reversed(found):  # those who use a state before the one who makes it
        if not _is_state_used(graph, one.part):
            places[one] = _place(graph, one, held)
            if norms.get(one.source.norm).place == "chain":
                prune(graph)
    _bake_kernels(graph, list(places.values()))
    return {one: places[one] for one in found if one in places}


def _is_state_used(graph: Graph, part: Part) -> bool:
    states = [x for call in graph.calls_of(part) for x in call.outputs[1:]]
    users = [user.part for x in states for user in graph.users(x)]
    return any(user is not part for user in users) or any(map(graph.is_output, states))


def _place(graph: Graph, found: Found, held: dict[keras.Layer, Part]) -> Place:
    layer, part = found.layer, Part(found.path, found.layer)
    wrapped = None
    if norms.get(found.source.norm).place == "around":
        path = "/".join([*found.path.split("/")[:-1], layer.layer.name])
        wrapped = held.setdefault(layer.layer, Part(path, layer.layer))
    calls = []
    for call in reversed(graph.calls_of(found.part)):
        x, y = call.first, call.outputs[0]
        if wrapped is not None:
            convolution = Call(wrapped, (x,), {}, (Tensor(y.shape, y.dtype),))
            graph.insert(convolution, before=call)
            x = convolution.outputs[0]
        kwargs = {
            name: value
            for name, value in call.arguments.items()
            if name in ("mask", "training") and value is not None
        }
        calls.append(Call(part, (x,), kwargs, (y,)))
        graph.replace(call, calls[-1])
    return Place(part, found.source, calls[::-1])


def prune(graph: Graph) -> None:
    """Removes calls that nothing depends on."""
    for call in reversed(graph.calls.copy()):
        if not any(graph.users(x) or graph.is_output(x) for x in call.outputs):
            graph.remove(call)


def _bake_kernels(graph: Graph, places: list[Place]) -> None:
    """Takes a kernel wrapper away where nothing stands behind it but places that wanted it."""
    wrappers = {
        call: norms.KERNELS[norms.get(place.source.norm).kernel]
        for place in places
        if norms.get(place.source.norm).kernel
        for call in place.calls
    }
    calls = list(wrappers)
    before = {graph.producer(call.first): wrappers[call] for call in calls}
    parts = {call.part: kind for call, kind in before.items() if call is not None}
    for part, kind in parts.items():
        wrapper = part.operation
        outputs = [x for call in graph.calls_of(part) for x in call.outputs]
        users = [user for x in outputs for user in graph.users(x)]
        alone = all(user in calls for user in users) and not any(map(graph.is_output, outputs))
        if not (isinstance(wrapper, kind) and alone):
            continue
        kernel, *bias = wrapper.layer.get_weights()
        kernel = wrapper.effective_kernel().astype(kernel.dtype)
        plain = LinearPart(part.path, wrapper.layer, kernel, bias[0] if bias else None)
        for call in graph.calls_of(part):
            graph.replace(call, Call(plain, (call.first,), {}, call.outputs))
