"""Boxes of objects, and which of them are left."""

import tensorflow as tf

from tfnorm.data.checking import checked
from tfnorm.data.example import ABSENT, OBJECT_ENTRIES, Example


def clip(example: Example, size: tf.Tensor, corner: tf.Tensor | None = None) -> Example:
    """Clips boxes to a rectangle; objects that have no area left are taken out of their rows.

    Args:
        example: With boxes [n, 4] and classes [n].
        size: [2], height and width of the rectangle.
        corner: [2], its top and left; None is (0, 0).

    Returns:
        The example; coordinates that are not a number are those of no object.
    """
    boxes = example["boxes"]
    least = tf.zeros([2]) if corner is None else tf.cast(corner, tf.float32)
    greatest = least + tf.cast(size, tf.float32)
    clipped = tf.clip_by_value(boxes, tf.tile(least, [2]), tf.tile(greatest, [2]))
    return keep({**example, "boxes": clipped}, area(clipped) > 0)


def keep(example: Example, kept: tf.Tensor) -> Example:
    """Takes objects out of their rows, where `kept` [n] is False.

    In `instances` their pixels become 0.
    """
    kept &= example["classes"] != ABSENT
    empty = {"classes": ABSENT}
    rows = {
        name: tf.where(
            kept[:, None] if example[name].shape.rank == 2 else kept,
            example[name],
            tf.cast(empty.get(name, 0), example[name].dtype),
        )
        for name in OBJECT_ENTRIES
        if name in example
    }
    if "instances" in example and example["instances"].dtype != tf.string:
        numbers = tf.concat([[0], tf.where(kept, tf.range(1, kept.shape[0] + 1), 0)], axis=0)
        rows["instances"] = tf.gather(numbers, example["instances"])
    return {**example, **rows}


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Areas of boxes [..., 4]; 0 for those that are turned round or not numbers."""
    sides = boxes[..., 2:] - boxes[..., :2]
    sides = tf.where(sides > 0, sides, 0.0)
    return sides[..., 0] * sides[..., 1]


def of_instances(instances: tf.Tensor, rows: int) -> tf.Tensor:
    """The least box around each instance.

    Args:
        instances: [h, w] int32, i + 1 where instance i is seen.
        rows: Number of boxes.

    Returns:
        [rows, 4] float32, (0, 0, 0, 0) for instances that are not seen. A number above `rows` ends
        in tf.errors.InvalidArgumentError.
    """
    greatest = tf.reduce_max(instances)
    text = f"more instances than --max_objects={rows} has rows for:"
    instances = checked(instances, greatest <= rows, text, greatest)
    height, width = tf.unstack(tf.shape(instances))
    y, x = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
    numbers = tf.reshape(instances, [-1])

    def edges(values: tf.Tensor, reduce: object) -> tf.Tensor:
        return reduce(tf.reshape(values, [-1]), numbers, rows + 1)[1:]

    least, greatest = tf.math.unsorted_segment_min, tf.math.unsorted_segment_max
    seen = edges(tf.ones_like(y), tf.math.unsorted_segment_sum) > 0
    boxes = [edges(y, least), edges(x, least), edges(y, greatest), edges(x, greatest)]
    boxes = tf.where(seen[:, None], tf.stack(boxes, axis=1), tf.constant([0, 0, -1, -1]))
    return tf.cast(boxes + tf.constant([0, 0, 1, 1]), tf.float32)
