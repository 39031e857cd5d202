"""The map y = scale·x + offset of each channel: what a normalizer is at inference."""

import dataclasses

import keras
import numpy as np

from tfnorm.graph import Call, Part


class Obstacle(Exception):
    """Why a normalizer cannot be folded into the layer that was looked at."""


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """y = scale·x + offset along one axis.

    Attributes:
        scale: float64, [C].
        offset: float64, [C].
        axis: the axis of the channels, counted from the front.
    """

    scale: np.ndarray
    offset: np.ndarray
    axis: int

    def after(self, first: "Affine") -> "Affine":
        """The one map that does `first` and then this one."""
        return Affine(self.scale * first.scale, self.scale * first.offset + self.offset, self.axis)

    def equals(self, other: "Affine") -> bool:
        """Whether both are the same map of the same axis."""
        return (
            self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.offset, other.offset)
        )


class AffinePart(Part):
    """A normalizer, as its affine map. What is left of it becomes one multiply and one add.

    Attributes:
        affine: the map.
        rank: of the input.
    """

    def __init__(self, path: str, operation: keras.Layer, affine: Affine, rank: int) -> None:
        super().__init__(path, operation)
        self.affine = affine
        self.rank = rank

    def check_affine_after(self, affine: Affine, call: Call) -> None:
        """Raises Obstacle unless `absorb_after` can take in a map of what the call returns."""
        if affine.axis != self.affine.axis:
            raise Obstacle(f"{self.path} before it works on another axis")

    def absorb_after(self, affine: Affine) -> None:
        """Takes in a map of the output."""
        self.affine = affine.after(self.affine)

    def check_affine_before(self, affine: Affine, call: Call) -> None:
        """Raises Obstacle unless `absorb_before` can take in a map of what the call is given."""
        if affine.axis != self.affine.axis:
            raise Obstacle(f"{self.path} after it works on another axis")

    def absorb_before(self, affine: Affine) -> None:
        """Takes in a map of the input."""
        self.affine = self.affine.after(affine)

    def make(self, name: str) -> keras.Layer:
        """A plain Keras layer that multiplies and adds, in the dtype of the normalizer."""
        dtype = self.operation.dtype_policy
        channels = len(self.affine.scale)
        if self.rank > 2:
            shape = [1] * self.rank
            shape[self.affine.axis] = channels
            return _rescaling(self.affine, shape, name, dtype)
        if keras.config.image_data_format() == "channels_last":
            return _rescaling(self.affine, [channels], name, dtype)
        # Under channels_first Rescaling takes any scale of rank < 3 for one of images.
        return keras.Sequential(
            [
                keras.layers.Reshape((1, channels), dtype=dtype),
                _rescaling(self.affine, [1, 1, channels], "rescaling", dtype),
                keras.layers.Reshape((channels,), dtype=dtype),
            ],
            name=name,
        )

    def weights(self) -> list[np.ndarray]:
        """None: the two numbers of each channel are constants."""
        return []


def _rescaling(affine: Affine, shape: list[int], name: str, dtype: object) -> keras.Layer:
    return keras.layers.Rescaling(
        affine.scale.reshape(shape), affine.offset.reshape(shape), name=name, dtype=dtype
    )
