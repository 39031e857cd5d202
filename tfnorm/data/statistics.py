"""Mean and standard deviation of the channels of a data set's images."""

import numpy as np
import tensorflow as tf

from tfnorm.data import decoding, untuned
from tfnorm.data.records import Records

_IMAGES = 10_000
_PIXELS = 2**27  # as many as 900 photographs have
_CHUNK = 16


def of_channels(records: Records, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of pixel / 255, over the first 10,000 images or fewer.

    Of encoded images no more are read than have 2^27 pixels together.

    Args:
        records: Examples with a uint8 image, encoded or not.
        channels: Of the images.

    Returns:
        [channels] float64 each; the deviation is at least 1 / 255, so that a constant channel is
        not blown up.
    """
    if records.spec["image"].dtype == tf.string:
        with tf.init_scope():  # Also where a pipeline, being traced, is the first to ask.
            mean, std = _of_encoded(records, channels)
    else:
        images = records.column("image")[:_IMAGES]
        mean, std = (getattr(images, name)((0, 1, 2), dtype=np.float64) for name in ("mean", "std"))
    return mean / 255, np.maximum(std / 255, 1 / 255)


def _of_encoded(records: Records, channels: int) -> tuple[np.ndarray, np.ndarray]:
    def sums(image: tf.Tensor) -> tf.Tensor:
        pixels = tf.cast(decoding.pixels(image, None, channels), tf.int64)
        number = tf.fill([channels], tf.size(pixels, tf.int64) // channels)
        return tf.stack([number, *(tf.reduce_sum(p, [0, 1]) for p in (pixels, pixels * pixels))])

    def of_chunk(indices: tf.Tensor) -> tf.Tensor:
        images = records.fetch(indices)["image"]
        return tf.map_fn(sums, images, fn_output_signature=tf.TensorSpec([3, channels], tf.int64))

    chunks = tf.data.Dataset.range(min(_IMAGES, len(records))).batch(_CHUNK)
    total = np.zeros((3, channels), np.int64)
    moments = chunks.map(of_chunk, num_parallel_calls=untuned.THREADS)
    for found in moments.with_options(untuned.options()):
        total += found.numpy().sum(0)
        if total[0, 0] > _PIXELS:
            break
    totals = total.T.tolist()  # Python's integers: nothing is lost in the difference.
    mean = [first / number for number, first, _ in totals]
    variance = [(number * second - first**2) / number**2 for number, first, second in totals]
    return np.array(mean), np.sqrt(variance)
