"""Putting a normalizer into a place: beside, behind or around the layer before it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.conversion.parts import AroundPart, HeldPart, KernelPart, LinearPart, NormPart
from tfnorm.conversion.places import Place, SharedLayer
from tfnorm.conversion.source import Source
from tfnorm.graph import Call, Graph, Part
from tfnorm.layers import linear, norms
from tfnorm.layers.norms import Normalizer

_SUBSTITUTE = "brn"


class Obstacle(Exception):
    """Why a normalizer cannot take a place."""


def place_plainly(graph: Graph, place: Place, norm: Normalizer) -> str:
    """Swaps the layer and nothing else; returns what there is to say about it."""
    _swap(graph, place, norm)
    return all_of(what_is_lost(place.source, norm), _lost_mask(place, norm))


def _swap(graph: Graph, place: Place, norm: Normalizer) -> None:
    part = norm_part(place.part, place.source, norm, place.channels)
    for call in place.calls:
        graph.replace(call, _called_alike(call, part, norm))


def _lost_mask(place: Place, norm: Normalizer) -> str:
    """What there is to say of masks that reach a normalizer which takes none."""
    is_masked = any("mask" in call.kwargs or call.first.has_mask for call in place.calls)
    if norm.takes_batch_statistics or not is_masked:
        return ""
    return "it takes no mask: masked positions count in its statistics"


def all_of(*notes: str) -> str:
    """The notes that there are, as one."""
    return "; ".join(note for note in notes if note)


def _called_alike(call: Call, part: NormPart, norm: Normalizer) -> Call:
    """The call with another normalizer; Keras' layers of groups take no mask and no `training`."""
    accepted = call.kwargs if norm.takes_batch_statistics else {}
    return Call(part, call.args, accepted, call.outputs)


def place_around(graph: Graph, place: Place, norm: Normalizer) -> str:
    """CBN takes the convolution into itself, without its bias."""
    before = _before_around(graph, place, norm)
    (call,) = place.calls
    values, note = _without_bias(place, before)
    given = arguments(place.source, norm, place.channels)
    inner = _shared(place, HeldPart, before)
    part = AroundPart(place.part, norm.layer_class, inner, given, values)
    graph.replace(call, Call(part, (before.first,), call.kwargs, call.outputs))
    graph.remove(before)
    return all_of(f"around {before.part.path}{note}", what_is_lost(place.source, norm))


def place_after_kernel(graph: Graph, place: Place, norm: Normalizer) -> str:
    """MABN wants zero-mean kernels before it, and no bias; so does any norm with such a kernel."""
    note = wrap_kernel(graph, place, norm)
    if not note:
        return place_plainly(graph, place, norm)
    _swap(graph, place, norm)
    return all_of(note, _lost_mask(place, norm))


def wrap_kernel(graph: Graph, place: Place, norm: Normalizer) -> str:
    """Gives the layer before a place the kernel that `norm` asks for; says so, if it was another.

    A centralized kernel does not see the mean over its input patch, so this changes the outputs.
    What it leaves has a mean near zero, which is why MABN needs none: moving_mean starts, and
    stays, at zero. The moving variance, of which MABN makes the mean square, is carried over.
    """
    makers = [graph.producer(call.first) for call in place.calls]
    wrapper = norms.KERNELS[norm.kernel]
    if all(maker is not None and type(maker.part.operation) is wrapper for maker in makers):
        return ""
    before = _before_kernel(graph, place, norm)
    wrapped = _shared(place, functools.partial(KernelPart, norm=norm), before)
    graph.replace(before, Call(wrapped, (before.first,), before.kwargs, before.outputs))
    values = {**place.source.values}
    if "moving_mean" in values:
        values["moving_mean"] = np.zeros_like(values["moving_mean"])
    place.source = dataclasses.replace(place.source, values=values)
    return f"kernel of {before.part.path} {norm.kernel}: train, or recalibrate, before use"


def mark_shared(graph: Graph, places: Iterable[Place], norm: Normalizer) -> None:
    """Tells the places that share the layer before them, where `norm` can take all of its calls."""
    check = _before_around if norm.place == "around" else _before_kernel
    if norm.place != "around" and not norm.kernel:
        return
    behind: dict[Part, list[Place]] = {}
    for place in places:
        before = graph.producer(place.calls[0].first) if len(place.calls) == 1 else None
        if before is not None:
            behind.setdefault(before.part, []).append(place)
    for part, together in behind.items():
        if len(together) < 2 or len(together) != len(graph.calls_of(part)):
            continue
        shared = SharedLayer()
        try:
            for place in together:
                place.shared = shared
                check(graph, place, norm)
        except Obstacle:
            for place in together:
                place.shared = None


