"""Which anchors or regions of an image a detector learns from in a step."""

import tensorflow as tf

from tfnorm.boxes.matching import BACKGROUND


def sample(classes: tf.Tensor, number: int, most_objects: int, seeds: tf.Tensor) -> tf.Tensor:
    """Draws `number` of the boxes of each image without replacement: [batch, number] int32.

    At most `most_objects` that have an object come first, then such of the background. Where these
    do not suffice, the other ones with an object follow, and ignored ones last: a draw is always
    full. What is drawn of an image follows from its classes and its seed alone. Source: Girshick,
    "Fast R-CNN", 2015, section 2.3 (128 regions, a quarter of objects).

    Args:
        classes: [batch, boxes] int: a class, BACKGROUND or IGNORED of `tfnorm.boxes`.
        number: at most that of boxes.
        most_objects: how many of objects at most come first.
        seeds: [batch, 2] int.
    """
    draws = _uniform(seeds, classes.shape[1])
    of_objects = tf.where(classes >= 0, draws, -1.0)
    least = tf.math.top_k(of_objects, most_objects).values[:, -1:]
    turn = tf.where(classes == BACKGROUND, 2.0, 0.0)
    turn = tf.where(classes >= 0, tf.where(of_objects >= least, 3.0, 1.0), turn)
    return tf.math.top_k(turn + draws, number).indices


def _uniform(seeds: tf.Tensor, number: int) -> tf.Tensor:
    """[batch, number] from 0 to 1, of each image's seed; what XLA makes of a seed is its own."""
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform([number], seed),
        tf.cast(seeds, tf.int32),
        fn_output_signature=tf.TensorSpec([number], tf.float32),
    )
