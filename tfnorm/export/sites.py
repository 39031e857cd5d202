"""Where the map of a normalizer can go: the linear layers before it, or those after it."""

from collections.abc import Callable
from typing import NamedTuple

from tfnorm.export.affine import Affine, AffinePart, Obstacle
from tfnorm.export.commuting import move_after, move_before
from tfnorm.export.linear import LinearPart
from tfnorm.graph import Call, Graph, Tensor

FOLLOWS_INPUT = "it follows an input of the model"


class Site(NamedTuple):
    """A call whose part can take in an affine map, and the map as it is at that place."""

    call: Call
    affine: Affine
    absorb: Callable[[Affine], None]


def sites_before(graph: Graph, norm: Call) -> list[Site]:
    """The linear layers whose outputs reach the normalizer and nothing else.

    Raises:
        Obstacle: if the map of the normalizer cannot go there.
    """
    old, new = norm.first.dtype, norm.outputs[0].dtype
    if old != new:
        raise Obstacle(f"it takes {old} and returns {new}")
    return _producers(graph, norm.first, norm.part.affine)


def sites_after(graph: Graph, norm: Call) -> list[Site]:
    """The linear layers that are all that the output of the normalizer reaches.

    Raises:
        Obstacle: if the map of the normalizer cannot go there.
    """
    sites = _users(graph, norm.outputs[0], norm.part.affine)
    if len({site.call for site in sites}) < len(sites):
        raise Obstacle(f"its output reaches {sites[0].call.part.path} along two ways")
    return sites


def _producers(graph: Graph, tensor: Tensor, affine: Affine) -> list[Site]:
    producer = graph.producer(tensor)
    if producer is None:
        raise Obstacle(FOLLOWS_INPUT)
    part = producer.part
    _check_not_returned(graph, tensor, f"the output of {part.path}")
    users = graph.users(tensor)
    if len(users) > 1:
        names = ", ".join(dict.fromkeys(user.part.path for user in users))
        raise Obstacle(f"the output of {part.path} is used {len(users)} times, by {names}")
    if isinstance(part, LinearPart | AffinePart):
        part.check_affine_after(affine, producer)
        return [Site(producer, affine, part.absorb_after)]
    return [
        site
        for source, moved in move_before(producer, affine)
        for site in _producers(graph, source, moved)
    ]


def _users(graph: Graph, tensor: Tensor, affine: Affine) -> list[Site]:
    _check_not_returned(graph, tensor, "its output")
    sites: list[Site] = []
    for user in dict.fromkeys(graph.users(tensor)):
        part = user.part
        if isinstance(part, LinearPart | AffinePart):
            # The user casts the input of the normalizer as the normalizer does, or else stays.
            if tensor.dtype != user.outputs[0].dtype:
                raise Obstacle(f"{part.path} after it takes it to {user.outputs[0].dtype}")
            part.check_affine_before(affine, user)
            sites.append(Site(user, affine, part.absorb_before))
        else:
            moved = move_after(user, tensor, affine)
            sites += _users(graph, user.outputs[0], moved)
    return sites


def _check_not_returned(graph: Graph, tensor: Tensor, what: str) -> None:
    if graph.is_output(tensor):
        raise Obstacle(f"{what} is an output of the model")
