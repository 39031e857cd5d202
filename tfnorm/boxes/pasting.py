"""From the small mask of a box to the pixels of the image that the box lies in."""

import tensorflow as tf

MASK_THRESHOLD = 0.5
"""The probability from which on a pixel belongs to an object ("Mask R-CNN", section 3.1)."""


def paste(masks: tf.Tensor, boxes: tf.Tensor, size: tf.Tensor | tuple[int, int]) -> tf.Tensor:
    """The probabilities of masks, one of each box, at the pixels of an image.

    A mask [m, m] is stretched over its box and read bilinearly at the centres of pixels. The
    centre (y + ½, x + ½) of a pixel lies at
        v = (y + ½ − top)/(bottom − top)·m − ½,  u = (x + ½ − left)/(right − left)·m − ½
    of the mask, where the centre of the mask's pixel (i, j) is at (i, j), and has the probability
        p(y, x) = Σ_ij max(0, 1 − |v − i|)·max(0, 1 − |u − j|)·mask_ij.
    Beyond the mask's pixels it is zero, as in Detectron2's `paste_masks_in_image` (grid_sample with
    align_corners=False): so it falls to half at the edge of the box and to zero outside of it. The
    sum is two products of matrices for each mask.

    Args:
        masks: [n, m, m] float32, probabilities.
        boxes: [n, 4] float32, in pixels of the image; of a box without area the mask is empty.
        size: height and width of the image.

    Returns:
        [n, height, width] float32. What is at least `MASK_THRESHOLD` belongs to the object.
    """
    height, width = (size[0], size[1]) if isinstance(size, tuple) else tf.unstack(size)
    top, left, bottom, right = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)
    rows = _weights(top, bottom, height, masks.shape[-2])
    columns = _weights(left, right, width, masks.shape[-1])
    along_rows = tf.matmul(rows, tf.cast(masks, tf.float32))
    return tf.matmul(along_rows, columns, transpose_b=True)


def _weights(first: tf.Tensor, last: tf.Tensor, pixels: tf.Tensor | int, cells: int) -> tf.Tensor:
    """[n, pixels, cells]: how much of each cell of a mask is read at the centre of each pixel."""
    centres = tf.range(pixels, dtype=tf.float32) + 0.5
    sides = (last - first)[:, None]
    share = (centres - first[:, None]) / tf.where(sides > 0, sides, 1.0)
    places = share * cells - 0.5
    weights = tf.maximum(1 - tf.abs(places[..., None] - tf.range(cells, dtype=tf.float32)), 0)
    return tf.where(sides[..., None] > 0, weights, 0.0)
