"""Converting the normalizers of a model, from any to any."""

import logging
import re
from collections.abc import Callable
from typing import Any

import keras

from tfnorm.conversion import chain
from tfnorm.conversion.places import Found, Place, expand_wrappers, find
from tfnorm.conversion.placing import (
    Obstacle,
    place_after_kernel,
    place_around,
    place_plainly,
)
from tfnorm.conversion.probe import difference
from tfnorm.conversion.report import Report, Row
from tfnorm.errors import UserError
from tfnorm.graph import Graph, build, inline, read
from tfnorm.layers import norms
from tfnorm.layers.norms import Normalizer

_SUBSTITUTE = "brn"

Where = str | Callable[[keras.layers.Layer], bool]


def convert(
    model: keras.Model,
    norm: str,
    *,
    where: Where | None = None,
    strict: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> keras.Model | Report:
    """Returns a model with its normalizers swapped for another kind.

    Normalizers are Keras' BatchNormalization and GroupNormalization and all of tfnorm's. γ, β, the
    moving statistics and all other weights are carried over, and so are axis, momentum, epsilon,
    initializers, regularizers, constraints, dtype policy, `trainable`, masks and names. From bn
    to brn, cbn or bkn and back the outputs at inference stay what they are. Otherwise:

    - `cbn` takes the convolution before it into itself; a bias becomes part of moving_mean, which
      is exact. The layer has the normalizer's name.
    - `mabn` centralizes the kernel before it and drops its bias. That changes the outputs: a
      centralized kernel does not see the mean of its input patch. moving_mean is zero from then
      on, moving_variance starts with the variance carried over; `recalibrate` makes it the mean
      square of what the centralized kernel returns, training adapts the rest. Away from mabn the
      kernels are baked in, and outputs stay what they are.
    - `bkn` hands its state on along the graph: each layer takes that of the nearest one upstream;
      where branches meet, of the longest chain, the first of equally long ones.
    - `gn`, `ln` and `in` take γ and β alone, and hand no more on.

    Where the kind cannot take a place - no convolution before it (cbn, mabn), a layer called
    twice (cbn, mabn, bkn) and others, which the report tells - batch renormalization takes it: it
    can stand anywhere and infers the same.

    Args:
        model: a functional or Sequential model, nested ones included. It stays as it is.
        norm: a name of `tfnorm.layers.norms.NAMES`, such as "brn".
        where: which normalizers, by a regular expression that is searched in the path of the
            layer ("encoder/bn1") or a predicate of the layer; all by default.
        strict: whether a normalizer that cannot be what was asked for is an error.
        dry_run: whether to return the report alone.
        **options: arguments of the new layers, such as momentum=0.9 or window=4; they come before
            those carried over. Where another kind takes the place, it gets those that it knows.

    Returns:
        A functional model with variables of its own, not compiled and without a train_step of
        the model's class; nested models are written out. Its attribute `conversion_report` is the
        `Report`: one row for each normalizer, and the largest difference of the outputs on random
        inputs. With dry_run, that report.

    Raises:
        UserError: unknown norm or option, or a value that a layer cannot take; `where` is no
            regular expression, or one that matches nothing; the model has no graph of layers; or,
            with strict, a normalizer cannot be converted.
    """
    normalizer = norms.get(norm, **options)
    if normalizer.layer_class is None:
        raise UserError(
            f"norm {norm!r} has no layer to convert to. For a model without normalizers call "
            "tfnorm.fold(model)."
        )
    graph = inline(read(model))
    found = find(graph)
    selected = _select(found, where)
    places = expand_wrappers(graph, [one for one in selected if one.source is not None])
    placed = _place_all(graph, places, normalizer)
    rows = [_row(one, one in selected, placed.get(one), norm) for one in found]
    if strict:
        _check_all_placed(rows, found, selected, norm)
    converted = _build(graph, norm)
    report = Report(norm, tuple(rows), *difference(model, converted))
    if dry_run:
        return report
    elsewhere = [row for row, one in zip(rows, found) if one in selected and not row.placed]
    if elsewhere:
        logging.getLogger("tfnorm").warning(
            "%d of %d normalizers could not become %s; see model.conversion_report",
            len(elsewhere),
            len(rows),
            norm,
        )
    converted.conversion_report = report
    return converted


def _build(graph: Graph, norm: str) -> keras.Model:
    try:
        return build(graph)
    except UserError:
        raise
    except ValueError as error:  # of a layer that its options do not suit
        raise UserError(
            f"The model {graph.name!r} cannot be converted to {norm!r}: {error} "
            "Give other options, or leave the layer out with where=."
        ) from error


_Placed = tuple[str, str]  # the norm that took the place, and what there is to say

_PLACE = {"around": place_around, "chain": chain.check}


def _place_all(graph: Graph, places: dict[Found, Place], norm: Normalizer) -> dict[Found, _Placed]:
    plainly = place_after_kernel if norm.kernel else place_plainly
    place_one = _PLACE.get(norm.place, plainly)
    placed: dict[Found, _Placed] = {}
    for one, place in places.items():
        if not place.calls:
            placed[one] = norm.name, "no output depends on it any more: left out"
            continue
        try:
            placed[one] = norm.name, place_one(graph, place, norm)
        except Obstacle as obstacle:
            note = place_plainly(graph, place, _substitute(norm))
            placed[one] = _SUBSTITUTE, "; ".join(filter(None, (str(obstacle), note)))
    if norm.place == "chain":
        links = {
            place: one
            for one, place in places.items()
            if place.calls and placed[one][0] == norm.name
        }
        notes = chain.place_chain(graph, list(links), norm)
        placed |= {links[place]: (norm.name, note) for place, note in notes.items()}
    return placed


def _substitute(norm: Normalizer) -> Normalizer:
    """With the options that it knows."""
    accepted = norms.accepted_options(norms.get(_SUBSTITUTE).layer_class)
    options = {name: value for name, value in norm.options.items() if name in accepted}
    return norms.get(_SUBSTITUTE, **options)


def _select(found: list[Found], where: Where | None) -> list[Found]:
    if where is None:
        return found
    if callable(where):
        return [one for one in found if where(one.layer)]
    try:
        pattern = re.compile(where)
    except (re.error, TypeError) as error:
        raise UserError(
            f"where={where!r} is neither a regular expression ({error}) nor a predicate. Give one "
            "for the paths of normalizers, such as where='conv5_.*', or a function of the layer "
            "that returns True or False."
        ) from error
    selected = [one for one in found if pattern.search(one.path)]
    if not selected:
        names = ", ".join(one.path for one in found) or "none"
        raise UserError(f"where={where!r} selects no normalizer. Those of the model are: {names}.")
    return selected


def _row(one: Found, selected: bool, placed: _Placed | None, norm: str) -> Row:
    name = norms.name_of(one.layer)
    if placed is not None:
        target, note = placed
        return Row(one.path, name, target, target == norm, note)
    if not selected:
        return Row(one.path, name, name, name == norm, "not selected by where; left as it is")
    note = one.obstacle or "its state is used by others that stay; left as it is"
    return Row(one.path, name, name, name == norm, note)


def _check_all_placed(
    rows: list[Row], found: list[Found], selected: list[Found], norm: str
) -> None:
    wrong = [row for row, one in zip(rows, found) if one in selected and row.target != norm]
    if wrong:
        lines = "\n".join(f"  {row.name}: {row.note}" for row in wrong)
        raise UserError(
            f"{len(wrong)} of {len(rows)} normalizers cannot become {norm}:\n{lines}\n"
            "Leave these out with where=, or take strict=False, which puts "
            f"{_SUBSTITUTE} in their place."
        )
