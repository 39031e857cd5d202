"""Normalizers that are affine at inference go into the layer before them, or into the one after."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras

from tfnorm.export.affine import Affine, AffinePart, Obstacle
from tfnorm.export.commuting import move_after, move_before
from tfnorm.export.linear import LinearPart
from tfnorm.export.lowering import Norm, lower
from tfnorm.export.report import Report, Row
from tfnorm.graph import Call, Graph, Part, Tensor, build, inline, read

_REST = "; one multiply and one add are left"


def fold(model: keras.Model) -> tuple[keras.Model, Report]:
    """Returns a model for inference in which the normalizers are part of the layers beside them.

    A normalizer goes into the convolution or dense layer before it, else into the one after it,
    through layers that its map commutes with (pooling, dropout, reshape and the like), where the
    result is exact. What remains of one that is affine but cannot move is a multiplication and an
    addition; normalizers that use the statistics of their input stay as they are.

    Args:
        model: a functional or Sequential Keras model, nested ones included. It stays as it is.

    Returns:
        The folded model, with variables of its own, inputs and outputs in the form of the model's;
        and the report, one row for each call of a normalizer. Nested models are written out.

    Raises:
        UserError: if the model has no graph of layers, or a layer of it cannot be copied.
    """
    graph = inline(read(model))
    norms = lower(graph)
    into: dict[Call, Part] = {}
    reasons = _fold_until_nothing_moves(graph, norms, _site_before, into)
    after = _fold_until_nothing_moves(graph, norms, _site_after, into)
    # A row of the report names what stood in the way of the usual place, the layer before.
    reasons = {call: reasons.get(call, reason) for call, reason in after.items()}
    return build(graph), Report(tuple(_row(norm, into, reasons) for norm in norms))


class _Site(NamedTuple):
    """A call that can take in an affine map, as the map is at its place."""

    call: Call
    affine: Affine
    check: Callable[[Affine, Call], None]
    absorb: Callable[[Affine], None]


Offers = dict[Part, list[tuple[Call, _Site]]]  # the normalizers that a part could take in


def _fold_until_nothing_moves(
    graph: Graph,
    norms: Iterable[Norm],
    find: Callable[[Graph, Call], _Site],
    into: dict[Call, Part],
) -> dict[Call, str]:
    """Folds what `find` has a place for; writes down where to, returns why not for the rest.

    A part that is called several times changes for all of its calls, so it takes in a map only
    if all of its calls are offered the same one.
    """
    while True:
        reasons: dict[Call, str] = {}
        offers: Offers = {}
        for call in (norm.call for norm in norms if norm.call and norm.call not in into):
            try:
                site = find(graph, call)
                site.check(site.affine, site.call)
                offers.setdefault(site.call.part, []).append((call, site))
            except Obstacle as obstacle:
                reasons[call] = str(obstacle)
        taken = {part: sites for part, sites in offers.items() if _agree(graph, part, sites)}
        if not taken:
            return reasons | _reasons_of_sharing(graph, offers)
        for part, sites in taken.items():
            if any(site.call in into for _, site in sites):
                continue  # it went elsewhere in this very round; the next one looks again
            sites[0][1].absorb(sites[0][1].affine)
            for call, _ in sites:
                graph.substitute(call.outputs[0], call.first)
                graph.remove(call)
                into[call] = part


def _agree(graph: Graph, part: Part, sites: list[tuple[Call, _Site]]) -> bool:
    called = {site.call for _, site in sites} == set(graph.calls_of(part))
    return called and all(site.affine.equals(sites[0][1].affine) for _, site in sites)


def _reasons_of_sharing(graph: Graph, offers: Offers) -> dict[Call, str]:
    return {
        call: f"{part.path} is called {len(graph.calls_of(part))} times, "
        "and not each time with the same normalizer"
        for part, sites in offers.items()
        for call, _ in sites
    }


def _site_before(graph: Graph, call: Call) -> _Site:
    """The linear layer whose output reaches the normalizer and nothing else."""
    tensor, affine = call.first, call.part.affine
    if tensor.dtype != call.outputs[0].dtype:
        raise Obstacle(f"it takes {tensor.dtype} and returns {call.outputs[0].dtype}")
    while True:
        producer = graph.producer(tensor)
        if producer is None:
            raise Obstacle("it follows an input of the model")
        _check_sole_user(graph, tensor, f"the output of {producer.part.path}")
        part = producer.part
        if isinstance(part, LinearPart | AffinePart):
            return _Site(producer, affine, part.check_affine_after, part.absorb_after)
        affine = move_before(producer, affine)
        (tensor,) = producer.tensors


def _site_after(graph: Graph, call: Call) -> _Site:
    """The linear layer that is reached by the output of the normalizer and by nothing else."""
    tensor, affine = call.outputs[0], call.part.affine
    if tensor.dtype != call.first.dtype:
        raise Obstacle(f"it takes {call.first.dtype} and returns {tensor.dtype}")
    while True:
        _check_sole_user(graph, tensor, "its output")
        (user,) = graph.users(tensor)
        part = user.part
        if isinstance(part, LinearPart):
            return _Site(user, affine, part.check_affine_before, part.absorb_before)
        affine = move_after(user, affine)
        (tensor,) = user.outputs


def _check_sole_user(graph: Graph, tensor: Tensor, what: str) -> None:
    users = graph.users(tensor)
    if graph.is_output(tensor):
        raise Obstacle(f"{what} is an output of the model")
    if len(users) > 1:
        names = ", ".join(dict.fromkeys(user.part.path for user in users))
        raise Obstacle(f"{what} is used {len(users)} times, by {names}")


def _row(norm: Norm, into: dict[Call, Part], reasons: dict[Call, str]) -> Row:
    if norm.call is None:
        return Row(norm.path, norm.name, False, None, norm.reason)
    if norm.call not in into:
        return Row(norm.path, norm.name, False, None, reasons[norm.call] + _REST)
    moved = {call.part: part for call, part in into.items()}
    target = into[norm.call]
    while target in moved:
        target = moved[target]
    return Row(norm.path, norm.name, True, target.path, None)
