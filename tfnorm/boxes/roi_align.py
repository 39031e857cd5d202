"""What lies inside of a region, brought to one size: RoIAlign on a pyramid of feature maps."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from tfnorm.boxes.overlaps import areas

_CANONICAL_SIDE = 224.0  # pixels: an object of ImageNet


def levels_of(
    boxes: tf.Tensor, min_level: int, max_level: int, *, canonical_level: int = 4
) -> tf.Tensor:
    """The level of a pyramid that each region is looked at on, [...] int32.

    k = ⌊k₀ + log₂(√(w·h) / 224)⌋, within the levels there are. Source: Lin et al., "Feature Pyramid
    Networks for Object Detection", 2017, equation 1, with k₀ = 4.

    Args:
        boxes: [..., 4].
        min_level: the finest level.
        max_level: the coarsest level.
        canonical_level: k₀, that of a region of 224² pixels.
    """
    side = tf.maximum(tf.sqrt(areas(boxes)), 1e-3) / _CANONICAL_SIDE
    level = tf.floor(canonical_level + tf.math.log(side) / math.log(2))
    return tf.cast(tf.clip_by_value(level, min_level, max_level), tf.int32)


def roi_align(
    maps: Mapping[int, tf.Tensor],
    boxes: tf.Tensor,
    size: int,
    *,
    samples: int = 2,
    canonical_level: int = 4,
) -> tf.Tensor:
    """The features of regions, [batch, regions, size, size, channels], each of its own level.

    A region is cut into size × size bins; a bin is the mean of samples × samples points in it, each
    interpolated between the four cells around it: bilinearly, with the middle of cell i at
    (i + 1/2)·2^level pixels ("aligned"), and constant beyond the middles at the border. Gradients
    flow to the maps. Source: He et al., "Mask R-CNN", 2017, section 3.

    Args:
        maps: [batch, height, width, channels] by level, of stride 2^level.
        boxes: [batch, regions, 4] in pixels of the images.
        size: number of bins along each side.
        samples: number of points along each side of a bin.
        canonical_level: of `levels_of`.
    """
    numbers = sorted(maps)
    level = levels_of(boxes, numbers[0], numbers[-1], canonical_level=canonical_level)
    shapes = tf.stack([tf.shape(maps[number])[1:3] for number in numbers])
    cells = tf.reduce_prod(shapes, -1)
    of_level = tf.one_hot(level - numbers[0], len(numbers), dtype=tf.int32)
    batch, channels = tf.shape(boxes)[0], maps[numbers[0]].shape[-1]
    first = tf.range(batch)[:, None] * tf.reduce_sum(cells)
    places = _Places(
        first + tf.reduce_sum(of_level * tf.cumsum(cells, exclusive=True), -1),
        tf.reduce_sum(of_level * shapes[:, 0], -1),
        tf.reduce_sum(of_level * shapes[:, 1], -1),
        tf.pow(2.0, tf.cast(level, tf.float32)),
    )
    rows = [tf.reshape(maps[number], [batch, -1, channels]) for number in numbers]
    rows = tf.reshape(tf.concat(rows, 1), [-1, channels])
    return _mean_of_points(lambda cell: tf.gather(rows, cell), boxes, places, size, samples)


def align_instances(
    instances: tf.Tensor, objects: tf.Tensor, boxes: tf.Tensor, size: int, *, samples: int = 2
) -> tf.Tensor:
    """What share of each bin of a region its object covers, [batch, regions, size, size].

    It is `roi_align` of the mask of the region's object, in pixels.

    Args:
        instances: [batch, height, width] int, i + 1 where object i is seen.
        objects: [batch, regions] int, the number i of each region's object.
        boxes: [batch, regions, 4].
        size: number of bins along each side.
        samples: number of points along each side of a bin.
    """
    batch, height, width = (tf.shape(instances)[i] for i in range(3))
    first = tf.range(batch)[:, None] * height * width
    places = _Places(*(x + tf.zeros_like(objects) for x in (first, height, width)), 1.0)
    pixels = tf.reshape(tf.cast(instances, tf.int32), [-1])
    number = tf.cast(objects, tf.int32)[:, :, None, None] + 1

    def seen(cell: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.gather(pixels, cell) == number, tf.float32)[..., None]

    return _mean_of_points(seen, boxes, places, size, samples)[..., 0]


class _Places(NamedTuple):
    """Where the map of each region is among the cells of all maps, each [batch, regions]."""

    first: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor
    stride: tf.Tensor | float


def _mean_of_points(
    look_up: Callable[[tf.Tensor], tf.Tensor],
    boxes: tf.Tensor,
    places: _Places,
    size: int,
    samples: int,
) -> tf.Tensor:
    """[batch, regions, size, size, channels] of the values that `look_up` has of cells."""
    rows = _between(boxes[..., 0], boxes[..., 2], places.stride, places.height, size * samples)
    columns = _between(boxes[..., 1], boxes[..., 3], places.stride, places.width, size * samples)
    total = 0.0
    for row, of_row in rows:
        for column, of_column in columns:
            line = places.first[..., None] + row * places.width[..., None]
            values = look_up(line[..., :, None] + column[..., None, :])
            weight = of_row[..., :, None, None] * of_column[..., None, :, None]
            total += tf.cast(weight, values.dtype) * values
    batch, regions = tf.shape(boxes)[0], tf.shape(boxes)[1]
    bins = [batch, regions, size, samples, size, samples, total.shape[-1]]
    mean = tf.reduce_mean(tf.reshape(total, bins), (3, 5))
    return tf.ensure_shape(mean, [*boxes.shape[:2], size, size, total.shape[-1]])


def _between(
    start: tf.Tensor, end: tf.Tensor, stride: tf.Tensor | float, cells: tf.Tensor, points: int
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """The two cells along one axis between which each point lies, and the share of each."""
    share = (tf.range(points, dtype=tf.float32) + 0.5) / points
    place = start[..., None] + share * (end - start)[..., None]
    if not isinstance(stride, float):
        stride = stride[..., None]
    last = (cells - 1)[..., None]
    place = tf.clip_by_value(place / stride - 0.5, 0.0, tf.cast(last, tf.float32))
    lower = tf.cast(tf.floor(place), tf.int32)
    share = place - tf.floor(place)
    return [(lower, 1 - share), (tf.minimum(lower + 1, last), share)]
