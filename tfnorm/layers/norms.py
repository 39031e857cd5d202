"""The one registry of normalizers, and the one place where a convolution meets its normalizer."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from tfnorm.errors import UserError
from tfnorm.layers import batch_kalman_normalization
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_kalman_normalization import BatchKalmanNormalization
from tfnorm.layers.batch_normalization import BatchNormalization
from tfnorm.layers.batch_renormalization import BatchRenormalization
from tfnorm.layers.cross_iteration_batch_normalization import CrossIterationBatchNormalization
from tfnorm.layers.moving_average_batch_normalization import MovingAverageBatchNormalization
from tfnorm.layers.weight_centralization import WeightCentralization

Attach = Callable[[keras.layers.Layer, Any, Any, Mapping[str, Any]], tuple[Any, Any]]


@dataclass(frozen=True)
class Normalizer:
    """A named way to follow a convolution (or dense layer) by a normalization.

    Calling it applies both: `y, state = normalizer(layer, x, state)`, where `layer` is an unbuilt
    layer without bias and `state` is what the previous normalizer of the network's main path
    returned, None at the start. Only bkn has a state; all others hand on None.

    Attributes:
        name: the name in flags and tables.
        description: one line for a table.
        foldable: whether it is linear at inference, so that it folds into the layer before it.
        layer_class: the layer that normalizes, None for `none`.
        defaults: arguments of that layer which make the name what it is.
        options: the user's arguments of that layer.
        of_width: arguments that follow from the number of channels.
        centralize: whether the kernel of the layer before is centralized, an option of every
            normalizer that leaves that layer as it is; None for the others.
    """

    name: str
    description: str
    foldable: bool
    layer_class: type[keras.layers.Layer] | None
    attach: Attach = field(repr=False)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    of_width: Callable[[int], Mapping[str, Any]] = field(default=lambda channels: {}, repr=False)
    centralize: bool | None = False

    def arguments(self, channels: int) -> dict[str, Any]:
        """Arguments of the layer for so many channels, without the axis."""
        return {**self.of_width(channels), **self.defaults, **self.options}

    def __call__(self, layer: keras.layers.Layer, x: Any, state: Any = None) -> tuple[Any, Any]:
        """Applies `layer` to x and normalizes its output; returns (y, state)."""
        axis = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
        if self.centralize:
            layer = WeightCentralization(layer)
        return self.attach(layer, x, state, {"axis": axis, **self.defaults, **self.options})


def get(name: str, **options: Any) -> Normalizer:
    """The normalizer called `name`, its layer to be made with `options`.

    Raises:
        UserError: there is no such normalizer, or its layer does not take one of the options.
    """
    if name not in _REGISTRY:
        close = difflib.get_close_matches(str(name), NAMES, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"unknown norm {name!r}; the known ones are {', '.join(NAMES)}.{hint}")
    norm = _REGISTRY[name]
    accepted = accepted_options(norm.layer_class)
    if norm.centralize is not None:
        accepted = sorted([*accepted, "centralize"])
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise UserError(
            f"norm {name!r} does not take {', '.join(unknown)}; "
            f"it takes {', '.join(accepted) or 'no options'}."
        )
    centralize = options.pop("centralize", norm.centralize)
    return Normalizer(**{**vars(norm), "options": options, "centralize": centralize})


def concatenate_states(states: Sequence[Any]) -> Any:
    """The state of concatenated branches, from the states of the branches in the same order."""
    return None if states[0] is None else batch_kalman_normalization.concatenate_states(states)


def name_of(layer: Any) -> str | None:
    """The name of a normalizing layer, Keras' own included; None for any other layer.

    Of several names of one class it is the one that asks most of the layer's arguments.
    """
    if isinstance(layer, keras.layers.BatchNormalization):
        if getattr(layer, "renorm", False):  # an option of later versions of Keras
            return "brn"
        return "syncbn" if layer.synchronized else "bn"
    if isinstance(layer, keras.layers.GroupNormalization):
        return _group_name(layer)
    matching = [
        norm
        for norm in _REGISTRY.values()
        if norm.layer_class is type(layer)
        and all(getattr(layer, key, None) == value for key, value in norm.defaults.items())
    ]
    return max(matching, key=lambda norm: len(norm.defaults)).name if matching else None


def _group_name(layer: keras.layers.GroupNormalization) -> str:
    """By the number of groups: all channels together, each for itself, or anything between."""
    if layer.groups == 1:
        return "ln"
    channels = next((w.shape[0] for w in layer.weights), None)
    return "in" if layer.groups in (-1, channels) else "gn"


def accepted_options(layer_class: type | None) -> list[str]:
    """Arguments that a user may give for a normalizer's layer, in order."""
    names = []
    for cls in inspect.getmro(layer_class) if layer_class else ():
        if cls is keras.layers.Layer:
            break
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(cls.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind in kinds and p.name not in names]
    return sorted(set(names) - {"self", "layer", "axis"})


