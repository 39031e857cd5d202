"""Conversion of a model as it stands: its layers are replaced where it holds them."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

from tfnorm.conversion.optimizers import Renewal, renewals
from tfnorm.conversion.parts import AbsorbedPart, AroundPart, KernelPart, SequencePart
from tfnorm.conversion.places import Found, expand_wrappers, find, found_layer
from tfnorm.conversion.placing import all_of, norm_part, substitute, what_is_lost
from tfnorm.conversion.rebuilding import Placed, place_all, unsuitable
from tfnorm.errors import UserError
from tfnorm.graph import (
    Graph,
    Part,
    Tensor,
    inline,
    layers_below,
    not_keras,
    read,
    replace_held,
    replace_layers,
)
from tfnorm.layers import Absorbed, norms
from tfnorm.layers.norms import Normalizer

_SHARED = ("kernel", "bias", "gamma", "beta")
_UNREAD = "the layers before it cannot be read from the model's code"


class InPlace:
    """A model or layer that stays the object that it is.

    Attributes:
        found: its normalizers, in the order in which the model holds them.
        shared: nothing, as there is one model.
    """

    shared = ()

    def __init__(self, model: keras.Layer) -> None:
        if not isinstance(model, keras.Layer):
            raise UserError(not_keras(model, "a Keras model or layer"))
        if norms.name_of(model) is not None:
            raise UserError(
                f"The layer {model.name!r} is a normalizer itself, and can be replaced only where "
                "something holds it. Give the model or layer that holds it."
            )
        self._model = model
        self._parts: dict[keras.Layer, Part] = {}  # what is to stand in the place of each layer
        self._replaced: dict[keras.Layer, keras.Layer] = {}
        self._old_values: list[tuple[keras.Variable, np.ndarray]] = []
        self._optimizers: list[Renewal] = []
        layers = layers_below(model, lambda layer: norms.name_of(layer) is not None)
        self.found = [
            found_layer(path, layer) for path, layer in layers if norms.name_of(layer) is not None
        ]

    def place(self, selected: list[Found], norm: Normalizer) -> dict[Found, Placed]:
        """Decides what stands in the places of those selected; changes nothing yet.

        Raises:
            UserError: if `norm` hands a state on, for which the model's code has no way.
        """
        if norm.place == "chain":
            raise UserError(
                f"{norm.name} hands a state on from layer to layer, for which the code of a model "
                f"has no place. Leave in_place out: tfnorm.convert(model, {norm.name!r}) builds a "
                "functional model that does."
            )
        changed = [one for one in selected if one.source is not None]
        asked = [norm, *(norms.get(one.source.norm) for one in changed)]
        by_graph: dict[Found, Placed] = {}
        if any(entry.kernel or entry.place != "after" for entry in asked):
            by_graph = self._place_by_graph(changed, norm)
        return by_graph | {
            one: self._place_plainly(one, norm) for one in changed if one not in by_graph
        }

    def finish(self, norm: Normalizer) -> keras.Layer:
        """The same model, converted."""
        try:
            for old, part in self._parts.items():
                self._replaced[old] = self._made(old, part)
        except BaseException as error:
            self._restore_values()
            if isinstance(error, UserError) or not isinstance(error, ValueError):
                raise
            raise unsuitable(self._model.name, norm, error) from error  # of a layer's options
        replace_layers(self._model, self._replaced)
        removed = [v for layer in self._replaced for v in layer.variables]
        try:
            self._optimizers = renewals(self._model, removed)
        except UserError:
            self.undo()
            raise
        for renewal in self._optimizers:
            renewal.do()
        return self._model

    def undo(self) -> None:
        """Makes the model what it was."""
        replace_layers(self._model, {new: old for old, new in self._replaced.items()})
        self._restore_values()
        for renewal in self._optimizers:
            renewal.undo()

    def _place_plainly(self, one: Found, norm: Normalizer) -> Placed:
        """Where nothing needs to be known of the layers before and after."""
        kind = norms.get(one.source.norm)
        if kind.place == "chain":
            return kind.name, "the model's code takes a state from it; left as it is"
        if kind.place == "around":
            return kind.name, f"{_UNREAD}; left as it is"
        reason = ""
        if norm.kernel or norm.place != "after":
            norm, reason = substitute(norm), _UNREAD
        if one.source.channels is None and norm.of_width(2) != {}:
            return kind.name, "it is not built, and its number of channels not known; left as it is"
        place = Part(one.path, one.layer)
        self._parts[one.layer] = norm_part(place, one.source, norm, one.source.channels)
        return norm.name, all_of(reason, what_is_lost(one.source, norm))

    def _place_by_graph(self, changed: list[Found], norm: Normalizer) -> dict[Found, Placed]:
        """Where the layers before and after have to be known, as far as the graph tells them."""
        try:
            graph = inline(read(self._model), rebuild=False)
        except UserError:
            return {}
        calls = [(call.part, call.outputs[0]) for call in graph.calls]
        by_layer = {one.layer: one for one in changed if _is_reached(one)}
        in_graph = [one for one in find(graph) if one.layer in by_layer and one.part is not None]
        can_move = {
            one: place
            for one, place in expand_wrappers(graph, in_graph).items()
            if place.calls and not (norm.place == "around" and place.calls[0].kwargs)
        }
        placed = place_all(graph, can_move, norm)
        self._parts |= _replaced_parts(calls, graph)
        return {by_layer[one.layer]: result for one, result in placed.items()}

    def _made(self, old: keras.Layer, part: Part) -> keras.Layer:
        """The layer for a part, with the variables of the old one where they mean the same."""
        new = part.make(old.name)
        if old.built:
            with _scope_around(old):
                new.build(next(iter(old._build_shapes_dict.values())))
            part.initialize(new)
            for ours, theirs in _twins(part, new):
                self._share(ours, theirs)
        return new

    def _share(self, ours: keras.Layer, theirs: keras.Layer) -> None:
        """Lets a new layer have the old one's trainable variables, which the optimizer knows."""
        for name in _SHARED:
            new, old = getattr(ours, name, None), getattr(theirs, name, None)
            both = isinstance(new, keras.Variable) and isinstance(old, keras.Variable)
            if both and (new.shape, new.dtype) == (old.shape, old.dtype):
                self._old_values.append((old, keras.ops.convert_to_numpy(old)))
                old.assign(new)
                old.regularizer, old.constraint = new.regularizer, new.constraint
                replace_held(ours, [(new, old)])

    def _restore_values(self) -> None:
        for variable, value in self._old_values:
            variable.assign(value)


