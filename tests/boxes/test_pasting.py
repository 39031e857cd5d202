"""Masks in the pixels of an image against NumPy, pixel by pixel."""

import numpy as np
import tensorflow as tf

from tfnorm.boxes import paste


def reference(mask, box, height, width):
    """Bilinear interpolation between four neighbours, zeros around the mask."""
    top, left, bottom, right = map(float, box)
    found = np.zeros((height, width))
    around = np.pad(mask.astype(float), 1)
    for y in range(height):
        for x in range(width):
            v = (y + 0.5 - top) / (bottom - top) * len(mask) - 0.5
            u = (x + 0.5 - left) / (right - left) * len(mask) - 0.5
            if not (-1 < v < len(mask) and -1 < u < len(mask)):
                continue
            i, j = int(np.floor(v)), int(np.floor(u))
            part = around[i + 1 : i + 3, j + 1 : j + 3]
            rows, columns = np.array([1 - (v - i), v - i]), np.array([1 - (u - j), u - j])
            found[y, x] = rows @ part @ columns
    return found


def test_masks_are_read_bilinearly_at_the_centres_of_pixels(rng):
    height, width = 23, 31
    masks = rng.uniform(size=(4, 7, 7)).astype("float32")
    boxes = np.array(
        [
            [2.3, 4.7, 20.9, 13.1],
            [-5.0, -3.5, 9.0, 40.0],  # beyond the image
            [10.2, 10.6, 11.9, 12.4],  # smaller than the mask
            [6.0, 6.0, 6.0, 9.0],  # no area
        ],
        "float32",
    )
    found = paste(masks, boxes, (height, width)).numpy()
    assert found.shape == (4, height, width)
    for mask, box, own in zip(masks[:3], boxes, found):
        np.testing.assert_allclose(own, reference(mask, box, height, width), atol=1e-5)
        assert own.max() > 0.3
    assert not found[3].any()

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32)])
    def of_any_size(size):
        return paste(masks, boxes, size)

    np.testing.assert_allclose(of_any_size(tf.constant([height, width])), found, atol=1e-6)


def test_a_full_mask_covers_the_pixels_whose_centres_are_in_its_box():
    full = paste(np.ones((1, 28, 28), "float32"), [[3.2, 4.6, 9.4, 12.6]], (16, 20)).numpy()[0]
    inside = np.zeros((16, 20), bool)
    inside[3:9, 5:13] = True
    np.testing.assert_array_equal(full >= 0.5, inside)