def _after(layer_class: type[keras.layers.Layer]) -> Attach:
    """The normalizer stands after the layer."""

    def attach(
        layer: keras.layers.Layer, x: Any, state: Any, arguments: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        del state
        return layer_class(**arguments)(layer(x)), None

    return attach


def _around(
    layer: keras.layers.Layer, x: Any, state: Any, arguments: Mapping[str, Any]
) -> tuple[Any, Any]:
    del state
    return CrossIterationBatchNormalization(layer, **arguments)(x), None


def _chained(
    layer: keras.layers.Layer, x: Any, state: Any, arguments: Mapping[str, Any]
) -> tuple[Any, Any]:
    return BatchKalmanNormalization(**arguments)(layer(x), previous=state)


def _groups(channels_per_group: Callable[[int], int]) -> Callable[[int], Mapping[str, Any]]:
    return lambda channels: {"groups": channels // channels_per_group(channels)}


def _group_normalization(of_width: Callable[[int], Mapping[str, Any]]) -> Attach:
    def attach(
        layer: keras.layers.Layer, x: Any, state: Any, arguments: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        del state
        y = layer(x)
        arguments = {**of_width(y.shape[arguments["axis"]]), **arguments}
        return keras.layers.GroupNormalization(**arguments)(y), None

    return attach


def _size_of_at_most_32_groups(channels: int) -> int:
    # Wu & He (2018) take 32 groups; narrow networks take fewer, of no less than 4 channels.
    return channels // math.gcd(channels, min(32, max(channels // 4, 1)))


def _bias(
    layer: keras.layers.Layer, x: Any, state: Any, arguments: Mapping[str, Any]
) -> tuple[Any, Any]:
    del state, arguments
    return type(layer).from_config({**layer.get_config(), "use_bias": True})(x), None


def _batch_like(
    name: str,
    description: str,
    layer_class: type[ChannelNormalization],
    attach: Attach | None = None,
    centralize: bool | None = False,
    **defaults: Any,
) -> Normalizer:
    attach = attach or _after(layer_class)
    return Normalizer(name, description, True, layer_class, attach, defaults, centralize=centralize)


def _group_like(name: str, description: str, channels_per_group: Callable) -> Normalizer:
    of_width = _groups(channels_per_group)
    attach, layer_class = _group_normalization(of_width), keras.layers.GroupNormalization
    return Normalizer(name, description, False, layer_class, attach, of_width=of_width)


_REGISTRY = {
    norm.name: norm
    for norm in (
        _batch_like("bn", "batch normalization", BatchNormalization),
        _batch_like("syncbn", "BN over all replicas", BatchNormalization, synchronized=True),
        _batch_like("brn", "batch renormalization", BatchRenormalization),
        _batch_like(
            "mabn",
            "moving average BN of a centralized convolution",
            MovingAverageBatchNormalization,
            centralize=True,
        ),
        _batch_like("cbn", "cross-iteration BN", CrossIterationBatchNormalization, _around, None),
        _batch_like("bkn", "batch Kalman normalization", BatchKalmanNormalization, _chained),
        _group_like("gn", "group normalization", _size_of_at_most_32_groups),
        _group_like("ln", "layer normalization (one group)", lambda channels: channels),
        _group_like("in", "instance normalization (one channel a group)", lambda channels: 1),
        Normalizer("none", "no normalization, a bias instead", True, None, _bias, centralize=None),
    )
}

NAMES = tuple(_REGISTRY)
