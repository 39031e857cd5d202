"""Anchors: the boxes that a detector's predictions start from."""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class AnchorGrid:
    """Anchors of several scales and shapes at every position of the levels of a pyramid.

    At level l, in the middle of each of the ⌈H/2^l⌉ × ⌈W/2^l⌉ cells of 2^l pixels, stand boxes of
    area (size · 2^l · 2^(k/scales))², k = 0 ... scales − 1, in each ratio of height to width.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, section 4: areas of 32² to
    512² on the levels 3 to 7, scales 2^0, 2^(1/3), 2^(2/3), ratios 1:2, 1:1, 2:1.

    Attributes:
        min_level: the finest level.
        max_level: the coarsest level.
        size: side of the smallest square anchor, in cells.
        scales: number of scales in an octave.
        ratios: height over width.

    Example:
        AnchorGrid().boxes(256, 256).shape == (49104, 4)
    """

    min_level: int = 3
    max_level: int = 7
    size: float = 4.0
    scales: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_cell(self) -> int:
        """Number of anchors in a cell."""
        return self.scales * len(self.ratios)

    def boxes(self, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
        """All anchors of an image of that size, [anchors, 4]: by level, row, column, and in a cell
        by scale and ratio. They reach over the image's border.
        """  # noqa: D205
        levels = range(self.min_level, self.max_level + 1)
        return tf.concat([self.of_level(level, height, width) for level in levels], 0)

    def number(self, height: int, width: int) -> int:
        """How many anchors an image of that size has."""
        strides = [2**level for level in range(self.min_level, self.max_level + 1)]
        return self.per_cell * sum(-(-height // s) * -(-width // s) for s in strides)

    def of_level(self, level: int, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
        """Those of one level of an image of that size."""
        stride = 2**level
        ys, xs = (
            (tf.cast(tf.range((side + stride - 1) // stride), tf.float32) + 0.5) * stride
            for side in (height, width)
        )
        centres = tf.stack(tf.meshgrid(ys, xs, indexing="ij"), -1)[:, :, None]
        halves = tf.constant(self._sides(stride) / 2, tf.float32)
        return tf.reshape(tf.concat([centres - halves, centres + halves], -1), [-1, 4])

    def _sides(self, stride: int) -> np.ndarray:
        """Height and width of the anchors in a cell, [per_cell, 2]."""
        sides = self.size * stride * 2 ** (np.arange(self.scales) / self.scales)
        roots = np.sqrt(np.array(self.ratios))
        return np.stack([np.outer(sides, roots), np.outer(sides, 1 / roots)], -1).reshape(-1, 2)
