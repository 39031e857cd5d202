"""Conversion by a new model: its graph is read, edited and built anew."""

import keras

from tfnorm.conversion import chain
from tfnorm.conversion.places import Found, Place, expand_wrappers, find
from tfnorm.conversion.placing import (
    Obstacle,
    all_of,
    mark_shared,
    place_after_kernel,
    place_around,
    place_plainly,
    substitute,
)
from tfnorm.errors import UserError
from tfnorm.graph import Graph, build, inline, read
from tfnorm.layers.norms import Normalizer

Placed = tuple[str, str]  # the norm that took the place, and what there is to say

_PLACE = {"around": place_around, "chain": chain.prepare}


class Rebuilding:
    """A model that is to become a functional one with variables of its own.

    Attributes:
        found: its normalizers, in the order of their first calls.
        shared: paths of the layers that the new model shares with it.
    """

    def __init__(self, model: keras.Model) -> None:
        self._graph = inline(read(model))
        self.found = find(self._graph)
        self.shared: list[str] = []

    def place(self, selected: list[Found], norm: Normalizer) -> dict[Found, Placed]:
        """Puts `norm`, or what can stand there, into the places of those selected."""
        places = expand_wrappers(self._graph, [one for one in selected if one.source is not None])
        mark_shared(self._graph, places.values(), norm)
        return place_all(self._graph, places, norm)

    def finish(self, norm: Normalizer) -> keras.Model:
        """The converted model."""
        try:
            return build(self._graph, self.shared)
        except UserError:
            raise
        except ValueError as error:  # of a layer that its options do not suit
            raise unsuitable(self._graph.name, norm, error) from error

    def undo(self) -> None:
        """Nothing: the model is as it was."""


def unsuitable(name: str, norm: Normalizer, error: ValueError) -> UserError:
    """The error for options that a layer of the model cannot take."""
    return UserError(
        f"The model {name!r} cannot be converted to {norm.name!r}: {error} "
        "Give other options, or leave the layer out with where=."
    )


def place_all(graph: Graph, places: dict[Found, Place], norm: Normalizer) -> dict[Found, Placed]:
    """Puts `norm`, or what can stand there, into places of a graph."""
    plainly = place_after_kernel if norm.kernel else place_plainly
    place_one = _PLACE.get(norm.place, plainly)
    placed: dict[Found, Placed] = {}
    for one, place in places.items():
        if not place.calls:
            placed[one] = norm.name, "no output depends on it any more: left out"
            continue
        try:
            placed[one] = norm.name, place_one(graph, place, norm)
        except Obstacle as obstacle:
            other = substitute(norm)
            note = place_plainly(graph, place, other)
            placed[one] = other.name, all_of(str(obstacle), note)
    if norm.place == "chain":
        links = {
            place: one
            for one, place in places.items()
            if place.calls and placed[one][0] == norm.name
        }
        notes = chain.place_chain(graph, list(links), norm)
        for place, note in notes.items():
            before = placed[links[place]][1]
            placed[links[place]] = norm.name, all_of(before, note)
    return placed
