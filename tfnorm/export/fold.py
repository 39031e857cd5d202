"""Normalizers that are affine at inference go into the layers before them, or into those after."""

import collections
import copy
import warnings
from collections.abc import Callable, Iterable

import keras

from tfnorm.export.affine import Obstacle
from tfnorm.export.lowering import Norm, lower
from tfnorm.export.report import Report, Row
from tfnorm.export.sites import FOLLOWS_INPUT, Site, sites_after, sites_before
from tfnorm.graph import Call, Graph, Part, build, inline, read

Moves = dict[Call, list[Site]]  # for the call of a normalizer, what takes in its map
Into = dict[Call, list[Call]]  # for the call of a folded normalizer, whose parts took it in


def fold(model: keras.Model) -> tuple[keras.Model, Report]:
    """Returns a model for inference in which the normalizers are part of the layers beside them.

    A normalizer goes into the convolution or dense layer before it, else into the one after it,
    through layers that its map commutes with (pooling, dropout, reshape and the like), where the
    result is exact. Before an addition or a concatenation it goes into every branch, and after
    a fork into every user, or else stays. A layer that is shared between places with different
    normalizers becomes a layer for each. What remains of a normalizer that is affine but cannot
    move is a multiplication and an addition, after a subtraction where the mean is so far from zero
    for the spread that they would lose digits. Normalizers that use the statistics of their input
    stay as they are, and so do those whose map is not finite in some channel. A channel that is
    constant or NaN at inference, because a statistic is infinite or absurdly large, is named in a
    note of the report and in a warning.

    Args:
        model: a functional or Sequential Keras model, nested ones included. It stays as it is.

    Returns:
        The folded model, with variables of its own, inputs and outputs in the form of the model's;
        and the report, one row for each call of a normalizer. Nested models are written out.

    Raises:
        UserError: if the model has no graph of layers, or a layer that takes a normalizer in cannot
            be copied. Others that cannot are shared with the model.
    """
    graph = inline(read(model))
    norms = lower(graph)
    into: Into = {}
    reasons = _fold_until_nothing_moves(graph, norms, sites_before, into)
    after = _fold_until_nothing_moves(graph, norms, sites_after, into)
    reasons = {call: _one_of(reasons.get(call), reason) for call, reason in after.items()}
    rows = tuple(_row(norm, into, reasons) for norm in norms)
    notes = tuple(dict.fromkeys(norm.note for norm in norms if norm.note is not None))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return build(graph), Report(rows, notes)


def _one_of(before: str | None, after: str) -> str:
    """Why not into the layer before, the usual place; with none before, why not after either."""
    if before == FOLLOWS_INPUT:
        return f"{before}, and {after}"
    return before or after


def _fold_until_nothing_moves(
    graph: Graph,
    norms: Iterable[Norm],
    find: Callable[[Graph, Call], list[Site]],
    into: Into,
) -> dict[Call, str]:
    """Folds what `find` has places for; writes down where to, returns why not for the rest."""
    while True:
        reasons: dict[Call, str] = {}
        found: Moves = {}
        for call in (norm.call for norm in norms if norm.call and norm.call not in into):
            try:
                found[call] = find(graph, call)
            except Obstacle as obstacle:
                reasons[call] = str(obstacle)
        if not found:
            return reasons
        moves = _one_for_each_place(found)
        ready = _of_one_mind(graph, moves)
        if ready:
            _apply(graph, ready, into)
        else:
            _split(graph, moves)


def _one_for_each_place(found: Moves) -> Moves:
    """The moves that do not wait for others: the place stays, and is offered one map."""
    moves: Moves = {}
    claimed: set[Call] = set()
    for norm, sites in found.items():
        places = {site.call for site in sites}
        if not places & (found.keys() | claimed):
            moves[norm] = sites
            claimed |= places
    return moves


def _of_one_mind(graph: Graph, moves: Moves) -> Moves:
    """The moves that can be made at once.

    A part that is called several times changes for all of its calls, so it takes in a map only
    if all of its calls are offered the same one.
    """
    calls = collections.Counter(call.part for call in graph.calls)
    while True:
        offers = _offers(moves)
        torn = {
            part
            for part, sites in offers.items()
            if len(sites) < calls[part] or not all(_same(site, sites[0]) for site in sites)
        }
        if not torn:
            return moves
        moves = {
            norm: sites
            for norm, sites in moves.items()
            if not any(site.call.part in torn for site in sites)
        }


def _split(graph: Graph, moves: Moves) -> None:
    """Gives each shared part that is offered different maps a twin for each of them."""
    for sites in _offers(moves).values():
        while sites:
            alike = [site for site in sites if _same(site, sites[0])]
            sites = [site for site in sites if not _same(site, sites[0])]
            twin = copy.copy(alike[0].call.part)
            for site in alike:
                site.call.part = twin


def _apply(graph: Graph, moves: Moves, into: Into) -> None:
    for sites in _offers(moves).values():
        sites[0].absorb(sites[0].affine)
    for norm, sites in moves.items():
        graph.substitute(norm.outputs[0], norm.first)
        graph.remove(norm)
        into[norm] = [site.call for site in sites]


def _offers(moves: Moves) -> dict[Part, list[Site]]:
    offers: dict[Part, list[Site]] = {}
    for site in (site for sites in moves.values() for site in sites):
        offers.setdefault(site.call.part, []).append(site)
    return offers


def _same(site: Site, other: Site) -> bool:
    return site.affine.equals(other.affine)


def _row(norm: Norm, into: Into, reasons: dict[Call, str]) -> Row:
    if norm.call is None:
        return Row(norm.path, norm.name, False, None, norm.reason)
    if norm.call not in into:
        reason = f"{reasons[norm.call]}; {norm.call.part.what_is_left}"
        return Row(norm.path, norm.name, False, None, reason)
    targets = dict.fromkeys(call.part.path for call in _final(norm.call, into))
    return Row(norm.path, norm.name, True, ", ".join(targets), None)


def _final(norm: Call, into: Into) -> list[Call]:
    """Where a normalizer ended up: what took it in may have gone into another part itself."""
    return [end for call in into.get(norm, []) for end in _final(call, into) or [call]]