def _is_reached(one: Found) -> bool:
    return norms.get(one.source.norm).place != "chain"


def _replaced_parts(calls: list[tuple[Part, Tensor]], graph: Graph) -> dict[keras.Layer, Part]:
    """What stands in the place of each layer, by who makes its output in an edited graph.

    A normalizer around a layer stands in the place of that layer, where shapes and what the code
    says of them stay right; in its own place nothing is done any more.
    """
    known = {part.operation for part, _ in calls}
    replaced: dict[keras.Layer, Part] = {}
    absorbed = {part.operation for part, _ in calls if isinstance(part.operation, Absorbed)}
    for part, output in calls:
        layer, call = part.operation, graph.producer(output)
        if call is None or call.part is part or layer in absorbed:
            continue
        new = call.part
        if isinstance(new, AroundPart):
            if new.linear.operation in known:
                replaced[new.linear.operation] = new
                replaced[layer] = AbsorbedPart(part.path, layer)
            else:  # It stood around its layer before.
                replaced[layer] = new
        elif (kind := norms.entry_of(layer)) and kind.place == "around":
            linear = graph.producer(call.first).part
            behind = [user.part for user in graph.users(output)]
            if len(behind) == 1 and behind[0].operation in absorbed:
                replaced |= {layer: linear, behind[0].operation: new}
            else:
                replaced[layer] = SequencePart(linear, new)
        else:
            replaced[layer] = new
    return replaced


def _twins(part: Part, new: keras.Layer) -> list[tuple[keras.Layer, keras.Layer]]:
    """Layers of the new one, each with the old one whose variables it is to have."""
    if isinstance(part, AroundPart):
        return [(new, part.operation), (new.layer, part.linear.operation)]
    if isinstance(part, SequencePart):
        linear, norm = new.layers
        return [(linear, part.linear.operation), (norm, part.norm.operation)]
    return [(new.layer if isinstance(part, KernelPart) else new, part.operation)]


@contextlib.contextmanager
def _scope_around(layer: keras.Layer) -> Iterator[None]:
    """Where its variables have the paths that they have in the model."""
    with contextlib.ExitStack() as stack:
        for name in (layer.path or "").split("/")[:-1]:
            stack.enter_context(keras.name_scope(name))
        yield
