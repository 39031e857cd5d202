"""The graph of a model with each normalizer as an affine map, each wrapper as the layer in it."""

import dataclasses

import keras
import numpy as np

from tfnorm.export import normalizers
from tfnorm.export.affine import Affine, AffinePart
from tfnorm.export.clip import ClipPart
from tfnorm.export.linear import linear_part
from tfnorm.graph import Call, Graph, Part, Tensor
from tfnorm.layers.extremes import extreme_statistics


@dataclasses.dataclass(eq=False)
class Norm:
    """One call of a normalizer of the model.

    Attributes:
        path: of the layer.
        name: short name of the normalizer.
        call: the call of its `AffinePart`, None if it is not lowered.
        reason: why it is not lowered.
        note: what is wrong with its statistics, if anything is.
    """

    path: str
    name: str
    call: Call | None = None
    reason: str | None = None
    note: str | None = None


def lower(graph: Graph) -> list[Norm]:
    """Rewrites the graph in place; returns the normalizers in the order of their calls.

    Calls without an effect on the outputs disappear, among them the masks that only training
    needs and the state that a Kalman normalizer hands on. So the way is from the last call to
    the first: what uses a state is gone before the one who makes it is looked at.
    """
    parts = _Parts()
    norms: list[Norm] = []
    for call in reversed(graph.calls.copy()):
        if not any(graph.users(x) or graph.is_output(x) for x in call.outputs):
            graph.remove(call)
        else:
            norms.extend(_lower_call(graph, call, parts))
    return norms[::-1]


def bake_kernels(graph: Graph) -> None:
    """Makes of each wrapper that computes a kernel the layer in it, with that kernel."""
    parts = _Parts()
    for call in graph.calls:
        if normalizers.effective_kernel(call.part.operation) is not None:
            call.part = parts.linear(call.part)


class _Parts:
    """One new part for each part of the model, so that what was shared stays shared."""

    def __init__(self) -> None:
        self._affine: dict[Part, AffinePart] = {}
        self._linear: dict[Part, Part] = {}
        self._wrapped: dict[Part, Part] = {}

    def affine(self, part: Part, shape: tuple[int | None, ...]) -> AffinePart:
        if part not in self._affine:
            self._affine[part] = _affine_part(part, shape)
        return self._affine[part]

    def wrapped(self, part: Part) -> Part | None:
        layer = normalizers.wrapped_layer(part.operation)
        if layer is not None and part not in self._wrapped:
            self._wrapped[part] = Part(f"{part.path}/{layer.name}", layer)
        return self._wrapped.get(part)

    def linear(self, part: Part) -> Part:
        if part not in self._linear:
            self._linear[part] = _linear_part(part)
        return self._linear[part]


def _affine_part(part: Part, shape: tuple[int | None, ...]) -> AffinePart:
    layer = part.operation
    scale, offset = normalizers.inference_scale_and_offset(layer)
    rank = len(shape)
    cancellation = normalizers.cancellation(layer, scale, offset)
    affine = Affine(scale, offset, layer.axis % rank, cancellation)
    return AffinePart(part.path, part.operation, affine, rank)


def _linear_part(part: Part) -> Part:
    kernel = normalizers.effective_kernel(part.operation)
    if kernel is not None:
        layer = part.operation.layer
        return linear_part(Part(f"{part.path}/{layer.name}", layer), kernel) or part
    return linear_part(part) or part


def _lower_call(graph: Graph, call: Call, parts: _Parts) -> list[Norm]:
    layer = call.part.operation
    name = normalizers.norm_name(layer)
    if name is None:
        call.part = parts.linear(call.part)
        return _hidden_norms(call) if type(call.part) is Part else []
    norm = Norm(call.part.path, name)
    extreme = extreme_statistics(layer)
    if extreme is not None:
        norm.note = f"{norm.path}: {extreme}, which is constant or NaN at inference"
    norm.reason = _why_not_lowered(graph, call)
    if norm.reason is None:
        norm.call = _lower_norm(graph, call, parts)
    return [norm]


def _why_not_lowered(graph: Graph, call: Call) -> str | None:
    layer = call.part.operation
    if normalizers.inference_scale_and_offset(layer) is None:
        if normalizers.may_do_more(layer):
            return f"{type(layer).__name__} may do more than its base class; left as it is"
        return "its statistics are those of its input, at inference too; left as it is"
    if not all(np.all(np.isfinite(v)) for v in normalizers.inference_scale_and_offset(layer)):
        return "its scale or offset is not finite; left as it is"
    if call.kwargs.get("training"):
        return "called with training=True; left as it is"
    if any(graph.users(x) or graph.is_output(x) for x in call.outputs[1:]):
        return "its state is used by other layers; left as it is"
    return None


def _lower_norm(graph: Graph, call: Call, parts: _Parts) -> Call:
    """Puts the affine map in the place of a call, between what is wrapped and what bounds it."""
    x, y = call.first, call.outputs[0]
    wrapped = parts.wrapped(call.part)
    if wrapped is not None:
        between = Tensor(y.shape, y.dtype)
        inner = Call(wrapped, (x,), {}, (between,))
        graph.insert(inner, before=call)
        _lower_call(graph, inner, parts)
        x = between
    bound = normalizers.inference_bound(call.part.operation)
    free = y if bound is None else Tensor(y.shape, y.dtype)
    affine = Call(parts.affine(call.part, x.shape), (x,), {}, (free,))
    if bound is None:
        graph.replace(call, affine)
    else:
        graph.insert(affine, before=call)
        graph.replace(call, Call(ClipPart(call.part, bound), (free,), {}, (y,)))
    return affine


def _hidden_norms(call: Call) -> list[Norm]:
    """The normalizers inside a layer that is no graph, such as a subclassed block."""
    layer = call.part.operation
    if not isinstance(layer, keras.Layer):
        return []
    inside = layer._flatten_layers(recursive=True, include_self=False)
    named = [(x, normalizers.norm_name(x)) for x in inside]
    return [
        Norm(
            f"{call.part.path}/{x.name}",
            name,
            reason=f"inside {call.part.path}, which is no graph of layers; left as it is",
        )
        for x, name in named[::-1]
        if name is not None
    ]
