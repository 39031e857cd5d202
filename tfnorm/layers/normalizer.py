"""A kind of normalizer: what all other parts of the package want to know of it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import keras

from tfnorm.layers import arguments
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.weight_centralization import WeightCentralization
from tfnorm.layers.weight_standardization import WeightStandardization

KERNELS = {"centralized": WeightCentralization, "standardized": WeightStandardization}
"""What may be made of the kernel before a normalizer, and the wrapper that does it."""

Options = Mapping[str, Any]


def _no_options(number: int) -> Options:
    del number
    return {}


@dataclass(frozen=True)
class Normalizer:
    """A kind of normalizer under a name, and everything that is particular to it.

    Calling it follows a convolution (or dense layer) by a normalization: `y, state =
    normalizer(layer, x, state)`, where `layer` is an unbuilt layer without bias and `state` is what
    the previous normalizer of the network's main path returned, None at the start. Only those that
    stand in a chain have a state; all others hand on None.

    Attributes:
        name: the name in flags and tables.
        layer_class: the layer that normalizes, None for a bias in its place.
        description: one line for a table.
        place: where it stands: "after" the layer before, "around" it (its first argument is that
            layer), or in a "chain", each called with the state that the one before it returned:
            `y, state = layer(x, previous=state)`.
        foldable: whether it is linear at inference, so that it folds into the layer before it.
        kernel: what is made of the kernel of the layer before, one of KERNELS; None is nothing.
            An option of every normalizer that stands behind a layer.
        defaults: arguments of the layer which make the name what it is.
        options: the user's arguments of the layer.
        of_width: arguments that follow from the number of channels.
        of_images: arguments that its paper advises for so many images that share statistics.
        of_steps: arguments that its paper advises for a run of so many training steps.
        advice: what to try instead where its batch statistics are too noisy.
        colour: of its lines and points in plots.
        marker: of its points, as matplotlib writes it.
    """

    name: str
    layer_class: type[keras.layers.Layer] | None
    description: str = ""
    place: Literal["after", "around", "chain"] = "after"
    foldable: bool = True
    kernel: str | None = None
    defaults: Options = field(default_factory=dict)
    options: Options = field(default_factory=dict)
    of_width: Callable[[int], Options] = field(default=_no_options, repr=False)
    of_images: Callable[[int], Options] = field(default=_no_options, repr=False)
    of_steps: Callable[[int], Options] = field(default=_no_options, repr=False)
    advice: str = "mabn, cbn or gn, or a larger batch"
    colour: str = "#666666"
    marker: str = "h"

    @property
    def takes_batch_statistics(self) -> bool:
        """Whether it normalizes by statistics of a batch, and not of each example alone."""
        return issubclass(self.layer_class or object, ChannelNormalization)

    @property
    def is_synchronized(self) -> bool:
        """Whether its statistics are those of all replicas."""
        return bool({**self.defaults, **self.options}.get("synchronized", False))

    @property
    def takes_kernel(self) -> bool:
        """Whether the kernel before it may be wrapped: it leaves the layer before as it is."""
        return self.layer_class is not None and self.place != "around"

    def accepted_options(self) -> list[str]:
        """What a user may choose of it, in order."""
        own = ["kernel", "centralize"] if self.takes_kernel else []
        return sorted([*accepted_options(self.layer_class), *own])

    def arguments(self, channels: int) -> dict[str, Any]:
        """Arguments of the layer for so many channels, without the axis.

        Raises:
            ValueError: epsilon is no number from 0; Keras' layers of groups take anything for it.
        """
        if "epsilon" in self.options:
            arguments.real("epsilon", self.options["epsilon"], 0, meaning=", added to the variance")
        return {**self.of_width(channels), **self.defaults, **self.options}

    def make(self, channels: int) -> keras.layers.Layer | None:
        """The layer for so many channels, around a convolution if it is of that kind."""
        if self.layer_class is None:
            return None
        if self.place != "around":
            return self.layer_class(name="made", **self.arguments(channels))
        layer = keras.layers.Conv2D(channels, 1, use_bias=False, name="made_around")
        return self.layer_class(layer, name="made", **{**self.defaults, **self.options})

    def wrap_kernel(self, layer: keras.layers.Layer, **kwargs: Any) -> keras.layers.Layer:
        """`layer` with the kernel that this normalizer wants before itself."""
        return layer if self.kernel is None else KERNELS[self.kernel](layer, **kwargs)

    def __call__(self, layer: keras.layers.Layer, x: Any, state: Any = None) -> tuple[Any, Any]:
        """Applies `layer` to x and normalizes its output; returns (y, state)."""
        return self.normalize(self.prepare(layer), x, state)

    def prepare(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """The layer as `normalize` takes it: its kernel wrapped, or with a bias.

        Where several places share the layer, as the levels of a pyramid share a detector's head, it
        is prepared once, and each place normalizes by itself.
        """
        if self.layer_class is None:
            return type(layer).from_config({**layer.get_config(), "use_bias": True})
        return layer if self.place == "around" else self.wrap_kernel(layer, name=layer.name)

    def normalize(self, layer: keras.layers.Layer, x: Any, state: Any = None) -> tuple[Any, Any]:
        """Applies a layer from `prepare` to x and normalizes its output; returns (y, state)."""
        if self.layer_class is None:
            return layer(x), None
        inner = getattr(layer, "layer", layer)
        axis = 1 if getattr(inner, "data_format", None) == "channels_first" else -1
        if self.place == "around":
            options = {**self.defaults, **self.options}
            return self.layer_class(layer, axis=axis, **options)(x), None
        y = layer(x)
        norm = self.layer_class(axis=axis, **self.arguments(y.shape[axis]))
        return norm(y, previous=state) if self.place == "chain" else (norm(y), None)


@functools.cache  # every normalizer of a model that is converted asks it
def accepted_options(layer_class: type | None) -> tuple[str, ...]:
    """Arguments that a user may give for a normalizer's layer, in order."""
    names = []
    for cls in inspect.getmro(layer_class) if layer_class else ():
        if cls is keras.layers.Layer:
            break
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(cls.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind in kinds and p.name not in names]
    return tuple(sorted(set(names) - {"self", "layer", "axis"}))
