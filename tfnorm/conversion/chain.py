"""The way of a Kalman normalizer's state through a graph."""

from typing import NamedTuple

from tfnorm.conversion.parts import NormPart
from tfnorm.conversion.places import Place
from tfnorm.conversion.placing import Obstacle, arguments, wrap_kernel
from tfnorm.graph import Call, Graph, Tensor
from tfnorm.layers.norms import Normalizer


class _State(NamedTuple):
    """What a tensor's nearest normalizers say: the state's tensors, and how long the chain is."""

    tensors: tuple[Tensor, Tensor, Tensor]
    length: int


def prepare(graph: Graph, place: Place, norm: Normalizer) -> str:
    """Changes the kernel before a place that can be a link of a chain, if that is asked for.

    Raises:
        Obstacle: the place cannot be a link.
    """
    if len(place.calls) > 1:
        raise Obstacle(f"it is called {len(place.calls)} times")
    return wrap_kernel(graph, place, norm) if norm.kernel else ""


def place_chain(graph: Graph, places: list[Place], norm: Normalizer) -> dict[Place, str]:
    """Lets every place be a link of the chain; returns what there is to say about each.

    A link takes the state of the nearest one upstream. Where branches meet, the longest chain goes
    on, the first of equally long ones: in a residual network that is the main path's, and a
    shortcut starts from the state at its block's input, as in `tfnorm.models`.
    """
    places_by_call = {place.calls[0]: place for place in places}
    states: dict[Tensor, _State] = {}
    notes = {}
    for call in graph.calls.copy():
        upstream = [states[x] for x in call.tensors if x in states]
        state = max(upstream, key=lambda state: state.length, default=None)
        if call in places_by_call:
            place = places_by_call[call]
            link, state = _link(call, place, norm, state)
            graph.replace(call, link)
            previous = link.kwargs.get("previous")
            maker = graph.producer(previous[0]).part.path if previous else None
            notes[place] = f"state from {maker}" if maker else "starts a chain"
        if state is not None:
            states.update((x, state) for x in call.outputs)
    return notes


def _link(call: Call, place: Place, norm: Normalizer, state: _State | None) -> tuple[Call, _State]:
    values = arguments(place.source, norm, place.channels)
    (x,) = call.args
    mean = (values.get("virtual_replicas", 1), x.shape[place.source.axis])
    covariance = (*mean, mean[1]) if values.get("covariance") == "full" else mean
    dtype = "float64" if place.source.arguments["dtype"].variable_dtype == "float64" else "float32"
    tensors = tuple(Tensor(shape, dtype) for shape in (mean, covariance, ()))
    kwargs = call.kwargs if state is None else {**call.kwargs, "previous": state.tensors}
    part = NormPart(place.part, norm.layer_class, values, place.source.values)
    link = Call(part, call.args, kwargs, (*call.outputs, *tensors))
    return link, _State(tensors, 1 if state is None else state.length + 1)
