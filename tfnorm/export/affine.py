"""The map y = scale·x + offset of each channel: what a normalizer is at inference."""

import dataclasses

import keras
import ml_dtypes
import numpy as np

from tfnorm.export import precision
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
        cancellation: how many times larger scale·x and offset are than y where they cancel.
    """

    scale: np.ndarray
    offset: np.ndarray
    axis: int
    cancellation: float = 0.0

    def after(self, first: "Affine") -> "Affine":
        """The one map that does `first` and then this one."""
        return dataclasses.replace(
            self,
            scale=self.scale * first.scale,
            offset=self.scale * first.offset + self.offset,
            cancellation=max(self.cancellation, first.cancellation),
        )

    def loses_digits(self, dtype: str) -> bool:
        """Whether scale·x + offset, computed as it stands, is not y to the dtype's tolerance."""
        return self.cancellation * precision.resolution(dtype) / 2 > precision.tolerance(dtype)

    def equals(self, other: "Affine") -> bool:
        """Whether both are the same map of the same axis."""
        return (
            self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.offset, other.offset)
        )


class AffinePart(Part):
    """A normalizer, as its affine map. What is left of it becomes one multiply and one add.

    Where these would lose digits, because x is far from zero for its spread, a subtraction comes
    first: y = scale·(x − zero) + rest, with zero = −offset/scale in the dtype of the layer and
    rest = offset + scale·zero what its rounding leaves. x − zero is exact where both are near.

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

    @property
    def what_is_left(self) -> str:
        """In words."""
        if not self.affine.loses_digits(self.operation.compute_dtype):
            return "one multiply and one add are left"
        return (
            "one subtraction, one multiply and one add are left, because its mean is "
            f"{self.affine.cancellation:.0e} times what it returns"
        )

    def make(self, name: str) -> keras.Layer:
        """A plain Keras layer that multiplies and adds, in the dtype of the normalizer."""
        steps = [(self.affine.scale, self.affine.offset)]
        if self.affine.loses_digits(self.operation.compute_dtype):
            zero = self._zero()
            rest = self.affine.offset + self.affine.scale * zero
            steps = [(np.ones_like(zero), -zero), (self.affine.scale, rest)]
        channels = len(self.affine.scale)
        if self.rank > 2:
            shape = [1] * self.rank
            shape[self.affine.axis] = channels
            return self._layer(name, steps, shape)
        if keras.config.image_data_format() == "channels_last":
            return self._layer(name, steps, [channels])
        # Under channels_first Rescaling takes any scale of rank < 3 for one of images.
        dtype = self.operation.dtype_policy
        return keras.Sequential(
            [
                keras.layers.Reshape((1, channels), dtype=dtype),
                self._layer("rescaling", steps, [1, 1, channels]),
                keras.layers.Reshape((channels,), dtype=dtype),
            ],
            name=name,
        )

    def _zero(self) -> np.ndarray:
        """The x of y = 0 in the dtype of the layer; 0 where there is none."""
        scale, offset = self.affine.scale, self.affine.offset
        zero = np.divide(-offset, scale, out=np.zeros_like(scale), where=scale != 0)
        largest = float(ml_dtypes.finfo(self.operation.compute_dtype).max)
        zero = np.where(np.abs(zero) <= largest, zero, 0.0)
        return zero.astype(self.operation.compute_dtype).astype("float64")

    def _layer(
        self, name: str, steps: list[tuple[np.ndarray, np.ndarray]], shape: list[int]
    ) -> keras.Layer:
        layers = [
            keras.layers.Rescaling(
                scale.reshape(shape),
                offset.reshape(shape),
                name=name if len(steps) == 1 else f"{name}_{i}",
                dtype=self.operation.dtype_policy,
            )
            for i, (scale, offset) in enumerate(steps)
        ]
        return layers[0] if len(layers) == 1 else keras.Sequential(layers, name=name)

    def weights(self) -> list[np.ndarray]:
        """None: the two numbers of each channel are constants."""
        return []
