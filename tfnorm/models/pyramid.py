"""What a backbone returns: feature maps of several strides."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """Feature maps by level, each about 2^level times smaller than the images.

    A dilated stage keeps the level that it would have without dilation, and is larger than that.

    Attributes:
        levels: the feature maps [batch, height, width, channels].
        states: what the last normalizer of each level returned, which the next one along it takes
            as its `state`; None where normalizers hand nothing on.
    """

    levels: dict[int, Any]
    states: dict[int, Any]

    @property
    def deepest(self) -> int:
        """The level of the smallest feature map."""
        return max(self.levels)

    def at_most(self, level: int) -> int:
        """The deepest level that is not deeper than `level`, or the first one if all are."""
        return max((own for own in self.levels if own <= level), default=min(self.levels))


Features = Callable[[Any], Pyramid]
"""A backbone with its normalizer and options: from images to their pyramid."""
