"""A normalizer apart from its method: the arguments and values that travel to another one."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from tfnorm.layers import ChannelNormalization, norms

_ARGUMENTS = (*norms.accepted_options(ChannelNormalization), "trainable")
_VALUES = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclasses.dataclass(frozen=True)
class Source:
    """What a normalizer is to one that takes its place.

    Attributes:
        norm: its short name.
        axis: the channel axis.
        arguments: of its constructor, those that other normalizers may have too, its dtype
            policy, and the bounds of Keras' own batch renormalization.
        values: of its weights by name; group normalization has no moving statistics.
    """

    norm: str
    axis: int
    arguments: dict[str, Any]
    values: dict[str, np.ndarray]

    @property
    def channels(self) -> int | None:
        """How many there are, as far as the values tell: None of a layer that is not built."""
        return next((len(value) for value in self.values.values()), None)


def read_source(layer: keras.Layer) -> Source | None:
    """What `layer` hands on, or None if it may do more than the normalizer it derives from."""
    norm = norms.name_of(layer)
    known = (keras.layers.BatchNormalization, norms.get(norm).layer_class) if norm else ()
    if type(layer) not in known:
        return None
    variables = {name: getattr(layer, name, None) for name in _VALUES}
    return Source(
        norm,
        layer.axis,
        {name: getattr(layer, name) for name in _ARGUMENTS if hasattr(layer, name)}
        | {"dtype": layer.dtype_policy}
        | _renorm_bounds(layer),
        {
            name: keras.ops.convert_to_numpy(variable)
            for name, variable in variables.items()
            if variable is not None
        },
    )


def _renorm_bounds(layer: keras.Layer) -> dict[str, float]:
    """Those of Keras' BatchNormalization(renorm=True), which knows no schedules."""
    if not getattr(layer, "renorm", False):  # an option of later versions of Keras
        return {}
    clipping = layer.renorm_clipping or {}
    bounds = {"r_max": clipping.get("rmax"), "d_max": clipping.get("dmax")}
    return {name: math.inf if bound is None else bound for name, bound in bounds.items()}