def _before_around(graph: Graph, place: Place, norm: Normalizer) -> Call:
    """The call of the layer that a normalizer can hold. Raises an Obstacle if there is none."""
    before = _layer_before(graph, place, linear.KINDS)
    layer = before.part.operation
    if layer.trainable and not place.source.arguments["trainable"]:
        raise Obstacle(f"it is frozen and {before.part.path} is not")
    if before.first.has_mask and not layer.supports_masking:
        raise Obstacle(f"{before.part.path} drops the mask of its input")
    if layer.dtype_policy.name != place.source.arguments["dtype"].name:
        raise Obstacle(f"its dtype policy is not that of {before.part.path}")
    return before


def _before_kernel(graph: Graph, place: Place, norm: Normalizer) -> Call:
    """The call of the layer whose kernel can be wrapped. Raises an Obstacle if there is none."""
    before = _layer_before(graph, place, norms.KERNELS[norm.kernel].KINDS)
    if not (before.part.operation.trainable and place.source.arguments["trainable"]):
        raise Obstacle(f"it or {before.part.path} is frozen, whose kernel may not change")
    return before


def _shared(place: Place, make: Callable[..., LinearPart], before: Call) -> LinearPart:
    """What takes the place of the layer, one for all places that share it."""
    shared = place.shared or SharedLayer()
    if shared.part is None:
        part = before.part
        shared.part = make(part.path, part.operation, _kernel(before), bias=None)
    return shared.part


def norm_part(place: Part, source: Source, norm: Normalizer, channels: int | None) -> NormPart:
    """The normalizer for a place, with what the old one hands on."""
    return NormPart(place, norm.layer_class, arguments(source, norm, channels), source.values)


def arguments(source: Source, norm: Normalizer, channels: int | None) -> dict[str, Any]:
    """Of the new layer: the user's, else the old layer's, as far as it takes them."""
    accepted = {*norms.accepted_options(norm.layer_class), "trainable", "dtype"}
    carried = {name: value for name, value in source.arguments.items() if name in accepted}
    return {"axis": source.axis, **carried, **norm.arguments(channels)}


def substitute(norm: Normalizer) -> Normalizer:
    """What takes a place that `norm` cannot take, with the options that it knows."""
    accepted = norms.accepted_options(norms.get(_SUBSTITUTE).layer_class)
    options = {name: value for name, value in norm.options.items() if name in accepted}
    return norms.get(_SUBSTITUTE, **options)


def what_is_lost(source: Source, norm: Normalizer) -> str:
    """What there is to say about statistics that do not travel; empty if all do."""
    if not norm.takes_batch_statistics:
        return "gamma and beta carried over; it keeps no moving statistics"
    if source.values and "moving_mean" not in source.values:
        return "gamma and beta carried over; moving statistics start anew: recalibrate"
    return ""


def _layer_before(graph: Graph, place: Place, kinds: tuple[type, ...]) -> Call:
    """The call of the linear layer that makes the input of the place, and nothing else.

    Raises:
        Obstacle: if there is none.
    """
    if len(place.calls) > 1:
        raise Obstacle(f"it is called {len(place.calls)} times")
    tensor = place.calls[0].first
    before = graph.producer(tensor)
    if before is None:
        raise Obstacle("it follows an input of the model")
    path, layer = before.part.path, before.part.operation
    if not isinstance(layer, kinds):
        raise Obstacle(f"it follows {path} ({type(layer).__name__})")
    if type(layer).call not in {kind.call for kind in kinds}:
        raise Obstacle(f"{path} is a {type(layer).__name__} with a call of its own")
    if len(before.part.weights()) != 1 + layer.use_bias:
        raise Obstacle(f"{path} has weights beside kernel and bias")
    if len(graph.calls_of(before.part)) > 1 and place.shared is None:
        raise Obstacle(f"{path} is called {len(graph.calls_of(before.part))} times")
    if graph.is_output(tensor):
        raise Obstacle(f"the output of {path} is an output of the model")
    if len(graph.users(tensor)) > 1:
        raise Obstacle(f"the output of {path} is used {len(graph.users(tensor))} times")
    if layer.activation not in (None, keras.activations.linear):
        raise Obstacle(f"{path} has the activation {layer.activation.__name__}")
    rank = len(tensor.shape)
    if place.source.axis % rank != linear.channel_axis(layer) % rank:
        raise Obstacle(f"its axis {place.source.axis} is not that of the channels of {path}")
    return before


def _kernel(before: Call) -> np.ndarray | tf.Tensor:
    return before.part.weights()[0]


def _without_bias(place: Place, before: Call) -> tuple[dict[str, np.ndarray], str]:
    """The values that do the work of the bias too, exactly: in training the mean takes it out."""
    values = {**place.source.values}
    bias = before.part.weights()[1:]
    if not bias:
        return values, ""
    values["moving_mean"] = values.get("moving_mean", 0) - np.asarray(bias[0])
    return values, ", its bias part of moving_mean"
