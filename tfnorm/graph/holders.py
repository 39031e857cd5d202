"""Where the layers of a model are held, and how others come into their places."""

import gc
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
from keras.src.ops.function import Function, make_node_key  # Keras has no public names for these
from keras.src.ops.node import Node
from keras.src.ops.symbolic_arguments import SymbolicArguments
from keras.src.utils.tracking import Tracker

_TRACED = ("train_function", "test_function", "predict_function")
_OF_KERAS = (keras.Operation, Node, SymbolicArguments, keras.KerasTensor, Tracker)
_OTHERS = {"builtins", "keras", "numpy", "tensorflow"}


def layers_below(
    root: keras.Layer, is_leaf: Callable[[keras.Layer], bool] = lambda layer: False
) -> Iterator[tuple[str, keras.Layer]]:
    """Each layer that Keras knows below `root`, once, with its path such as "encoder/bn1".

    Args:
        root: a model or layer.
        is_leaf: of which layers not to look inside.
    """
    seen = {id(root)}

    def below(layer: keras.Layer, prefix: str) -> Iterator[tuple[str, keras.Layer]]:
        for child in layer._layers:
            if id(child) not in seen:
                seen.add(id(child))
                yield prefix + child.name, child
                if not is_leaf(child):
                    yield from below(child, f"{prefix}{child.name}/")

    yield from below(root, "")


def replace_layers(root: keras.Layer, replacements: Mapping[keras.Layer, keras.Layer]) -> None:
    """Puts layers into the places of others, everywhere below `root`.

    That is where `replace_held` does, and in the nodes of functional graphs: also in those of
    other functional models over the same nodes, which thereby go on sharing the layers. What
    models have traced of them, such as `fit`'s function, is forgotten.

    Args:
        root: a model or layer, which is none of the replaced ones itself.
        replacements: the new layer for each old one. What a new one holds stays.
    """
    search = _Search(replacements.items())
    for old, new in replacements.items():
        new._inbound_nodes, new._outbound_nodes = old._inbound_nodes, old._outbound_nodes
        for node in new._inbound_nodes:
            _leave_out_unknown(node, new.call_signature_parameters)
    search.visit([[old._inbound_nodes, old._outbound_nodes] for old in replacements])
    search.visit(root)
    models = [x for x in gc.get_objects() if issubclass(type(x), (Function, keras.Model))]
    search.visit([x for x in models if not search.nodes.isdisjoint(_nodes(x))])
    for model in models:
        layers = model._flatten_layers() if isinstance(model, keras.Model) else ()
        if any(id(layer) in search.seen for layer in layers):
            vars(model).update((name, None) for name in _TRACED if name in vars(model))


def _leave_out_unknown(node: Node, parameters: list[str]) -> None:
    """Keras writes the mask that it found for a layer, or None, into the node of its call."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    if set(kwargs) - {*parameters, "training"}:
        known = {name: value for name, value in kwargs.items() if name in parameters}
        node.arguments = SymbolicArguments(*args, **known)


def replace_held(root: Any, replacements: Iterable[tuple[Any, Any]]) -> None:
    """Puts objects into the places of others in all that Keras' objects below `root` hold.

    That is in attributes, lists, dictionaries, tuples and sets, in functions' closures, in objects
    of the user's own, and in Keras' bookkeeping.

    Args:
        root: where to look.
        replacements: pairs of the old and the new one.
    """
    _Search(replacements).visit(root)


def _nodes(function: Any) -> list[Node]:
    by_depth = getattr(function, "_nodes_by_depth", {})
    return [node for nodes in by_depth.values() for node in nodes]


class _Search:
    """Visits all that objects hold, and puts others in their places."""

    def __init__(self, replacements: Iterable[tuple[Any, Any]]) -> None:
        self.new = {id(old): new for old, new in replacements}
        self.seen: dict[int, Any] = {}  # with the objects, so that none of their ids is used again
        self.nodes: set[Node] = set()
        self._waiting: list[Any] = []

    def visit(self, value: Any) -> None:
        self._held(value)
        while self._waiting:
            self._visit_members(self._waiting.pop())

    def _held(self, value: Any) -> Any:
        """What is to be held in the place of `value`."""
        if id(value) in self.new:
            return self.new[id(value)]
        if isinstance(value, tuple):
            items = [self._held(item) for item in value]
            if all(map(lambda item, old: item is old, items, value)):
                return value
            return value._make(items) if hasattr(value, "_make") else type(value)(items)
        if id(value) not in self.seen:
            if isinstance(value, dict | list | set):
                self.seen[id(value)] = value
                self._fill(value)
            elif isinstance(value, types.FunctionType) or _has_members(value):
                self.seen[id(value)] = value
                self._waiting.append(value)
        return value

    def _fill(self, container: dict | list | set) -> None:
        if isinstance(container, list):
            held = [self._held(item) for item in container]
            if any(new is not old for new, old in zip(held, container)):
                _change(container, "__setitem__", slice(None), held)
        elif isinstance(container, set):
            items = {self._key(item) for item in container}
            if items != container:
                _change(container, "clear")
                _change(container, "update", items)
        else:
            items = {self._key(key): self._held(value) for key, value in container.items()}
            if any(key not in container for key in items):
                _change(container, "clear")
            _change(container, "update", items)

    def _key(self, key: Any) -> Any:
        """Of a dictionary or set; Keras' trackers and KerasHub's tasks keep ids of layers."""
        is_id = type(key) is int and key in self.new
        return id(self.new[key]) if is_id else self._held(key)

    def _visit_members(self, owner: Any) -> None:
        if isinstance(owner, types.FunctionType):
            for cell in owner.__closure__ or ():
                _replace_content(cell, self._held)
            return
        members = vars(owner)
        for name, value in list(members.items()):
            held = self._held(value)
            if held is not value:
                members[name] = held  # Keras' __setattr__ refuses it once a layer is built.
        if isinstance(owner, Node):
            self.nodes.add(owner)
        elif isinstance(owner, Function):
            owner._nodes = {
                make_node_key(node.operation, node.operation._inbound_nodes.index(node))
                for node in _nodes(owner)
            }


def _change(container: dict | list | set, method: str, *args: Any) -> None:
    """Calls Python's own method: that of Keras' containers refuses once a layer is built."""
    kinds = [kind for kind in (dict, list, set) if kind in type(container).__mro__]
    if kinds and not type(container).__module__.startswith("tensorflow"):
        getattr(kinds[0], method)(container, *args)
    else:
        getattr(container, method)(*args)


def _has_members(value: Any) -> bool:
    """Whether a value is of Keras' structure, or an object of somebody else's class."""
    if isinstance(value, _OF_KERAS):
        return True
    if isinstance(value, type | types.ModuleType) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in _OTHERS


def _replace_content(cell: types.CellType, held: Callable[[Any], Any]) -> None:
    try:
        content = cell.cell_contents
    except ValueError:  # The cell is empty.
        return
    new = held(content)
    if new is not content:
        cell.cell_contents = new
